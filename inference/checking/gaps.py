"""Gaussians of rows that lack entries: densities of what is there, and the moments that EM needs.

With ``o`` the entries of a row that are there, ``Q = S_oo^-1`` put into a matrix of zeros, and ``e = x - m`` on ``o``:

    log p(x_o) = -1/2 e' Q e - 1/2 log det S_oo - |o|/2 log 2 pi
    E[x | x_o] = m + S Q e,   Cov[x | x_o] = S - S Q S

so missing entries are integrated out exactly (Little & Rubin 2002, "Statistical analysis with missing data", ch. 11).
Rows with the same entries missing share ``Q``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

AT_ONCE = 2_000_000
"""Numbers of precision matrices gathered by row at once."""
OWN = 32
"""Rows from which a pattern of missing entries is worked off by itself."""


class Part(NamedTuple):
    """Rows of some patterns: their positions, the patterns (p, G), and which of these each row has."""

    rows: Int[np.ndarray, " r"]
    patterns: Bool[np.ndarray, "p G"]
    which: Int[np.ndarray, " r"]


class Gaps:
    """Rows ``x`` (n, G), NaN where an entry is missing, sorted by which entries those are."""

    def __init__(self, x: Float[np.ndarray, "n G"]) -> None:
        self.there = ~np.isnan(x)
        self.x = np.where(self.there, x, 0.0)
        self.complete = bool(self.there.all())
        n, G = x.shape
        if self.complete or not G:
            self.patterns, self.which = np.ones((1, G), bool), np.zeros(n, int)
        else:
            self.patterns, which = np.unique(self.there, axis=0, return_inverse=True)
            self.which = which.reshape(-1)

    def parts(self, components: int) -> Iterator[Part]:
        """All rows, in parts small enough for the memory."""
        n, G = self.x.shape
        count = np.bincount(self.which, minlength=len(self.patterns))
        large = count >= OWN
        for p in np.flatnonzero(large):
            rows = np.flatnonzero(self.which == p)
            yield Part(rows, self.patterns[p : p + 1], np.zeros(len(rows), int))
        rest = np.flatnonzero(~large[self.which])
        rest = rest[np.argsort(self.which[rest], kind="stable")]
        step = max(OWN, AT_ONCE // max(1, components * G * G))
        for start in range(0, len(rest), step):
            rows = rest[start : start + step]
            used, which = np.unique(self.which[rows], return_inverse=True)
            yield Part(rows, self.patterns[used], which.reshape(-1))


class Solved(NamedTuple):
    """Of a part of the rows, by component: log density (r, K), ``Q e`` (r, K, G), and ``Q`` (p, K, G, G)."""

    log_p: np.ndarray
    white: np.ndarray
    precision: np.ndarray


def solve(gaps: Gaps, part: Part, mean: Float[np.ndarray, "K G"], covariance: Float[np.ndarray, "K G G"]) -> Solved:
    """Densities of the entries that are there under K Gaussians, and what the conditional moments are made of."""
    there = part.patterns
    both = (there[:, None, :, None] & there[:, None, None, :]).astype(float)
    G = mean.shape[1]
    inner = both * covariance[None] + (~there)[:, None, :, None] * np.eye(G)  # 1 where missing: no part of the rest
    root = np.linalg.cholesky(inner)
    half = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1)  # (p, K)
    precision = both * np.linalg.inv(inner)
    e = (gaps.x[part.rows][:, None] - mean) * there[part.which][:, None]  # (r, K, G)
    if len(there) == 1:
        white = np.einsum("kgh,rkh->rkg", precision[0], e, optimize=True)
    else:
        white = (precision[part.which] @ e[..., None])[..., 0]
    known = there.sum(1)[part.which, None]
    log_p = -0.5 * (e * white).sum(-1) - half[part.which] - 0.5 * known * math.log(2 * math.pi)
    return Solved(log_p, white, precision)


def log_normal(
    gaps: Gaps, mean: Float[np.ndarray, "K G"], covariance: Float[np.ndarray, "K G G"]
) -> Float[np.ndarray, "n K"]:
    """Log density (nats) of what is there of each row under each of K Gaussians."""
    found = np.zeros((len(gaps.x), len(mean)))
    if gaps.x.shape[1]:
        for part in gaps.parts(len(mean)):
            found[part.rows] = solve(gaps, part, mean, covariance).log_p
    return found


def at_least(covariance: Float[np.ndarray, "... G G"], floor: Float[np.ndarray, " G"]) -> Float[np.ndarray, "... G G"]:
    """The covariance of highest likelihood that is nowhere below ``diag(floor^2)``.

    For a sample covariance S, in units of the floors, it is S with its eigenvalues raised to 1: log det + tr(C^-1 S)
    falls apart into log c + s/c in the eigenvectors of S, which is least at c = s or, for s < 1, at the bound.  No
    conditional standard deviation of a column is below its floor, so no density runs away on columns of few distinct
    values.
    """
    if not floor.size:
        return covariance
    outer = np.outer(floor, floor)
    values, vectors = np.linalg.eigh(covariance / outer)
    if (values >= 1).all():
        return covariance
    return (vectors * np.maximum(values, 1.0)[..., None, :]) @ np.swapaxes(vectors, -1, -2) * outer
