"""Simultaneous bands of the empirical distribution of n independent uniforms, and the p-value that belongs to them.

At each point t of a grid the count n F(t) is Binomial(n, t); its local p-value is 2 min(P(Bin <= c), P(Bin >= c)).
The band of level alpha holds all counts whose local p-value is above gamma, with one gamma for all points, chosen so
that the whole ECDF stays inside with probability 1 - alpha (Säilynoja, Bürkner & Vehtari 2022, eq. 7-13).  That
probability is computed, by their recursion (algorithm 1): given the count at t, the increment to the next point t' is
Binomial(n - count, (t' - t) / (1 - t)).

The test whose statistic is the least local p-value gamma* rejects at level alpha exactly where the ECDF leaves the
band, and its p-value is the probability that such an ECDF goes below gamma* somewhere.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

GRID = 100
"""Most points of the grid: k/K, k = 1..K-1, with K = min(n, GRID)."""
SMALLEST = -30.0
"""Log of the least local p-value whose probability is computed; below, that of (K - 1) of them bounds it."""
TINY = 1e-9
KNOTS = 64
"""Local p-values at which the probability is computed; of more than these, its logarithm is interpolated."""


class Band(NamedTuple):
    """Points of the grid and the least and largest ECDF inside the band there."""

    at: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]


def points(n: int) -> Float[np.ndarray, " K"]:
    """Where the ECDF of n values is looked at."""
    size = min(n, GRID)
    return np.arange(1, size) / size


def counts(pit: Float[np.ndarray, "n ..."]) -> Int[np.ndarray, "K ..."]:
    """n F(t) at the points of the grid for values in (0, 1), along the first axis."""
    n = len(pit)
    size = len(points(n)) + 1
    bins = np.clip(np.ceil(pit * size).astype(np.int64) - 1, 0, size - 1)
    found = np.stack([(bins == k).sum(0) for k in range(size - 1)])
    return found.cumsum(0)


def ecdf(pit: Float[np.ndarray, " n"]) -> Float[np.ndarray, " K"]:
    """F(t) at the points of the grid."""
    return counts(pit) / len(pit)


@functools.lru_cache(maxsize=8)
def _local(n: int) -> Float[np.ndarray, "K count"]:
    """Log of the local p-value of every count 0..n at every point."""
    from scipy.stats import binom

    count, at = np.arange(n + 1), points(n)[:, None]
    with np.errstate(divide="ignore"):
        both = np.minimum(binom.logcdf(count, n, at), binom.logsf(count - 1, n, at))
    # The two tails of mirrored counts are equal but for rounding, which must not tell them apart.
    return np.round(np.minimum(both + np.log(2), 0.0), 8)


def outside(n: int, gamma: float) -> float:
    """P(the least local p-value of n uniforms <= exp(gamma)), by the recursion; ``gamma`` a logarithm."""
    from scipy.special import gammaln

    local, factorial = _local(n), gammaln(np.arange(n + 1) + 1.0)
    size = len(local) + 1
    inside = local > gamma
    low, high = inside.argmax(1), n - inside[:, ::-1].argmax(1)
    if not inside.any(1).all():
        return 1.0
    before, mass = np.array([0]), np.array([0.0])  # counts inside at the last point, and the log probability of each
    for k in range(size - 1):
        after = np.arange(low[k], high[k] + 1)
        share = 1 / (size - k)  # of what is left, (1/K) / (1 - k/K)
        step = after[None] - before[:, None]
        with np.errstate(divide="ignore"):
            log_p = (
                factorial[n - before][:, None] - factorial[n - after][None] - factorial[np.maximum(step, 0)]
                + step * np.log(share) + (n - after)[None] * np.log1p(-share)
            )  # fmt: skip
        log_p = np.where(step >= 0, log_p + mass[:, None], -np.inf)
        top = log_p.max(0)
        mass = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            mass = mass + np.log(np.exp(log_p - mass).sum(0))
        before = after
    return float(np.clip(1 - np.exp(mass).sum(), 0.0, 1.0))


def _log_outside(n: int, gamma: float) -> float:
    """Log of :func:`outside`; a difference from 1 has no digits left where it is tiny: there the union bound stands."""
    bound = float(np.log(len(points(n))) + gamma)
    if gamma >= SMALLEST and (found := outside(n, gamma)) > TINY:
        return min(float(np.log(found)), 0.0)
    return min(bound, float(np.log(TINY)))


@functools.lru_cache(maxsize=8)
def _probability(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Log local p-values and the log probability that the least of them is as small."""
    half = KNOTS // 2  # of the knots lie above 1e-4, where it matters
    gamma = np.concatenate(
        [np.linspace(SMALLEST, np.log(1e-4), half, endpoint=False), np.linspace(np.log(1e-4), 0.0, half)]
    )
    return gamma, np.array([_log_outside(n, g) for g in gamma])


def p_values(pit: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "..."]:
    """p-value of each column of ``pit`` (n, ...): the chance of an ECDF as far out as this, if uniform.

    Exact for up to :data:`KNOTS` different ones; beyond, interpolated between as many, to a few per cent.  A value that
    is not a number makes the p-value 0.
    """
    n = len(pit)
    bad = np.isnan(pit).any(0)
    found = counts(np.where(np.isnan(pit), 0.0, pit))
    least = np.take_along_axis(_local(n), found.reshape(len(found), -1), axis=1).min(0)
    distinct, which = np.unique(least, return_inverse=True)
    if len(distinct) <= KNOTS:
        log_p = np.array([_log_outside(n, g) for g in distinct])[which]
    else:
        gamma, known = _probability(n)
        inner = np.interp(least, gamma, known)
        log_p = np.where(least < gamma[0], np.minimum(np.log(len(points(n))) + least, known[0]), inner)
    return np.where(bad, 0.0, np.minimum(np.exp(log_p.reshape(bad.shape)), 1.0))


@functools.lru_cache(maxsize=64)
def _gamma(n: int, level: float) -> float:
    """The largest log gamma whose band n uniforms leave with probability at most ``level``."""
    low, high = np.log(level / len(points(n))), np.log(level)
    for _ in range(22):
        middle = (low + high) / 2
        low, high = (middle, high) if outside(n, middle) <= level else (low, middle)
    return low


def band(n: int, level: float = 0.05) -> Band:
    """The band that the ECDF of n uniforms leaves with probability ``level``, at most and nearly.

    Raises ``ValueError`` for fewer than 2 values or a level outside (0, 1).
    """
    if n < 2 or not 0 < level < 1:
        raise ValueError(f"a band needs at least 2 values and a level between 0 and 1, got {n} and {level}")
    inside = _local(n) > _gamma(n, level)
    return Band(points(n), inside.argmax(1) / n, (n - inside[:, ::-1].argmax(1)) / n)
