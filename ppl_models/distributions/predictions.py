"""What a diffusion's network predicts, and how each of these becomes the drift of the probability-flow ODE.

    score   grad log p_t(x)                 noise     E[eps | x_t] = -sigma score
    D       E[x_0 | x_t]                    velocity  v = E[alpha eps - sigma x_0 | x_t]
                                            flow      u = E[alpha' x_0 + sigma' eps | x_t], the drift itself

All are linear in each other given ``x_t``, so :func:`convert` turns any of them into any other.  ``target(schedule, x,
x_0, t)`` of each class is what a network that predicts it regresses on; put D in the place of x_0 and it is the
prediction.

A function predicts for one datum: ``fn(params, x, t)``, ``x`` of the datum's shape and ``t`` a scalar, returns an array
like ``x``; batches are made by ``vmap``.  Wrap it in the class that says what it predicts; a bare function is a score.
The wrappers hash by the function, so keep the function itself (a module-level function or a frozen dataclass with
``__call__``), not a fresh lambda in each call: a new one compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ppl_models.distributions.schedules import Schedule

Fn = Callable[[Any, Array, Any], Array]
Datum = Float[Array, "*shape"]

ZERO = 1e-8
"""Below this, alpha or sigma counts as zero: a formula that divides by it is refused."""


@runtime_checkable
class Prediction(Protocol):
    """A network's output together with its meaning."""

    @property
    def fn(self) -> Fn: ...
    def drift(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum: ...
    def denoise(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum: ...
    def check(self, schedule: Schedule) -> None: ...


def as_prediction(score: Any) -> Prediction:
    """Return ``score`` if it says what it predicts, else :class:`Score` around it."""
    if isinstance(score, Prediction):
        return score
    if callable(score):
        return Score(score)
    raise ValueError(
        f"score must be a function (params, x, t) -> array like x, or one wrapped in Score, Noise, Denoiser, Velocity, "
        f"Flow or Preconditioned, got {type(score).__name__}"
    )


def _needs_data_left(what: str, schedule: Schedule) -> None:
    if float(schedule.alpha(schedule.T)) < ZERO:
        raise ValueError(
            f"a {what} leaves the drift undefined at T={schedule.T:g}, where alpha = 0; let the network predict x_0 "
            "(Denoiser) or the velocity (Velocity), or choose a smaller T"
        )


def _needs_noise(what: str, schedule: Schedule) -> None:
    if float(schedule.sigma(schedule.start)) < ZERO:
        raise ValueError(
            f"a {what} leaves the drift undefined at start={schedule.start:g}, where sigma = 0; give the schedule a "
            "small positive start (1e-3, say), or wrap an exact score in Score"
        )


@dataclass(frozen=True)
class Score:
    """``fn`` predicts ``grad log p_t(x)``: drift ``f x - g^2/2 score``, bounded at t = 0."""

    fn: Fn

    def drift(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``dx/dt`` of the probability-flow ODE."""
        f, g2 = schedule.sde(t)
        return f * x - 0.5 * g2 * self.fn(params, x, t)

    def denoise(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``E[x_0 | x_t] = (x + sigma^2 score) / alpha``."""
        return (x + schedule.sigma(t) ** 2 * self.fn(params, x, t)) / schedule.alpha(t)

    @staticmethod
    def target(schedule: Schedule, x: Datum, x_0: Datum, t: ArrayLike) -> Datum:
        """``(alpha x_0 - x) / sigma^2``."""
        return (schedule.alpha(t) * x_0 - x) / schedule.sigma(t) ** 2

    def check(self, schedule: Schedule) -> None:
        """Raise ``ValueError`` where the drift divides by zero on the schedule's interval."""
        _needs_data_left("score", schedule)


@dataclass(frozen=True)
class Noise:
    """``fn`` predicts ``E[eps | x_t]``, the form of DDPM."""

    fn: Fn

    def drift(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``f x + (sigma' - f sigma) eps``."""
        a_rate, s_rate = schedule.rates(t)
        f = a_rate / schedule.alpha(t)
        return f * x + (s_rate - f * schedule.sigma(t)) * self.fn(params, x, t)

    def denoise(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``(x - sigma eps) / alpha``."""
        return (x - schedule.sigma(t) * self.fn(params, x, t)) / schedule.alpha(t)

    @staticmethod
    def target(schedule: Schedule, x: Datum, x_0: Datum, t: ArrayLike) -> Datum:
        """``(x - alpha x_0) / sigma``, the noise."""
        return (x - schedule.alpha(t) * x_0) / schedule.sigma(t)

    def check(self, schedule: Schedule) -> None:
        """Raise ``ValueError`` where the drift divides by zero on the schedule's interval."""
        _needs_data_left("noise prediction", schedule)
        _needs_noise("noise prediction", schedule)


@dataclass(frozen=True)
class Denoiser:
    """``fn`` predicts ``D = E[x_0 | x_t]``: drift ``(sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D``."""

    fn: Fn

    def drift(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``dx/dt`` of the probability-flow ODE; bounded where alpha = 0."""
        a_rate, s_rate = schedule.rates(t)
        ratio = s_rate / schedule.sigma(t)
        return ratio * x + (a_rate - schedule.alpha(t) * ratio) * self.fn(params, x, t)

    def denoise(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """The prediction itself."""
        return self.fn(params, x, t)

    @staticmethod
    def target(schedule: Schedule, x: Datum, x_0: Datum, t: ArrayLike) -> Datum:
        """``x_0`` itself."""
        return x_0

    def check(self, schedule: Schedule) -> None:
        """Raise ``ValueError`` where the drift divides by zero on the schedule's interval."""
        _needs_noise("denoiser", schedule)


@dataclass(frozen=True)
class Velocity:
    """``fn`` predicts ``v = E[alpha eps - sigma x_0 | x_t]`` (Salimans & Ho 2022, arXiv 2202.00512).

    With ``n = alpha^2 + sigma^2``, 1 where the schedule preserves variance: ``D = (alpha x - sigma v) / n`` and
    ``E[eps | x_t] = (sigma x + alpha v) / n``.
    """

    fn: Fn

    def drift(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``[(n'/2) x + (alpha sigma' - sigma alpha') v] / n``, ``v`` itself for the trigonometric schedule."""
        (a_rate, s_rate), a, s = schedule.rates(t), schedule.alpha(t), schedule.sigma(t)
        along, across = a * a_rate + s * s_rate, a * s_rate - s * a_rate
        return (along * x + across * self.fn(params, x, t)) / (a**2 + s**2)

    def denoise(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``(alpha x - sigma v) / n``."""
        a, s = schedule.alpha(t), schedule.sigma(t)
        return (a * x - s * self.fn(params, x, t)) / (a**2 + s**2)

    @staticmethod
    def target(schedule: Schedule, x: Datum, x_0: Datum, t: ArrayLike) -> Datum:
        """``alpha eps - sigma x_0``."""
        a, s = schedule.alpha(t), schedule.sigma(t)
        return a * (x - a * x_0) / s - s * x_0

    def check(self, schedule: Schedule) -> None:
        """Raise ``ValueError`` where the drift divides by zero on the schedule's interval."""
        if not bool(jnp.isfinite(jnp.stack(schedule.rates(schedule.start))).all()):
            _needs_noise("velocity", schedule)
