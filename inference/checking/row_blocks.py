"""Rows of a table as blocks of columns of one kind, and laws of the discrete ones under weights of components.

real, positive        standardised by the training data's mean and standard deviation; with their log Jacobian
binary, categorical   one-hot, all zeros where missing: log p = one-hot . log shares
count                 negative binomial of mean m and concentration r, variance m + m^2 / r
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln

from inference.checking.gaps import Gaps
from ppl_models.program import Column

CONCENTRATIONS = np.exp(np.linspace(-4.0, 12.0, 65))
"""Of a negative binomial, among which the likelihood chooses; the last is a Poisson to all purposes."""


@dataclass(frozen=True)
class Layout:
    """Columns by kind, and the standardisation of the real and positive ones, from training rows (n, D), NaN missing.

    ``floor``  (G,) least standard deviations, in standardised units: the rule of the columns themselves
               (:meth:`ppl_models.program.Column.least_scale`).
    """

    columns: tuple[Column, ...]
    gaussian: np.ndarray
    count: np.ndarray
    classes: np.ndarray
    loc: np.ndarray
    scale: np.ndarray
    floor: np.ndarray

    @classmethod
    def of(cls, columns: Sequence[Column], x: Float[np.ndarray, "n D"]) -> Layout:
        def of(*kinds: str) -> np.ndarray:
            return np.asarray([i for i, column in enumerate(columns) if column.kind in kinds], int)

        gaussian, count, classes = of("real", "positive"), of("count"), of("binary", "categorical")
        least = np.asarray([columns[i].least_scale() for i in gaussian])
        values, there = np.nan_to_num(x[:, gaussian]), ~np.isnan(x[:, gaussian])
        known = np.maximum(there.sum(0), 1)
        loc = values.sum(0) / known
        scale = np.sqrt(((values - loc) ** 2 * there).sum(0) / known)
        scale = np.maximum(np.where(there.sum(0) > 1, scale, 1.0), least)
        return cls(tuple(columns), gaussian, count, classes, loc, scale, least / scale)

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each binary and categorical column."""
        return [len(self.columns[i].values) for i in self.classes]


class Blocks:
    """Rows by the blocks of a layout: ``gaps`` of the real and positive columns, ``one_hot``, ``counts`` (NaN missing),
    and ``jacobian`` (n,), nats, which turns densities of the standardised numbers into those in the file's units."""

    def __init__(self, layout: Layout, x: Float[np.ndarray, "n D"]) -> None:
        self.layout, self.n = layout, len(x)
        z = x[:, layout.gaussian]
        self.gaps = Gaps((z - layout.loc) / layout.scale)
        each = [layout.columns[i].log_jacobian(x[:, i]) for i in layout.gaussian]
        jacobian = np.stack(each, 1) - np.log(layout.scale) if each else np.zeros((len(x), 0))
        self.jacobian = np.where(self.gaps.there, jacobian, 0.0).sum(1)  # of what is there
        self.counts = x[:, layout.count]
        tables = [(x[:, [i]] == np.arange(k)).astype(float) for i, k in zip(layout.classes, layout.sizes, strict=True)]
        self.one_hot = np.concatenate(tables, 1) if tables else np.zeros((len(x), 0))
        self._values: list[tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def features(self, filled: Float[np.ndarray, "n G"]) -> Float[np.ndarray, "n F"]:
        """Plain numbers for k-means: the standardised ones, one-hot classes, standardised log1p of counts."""
        logs = np.log1p(self.counts)
        there = ~np.isnan(logs)
        known = np.maximum(there.sum(0), 1)
        centred = np.where(there, logs - np.nan_to_num(logs).sum(0) / known, 0.0)
        return np.concatenate([filled, self.one_hot, centred / np.maximum(centred.std(0), 1e-3)], 1)

    @property
    def values(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each count: its distinct values (u,), the place of each row among them, log Gamma(value + r) (u, R)."""
        if self._values is None:
            self._values = []
            for column in self.counts.T:
                distinct, place = np.unique(np.nan_to_num(column), return_inverse=True)
                self._values.append((distinct, place.reshape(-1), gammaln(distinct[:, None] + CONCENTRATIONS)))
        return self._values


def log_shares(
    blocks: Blocks, weight: Float[np.ndarray, "n K"], pseudo: float
) -> Float[np.ndarray, "K H"]:  # fmt: skip
    """Log shares of the classes under weights: ``pseudo`` rows a class are added, half of them spread as in all rows.

    Every class of every component keeps a probability above 0, also one that the training rows lack.
    """
    found, at = [], 0
    for k in blocks.layout.sizes:
        table = blocks.one_hot[:, at : at + k]
        overall = (table.sum(0) / max(1.0, table.sum()) + 1 / k) / 2
        counts = weight.T @ table + pseudo * k * overall
        found.append(np.log(counts / counts.sum(1, keepdims=True)))
        at += k
    return np.concatenate(found, 1) if found else np.zeros((weight.shape[1], 0))


def count_laws(blocks: Blocks, weight: Float[np.ndarray, "n K"], pseudo: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and concentrations (K, C) of highest weighted likelihood; ``pseudo`` rows of the overall mean are added."""
    K, C = weight.shape[1], blocks.counts.shape[1]
    mean, concentration = np.ones((K, C)), np.ones((K, C))
    r = CONCENTRATIONS
    for c, (values, place, gamma) in enumerate(blocks.values):
        known = ~np.isnan(blocks.counts[:, c])
        w = np.stack([np.bincount(place, weight[:, k] * known, len(values)) for k in range(K)])  # (K, u)
        total = w.sum(1)
        everything = np.bincount(place, known.astype(float), len(values))
        overall = max((everything @ values + 0.5) / (everything.sum() + 1), 1e-6)
        mean[:, c] = (w @ values + pseudo * overall) / (total + pseudo)
        m = mean[:, [c]]
        gain = (
            w @ gamma
            + total[:, None] * (r * np.log(r / (r + m)) - gammaln(r))
            - (w @ values)[:, None] * np.log((r + m) / m)
        )
        concentration[:, c] = _top(gain)
    return mean, concentration


def _top(gain: Float[np.ndarray, "K R"]) -> Float[np.ndarray, " K"]:
    """The concentration of highest gain: the top of the parabola through the best on the grid and its neighbours."""
    best = np.clip(gain.argmax(1), 1, gain.shape[1] - 2)
    left, middle, right = (np.take_along_axis(gain, best[:, None] + i, 1)[:, 0] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    moved = np.where(bend < -1e-12, 0.5 * (left - right) / np.minimum(bend, -1e-12), 0.0)
    step = np.log(CONCENTRATIONS[1] / CONCENTRATIONS[0])
    return CONCENTRATIONS[best] * np.exp(step * np.clip(moved, -1.0, 1.0))


def log_counts(
    counts: Float[np.ndarray, "n C"], mean: Float[np.ndarray, "K C"], concentration: Float[np.ndarray, "K C"]
) -> Float[np.ndarray, "n K"]:
    """Log mass (nats) of the counts that are there under each component."""
    k, m, r = counts[:, None], mean, concentration
    each = gammaln(k + r) - gammaln(k + 1) - gammaln(r) - r * np.log1p(m / r) + k * (np.log(m) - np.log(r + m))
    return np.nan_to_num(each).sum(-1)
