"""What all particle methods share: weights, systematic resampling, and the record of a run."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int


class Run(NamedTuple):
    """One run of a particle method with n particles over N steps.

    ``x``           (n, *shape): x_0, equally weighted.
    ``u``           (n, p): unconstrained nuisances.
    ``log_weight``  (n,): log weights before they were made equal, since the last resampling.
    ``increments``  (N,): of log p(y), nats; their sum estimates it, and its exponential without bias.
    ``ess``         (N,): effective number of particles before resampling, 1 to n.
    ``resampled``   (N,): whether they were resampled there.
    ``path``        (N, k, *shape): D of the first k particles, the denoising path.
    """

    x: Array
    u: Array
    log_weight: Array
    increments: Array
    ess: Array
    resampled: Array
    path: Array


def log_mean(log_weight: Float[Array, " n"]) -> Float[Array, ""]:
    """Log of the mean of the weights."""
    return logsumexp(log_weight) - math.log(len(log_weight))


def effective(log_weight: Float[Array, " n"]) -> Float[Array, ""]:
    """``(sum w)^2 / sum w^2``."""
    return jnp.exp(2 * logsumexp(log_weight) - logsumexp(2 * log_weight))


def systematic(key: Array, log_weight: Float[Array, " n"], size: int | None = None) -> Int[Array, " size"]:
    """Indices of ``size`` (default n) particles: i comes ``size w_i / sum w`` times on average, never off by one.

    One uniform number for all (Carpenter, Clifford & Fearnhead 1999): unbiased, with less variance than independent
    draws.  Copies of a particle are neighbours in the result, so that they show as autocorrelation.
    """
    n = len(log_weight)
    size = n if size is None else size
    total = jnp.cumsum(jax.nn.softmax(log_weight))
    at = (jnp.arange(size) + jax.random.uniform(key)) / size * total[-1]
    return jnp.minimum(jnp.searchsorted(total, at, side="right"), n - 1).astype(jnp.int32)


def usable(log_weight: Float[Array, " n"]) -> Float[Array, " n"]:
    """A particle whose weight is not a number has run away: it gets none."""
    return jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
