"""Gaussians over the noise of one datum: diagonal, with full covariance, or of low rank, starting at N(0, I).

    full      eps = m + D (I + N) u           N strictly lower triangular, D = diag exp(log_scale)
    diagonal  the same with N = 0
    low rank  eps = m + D (u + F v)           F (D, rank), v ~ N(0, I) of its own

Scales stand outside, so that the other parameters do not depend on how narrow the posterior is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

FULL = 64
"""Latent numbers of a datum up to which ``"auto"`` takes the full covariance; beyond it is of low rank."""


class Gaussian(NamedTuple):
    """Parameters for one datum; ``lower`` and ``factor`` are ``None`` where the covariance has no such part."""

    loc: Float[Array, "*data D"]
    log_scale: Float[Array, "*data D"]
    lower: Float[Array, "*data D D"] | None = None
    factor: Float[Array, "*data D rank"] | None = None

    def draw(self, key: Key[Array, ""], count: int | None = None) -> Array:
        """One eps (D,), or ``count`` of them (count, D) in pairs of opposite noise: odd errors of a mean cancel."""
        size = self.loc.shape[-1] + (0 if self.factor is None else self.factor.shape[-1])
        if count is None:
            return self.at(jax.random.normal(key, (size,)))
        half = jax.random.normal(key, (-(-count // 2), size))
        return jax.vmap(self.at)(jnp.concatenate([half, -half])[:count])

    def at(self, noise: Float[Array, " noise"]) -> Float[Array, " D"]:
        """eps from standard normal noise: (D,), or (D + rank,) where the covariance is of low rank."""
        size = self.loc.shape[-1]
        u = noise[:size]
        if self.lower is not None:
            u = u + jnp.tril(self.lower, -1) @ u
        if self.factor is not None:
            u = u + self.factor @ noise[size:]
        return self.loc + jnp.exp(self.log_scale) * u

    def log_prob(self, eps: Float[Array, " D"], ends: tuple[int, ...]) -> Float[Array, " sites"]:
        """log density in nats of the first ``ends[0]``, ``ends[1]``, ... numbers of eps: marginals, the last is all."""
        e = (eps - self.loc) * jnp.exp(-self.log_scale)
        if self.lower is not None:
            # The inverse, which all draws of a datum share: a triangular solve for each is slow in batches.
            eye = jnp.eye(e.shape[-1])
            root = jax.scipy.linalg.solve_triangular(
                jnp.tril(self.lower, -1) + eye, eye, lower=True, unit_diagonal=True
            )
            e = root @ e
        at = jnp.asarray((0, *ends))[1:]  # integers even where there is no site
        total = jnp.concatenate(
            [jnp.zeros(1), jnp.cumsum(-0.5 * e**2 - self.log_scale - 0.5 * math.log(2 * math.pi), axis=-1)]
        )[at]
        if self.factor is None:
            return total

        def corrected(end: int) -> Array:
            # Woodbury and the determinant lemma for I + F F', the first rows of F alone.
            F, b = self.factor[:end], e[:end]  # type: ignore[index]
            eye = jnp.eye(F.shape[-1])
            root = jnp.linalg.cholesky(eye + F.T @ F)
            seen = jax.scipy.linalg.solve_triangular(root, eye, lower=True) @ (F.T @ b)
            return 0.5 * seen @ seen - jnp.log(jnp.diagonal(root)).sum()

        return total + jnp.stack([corrected(end) for end in ends])

    def widened(self, by: float) -> Gaussian:
        """The same with standard deviations ``by`` times as large, correlations kept."""
        return self._replace(log_scale=self.log_scale + math.log(by))


def start(n: int, size: int, covariance: str, rank: int, key: Key[Array, ""]) -> Gaussian:
    """N(0, I) for each of ``n`` data.  A low-rank factor starts small, not at 0, where its gradient vanishes."""
    zero = jnp.zeros((n, size))
    if covariance == "full":
        return Gaussian(zero, zero, lower=jnp.zeros((n, size, size)))
    if covariance == "low_rank":
        rank = min(rank, size)
        factor = 0.03 * jax.random.normal(key, (size, rank))
        return Gaussian(zero, zero, factor=jnp.broadcast_to(factor, (n, size, rank)))
    return Gaussian(zero, zero)


def which(covariance: str, size: int) -> str:
    """Resolve ``"auto"`` for a datum of ``size`` latent numbers."""
    if covariance != "auto":
        return covariance
    return "full" if size <= FULL else "low_rank"
