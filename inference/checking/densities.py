"""Densities and masses of plain numbers at their maximum likelihood, as functions that score rows (n, d) in nats."""

from __future__ import annotations

import math
import warnings

import numpy as np
from jaxtyping import Float, Int

from inference.checking.candidates import Score

WIDE = 256
"""Numbers a datum above which factor analysis is approximate and mixtures have diagonal covariances."""


def gaussian(x: Float[np.ndarray, "n d"], *, ridge: float) -> Score:
    """``N(mean, covariance + ridge * mean variance * I)`` at its maximum likelihood."""
    mean = x.mean(0)
    covariance = np.cov(x.T, bias=True).reshape(x.shape[1], -1)
    return _normal(mean, covariance + ridge * covariance.trace() / x.shape[1] * np.eye(x.shape[1]))


def independent(x: Float[np.ndarray, "n d"], *, ridge: float) -> Score:
    """Every number a Gaussian by itself; ``ridge`` is a share of the mean variance."""
    mean, variance = x.mean(0), x.var(0) + ridge * x.var(0).mean()
    constant = 0.5 * np.log(2 * math.pi * variance).sum()
    return lambda fresh: -0.5 * ((fresh - mean) ** 2 / variance).sum(1) - constant


def ppca(x: Float[np.ndarray, "n d"], *, rank: int) -> Score:
    """Probabilistic PCA: the leading directions, and one variance, their mean, in place of all the others."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True).reshape(x.shape[1], -1))
    rest = len(values) - rank
    values = np.r_[np.full(rest, values[:rest].mean()), values[rest:]]
    return _normal(x.mean(0), (vectors * values) @ vectors.T)


def factor_analysis(x: Float[np.ndarray, "n d"], *, rank: int, seed: int) -> Score:
    """Factor analysis by scikit-learn, a noise variance a number (those of no variance get a little)."""
    from sklearn.decomposition import FactorAnalysis
    from sklearn.exceptions import ConvergenceWarning

    rank = min(rank, x.shape[1] - 1, len(x) - 1)
    wide = x.shape[1] > WIDE
    model = FactorAnalysis(
        rank, svd_method="randomized" if wide else "lapack", max_iter=30 if wide else 200, tol=0.1, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x)
    noise = np.maximum(model.noise_variance_, 1e-6 * x.var(0).mean())
    return _normal(x.mean(0), model.components_.T @ model.components_ + np.diag(noise))


def _normal(mean: np.ndarray, covariance: np.ndarray) -> Score:
    factor = np.linalg.cholesky(covariance)
    constant = np.log(np.diag(factor)).sum() + 0.5 * len(mean) * math.log(2 * math.pi)

    def score(x: np.ndarray) -> np.ndarray:
        from scipy.linalg import solve_triangular

        return -0.5 * (solve_triangular(factor, (x - mean).T, lower=True) ** 2).sum(0) - constant

    return score


def gaussian_mixture(x: Float[np.ndarray, "n d"], *, components: int, ridge: float, seed: int) -> Score:
    """Mixture of full Gaussians (diagonal ones above ``WIDE`` dimensions) by scikit-learn's EM from k-means."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    full = x.shape[1] <= WIDE
    mixture = GaussianMixture(
        components, covariance_type="full" if full else "diag", reg_covar=ridge * float(x.var(0).mean()),
        random_state=seed, max_iter=50,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last thousandths of a nat are not the point
        mixture.fit(x)
    return mixture.score_samples


def categorical_mixture(
    x: Int[np.ndarray, "n d"], *, symbols: int, components: int, pseudo: float, seed: int, iterations: int = 60
) -> Score:
    """Mixture of independent categoricals by EM from random data; ``pseudo`` counts are added to every symbol.

    The pseudo counts of a component follow the frequencies of the whole data, half and half with equal ones.
    """
    rng, (n, d) = np.random.default_rng(seed), x.shape
    table = _one_hot(x, symbols)
    overall = (table.mean(0).reshape(d, symbols) + 1 / symbols) / 2
    counts = pseudo * symbols * overall.reshape(-1)
    start = rng.choice(n, components, replace=n < components)
    log_p = _log_share(table[start] + counts + 0.5 * overall.reshape(-1), d)
    log_pi = np.full(components, -math.log(components))
    last = -math.inf
    for _ in range(iterations):
        joint = table @ log_p.T + log_pi
        top = joint.max(1, keepdims=True)
        weight = np.exp(joint - top)
        total = weight.sum(1, keepdims=True)
        value = float((np.log(total) + top).mean())
        weight /= total
        mass = weight.sum(0)
        log_pi = np.log((mass + 1e-3) / (n + 1e-3 * components))
        log_p = _log_share(weight.T @ table + counts, d)
        if value - last < 1e-4:
            break
        last = value

    def score(x: np.ndarray) -> np.ndarray:
        joint = (_one_hot(x, symbols) @ log_p.T + log_pi).astype(np.float64)
        top = joint.max(1, keepdims=True)
        return np.log(np.exp(joint - top).sum(1)) + top[:, 0]

    return score


def _one_hot(x: np.ndarray, symbols: int) -> np.ndarray:
    return (x[..., None] == np.arange(symbols)).reshape(len(x), -1).astype(np.float32)


def _log_share(counts: np.ndarray, d: int) -> np.ndarray:
    """Logarithm of counts (k, d * symbols), normalised over the symbols."""
    share = counts.reshape(len(counts), d, -1)
    return np.log(share / share.sum(-1, keepdims=True)).reshape(len(counts), -1).astype(np.float32)


def linear_regression(x: Float[np.ndarray, "n d"], *, inputs: int, ridge: float) -> Score:
    """``N(y; B u + b, S)`` of rows ``[u, y]``, the first ``inputs`` numbers of which are ``u``: ridge regression.

    ``ridge`` is a share of the mean variance of the inputs, added to their covariance; S is the covariance of what the
    regression leaves over.
    """
    u, y = x[:, :inputs], x[:, inputs:]
    middle, centre = u.mean(0), y.mean(0)
    gram = (u - middle).T @ (u - middle) / len(u)
    gram += (ridge * max(gram.trace() / inputs, 1e-12) + 1e-12) * np.eye(inputs)
    B = np.linalg.solve(gram, (u - middle).T @ (y - centre) / len(u))
    rest = gaussian(y - centre - (u - middle) @ B, ridge=1e-6)
    return lambda fresh: rest(fresh[:, inputs:] - centre - (fresh[:, :inputs] - middle) @ B)
