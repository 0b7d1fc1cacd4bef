"""Gaussian mixtures under a diffusion, exactly: the test bed of samplers, priors and posteriors.

    p_0 = sum_k w_k N(mu_k, s_k^2 I)    =>    p_t = sum_k w_k N(alpha mu_k, (alpha^2 s_k^2 + sigma^2) I)

so the score, the denoiser and every marginal are known at every t, and so is the posterior under a linear observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from ppl_models.distributions.diffusion_prior import Moments
from ppl_models.distributions.schedules import Schedule


class IsotropicMixture(NamedTuple):
    """``sum_k exp(log_weights_k) N(means_k, scales_k^2 I)``."""

    log_weights: Float[Array, " K"]
    means: Float[Array, "K d"]
    scales: Float[Array, " K"]

    def log_prob(self, x: Float[Array, "... d"]) -> Float[Array, "..."]:
        """Log density in nats."""
        residual = (x[..., None, :] - self.means) / self.scales[:, None]
        size = self.means.shape[-1]
        terms = -0.5 * (residual**2).sum(-1) - size * (jnp.log(self.scales) + 0.5 * math.log(2 * math.pi))
        return logsumexp(self.log_weights + terms, axis=-1)

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        """``n`` independent draws."""
        which_key, noise_key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.log_weights, shape=(n,))
        noise = jax.random.normal(noise_key, (n, self.means.shape[-1]))
        return self.means[which] + self.scales[which, None] * noise

    def moments(self) -> Moments:
        """Exact mean and covariance."""
        w = jnp.exp(self.log_weights)
        mean = w @ self.means
        centred = self.means - mean[None, :]
        isotropic = (w @ self.scales**2) * jnp.eye(self.means.shape[-1])
        return Moments(mean, isotropic + (w[:, None] * centred).T @ centred)

    def noised(self, schedule: Schedule, t: ArrayLike) -> IsotropicMixture:
        """The law of ``x_t``, again a mixture."""
        a, s = schedule.alpha(t), schedule.sigma(t)
        return IsotropicMixture(self.log_weights, a * self.means, jnp.sqrt(a**2 * self.scales**2 + s**2))


@dataclass(frozen=True)
class MixtureScore:
    """``fn(mixture, x, t) = grad log p_t(x)``: the exact score, for ``Score(MixtureScore(schedule))``."""

    schedule: Schedule

    def __call__(self, mixture: IsotropicMixture, x: Float[Array, " d"], t: ArrayLike) -> Float[Array, " d"]:
        """Score at one point."""
        at = mixture.noised(self.schedule, t)
        residual = (at.means - x) / at.scales[:, None] ** 2
        size = x.shape[-1]
        terms = -0.5 * ((residual * at.scales[:, None]) ** 2).sum(-1) - size * jnp.log(at.scales)
        return jax.nn.softmax(at.log_weights + terms) @ residual


@dataclass(frozen=True)
class MixtureDenoiser:
    """``fn(mixture, x, t) = E[x_0 | x_t = x]``, bounded at both ends, for ``Denoiser(MixtureDenoiser(schedule))``."""

    schedule: Schedule

    def __call__(self, mixture: IsotropicMixture, x: Float[Array, " d"], t: ArrayLike) -> Float[Array, " d"]:
        """Conditional mean at one point."""
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        var = a**2 * mixture.scales**2 + s**2
        residual = x - a * mixture.means
        terms = -0.5 * (residual**2).sum(-1) / var - 0.5 * x.shape[-1] * jnp.log(var)
        weights = jax.nn.softmax(mixture.log_weights + terms)
        return weights @ (mixture.means + (a * mixture.scales**2 / var)[:, None] * residual)


class LinearPosterior(NamedTuple):
    """Law of x given ``y = A x + e``, e ~ N(0, noise^2 I): a mixture of Gaussians, and ``log p(y)`` in nats."""

    log_weights: Float[Array, " K"]
    means: Float[Array, "K d"]
    covs: Float[Array, "K d d"]
    log_evidence: Float[Array, ""]

    def moments(self) -> Moments:
        """Mean and covariance of the posterior."""
        w = jnp.exp(self.log_weights)
        mean = w @ self.means
        centred = self.means - mean[None, :]
        return Moments(mean, jnp.einsum("k,kij->ij", w, self.covs) + (w[:, None] * centred).T @ centred)


def linear_posterior(
    mixture: IsotropicMixture, A: Float[Array, "m d"], y: Float[Array, " m"], noise: ArrayLike
) -> LinearPosterior:
    """Exact posterior of a mixture prior under a linear-Gaussian observation."""

    def component(mean: Array, scale: Array) -> tuple[Array, Array, Array]:
        innovation = scale**2 * A @ A.T + noise**2 * jnp.eye(len(y))
        gain = scale**2 * jnp.linalg.solve(innovation, A).T
        residual = y - A @ mean
        log_y = -0.5 * residual @ jnp.linalg.solve(innovation, residual)
        log_y -= 0.5 * jnp.linalg.slogdet(innovation)[1] + 0.5 * len(y) * math.log(2 * math.pi)
        return mean + gain @ residual, scale**2 * (jnp.eye(len(mean)) - gain @ A), log_y

    means, covs, log_y = jax.vmap(component)(mixture.means, mixture.scales)
    joint = mixture.log_weights + log_y
    return LinearPosterior(joint - logsumexp(joint), means, covs, logsumexp(joint))
