"""Factor analysis of mixed data: where the linear paths of a deep model of a table start.

The features ``h`` of a row are its real numbers (log of positive ones) and log1p of counts in units of their standard
deviation, classes that are numbers as those, other classes as indicators times ``sqrt(2)``.  A column of whole numbers
or classes weighs as much as the chance that two of its entries differ, so that one that hardly varies does not lead
(with the weights of multiple correspondence analysis, which were tried, it does).  The leading principal directions
``U`` are the loadings: ``h = U z / c + noise``, z of total variance 1 a dimension on average, the noise isotropic of
variance ``s2``, the mean of the eigenvalues left out (Tipping & Bishop 1999, eq. 7-8).  NumPy and scikit-learn, on the
host.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ppl_models.distributions.columns import Columns
from ppl_models.distributions.correlated_row_law import from_covariance
from ppl_models.distributions.row_law import groups

BINS = 6
"""Quantiles into which a number is cut to measure its dependence on other columns."""
ROUNDS = 10
"""Of filling missing entries by the leading directions."""
RIDGE = 1e-3
"""Of the regression of scores on features, as a share of their mean variance."""
LARGEST = 2_000
"""Rows that regressions of counts and classes read at most."""


@dataclass(frozen=True)
class Features:
    """``h`` (n, P), centred and weighted; ``owner`` (P,) the column of each."""

    h: Float[np.ndarray, "n P"]
    owner: Int[np.ndarray, " P"]


@dataclass(frozen=True)
class Block:
    """One latent block of ``dim`` numbers: its scores and maps; what the data cannot fill (padding) is 0.

    ``score``  (n, dim) ``c U' h``: with noise of variance ``noise`` (dim,), inf where padded.
    ``decode`` (dim, outputs) linear effect on the decoder's numbers.
    """

    score: Float[np.ndarray, "n dim"]
    noise: Float[np.ndarray, " dim"]
    decode: Float[np.ndarray, "dim outputs"]

    def deflated(self, covariance: Float[np.ndarray, "... dim dim"]) -> Float[np.ndarray, "... dim dim"]:
        """A covariance of scores without their noise: that of z, at least a hundredth of what it was."""
        noise = np.where(np.isfinite(self.noise), self.noise, 0.0)
        values, vectors = np.linalg.eigh(covariance - np.diag(noise))
        least = 0.01 * np.trace(covariance, axis1=-2, axis2=-1)[..., None] / covariance.shape[-1]
        kept = np.maximum(values, np.maximum(least, 1e-3))
        return (vectors * kept[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def standardised(likelihood: Columns, x: Any) -> Features:
    """The features of stored rows, missing ones filled."""
    value, there = np.asarray(x["x"], np.float64), np.asarray(x["there"], bool)
    parts, known, owner = [], [], []
    for i, column in enumerate(likelihood.columns):
        v, seen = value[:, i], there[:, i]
        numeric = column.values and not any(isinstance(label, str) for label in column.values)
        if column.values and not numeric and column.kind == "categorical":
            table = np.eye(len(column.values))[v.astype(int)] * math.sqrt(2.0)
        elif numeric:
            table = np.asarray([float(label) for label in column.values])[v.astype(int)][:, None]
        else:
            table = np.log1p(v)[:, None] if column.kind == "count" else v[:, None]
        if table.shape[1] == 1:
            table = table * (_information(v[seen], column.kind) / max(float(table[seen].std()), 1e-6))
        parts.append(table)
        known += [seen] * table.shape[1]
        owner += [i] * table.shape[1]
    h, mask = np.concatenate(parts, 1), np.stack(known, 1)
    count = np.maximum(mask.sum(0), 1)
    mean = (h * mask).sum(0) / count
    z = np.where(mask, h - mean, 0.0)
    return Features(z if mask.all() else _filled(z, mask), np.asarray(owner))


def _information(v: np.ndarray, kind: str) -> float:
    """Standard deviation that a column of numbers gets: 1 where they are real; of whole numbers and classes the chance
    that two entries differ, so that a column that hardly varies does not weigh as much as one that does."""
    if kind in ("real", "positive") or not v.size:
        return 1.0
    share = np.unique(v, return_counts=True)[1] / len(v)
    return float(1 - (share**2).sum())


def _filled(z: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Missing entries predicted by the leading half of the directions, over and over, shrunk as a Gaussian's mean."""
    for _ in range(ROUNDS):
        values, vectors = np.linalg.eigh(np.cov(z.T, bias=True).reshape(z.shape[1], -1))
        rank = max(1, z.shape[1] // 2)
        noise = values[:-rank].mean() if rank < len(values) else 0.0
        top, kept = vectors[:, -rank:], np.maximum(values[-rank:] - noise, 0.0)
        shrink = kept / np.maximum(values[-rank:], 1e-9)
        z = np.where(known, z, (z @ top * shrink) @ top.T)
    return z


def partition(likelihood: Columns, x: Any, blocks: int, seed: int) -> Int[np.ndarray, " D"]:
    """Which of ``blocks`` groups each column belongs to: columns that depend on each other go together.

    Dependence is mutual information (of numbers cut at their quantiles) less its bias ``(r - 1)(c - 1)/2n``, as a share
    of the smaller entropy; the groups are those of spectral clustering, the largest first.
    """
    D = len(likelihood.columns)
    if blocks == 1 or blocks >= D:
        return np.arange(D) % blocks
    from sklearn.cluster import SpectralClustering

    share = dependence(likelihood, x)
    found = SpectralClustering(blocks, affinity="precomputed", random_state=seed, assign_labels="cluster_qr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # columns that depend on nothing make a graph that is not connected
        label = found.fit_predict(share + 1e-4)
    order = np.argsort(-np.bincount(label, minlength=blocks), kind="stable")
    return np.argsort(order)[label]


def dependence(likelihood: Columns, x: Any) -> Float[np.ndarray, "D D"]:
    """Mutual information of every two columns as a share of the smaller of their entropies, 0..1."""
    value, there = np.asarray(x["x"], np.float64), np.asarray(x["there"], bool)
    D, tables = len(likelihood.columns), []
    for i, column in enumerate(likelihood.columns):
        known = value[there[:, i], i]
        if column.values:
            codes, bins = value[:, i].astype(int), len(column.values)
        else:
            cuts = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if known.size else np.zeros(0)
            codes, bins = np.searchsorted(cuts, value[:, i], side="right"), len(cuts) + 1
        tables.append(np.eye(bins)[codes] * there[:, i : i + 1])
    found = np.eye(D)
    for i in range(D):
        for j in range(i):
            both = tables[i].T @ tables[j]
            n = both.sum()
            if n == 0:
                continue
            p = both / n
            a, b = p.sum(1), p.sum(0)
            inside = p[p > 0]
            mutual = (inside * np.log(inside / np.outer(a, b)[p > 0])).sum()
            mutual -= ((a > 0).sum() - 1) * ((b > 0).sum() - 1) / (2 * n)
            entropy = min(-(q[q > 0] * np.log(q[q > 0])).sum() for q in (a, b))
            found[i, j] = found[j, i] = min(max(mutual, 0.0) / entropy, 1.0) if entropy > 1e-9 else 0.0
    return found


def mixed_factors(
    likelihood: Columns, x: Any, dims: Sequence[int], group: Int[np.ndarray, " D"]
) -> tuple[list[Block], Float[np.ndarray, " outputs"]]:
    """One :class:`Block` for each of ``dims``, of the columns of its group alone, and the decoder's bias."""
    found = standardised(likelihood, x)
    h, owner = found.h, group[found.owner]
    bias = np.asarray(likelihood.start(x), np.float64)
    blocks = []
    for j, dim in enumerate(dims):
        at = np.flatnonzero(owner == j)
        values, vectors = np.linalg.eigh(np.cov(h[:, at].T, bias=True).reshape(len(at), -1))
        d = max(1, min(dim, len(at) - 1)) if len(at) else 0
        top, rest = values[len(at) - d :][::-1], values[: len(at) - d]
        U = vectors[:, len(at) - d :][:, ::-1]
        s2 = min(rest.mean() if rest.size else 0.0, 0.5 * top[-1]) if d else 0.0
        s2 = max(s2, 0.02 * top.mean()) if d else 0.0
        c = 1 / np.sqrt(max(top.mean(), 1e-9)) if d else 1.0
        score, noise = np.zeros((len(h), dim)), np.full(dim, np.inf)
        decode = np.zeros((dim, likelihood.outputs))
        if d:
            score[:, :d], noise[:d] = c * (h[:, at] @ U), c * c * s2
            for p, i in enumerate(found.owner[at]):
                column = likelihood.columns[i]
                if column.kind in ("real", "positive"):  # their feature is the stored number itself, standardised
                    place = likelihood.slices()[column.name]
                    decode[:d, place] = (U[p] / c * _spread(x, int(i)))[:, None]
        blocks.append(Block(score, noise, decode))
    _regress(likelihood, x, blocks, group, bias)
    return blocks, bias


def _spread(x: Any, i: int) -> float:
    """Standard deviation of the stored numbers of a column."""
    v = np.asarray(x["x"], np.float64)[np.asarray(x["there"], bool)[:, i], i]
    return max(float(v.std()), 1e-6)


def _regress(likelihood: Columns, x: Any, blocks: Sequence[Block], group: np.ndarray, bias: np.ndarray) -> None:
    """Effects on log means and log odds, by regression on the scores; in place of those of the features."""
    from sklearn.linear_model import LogisticRegression, PoissonRegressor

    value, there = np.asarray(x["x"], np.float64), np.asarray(x["there"], bool)
    slices, base_slope = likelihood.slices(), iter(zip(*likelihood._count_line(), strict=True))
    for i, column in enumerate(likelihood.columns):
        block, at = blocks[int(group[i])], slices[column.name]
        if column.kind in ("real", "positive"):
            continue
        base, slope = next(base_slope) if column.kind == "count" else (0.0, 1.0)
        rows = np.flatnonzero(there[:, i])[:LARGEST]
        z, v = block.score[rows], value[rows, i]
        if len(rows) < 5 or len(np.unique(v)) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # near is enough: training goes on from here
            if column.kind == "count":
                model = PoissonRegressor(alpha=1e-2, max_iter=200).fit(z, np.minimum(v, np.quantile(v, 0.99)))
                block.decode[:, at] = model.coef_[:, None] / slope
                bias[at] = (model.intercept_ - base) / slope
                continue
            model = LogisticRegression(C=1.0, max_iter=200).fit(z, v.astype(int))
        if column.kind == "binary":
            block.decode[:, at], bias[at] = model.coef_.T, model.intercept_
        elif len(model.classes_) == 2:
            half, k = model.coef_[0] / 2, at.start + model.classes_
            block.decode[:, k] = np.stack([-half, half], 1)
            bias[k] = bias[k].mean() + np.array([-0.5, 0.5]) * model.intercept_[0]
        else:
            block.decode[:, at.start + model.classes_] = model.coef_.T
            bias[at.start + model.classes_] = model.intercept_


def linear_map(
    features: Float[np.ndarray, "n F"], target: Float[np.ndarray, "n dim"]
) -> tuple[Float[np.ndarray, "F dim"], Float[np.ndarray, " dim"]]:
    """``(A, b)`` of the ridge regression ``target ~ features A + b``: a linear encoder of scores."""
    centre = features.mean(0)
    moved = features - centre
    gram = moved.T @ moved / len(moved)
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    A = np.linalg.solve(gram, moved.T @ (target - target.mean(0)) / len(moved))
    return A, target.mean(0) - centre @ A


def noise_parameters(
    likelihood: Columns,
    x: Any,
    blocks: Sequence[Block],
    covariances: Sequence[Float[np.ndarray, "dim dim"]],
) -> dict[str, np.ndarray]:
    """``log_scale`` (and ``whitening``) of the real and positive columns: what z, of these covariances, leaves over."""
    at = groups(likelihood.columns).gaussian
    if not at.size:
        return {}
    found = standardised(likelihood, x)
    h = found.h[:, [int(np.flatnonzero(found.owner == i)[0]) for i in at]] * [_spread(x, int(i)) for i in at]
    slices = likelihood.slices()
    place = np.asarray([slices[likelihood.columns[i].name].start for i in at])
    total = np.cov(h.T, bias=True).reshape(len(at), -1)
    explained = sum(b.decode[:, place].T @ c @ b.decode[:, place] for b, c in zip(blocks, covariances, strict=True))
    rest = total - explained
    floors = likelihood.floors()
    least = np.maximum(0.02 * np.diag(total), 1.01 * floors**2)
    if likelihood.correlated and len(at) > 1:
        scale, whitening = from_covariance(_positive(rest, total, len(h)))
        scale = np.maximum(scale, 1.01 * floors)
        return {"log_scale": np.log(scale - floors), "whitening": whitening}
    return {"log_scale": np.log(np.sqrt(np.maximum(np.diag(rest), least)) - floors)}


def _positive(rest: np.ndarray, total: np.ndarray, n: int) -> np.ndarray:
    """The nearest covariance that leaves a hundredth of each direction, shrunk a little towards its diagonal."""
    sd = np.sqrt(np.maximum(np.diag(total), 1e-9))
    correlation = rest / np.outer(sd, sd)
    values, vectors = np.linalg.eigh(correlation)
    whole = np.linalg.eigvalsh(total / np.outer(sd, sd))
    floor = max(1e-4, 0.5 * float(whole[0]))
    correlation = (vectors * np.maximum(values, floor)) @ vectors.T
    share = min(0.3, len(sd) / (8 * n))
    correlation = (1 - share) * correlation + share * np.diag(np.diag(correlation))
    return correlation * np.outer(sd, sd)
