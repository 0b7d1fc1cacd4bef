"""Classical clusterings with as many clusters as a model's facets: the bars that a clustering has to clear."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from inference.checking.per_datum import check_count, check_key
from inference.clustering.scoring import NO_FACET, scores
from inference.fitting.sources import stored

if TYPE_CHECKING:
    import pandas as pd

PCA_DIMS = 64
RIDGE = 1e-2
"""Added to the variances of the Gaussian mixture, in units of the mean variance of its input."""


def clustering_baselines(
    x_train: Any,
    x_test: Any,
    ks: Iterable[int],
    factors: Mapping[str, Any] | None = None,
    *,
    key: jax.Array,
    train_factors: Mapping[str, Any] | None = None,
    most: int | None = None,
    restarts: int = 3,
    what: str = "pixels",
) -> pd.DataFrame:
    """k-means and diagonal Gaussian mixtures with the same K, on pixels and on PCA: the rows of :func:`scores`.

    ``x_train``, ``x_test``  data (n, ...), fitted to and clustered; ``factors`` of ``x_test``.
    ``ks``                   numbers of clusters, such as the K of every facet; each is fitted once.
    ``train_factors``        of ``x_train``: name the clusters by the training split, as ``train=`` does in ``scores``.
    ``most``                 fit to a random subset of that many training data; default: all of them.
    ``restarts``             of k-means, the best inertia is kept; the mixture starts from one k-means.
    ``what``                 the data are called: "pixels", or "columns" of a table.

    ``method`` is "k-means, pixels", "k-means, PCA", "mixture, pixels" or "mixture, PCA", ``facet`` is "-".  PCA keeps
    at most 64 directions, unscaled: of fewer numbers it is a rotation, which k-means does not see.  k-means has no
    probabilities: ``ece`` is nan.  Equal keys give equal numbers.

    Raises ``ValueError`` for data of different shapes and fewer training data than clusters.

    >>> pandas.concat([scores(tree, labels), clustering_baselines(x, x_test, {3, 25}, labels, key=key)])
    """
    import pandas as pd
    from threadpoolctl import threadpool_limits

    check_key(key)
    check_count("restarts", restarts, 1)
    x_train, x_test, ks = np.asarray(x_train), np.asarray(x_test), sorted(set(ks))
    if min(x_train.ndim, x_test.ndim) < 2 or x_train.shape[1:] != x_test.shape[1:] or 0 in (x_train.size, x_test.size):
        raise ValueError(
            f"x_train has shape {x_train.shape}, x_test {x_test.shape}; expected (n, ...) of the same data"
        )
    subset_key, seed_key = jax.random.split(key)
    if most is not None and len(x_train) > most:
        check_count("most", most, 1)
        chosen = np.sort(np.asarray(jax.random.choice(subset_key, len(x_train), (most,), replace=False)))
        x_train = x_train[chosen]
        train_factors = None if train_factors is None else {k: np.asarray(v)[chosen] for k, v in train_factors.items()}
    for k in ks:
        check_count("every K", k, 1)
        if k > len(x_train):
            raise ValueError(f"{k} clusters need at least as many training data, got {len(x_train)}; give more data")
    seed = int(jax.random.randint(seed_key, (), 0, 2**31 - 1))
    found = []
    # Small matrices: a pool of threads costs more than it saves.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")  # few distinct data, the last thousandths of a nat
        for name, train, test in _inputs(x_train, x_test, seed, what):
            for (method, fitted), k in itertools.product(_METHODS.items(), ks):
                on_train, on_test = fitted(train, test, k, seed, restarts)
                named = None if train_factors is None else ({NO_FACET: on_train}, train_factors)
                table = scores({NO_FACET: on_test}, factors or {}, train=named, method=f"{method}, {name}")
                # Zeros and ones here are no probabilities.
                found.append(table.assign(confidence=np.nan, ece=np.nan) if fitted is _k_means else table)
    if not found:
        raise ValueError("ks is empty; give the numbers of clusters of the facets to stand beside")
    return pd.concat(found, ignore_index=True)


def plain_numbers(program: Any, x: Any) -> np.ndarray:
    """Stored data as plain numbers (n, ...) for classical methods: what is scored, or the program's own features, in
    which nothing is missing and all columns of a table weigh about the same."""
    x = stored(program, x)
    if program.observation.features is None:
        return np.asarray(program.scored(x))
    ready = program.observation.prepare(jax.tree.map(jax.numpy.asarray, x), jax.random.key(0), False)
    return np.asarray(program.observation.features(ready), np.float64)


def _inputs(x_train: np.ndarray, x_test: np.ndarray, seed: int, what: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The data flattened in one unit, and their leading principal components."""
    from sklearn.decomposition import PCA

    train, test = (x.reshape(len(x), -1).astype(np.float64) for x in (x_train, x_test))
    scale = np.sqrt(train.var(0).mean()) or 1.0
    train, test = train / scale, test / scale
    pca = PCA(min(PCA_DIMS, *train.shape), random_state=seed).fit(train)
    return [(what, train, test), ("PCA", pca.transform(train), pca.transform(test))]


def _k_means(train: np.ndarray, test: np.ndarray, k: int, seed: int, restarts: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=restarts, random_state=seed).fit(train)
    return np.eye(k)[fitted.labels_], np.eye(k)[fitted.predict(test)]


def _mixture(train: np.ndarray, test: np.ndarray, k: int, seed: int, restarts: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.mixture import GaussianMixture

    del restarts
    ridge = RIDGE * train.var(0).mean()
    fitted = GaussianMixture(k, covariance_type="diag", reg_covar=ridge, random_state=seed, max_iter=100).fit(train)
    return fitted.predict_proba(train), fitted.predict_proba(test)


_METHODS = {"k-means": _k_means, "mixture": _mixture}
