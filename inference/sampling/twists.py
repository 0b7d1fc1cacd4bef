"""Twists: guesses of p(y | x_t) from the denoised datum D = E[x_0 | x_t], which steer a diffusion towards y.

    point      p(y | x_0 = D)                                          any likelihood; far too sure while t is large
    gaussian   N(y; h(D), r^2 J J' + S),  r^2 = v sigma^2 / (v alpha^2 + sigma^2)      normal likelihoods
    tweedie    N(y; h(D), J C J' + S),    C = (sigma^2 / alpha) dD/dx = Cov[x_0 | x_t] normal likelihoods
    smoothed   mean over k of p(y | D + r xi_k), xi_k ~ N(0, I) fixed  any likelihood

``y ~ N(h(x_0), S)`` where the likelihood is normal, ``J = dh/dx`` at D; v is the variance of a coordinate of the data.
The point twist is that of diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687), the gaussian one that of
PiGDM (Song et al. 2023), the tweedie one that of TMPD (Boys et al. 2023, arXiv 2310.06721): their guidance is its
gradient.  In twisted sequential Monte Carlo any of them is right, and a better one needs fewer particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from inference.sampling.observed import Observed, gaussian_parts
from inference.sampling.protocols import Schedule

Kind = Literal["point", "gaussian", "tweedie", "smoothed"]
KINDS = ("point", "gaussian", "tweedie", "smoothed")
LEFT = 0.02
"""Share of the data alpha below which x_t tells next to nothing, and C, a ratio of two small numbers, is replaced."""


class Twist(NamedTuple):
    """Value and gradient in x of the log twist at one particle, and D, all from one call of the denoiser."""

    log: Float[Array, ""]
    grad: Array
    denoised: Array


class Twister:
    """The twist ``kind`` for what was observed; ``to_data`` carries x_0 into the data's units.

    ``spread``  v, the variance of a coordinate of x_0.
    ``probes``  (K, *shape): the xi of the smoothed twist.

    Raises ``ValueError`` for a gaussian or tweedie twist of a likelihood that is not normal, and for a tweedie one with
    nuisances, which would need the denoiser again for each of their values.
    """

    def __init__(
        self,
        kind: Kind,
        observed: Observed,
        to_data: Callable[[Array], Array],
        schedule: Schedule,
        *,
        spread: float = 1.0,
        probes: Array | None = None,
    ) -> None:
        if kind == "tweedie" and observed.size:
            raise ValueError("a tweedie twist takes no nuisances; use twist='gaussian'")
        self.kind, self.observed, self.to_data, self.schedule = kind, observed, to_data, schedule
        self.spread, self.probes = spread, probes

    def variance(self, t: Array) -> Array:
        """r^2, that of x_0 given x_t for independent normal coordinates of variance v."""
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        return self.spread * s**2 / (self.spread * a**2 + s**2)

    def normal(self, denoised: Array, u: Array) -> tuple[Array, Array, Array]:
        """h(D), S and J (m, d) of a normal likelihood."""

        def mean(flat: Array) -> tuple[Array, tuple[Array, Array]]:
            parts = gaussian_parts(self.observed.law(self.to_data(flat.reshape(denoised.shape)), u))
            if parts is None:
                raise ValueError(
                    f"a {self.kind} twist, and the methods pigdm and tmpd, need a normal likelihood (Normal or "
                    "MultivariateNormal); use twist='smoothed' or 'point'"
                )
            return parts[0], parts

        jacobian, (loc, noise) = jax.jacrev(mean, has_aux=True)(denoised.reshape(-1))
        return loc, noise, jacobian

    def at(self, denoised: Array, t: Array, u: Array) -> Float[Array, ""]:
        """Log twist from D alone (not for tweedie), nats."""
        if self.kind == "point":
            return self.observed.log_prob(self.to_data(denoised), u)
        if self.kind == "smoothed":
            assert self.probes is not None
            moved = denoised[None] + jnp.sqrt(self.variance(t)) * self.probes
            each = jax.vmap(lambda x: self.observed.log_prob(self.to_data(x), u))(moved)
            return logsumexp(each) - math.log(len(each))
        _, noise, J = jax.lax.stop_gradient(self.normal(denoised, u))
        loc = gaussian_parts(self.observed.law(self.to_data(denoised), u))
        assert loc is not None
        return _log_normal(jnp.reshape(self.observed.y, -1) - loc[0], self.variance(t) * J @ J.T + noise)[0]

    def __call__(self, denoise: Callable[[Array], Array], x: Array, t: Array, u: Array) -> Twist:
        """The twist at ``x`` and its gradient, with one forward and one backward pass (tweedie: m of these)."""
        denoised, pull = jax.vjp(denoise, x)
        if self.kind != "tweedie":
            log, cotangent = jax.value_and_grad(self.at)(denoised, t, u)
            return Twist(log, pull(cotangent)[0], denoised)
        loc, noise, J = self.normal(denoised, u)
        rows = jax.vmap(lambda row: pull(row.reshape(x.shape))[0].reshape(-1))(J)  # dh(D(x))/dx, (m, d)
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        small = jnp.abs(a) < LEFT
        residual, rule = jnp.reshape(self.observed.y, -1) - loc, self.variance(t) * J @ J.T + noise
        cov = s**2 / jnp.where(small, 1.0, a) * rows @ J.T
        found = _log_normal(residual, jnp.where(small, rule, 0.5 * (cov + cov.T) + noise))
        # The covariance that a learned denoiser implies may have negative directions: then the rule's.
        log, solved = jax.tree.map(lambda own, other: jnp.where(jnp.isnan(found[0]), other, own), found,
                                   _log_normal(residual, rule))  # fmt: skip
        return Twist(log, (solved @ rows).reshape(x.shape), denoised)


def _log_normal(residual: Float[Array, " m"], cov: Float[Array, "m m"]) -> tuple[Array, Array]:
    """``log N(residual; 0, cov)`` and ``cov^-1 residual``."""
    m = len(residual)
    if m == 1:
        solved = residual / cov[0]  # the logarithm of a negative variance is nan, as of a Cholesky factor
        return -0.5 * (residual @ solved + jnp.log(cov[0, 0]) + math.log(2 * math.pi)), solved
    factor = jnp.linalg.cholesky(cov)
    solved = cho_solve((factor, True), residual)
    log_det = 2 * jnp.log(jnp.diagonal(factor)).sum()
    return -0.5 * (residual @ solved + log_det + m * math.log(2 * math.pi)), solved


def default_kind(observed: Observed, x: Any) -> Kind:
    """tweedie for normal likelihoods of up to 8 numbers, gaussian for larger ones or with nuisances, else smoothed."""
    parts = gaussian_parts(observed.law(x, jnp.zeros(observed.size)))
    if parts is None:
        return "smoothed"
    return "gaussian" if observed.size or len(parts[0]) > 8 else "tweedie"
