"""Pareto smoothed importance sampling of every datum's weights: is the proposal good enough for them?

The largest importance weights follow a generalized Pareto distribution whose shape k says how many moments the
weights have: their variance is finite for k < 1/2, and estimates are reliable in practice below
``KHAT_BAD``.  Zhang & Stephens (2009) estimate k; Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto smoothed
importance sampling", JMLR 2024, give the tail size min(S/5, 3 sqrt(S)) and the weak prior towards 1/2.  The fit
itself is ArviZ's; this module owns its sign convention (it wants *minus* the log weights) and the degenerate cases.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Array, Float

KHAT_BAD = 0.7
"""Largest k-hat to trust (Vehtari et al. 2024); with S draws, min(1 - 1/log10(S), 0.7): 0.63 for 512, 0.5 for 100."""

SMALLEST = 25
"""Fewest draws for which k-hat exists: the tail is a fifth of them and needs five points."""


def pareto_k(log_weight: Float[np.ndarray | Array, "draws data"]) -> Float[np.ndarray, " data"]:
    """Pareto shape k-hat of each datum's log weights, log p(x, z_s) - log q(z_s | x), draws along the first axis.

    ``-inf``  the largest weights are equal up to rounding: there is no tail, the proposal is (near) exact.
    ``nan``   no verdict: weights that are NaN or +inf, all zero, ties that leave no tail to fit, or fewer than 25
              draws.  Count a nan as bad.

    Raises ``ValueError`` unless ``log_weight`` is two-dimensional.
    """
    return psis(log_weight)[1]


def psis(
    log_weight: Float[np.ndarray | Array, "draws data"],
) -> tuple[Float[np.ndarray, "draws data"], Float[np.ndarray, " data"]]:
    """Smoothed, self-normalised log weights (logsumexp over draws = 0) and k-hat of each datum.

    Where k-hat is not finite the weights are normalised and not smoothed; where a weight is NaN or +inf, or all are
    zero, they are nan.  See :func:`pareto_k`.
    """
    given = np.asarray(log_weight)
    if given.ndim != 2:
        raise ValueError(f"log_weight must have axes (draws, data), got shape {given.shape}; one column a datum")
    draws = given.shape[0]
    if draws < 2:
        raise ValueError(f"log_weight has {draws} draws a datum, expected at least 2 (25 for k-hat)")
    # A single precision difference of two log densities is not known better than a few units in the last place.
    precision = np.finfo(given.dtype).eps if np.issubdtype(given.dtype, np.floating) else np.finfo(float).eps
    rows = given.astype(np.float64).T
    top = rows.max(axis=1)
    usable = np.isfinite(top)
    normal = np.full_like(rows, np.nan)
    shifted = rows[usable] - top[usable, None]
    normal[usable] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    khat = np.full(len(rows), np.nan)
    if draws >= SMALLEST:
        tail = int(3 * math.sqrt(draws)) if draws > 225 else draws // 5
        lowest = np.partition(rows, draws - tail, axis=1)[:, draws - tail]
        with np.errstate(invalid="ignore"):
            flat = usable & (top - lowest <= 64 * precision * np.maximum(1.0, np.abs(top)))
        khat[flat] = -np.inf
        fit = np.flatnonzero(usable & ~flat)
        if fit.size:
            from arviz_stats.base import array_stats

            with np.errstate(all="ignore"):
                smooth, khat[fit] = array_stats.psislw(-rows[fit], axis=-1)
            good = np.isfinite(khat[fit])
            normal[fit[good]] = smooth[good]
    return normal.T, khat
