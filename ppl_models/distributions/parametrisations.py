"""Two more things that a diffusion's network may predict, and the conversion of any prediction into any other.

    flow          u = E[alpha' x_0 + sigma' eps | x_t] = dx/dt, what flow matching learns
    EDM network   F with D = c_skip x + c_out F(c_in x, c_noise), whose input and target have unit variance

The coefficients of the second follow from two demands of Karras et al. (2022, arXiv 2206.00364, appendix B.6), here for
any schedule.  Let the data have variance ``s_d^2``, and ``v = alpha^2 s_d^2 + sigma^2`` be that of ``x_t``.

    unit input:    c_in = v^(-1/2)
    least error:   c_skip = argmin_c Var(x_0 - c x_t) = argmin_c (1 - c alpha)^2 s_d^2 + c^2 sigma^2 = alpha s_d^2 / v
    unit target:   c_out^2 = Var(x_0 - c_skip x_t) = s_d^2 sigma^2 / v,   target F = (x_0 - c_skip x_t) / c_out
    noise level:   c_noise = log(sigma / alpha) / 4

A loss ``|D - x_0|^2`` weighted by ``1 / c_out^2`` is ``|F - target|^2``.  At alpha = 1 this is EDM; with s_d = 1 and
alpha^2 + sigma^2 = 1 it is the velocity: c_skip = alpha, c_out = sigma, F = -v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ppl_models.distributions.predictions import (
    ZERO,
    Datum,
    Denoiser,
    Fn,
    Noise,
    Prediction,
    Score,
    Velocity,
    as_prediction,
)
from ppl_models.distributions.schedules import Schedule


class Coefficients(NamedTuple):
    """``c_skip``, ``c_out``, ``c_in`` and ``c_noise`` at one time."""

    skip: Float[Array, "..."]
    out: Float[Array, "..."]
    into: Float[Array, "..."]
    noise: Float[Array, "..."]


def preconditioning(schedule: Schedule, t: ArrayLike, sd: float = 0.5) -> Coefficients:
    """The coefficients for data of standard deviation ``sd``; the loss of D is to be weighted by ``1 / out^2``."""
    a, s = schedule.alpha(t), schedule.sigma(t)
    total = (a * sd) ** 2 + s**2
    level = 0.25 * (jnp.log(s) - jnp.log(jnp.maximum(a, ZERO)))
    return Coefficients(a * sd**2 / total, s * sd / jnp.sqrt(total), 1 / jnp.sqrt(total), level)


@dataclass(frozen=True)
class Preconditioned:
    """``fn(params, c_in x, c_noise)`` is the raw network F of EDM, for data of standard deviation ``sd``.

    Note that ``fn`` reads the scaled datum and the noise level, not ``x`` and ``t``.
    """

    fn: Fn
    sd: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sd < float("inf"):
            raise ValueError(f"sd is the standard deviation of the data, expected > 0, got {self.sd!r}; usual: 0.5")

    def denoise(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``D = c_skip x + c_out F(c_in x, c_noise)``."""
        c = preconditioning(schedule, t, self.sd)
        return c.skip * x + c.out * self.fn(params, c.into * x, c.noise)

    def drift(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``dx/dt`` of the probability-flow ODE."""
        (a_rate, s_rate), a, s = schedule.rates(t), schedule.alpha(t), schedule.sigma(t)
        ratio = s_rate / s
        return ratio * x + (a_rate - a * ratio) * self.denoise(schedule, params, x, t)

    def target(self, schedule: Schedule, x: Datum, x_0: Datum, t: ArrayLike) -> Datum:
        """``(x_0 - c_skip x) / c_out``: of unit variance where the data have the standard deviation ``sd``."""
        c = preconditioning(schedule, t, self.sd)
        return (x_0 - c.skip * x) / c.out

    def check(self, schedule: Schedule) -> None:
        """Raise ``ValueError`` where the drift divides by zero on the schedule's interval."""
        Denoiser(self.fn).check(schedule)


@dataclass(frozen=True)
class Flow:
    """``fn`` predicts ``u = E[alpha' x_0 + sigma' eps | x_t]``: the drift of the ODE is the prediction itself."""

    fn: Fn

    def drift(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """The prediction itself."""
        return self.fn(params, x, t)

    def denoise(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``(sigma' x - sigma u) / (sigma' alpha - sigma alpha')``."""
        (a_rate, s_rate), a, s = schedule.rates(t), schedule.alpha(t), schedule.sigma(t)
        return (s_rate * x - s * self.fn(params, x, t)) / (s_rate * a - s * a_rate)

    @staticmethod
    def target(schedule: Schedule, x: Datum, x_0: Datum, t: ArrayLike) -> Datum:
        """``alpha' x_0 + sigma' (x - alpha x_0) / sigma``."""
        (a_rate, s_rate), a, s = schedule.rates(t), schedule.alpha(t), schedule.sigma(t)
        return a_rate * x_0 + s_rate * (x - a * x_0) / s

    def check(self, schedule: Schedule) -> None:
        """Any schedule will do."""


PREDICTIONS = {"score": Score, "eps": Noise, "x": Denoiser, "v": Velocity, "flow": Flow, "edm": Preconditioned}
"""What a network may predict, by the name that papers use."""


@dataclass(frozen=True)
class _Converted:
    """A prediction as the function of another one."""

    source: Prediction
    schedule: Schedule
    to: Any

    def __call__(self, params: Any, x: Datum, t: ArrayLike) -> Datum:
        return self.to.target(self.schedule, x, self.source.denoise(self.schedule, params, x, t), t)


def convert(prediction: Any, schedule: Schedule, to: type) -> Any:
    """``prediction`` as one of the class ``to``: the same model, said in another way.

    ``to`` is ``Score``, ``Noise``, ``Denoiser``, ``Velocity`` or ``Flow`` (a :class:`Preconditioned` network reads
    other inputs, so it can only be converted from).  Conversions divide by ``sigma``, and by ``alpha`` out of ``Score``
    and ``Noise``: they are undefined where these are 0, and lose digits where they are small.

    >>> import jax.numpy as jnp
    >>> from ppl_models.distributions import Denoiser, Flow, FlowMatching
    >>> shrunk = Denoiser(lambda params, x, t: 0.5 * x)
    >>> float(convert(shrunk, FlowMatching(), Flow).fn(None, jnp.asarray(1.0), 0.5))  # (x - D) / t
    1.0
    """
    source = as_prediction(prediction)
    if to not in (Score, Noise, Denoiser, Velocity, Flow):
        raise ValueError(f"to must be Score, Noise, Denoiser, Velocity or Flow, got {to!r}")
    return to(_Converted(source, schedule, to))
