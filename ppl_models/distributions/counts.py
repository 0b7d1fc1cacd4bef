"""Negative binomial and multinomial counts, exact in float32 where differences of log-gammas are not."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOST = 2.0**24
"""Above it whole numbers are not exact in float32."""


def negative_binomial_log_prob(
    k: Float[Array, "*#batch"], mean: Float[Array, "*#batch"], concentration: Float[Array, "*#batch"]
) -> Float[Array, "*batch"]:
    """``log NB(k; mean m, concentration r)`` (nats, a probability mass) of whole numbers ``k >= 0``.

    ``NB(k) = Gamma(k + r) / (k! Gamma(r)) (r / (r + m))^r (m / (r + m))^k``, of variance ``m + m^2 / r``; Poisson as r
    grows.  It is ``r / (r + k)`` times a binomial mass at ``r`` of ``r + k``, here in its saddle-point form (Loader,
    "Fast and accurate computation of binomial probabilities", 2000, equation 4): small differences of the
    Stirling series in place of small differences of large log-gammas, which lose whole nats above k = 1e6.
    """
    r, m = concentration, mean
    none = k <= 0
    k = jnp.where(none, 1.0, k)
    n = r + k
    log_binomial = (
        _stirling(n)
        - _stirling(r)
        - _stirling(k)
        - n * (r / (r + m)) * _deviance((m - k) / n)
        - n * (m / (r + m)) * _deviance((k - m) / n * (r / m))
        + 0.5 * (jnp.log(n) - jnp.log(2 * math.pi * k) - jnp.log(r))
    )
    return jnp.where(none, -r * jnp.log1p(m / r), jnp.log(r) - jnp.log(n) + log_binomial)


def negative_binomial_sample(
    key: Array, mean: Float[Array, "*batch"], concentration: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Draw counts as floats: Poisson at a Gamma rate, kept below 2^24."""
    key_rate, key_count = jax.random.split(key)
    rate = jax.random.gamma(key_rate, concentration) * (mean / concentration)
    return jnp.minimum(jax.random.poisson(key_count, jnp.clip(rate, 0.0, MOST - 1)).astype("float32"), MOST - 1)


def multinomial_log_prob(
    k: Float[Array, "*#batch D"], total: Float[Array, "*#batch"], logits: Float[Array, "*#batch D"]
) -> Float[Array, "*batch"]:
    """``log (n! prod_d p_d^k_d / k_d!)`` (nats) of whole numbers k that add up to ``total`` n, ``p = softmax(logits)``.

    In saddle-point form, with ``m_d = n p_d``, Stirling's error s and ``D(u) = (1 + u) log(1 + u) - u``:
    ``s(n) - sum_{k_d > 0} s(k_d) + (log 2 pi n - sum_{k_d > 0} log 2 pi k_d) / 2 - sum_d m_d D((k_d - m_d) / m_d)``,
    sums of small terms.  Rounding errors of n and of the m_d cancel to first order.
    """
    some, drawn = k > 0, total > 0
    k, n = jnp.where(some, k, 1.0), jnp.where(drawn, total, 1.0)
    log_m = jnp.log(n)[..., None] + jnp.maximum(jax.nn.log_softmax(logits), _LEAST)
    m = jnp.exp(log_m)
    ratio = jnp.where(some, (k - m) / m, 0.0)
    deviance = m * jnp.where(some, _deviance(ratio), 1.0)  # D(-1) = 1
    own = jnp.where(some, _stirling(k) + 0.5 * jnp.log(2 * math.pi * k), 0.0)
    found = _stirling(n) + 0.5 * jnp.log(2 * math.pi * n) - (own + deviance).sum(-1)
    return jnp.where(drawn, found, 0.0)


def multinomial_sample(
    key: Array, total: Float[Array, "*batch"], logits: Float[Array, "*batch D"]
) -> Float[Array, "*batch D"]:
    """Draw counts that add up to ``total``: halves of the columns share theirs by a binomial, then quarters, ..."""
    D = logits.shape[-1]
    depth = max(1, math.ceil(math.log2(D)))
    pad = [(0, 0)] * (logits.ndim - 1) + [(0, 2**depth - D)]
    levels = [jnp.pad(jax.nn.softmax(logits), pad)]
    for _ in range(depth - 1):
        levels.append(levels[-1].reshape(*total.shape, -1, 2).sum(-1))
    count = total[..., None]
    for level, level_key in zip(reversed(levels), jax.random.split(key, depth), strict=True):
        pair = level.reshape(*total.shape, -1, 2)
        both = pair.sum(-1)
        share = jnp.where(both > 0, pair[..., 0] / jnp.where(both > 0, both, 1.0), 0.0)
        split = (share > 0) & (share < 1) & (count > 0)
        left = jax.random.binomial(level_key, jnp.where(split, count, 1.0), jnp.where(split, share, 0.5))
        left = jnp.where(split, left, jnp.where(share > 0, count, 0.0))
        count = jnp.stack([left, count - left], -1).reshape(*total.shape, -1)
    return count[..., :D]


_LEAST = -60.0
"""Least log share: of a multinomial, so that float32 holds n p."""


def _deviance(u: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``(1 + u) log(1 + u) - u`` for ``u > -1``: its series near 0, where the difference would cancel."""
    near = jnp.abs(u) < 0.1
    small, large = jnp.where(near, u, 0.0), jnp.where(near, 1.0, jnp.maximum(u, -1 + 1e-7))
    series = jnp.zeros_like(u)
    for j in range(9, 1, -1):
        series = (-1) ** j / (j * (j - 1)) + small * series
    return jnp.where(near, small**2 * series, (1 + large) * jnp.log1p(large) - large)


def _stirling(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``log Gamma(x + 1) - (x + 1/2) log x + x - log(2 pi) / 2`` for ``x > 0``: the error of Stirling's formula."""
    far = x > 8
    big, low = jnp.where(far, x, 9.0), jnp.where(far, 1.0, x)
    inverse = 1 / big
    series = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 * (1 / 1260 - inverse**2 / 1680)))
    direct = jax.lax.lgamma(low + 1) - (low + 0.5) * jnp.log(low) + low - 0.5 * math.log(2 * math.pi)
    return jnp.where(far, series, direct)
