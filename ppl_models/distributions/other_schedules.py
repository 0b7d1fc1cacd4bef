"""More noise schedules: exploding variance, the cosine, and the straight path of flow matching.

The protocol and the notation are those of :mod:`ppl_models.distributions.schedules`:

    VarianceExploding   alpha = 1                  sigma = low (high / low)^t       Song et al. 2021, arXiv 2011.13456
    Cosine              alpha = cos(u) / cos(u_0)  sigma = sqrt(1 - alpha^2)        Nichol & Dhariwal 2021, 2102.09672
    FlowMatching        alpha = 1 - t              sigma = t                        Lipman et al. 2023, 2210.02747
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ppl_models.distributions.schedules import (
    EDM,
    Scalar,
    Trigonometric,
    VariancePreserving,
    _check_times,
    _float,
)


@dataclass(frozen=True)
class VarianceExploding:
    """``alpha = 1``, ``sigma = low (high / low)^t``, ``0 <= t <= 1``: the VE-SDE of Song et al. (2021, appendix C).

    The same family of laws as :class:`~ppl_models.distributions.schedules.EDM`, on a clock that is even in log sigma.
    ``sigma`` is 0 at ``t = -inf`` only, which ``time(inf)`` returns.  ``high`` should be at least the largest distance
    between two data.
    """

    low: float = 0.01
    high: float = 50.0
    T: float = 1.0
    start: float = 0.0
    kind: Literal["ve"] = "ve"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _check_times(self.start, self.T)
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(
                f"noise levels must satisfy 0 < low < high, got low={self.low!r}, high={self.high!r}; usual: 0.01, 50"
            )

    @property
    def _rate(self) -> float:
        return math.log(self.high / self.low)

    def alpha(self, t: ArrayLike) -> Scalar:
        """1: the data keep their scale."""
        return jnp.ones_like(_float(t))

    def sigma(self, t: ArrayLike) -> Scalar:
        """``low (high / low)^t``."""
        return self.low * jnp.exp(self._rate * _float(t))

    def rates(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(alpha', sigma') = (0, sigma log(high / low))``."""
        s = self.sigma(t)
        return jnp.zeros_like(s), self._rate * s

    def sde(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(f, g^2) = (0, 2 sigma^2 log(high / low))``."""
        s = self.sigma(t)
        return jnp.zeros_like(s), 2 * self._rate * s**2

    def log_snr(self, t: ArrayLike) -> Scalar:
        """``-2 log sigma``, a straight line."""
        return -2 * (math.log(self.low) + self._rate * _float(t))

    def time(self, log_snr: ArrayLike) -> Scalar:
        """The inverse of :meth:`log_snr`."""
        return (-0.5 * _float(log_snr) - math.log(self.low)) / self._rate


@dataclass(frozen=True)
class Cosine:
    """``alpha = cos(u) / cos(u_0)``, ``u = (pi/2) (t + s) / (1 + s)``, ``u_0 = u(0)``, ``sigma^2 = 1 - alpha^2``.

    ``s`` is ``offset``; Nichol & Dhariwal (2021, arXiv 2102.09672, eq. 17) take .008, so that the first steps are not
    too small.  At ``T = 1`` nothing of the data is left: N(0, I) is the exact law of ``x_T``.
    """

    offset: float = 0.008
    T: float = 1.0
    start: float = 1e-3
    kind: Literal["cosine"] = "cosine"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _check_times(self.start, self.T, 1.0)
        if not 0 <= self.offset < 1:
            raise ValueError(f"offset must be in [0, 1), got {self.offset!r}; usual: 0.008")

    @property
    def _w(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def _u0(self) -> float:
        return self._w * self.offset

    def _u(self, t: ArrayLike) -> Scalar:
        # In float32 pi/2 is a little too large: its cosine would be negative.
        return jnp.minimum(self._w * _float(t) + self._u0, math.pi / 2)

    def alpha(self, t: ArrayLike) -> Scalar:
        """``cos(u) / cos(u_0)``."""
        return jnp.maximum(jnp.cos(self._u(t)), 0.0) / math.cos(self._u0)

    def sigma(self, t: ArrayLike) -> Scalar:
        """``sqrt(sin(u - u_0) sin(u + u_0)) / cos(u_0)``: ``sqrt(1 - alpha^2)`` without its cancellation."""
        step = self._w * _float(t)
        return jnp.sqrt(jnp.sin(step) * jnp.sin(step + 2 * self._u0)) / math.cos(self._u0)

    def rates(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(alpha', sigma')``, ``sigma' = -alpha alpha' / sigma``; infinite at t = 0."""
        a_rate = -self._w * jnp.sin(self._u(t)) / math.cos(self._u0)
        return a_rate, -self.alpha(t) * a_rate / self.sigma(t)

    def sde(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(f, g^2) = (-(pi/2) tan(u) / (1 + s), -2 f)``, infinite at t = 1."""
        f = -self._w * jnp.sin(self._u(t)) / (self.alpha(t) * math.cos(self._u0))
        return f, -2 * f

    def log_snr(self, t: ArrayLike) -> Scalar:
        """``2 log(alpha / sigma)``."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time(self, log_snr: ArrayLike) -> Scalar:
        """The inverse of :meth:`log_snr`."""
        half = 0.5 * _float(log_snr)
        a2, s2 = jax.nn.sigmoid(2 * half), jax.nn.sigmoid(-2 * half)
        sin0, cos0 = math.sin(self._u0), math.cos(self._u0)
        u = jnp.arctan2(jnp.sqrt(sin0**2 + s2 * cos0**2), jnp.sqrt(a2) * cos0)
        # u - u_0 by its sine, which is exact where there is next to no noise.
        return jnp.arctan2(s2 * cos0**2 / jnp.sin(u + self._u0), jnp.cos(u - self._u0)) / self._w


@dataclass(frozen=True)
class FlowMatching:
    """``x_t = (1 - t) x_0 + t eps``, ``0 <= t <= 1``: the straight (optimal transport) path, data at ``t = 0``.

    Lipman et al. (2023, arXiv 2210.02747, eq. 20, with sigma_min = 0 and their time turned round), and the rectified
    flow of Liu et al. (2022, arXiv 2209.03003).  The ODE's drift is ``E[eps - x_0 | x_t]``, bounded at both ends, and
    N(0, I) is the exact law of ``x_T`` at ``T = 1``.
    """

    T: float = 1.0
    start: float = 1e-3
    kind: Literal["flow"] = "flow"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _check_times(self.start, self.T, 1.0)

    def alpha(self, t: ArrayLike) -> Scalar:
        """``1 - t``."""
        return 1 - _float(t)

    def sigma(self, t: ArrayLike) -> Scalar:
        """``t`` itself."""
        return _float(t)

    def rates(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(alpha', sigma') = (-1, 1)``."""
        one = jnp.ones_like(_float(t))
        return -one, one

    def sde(self, t: ArrayLike) -> tuple[Scalar, Scalar]:
        """``(f, g^2) = (-1 / (1 - t), 2 t / (1 - t))``, infinite at t = 1."""
        t = _float(t)
        return -1 / (1 - t), 2 * t / (1 - t)

    def log_snr(self, t: ArrayLike) -> Scalar:
        """``2 log((1 - t) / t)``."""
        t = _float(t)
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time(self, log_snr: ArrayLike) -> Scalar:
        """The inverse of :meth:`log_snr`."""
        return jax.nn.sigmoid(-0.5 * _float(log_snr))


SCHEDULES = {
    kind.kind: kind for kind in (VariancePreserving, EDM, Trigonometric, VarianceExploding, Cosine, FlowMatching)
}
"""Schedules by their name (``kind``); each can be made without arguments."""
