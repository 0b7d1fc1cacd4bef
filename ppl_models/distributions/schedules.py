"""Noise schedules: how a diffusion turns data into noise, ``x_t = alpha(t) x_0 + sigma(t) eps``.

    SDE   dx = f(t) x dt + g(t) dw,                  f = alpha'/alpha,   g^2 = 2 sigma (sigma' - f sigma)
    ODE   dx/dt = f x - g^2/2 grad log p_t(x)        (the same p_t at every t)
    log-SNR = 2 log(alpha / sigma), decreasing in t

Each schedule is a frozen dataclass of plain numbers: hashable (so it may be static under ``jit``) and JSON-able.  Time
runs from ``start``, near the data, to ``T``, near or at pure noise.  The conventions are those of Karras et al.
(2022, arXiv 2206.00364) and Kingma et al. (2021, arXiv 2107.00630).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Scalar = Float[Array, "..."]


@runtime_checkable
class Schedule(Protocol):
    """What samplers, priors and objectives ask of a schedule; ``t`` may have any shape."""

    @property
    def kind(self) -> str: ...
    @property
    def T(self) -> float: ...
    @property
    def start(self) -> float: ...
    def alpha(self, t: ArrayLike) -> Scalar: ...
    def sigma(self, t: ArrayLike) -> Scalar: ...
    def rates(self, t: ArrayLike) -> tuple[Scalar, Scalar]: ...
    def sde(self, t: ArrayLike) -> tuple[Scalar, Scalar]: ...
    def log_snr(self, t: ArrayLike) -> Scalar: ...
    def time(self, log_snr: ArrayLike) -> Scalar: ...


def _check_times(start: float, T: float, limit: float = math.inf) -> None:
    if not 0 <= start < T <= limit:
        at_most = "" if limit == math.inf else f" <= {limit:g}"
        raise ValueError(f"times must satisfy 0 <= start < T{at_most}, got start={start!r}, T={T!r}")


def _float(t: ArrayLike) -> Array:
    return jnp.asarray(t, dtype=jnp.result_type(float, t))


@dataclass(frozen=True)
class VariancePreserving:
    """``alpha = exp(-B/2)``, ``sigma^2 = 1 - alpha^2``, ``B(t) = b0 t + (b1 - b0) t^2 / 2`` (Song et al. 2021).

    At the usual ``T = 1`` a share ``alpha = 6.6e-3`` of the data is left: N(0, I) is not the law of ``x_T``.
    """

    b0: float = 0.1
    b1: float = 20.0
    T: float = 1.0
    start: float = 0.0
    kind: Literal["vp"] = "vp"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _check_times(self.start, self.T)
        if not 0 < self.b0 <= self.b1 < math.inf:
            raise ValueError(f"rates must satisfy 0 < b0 <= b1, got b0={self.b0!r}, b1={self.b1!r}; usual: 0.1, 20")

    def integral(self, t: ArrayLike) -> Scalar:
        """``B(t)``, the integral of ``beta`` from 0."""
        t = _float(t)
        return t * (self.b0 + 0.5 * (self.b1 - self.b0) * t)

    def alpha(self, t: ArrayLike) -> Scalar:
        """Share of the data in ``x_t``."""
        return jnp.exp(-0.5 * self.integral(t))

    def sigma(self, t: ArrayLike) -> Scalar:
        """Standard deviation of the noise in ``x_t``."""
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def rates(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(alpha', sigma')``; sigma' is infinite at t = 0."""
        f, g2 = self.sde(t)
        a, s = self.alpha(t), self.sigma(t)
        return f * a, f * s + 0.5 * g2 / s

    def sde(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(f, g^2) = (-beta/2, beta)``."""
        beta = self.b0 + (self.b1 - self.b0) * _float(t)
        return -0.5 * beta, beta

    def log_snr(self, t: ArrayLike) -> Scalar:
        """``-log(exp(B) - 1)``."""
        return -jnp.log(jnp.expm1(self.integral(t)))

    def time(self, log_snr: ArrayLike) -> Scalar:
        """The inverse of :meth:`log_snr`."""
        B = jax.nn.softplus(-_float(log_snr))
        return 2 * B / (self.b0 + jnp.sqrt(self.b0**2 + 2 * (self.b1 - self.b0) * B))


@dataclass(frozen=True)
class EDM:
    """``alpha = 1``, ``sigma = t`` from ``start`` to ``T`` (Karras et al. 2022); its grid is ``RK4(warp=7)``."""

    T: float = 80.0
    start: float = 0.002
    kind: Literal["edm"] = "edm"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _check_times(self.start, self.T)

    def alpha(self, t: ArrayLike) -> Scalar:
        """1: the data keep their scale."""
        return jnp.ones_like(_float(t))

    def sigma(self, t: ArrayLike) -> Scalar:
        """``t`` itself."""
        return _float(t)

    def rates(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(alpha', sigma') = (0, 1)``."""
        t = _float(t)
        return jnp.zeros_like(t), jnp.ones_like(t)

    def sde(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(f, g^2) = (0, 2 t)``."""
        t = _float(t)
        return jnp.zeros_like(t), 2 * t

    def log_snr(self, t: ArrayLike) -> Scalar:
        """``-2 log t``."""
        return -2 * jnp.log(_float(t))

    def time(self, log_snr: ArrayLike) -> Scalar:
        """The inverse of :meth:`log_snr`."""
        return jnp.exp(-0.5 * _float(log_snr))


@dataclass(frozen=True)
class Trigonometric:
    """``x_t = cos(t) x_0 + sin(t) eps``, ``0 <= t <= pi/2``: at ``pi/2`` the law is N(0, I) exactly.

    Every variance-preserving schedule is a change of this clock.  The drift ``E[cos(t) eps - sin(t) x_0 | x_t = x]`` is
    bounded at both ends; in terms of the score it is not, so networks should predict ``x_0`` or this velocity.
    """

    T: float = math.pi / 2
    start: float = 1e-3
    kind: Literal["trigonometric"] = "trigonometric"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _check_times(self.start, self.T, math.pi / 2)

    def alpha(self, t: ArrayLike) -> Scalar:
        """``cos(t)``."""
        return jnp.cos(_float(t))

    def sigma(self, t: ArrayLike) -> Scalar:
        """``sin(t)``."""
        return jnp.sin(_float(t))

    def rates(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(alpha', sigma') = (-sin t, cos t)``."""
        return -self.sigma(t), self.alpha(t)

    def sde(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(f, g^2) = (-tan t, 2 tan t)``, infinite at pi/2."""
        tangent = jnp.tan(_float(t))
        return -tangent, 2 * tangent

    def log_snr(self, t: ArrayLike) -> Scalar:
        """``-2 log tan t``."""
        return -2 * jnp.log(jnp.tan(_float(t)))

    def time(self, log_snr: ArrayLike) -> Scalar:
        """The inverse of :meth:`log_snr`."""
        return jnp.arctan(jnp.exp(-0.5 * _float(log_snr)))
