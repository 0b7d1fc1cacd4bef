"""Factor analysis of the real and positive columns of a table, beside independent discrete ones.

    x = m + W z + e,   z ~ N(0, I_q),   e ~ N(0, diag psi):   p(x) = N(x; m, W W' + diag psi)

Maximum likelihood: scikit-learn's where nothing is missing, and EM (Rubin & Thayer 1982, "EM algorithms for ML factor
analysis", with the rows of each column's regression being those where it is there).  With one ``psi`` for all columns
it is PPCA (Tipping & Bishop 1999).  Log densities in the units of the file, nats.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from inference.checking.candidates import Score
from inference.checking.gaps import Gaps, log_normal
from inference.checking.row_blocks import Blocks, Layout
from inference.checking.row_mixture import EM, SHORT, Mixture, fill
from ppl_models.program import Column

UPDATES, TOLERANCE = 500, 1e-5
"""Of EM at most; gain of mean log p, nats, below which it has converged."""


def row_factors(
    columns: Sequence[Column], x: Float[np.ndarray, "n D"], *, rank: int, isotropic: bool = False, pseudo: float = 0.5
) -> Score:
    """Factor analysis (PPCA where ``isotropic``) of stored rows, NaN where an entry is missing.

    ``psi`` stays above the squared floors of the columns.
    """
    layout = Layout.of(columns, x)
    blocks = Blocks(layout, x)
    em = EM(blocks, "full", 1e-3, pseudo)
    whole = em.run(em.start(np.ones((blocks.n, 1)), blocks.gaps.x), SHORT)[0]
    mean, W, psi = factors(blocks.gaps, whole, layout.floor, rank, isotropic)
    fitted = Mixture(
        np.zeros(1), mean[None], (W @ W.T + np.diag(psi))[None], whole.log_share, whole.count_mean, whole.concentration
    )
    return lambda fresh: fitted.score(Blocks(layout, fresh))


def factors(
    gaps: Gaps, whole: Mixture, floor: Float[np.ndarray, " G"], rank: int, isotropic: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``m`` (G,), ``W`` (G, q), ``psi`` (G,); ``whole`` is the Gaussian that fills missing entries at the start."""
    filled = fill(gaps, whole)
    mean = filled.mean(0)
    starts = [_isotropic(filled, rank)] if isotropic else [_sklearn(filled, rank), _isotropic(filled, rank)]
    least = np.full_like(mean, floor.max() ** 2) if isotropic else floor**2
    found = []
    for i, (W, psi) in enumerate(starts):
        closed = isotropic or i == 0  # at its maximum already, where nothing is missing and no floor binds
        if not (closed and gaps.complete and (psi >= least).all()):
            found.append(expectation_maximisation(gaps, mean, W, np.maximum(psi, least), least, isotropic))
        else:
            found.append((mean, W, psi))
    # The likelihood has several maxima; one may be at a floor.
    return max(found, key=lambda one: _mean_log_p(gaps, *one))


def _mean_log_p(gaps: Gaps, mean: np.ndarray, W: np.ndarray, psi: np.ndarray) -> float:
    return float(log_normal(gaps, mean[None], (W @ W.T + np.diag(psi))[None]).mean())


def _sklearn(x: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.decomposition import FactorAnalysis
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = FactorAnalysis(rank, svd_method="lapack", tol=1e-3, max_iter=2000).fit(x)
    return found.components_.T, found.noise_variance_


def _isotropic(x: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True).reshape(x.shape[1], -1))
    rest = len(values) - rank
    noise = values[:rest].mean()
    return vectors[:, rest:] * np.sqrt(np.maximum(values[rest:] - noise, 1e-9)), np.full(len(values), noise)


def expectation_maximisation(
    gaps: Gaps,
    mean: Float[np.ndarray, " G"],
    W: Float[np.ndarray, "G q"],
    psi: Float[np.ndarray, " G"],
    least: Float[np.ndarray, " G"],
    isotropic: bool = False,
    updates: int = UPDATES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """EM from ``m, W, psi``; each column's row of ``W`` and ``m`` is the regression on z of the rows that have it."""
    x, there = gaps.x, gaps.there.astype(float)
    patterns, which = gaps.patterns.astype(float), gaps.which
    n, q = len(x), W.shape[1]
    count = np.maximum(there.sum(0), 1.0)
    order = np.argsort(which, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(which[order]) > 0])
    size = np.bincount(which, minlength=len(patterns)).astype(float)
    last = -math.inf
    for _ in range(updates):
        precise = np.eye(q) + np.einsum("pg,gi,gj->pij", patterns / psi, W, W, optimize=True)
        covariance = np.linalg.inv(precise)  # of z, by pattern
        z = np.einsum("nij,nj->ni", covariance[which], (there * (x - mean) / psi) @ W)
        one = np.concatenate([z, np.ones((n, 1))], 1)
        outer = np.add.reduceat((one[:, :, None] * one[:, None, :])[order], starts, axis=0)
        outer[:, :q, :q] += size[:, None, None] * covariance
        second = np.einsum("pg,pij->gij", patterns, outer, optimize=True) + 1e-9 * np.eye(q + 1)
        cross = (there * x).T @ one  # (G, q + 1)
        line = np.linalg.solve(second, cross[..., None])[..., 0]
        rest = (there * x * x).sum(0) - (line * cross).sum(1)
        psi = np.full_like(psi, rest.sum() / count.sum()) if isotropic else rest / count
        psi = np.maximum(psi, least)
        W, mean = line[:, :q], line[:, q]
        value = _mean_log_p(gaps, mean, W, psi)
        if value - last < TOLERANCE:
            break
        last = value
    return mean, W, psi
