"""Sequential Monte Carlo along the path of :mod:`inference.checking.annealing`, and how sure its one estimate is.

The particles of a datum are drawn anew, in proportion to their weights, whenever their effective sample size has fallen
below half of them; log p(x) is the sum over the stretches between of log mean weight (Del Moral, Doucet & Jasra 2006,
section 3.4).  Resampled particles are not independent, so the variance of the estimate comes from their first
ancestors E_i: with W_i the final weights, normalised, and r times of multinomial resampling,

    V = 1 - (N / (N - 1))^(r + 1) (1 - sum_k (sum_{i: E_i = k} W_i)^2)

is unbiased for the relative variance of p(x) up to a factor of mean one (Lee & Whiteley 2018, eq. 8); without any
resampling it is that of independent weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from inference.checking.annealing import Annealer, Data, Ladder, log_gain, pair_keys
from inference.checking.psis import pareto_k
from ppl_models.program import rows

FALLEN = 0.5
"""Share of the particles below which the effective sample size makes a datum resample."""
_MOVE, _CHOOSE = 26, 27


def sequential(
    annealer: Annealer, data: Data, ladder: Ladder, key: Key[Array, ""], particles: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns ``log_px, se, elbo, ess, khat`` of each datum, and its mean acceptance.

    ``elbo``  the mean log weight of each stretch between resamplings, added up: at most ``log_px``.
    ``ess``   particles / (1 + particles se^2): so many independent weights would be as sure.
    ``khat``  the largest over the stretches.
    """
    K, n = annealer.settings.temperatures, rows(data.x)
    names = ("log_px", "se", "elbo", "ess", "khat")
    columns, accepted = {name: np.full(n, np.nan) for name in names}, np.full(n, np.nan)
    with annealer.bar(n * K, "sequential Monte Carlo") as bar:
        for block in annealer.blocks(data, particles):
            size, at, keep = len(block.at), block.at[: block.keep], block.keep
            keys = annealer.keys(block, key, _MOVE, particles)
            chooser = pair_keys(key, _CHOOSE, block.number, jnp.zeros(1, jnp.uint32))[:, 0]
            state, rates, b = annealer.start(block, keys), [], ladder.b[block.at]
            log_w, log_px, elbo = np.zeros((size, particles)), np.zeros(size), np.zeros(size)
            eve = np.tile(np.arange(particles), (size, 1))
            times, apart, khat = np.zeros(size, int), np.zeros(size), np.full(size, -np.inf)
            for k in range(1, K + 1):
                log_w = log_w + log_gain(b[:, k] - b[:, k - 1], state.delta)
                weight, mean = _normalised(log_w)
                ess = 1 / (weight**2).sum(1)
                # The last temperature ends the last stretch of all.
                ends = (ess < FALLEN * particles) if k < K else np.ones(size, bool)
                if ends.any():
                    log_px += np.where(ends, mean, 0.0)
                    elbo += np.where(ends, log_w.mean(1), 0.0)
                    apart += np.where(ends, 1 / ess - 1 / particles, 0.0)
                    # Not np.fmax: no verdict on one stretch is no verdict.
                    khat[ends] = np.maximum(khat[ends], pareto_k(log_w[ends].astype(np.float32).T))
                if k == K:
                    break
                if ends.any():
                    uniform = np.asarray(_uniforms(chooser, np.uint32(k), particles), np.float64)
                    chosen = np.tile(np.arange(particles), (size, 1))
                    for i in np.flatnonzero(ends):
                        edges = np.cumsum(weight[i])
                        chosen[i] = np.minimum(np.searchsorted(edges, uniform[i] * edges[-1], "right"), particles - 1)
                    state = _gather(state, jnp.asarray(chosen))
                    eve, log_w = np.take_along_axis(eve, chosen, 1), np.where(ends[:, None], 0.0, log_w)
                    times += ends
                state, found = annealer.moves(block, state, keys, k, ladder)
                rates += found
                bar.update(bar.done + keep)
            bar.update(bar.done + keep)
            family = np.stack([np.bincount(e, w, particles) for e, w in zip(eve, weight, strict=True)])
            variance = 1 - (particles / (particles - 1)) ** (times + 1) * (1 - (family**2).sum(1))
            # Stretches that were independent would have the sum of their variances: noise must not promise more.
            variance = np.where(times > 0, np.maximum(variance, apart), variance)
            found_columns = (
                log_px,
                np.sqrt(np.maximum(variance, 0.0)),
                elbo,
                particles / (1 + particles * variance),
                khat,
            )
            for name, column in zip(names, found_columns, strict=True):
                columns[name][at] = column[:keep]
            if rates:
                accepted[at] = np.mean([np.asarray(rate).mean(1) for rate in rates], 0)[:keep]
    return columns, accepted


def _normalised(log_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights that sum to 1 (data, particles), and log mean weight (data,)."""
    top = log_w.max(1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(all="ignore"):
        weight = np.exp(log_w - top)
        return weight / weight.sum(1, keepdims=True), top[:, 0] + np.log(weight.mean(1))


@jax.jit
def _gather(state: Any, chosen: Array) -> Any:
    return jax.tree.map(lambda leaf: jax.vmap(lambda row, i: row[i])(leaf, chosen), state)


def _uniforms(keys: Any, time: Any, count: int) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, time), (count,)))(keys)
