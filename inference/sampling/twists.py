"""Twists: guesses of p(y | x_t) from the denoised datum D = E[x_0 | x_t], which steer a diffusion towards y.

    point      p(y | x_0 = D)                                          any likelihood; far too sure while t is large
    gaussian   N(y; h(D), J R J' + S),    R = (Cov^-1 + alpha^2/sigma^2 I)^-1          normal likelihoods
    tweedie    N(y; h(D), J C J' + S),    C = (sigma^2 / alpha) dD/dx = Cov[x_0 | x_t] normal likelihoods
    smoothed   mean over k of p(y | D + R^(1/2) xi_k), xi_k ~ N(0, I) fixed            any likelihood

``y ~ N(h(x_0), S)`` where the likelihood is normal, ``J = dh/dx`` at D; Cov is that of x_0, and R what is left of it at
t if the prior is normal.  The point twist is that of DPS (Chung et al. 2023, arXiv 2209.14687), the gaussian one with
``Cov = v I`` that of PiGDM (Song et al. 2023), the tweedie one that of TMPD (Boys et al. 2023, arXiv 2310.06721): their
guidance is its gradient.  In twisted sequential Monte Carlo any of them is right; a better one needs fewer particles.

While alpha is below :data:`LEFT`, where a network has hardly been trained, all but the point twist take R and, in the
place of D, the best linear guess ``mean + alpha Cov (alpha^2 Cov + sigma^2 I)^-1 (x - alpha mean)``.  From there to
:data:`WHOLE` the guess passes to D in proportion to alpha: changed at one step, it would leave few particles alive.
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
LEFT = 0.1
"""Share alpha of the data below which x_t tells next to nothing."""
WHOLE = 0.5
"""Share alpha from which the guess is D alone."""


class Twist(NamedTuple):
    """Value and gradient in x of the log twist at one particle, D, and the guess of x_0 that the twist is made of."""

    log: Float[Array, ""]
    grad: Array
    denoised: Array
    guess: Array


class Spectrum(NamedTuple):
    """Mean and covariance of x_0, by eigenvalues and eigenvectors (in columns); ``vectors=None`` for ``values I``."""

    values: Array
    vectors: Array | None = None
    mean: Array | float = 0.0

    @classmethod
    def of(cls, x: Float[Array, " k *shape"]) -> Spectrum:
        """That of k draws, drawn towards its mean variance by a share d / (d + k); above 1,024 numbers that alone."""
        flat = x.reshape(len(x), -1)
        k, d = flat.shape
        mean = flat.var(0).mean()
        if d > 1024:
            return cls(mean[None], None, flat.mean(0))
        share = d / (d + k)
        centred = flat - flat.mean(0, keepdims=True)
        cov = (1 - share) * centred.T @ centred / k + share * mean * jnp.eye(d)
        values, vectors = jnp.linalg.eigh(cov)
        return cls(values, vectors, flat.mean(0))


class Twister:
    """The twist ``kind`` for what was observed; ``to_data`` carries x_0 into the data's units.

    ``cov``     mean and Cov of x_0; default 0 and I.
    ``probes``  (K, d): the xi of the smoothed twist.

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
        cov: Spectrum | None = None,
        probes: Array | None = None,
    ) -> None:
        if kind == "tweedie" and observed.size:
            raise ValueError("a tweedie twist takes no nuisances; use twist='gaussian'")
        self.kind, self.observed, self.to_data, self.schedule = kind, observed, to_data, schedule
        self.cov, self.probes = Spectrum(jnp.ones(1)) if cov is None else cov, probes

    def left(self, t: Array) -> Array:
        """Standard deviations of R along the eigenvectors."""
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        return jnp.sqrt(self.cov.values * s**2 / (self.cov.values * a**2 + s**2))

    def linear(self, x: Array, t: Array) -> Array:
        """The best guess of x_0 that is affine in x."""
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        gain = a * self.cov.values / (a**2 * self.cov.values + s**2)
        off = x.reshape(-1) - a * self.cov.mean
        vectors = self.cov.vectors
        moved = gain * off if vectors is None else vectors @ (gain * (vectors.T @ off))
        return (self.cov.mean + moved).reshape(x.shape)

    def rule(self, t: Array, J: Array, noise: Array) -> Array:
        """``J R J' + S``."""
        half = (J if self.cov.vectors is None else J @ self.cov.vectors) * self.left(t)[None]
        return half @ half.T + noise

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
        """Log twist from the guess of x_0 alone (not for tweedie), nats."""
        if self.kind == "point":
            return self.observed.log_prob(self.to_data(denoised), u)
        if self.kind == "smoothed":
            assert self.probes is not None
            step = self.probes * self.left(t)[None]
            step = step if self.cov.vectors is None else step @ self.cov.vectors.T
            moved = denoised[None] + step.reshape(-1, *denoised.shape)
            each = jax.vmap(lambda x: self.observed.log_prob(self.to_data(x), u))(moved)
            return logsumexp(each) - math.log(len(each))
        _, noise, J = jax.lax.stop_gradient(self.normal(denoised, u))
        loc = gaussian_parts(self.observed.law(self.to_data(denoised), u))
        assert loc is not None
        residual = jnp.reshape(self.observed.y, -1) - loc[0]
        return _log_normal(residual, self.rule(t, J, noise))[0]

    def __call__(self, denoise: Callable[[Array], Array], x: Array, t: Array, u: Array) -> Twist:
        """The twist at ``x`` and its gradient, with one forward and one backward pass (tweedie: m of these)."""
        denoised, pull = jax.vjp(denoise, x)
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        share = jnp.clip((jnp.abs(a) - LEFT) / (WHOLE - LEFT), 0.0, 1.0) if self.kind != "point" else jnp.ones(())
        small = share == 0
        linear, pull_linear = jax.vjp(lambda x: self.linear(x, t), x)

        def blend(linear: Array, denoised: Array) -> Array:
            return jnp.where(small, linear, (1 - share) * linear + share * denoised)

        guess = blend(linear, denoised)

        def back(cotangent: Array) -> Array:
            return blend(pull_linear(cotangent)[0], pull(cotangent)[0])

        if self.kind != "tweedie":
            log, cotangent = jax.value_and_grad(self.at)(guess, t, u)
            return Twist(log, back(cotangent), denoised, guess)
        loc, noise, J = self.normal(guess, u)
        rows = jax.vmap(lambda row: back(row.reshape(x.shape)).reshape(-1))(J)  # dh(guess(x))/dx, (m, d)
        residual, rule = jnp.reshape(self.observed.y, -1) - loc, self.rule(t, J, noise)
        cov = s**2 / jnp.where(small, 1.0, a) * rows @ J.T
        found = _log_normal(residual, jnp.where(small, rule, 0.5 * (cov + cov.T) + noise))
        # The covariance that a learned denoiser implies may have negative directions: then the rule's.
        log, solved = jax.tree.map(lambda own, other: jnp.where(jnp.isnan(found[0]), other, own), found,
                                   _log_normal(residual, rule))  # fmt: skip
        return Twist(log, (solved @ rows).reshape(x.shape), denoised, guess)


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
