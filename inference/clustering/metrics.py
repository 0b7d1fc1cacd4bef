"""How well one partition of data agrees with another: measures on label vectors, (n,) each.

Labels are integers, strings or anything that sorts; which number a cluster has never matters.  With n_cy the data in
cluster c that are known as y (:func:`contingency`) and n all of them:

    accuracy            (1/n) sum_c max_y n_cy: a cluster is called by its most common label; grows with K by itself
    Hungarian accuracy  (1/n) max over one-to-one matchings m of sum_c n_c,m(c): a cluster without a partner is wrong
    weighted accuracy   mean over labels y of the share of y that the majority vote calls y
    ARI, NMI            adjusted Rand index; mutual information / mean of the two entropies: scikit-learn's, but 0
                        where a partition has one part only, which says nothing (scikit-learn: 1 if both have)
    calibration error   sum_b (n_b/n) |share right in b - mean confidence in b| over 15 bins of equal width
                        ((b-1)/15, b/15] of the confidence max_c p(c | x); a datum is right if the majority label of
                        its most probable cluster is its own (Guo et al. 2017, arXiv 1706.04599, eq. 3)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

BINS = 15
MAX_VALUES = 64
"""A factor with more distinct values than this, or than half the data, is no labelling and is left out."""


def contingency(a: Any, b: Any) -> Int[np.ndarray, "rows columns"]:
    """How many data have value i of ``a`` and value j of ``b``; rows and columns by sorted value.

    Raises ``ValueError`` unless both are one value a datum, of the same data.
    """
    from sklearn.metrics.cluster import contingency_matrix

    a, b = _pair(a, b)
    return np.asarray(contingency_matrix(_codes(a), _codes(b)))


def _pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"two partitions of the same data are needed, one value a datum; got {a.shape} and {b.shape}")
    return a, b


def _codes(labels: np.ndarray) -> Int[np.ndarray, " n"]:
    return np.unique(labels, return_inverse=True)[1]


def labelled(factors: Mapping[str, Any] | None, n: int) -> dict[str, Shaped[np.ndarray, " n"]]:
    """The factors that label n data: one value each, 2 to 64 different ones, at most half as many as data."""
    found = {}
    for name, values in (factors or {}).items():
        values = np.asarray(values)
        if values.shape[:1] != (n,):
            raise ValueError(f"factor {name!r} has shape {values.shape}, expected ({n},): one value a clustered datum")
        if values.ndim == 1 and 1 < len(np.unique(values)) <= min(MAX_VALUES, n // 2):
            found[str(name)] = values
    return found


# ------------------------------------------------------------------------------------------- majority vote
def majority(clusters: Any, labels: Any) -> dict[Any, Any]:
    """Cluster -> its most common label, the smallest of equally common ones: a ``mapping`` for the functions below."""
    clusters, labels = _pair(clusters, labels)
    names = np.unique(labels)[contingency(clusters, labels).argmax(1)]
    return dict(zip(np.unique(clusters).tolist(), names.tolist(), strict=True))


def hits(clusters: Any, labels: Any, mapping: Mapping[Any, Any] | None = None) -> Bool[np.ndarray, " n"]:
    """Whether the majority label of each datum's cluster is its own.

    ``mapping``  :func:`majority` of other data, a training split; ``None`` takes it from these.  A cluster that it
                 does not know is wrong.
    """
    clusters, labels = _pair(clusters, labels)
    mapping = majority(clusters, labels) if mapping is None else mapping
    pairs = zip(clusters.tolist(), labels.tolist(), strict=True)
    return np.array([c in mapping and mapping[c] == y for c, y in pairs], bool)


def accuracy(clusters: Any, labels: Any, *, mapping: Mapping[Any, Any] | None = None) -> float:
    """Share of data whose cluster's majority label is their own (purity, where the mapping is from the same data)."""
    return float(hits(clusters, labels, mapping).mean())


def weighted_accuracy(clusters: Any, labels: Any, *, mapping: Mapping[Any, Any] | None = None) -> float:
    """The same, averaged over the labels: each counts alike, however many data it has."""
    right, labels = hits(clusters, labels, mapping), np.asarray(labels)
    return float(np.mean([right[labels == y].mean() for y in np.unique(labels)]))


def hungarian_accuracy(clusters: Any, labels: Any) -> float:
    """Share of data on the best one-to-one matching of clusters and labels; more clusters than labels lose the rest."""
    from scipy.optimize import linear_sum_assignment

    table = contingency(clusters, labels)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())


# -------------------------------------------------------------------------------------------- two partitions
def adjusted_rand(a: Any, b: Any) -> float:
    """Adjusted Rand index: 1 for the same partition, 0 expected of independent ones and given to a single part."""
    from sklearn.metrics import adjusted_rand_score

    a, b = map(_codes, _pair(a, b))
    return float(adjusted_rand_score(a, b)) if min(a.max(), b.max()) > 0 else 0.0


def normalised_mutual_information(a: Any, b: Any) -> float:
    """``I(a; b) / ((H(a) + H(b)) / 2)``: 1 for the same partition, 0 for independent ones and for a single part."""
    from sklearn.metrics import normalized_mutual_info_score

    a, b = map(_codes, _pair(a, b))
    # The ratio of rounded sums may leave [0, 1] by 1e-16.
    return float(np.clip(normalized_mutual_info_score(a, b), 0.0, 1.0)) if min(a.max(), b.max()) > 0 else 0.0


# --------------------------------------------------------------------------------------------- probabilities
def clusters_used(clusters: Any) -> int:
    """Clusters that hold any datum."""
    return len(np.unique(np.asarray(clusters)))


def effective_clusters(p: Float[np.ndarray, "n K"]) -> float:
    """``exp(H(mean_i p_i))``: clusters counted by the share of data that they hold."""
    mean = np.asarray(p, np.float64).mean(0)
    mean = mean[mean > 0] / mean.sum()
    return float(np.exp(-(mean * np.log(mean)).sum()))


def calibration_error(
    p: Float[np.ndarray, "n K"], labels: Any, *, mapping: Mapping[Any, Any] | None = None, bins: int = BINS
) -> float:
    """Expected calibration error of assignment probabilities: see the definition at the top; 0 if calibrated."""
    confidence = np.asarray(p, np.float64).max(1)
    right = hits(p.argmax(1), labels, mapping)
    at = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(at, right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
