"""What a diffusion's network predicts, and how each of these becomes the drift of the probability-flow ODE.

    score   grad log p_t(x)                 noise     E[eps | x_t] = -sigma score
    D       E[x_0 | x_t]                    velocity  E[alpha eps - sigma x_0 | x_t]   (alpha^2 + sigma^2 = 1)

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
    if isinstance(score, Score | Noise | Denoiser | Velocity):
        return score
    if callable(score):
        return Score(score)
    raise ValueError(
        f"score must be a function (params, x, t) -> array like x, or one wrapped in Score, Noise, Denoiser or "
        f"Velocity, got {type(score).__name__}"
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

    def check(self, schedule: Schedule) -> None:
        """Raise ``ValueError`` where the drift divides by zero on the schedule's interval."""
        _needs_noise("denoiser", schedule)


@dataclass(frozen=True)
class Velocity:
    """``fn`` predicts ``v = E[alpha eps - sigma x_0 | x_t]``, for schedules with ``alpha^2 + sigma^2 = 1``."""

    fn: Fn

    def drift(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``(alpha sigma' - sigma alpha') v``, which is ``v`` itself for the trigonometric schedule."""
        a_rate, s_rate = schedule.rates(t)
        return (schedule.alpha(t) * s_rate - schedule.sigma(t) * a_rate) * self.fn(params, x, t)

    def denoise(self, schedule: Schedule, params: Any, x: Datum, t: ArrayLike) -> Datum:
        """``alpha x - sigma v``."""
        return schedule.alpha(t) * x - schedule.sigma(t) * self.fn(params, x, t)

    def check(self, schedule: Schedule) -> None:
        """Raise ``ValueError`` for a schedule that does not preserve variance, or a drift that divides by zero."""
        t = jnp.asarray([schedule.start, 0.5 * (schedule.start + schedule.T), schedule.T])
        total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
        if float(jnp.abs(total - 1).max()) > 1e-4:
            raise ValueError(
                "the velocity alpha eps - sigma x_0 determines x_0 only where alpha^2 + sigma^2 = 1, which this "
                "schedule does not keep; use Trigonometric() or VariancePreserving(), or let the network predict x_0"
            )
        if not bool(jnp.isfinite(jnp.stack(schedule.rates(schedule.start))).all()):
            _needs_noise("velocity", schedule)
