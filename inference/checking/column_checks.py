"""Posterior predictive checks of a table, column by column: entries that are there against replicates of the same.

Three lines, each of the worst column: the mean, the spread (standard deviation) and the share of each class.  Tail
probabilities are those of Student's t, for ranks among a hundred replicates could not survive what follows: they are
adjusted for the number of statistics compared (Holm 1979, "A simple sequentially rejective multiple test procedure"),
so that a line of many columns is as rarely wrong as that of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from inference.checking.criticism import EFFECT, TAIL, draws_first, group, student_tail
from ppl_models.program import Check, Column

LINES = {"mean": "mean of a column", "spread": "spread of a column", "share": "share of a class"}


@dataclass(frozen=True)
class Statistic:
    """One statistic of one column: of the real entries, and of each replicate, in words of the file.

    ``shift``  difference of means (or shares) in standard deviations over data, log ratio of spreads.
    """

    name: str
    observed: float
    replicated: float
    tail: float
    shift: float


def column_lines(tree: Any, columns: Sequence[Column]) -> list[Check]:
    """One check a line of :data:`LINES` from a tree with ``observed_data`` and ``posterior_predictive``."""
    real, drawn = group(tree, "observed_data"), group(tree, "posterior_predictive")
    site = next((name for name in drawn if name in real), None)
    if site is None or "there" not in real:
        return []
    x, there, replicated = np.asarray(real[site]), np.asarray(real["there"], bool), draws_first(drawn[site])
    found: dict[str, list[Statistic]] = {kind: [] for kind in LINES}
    for i, column in enumerate(columns):
        known = there[:, i]
        if known.sum() < 2:
            continue
        for kind, statistic in statistics(column, x[known, i], replicated[:, known, i]):
            found[kind].append(statistic)
    return [_line(LINES[kind], several) for kind, several in found.items() if several]


def statistics(
    column: Column, x: Float[np.ndarray, " n"], replicated: Float[np.ndarray, "S n"]
) -> list[tuple[str, Statistic]]:
    """The statistics of a column from stored numbers; means of positive columns are those of logs, said as medians."""
    x, replicated = np.asarray(x, np.float64), np.asarray(replicated, np.float64)
    if column.values:
        codes = range(1, 2) if len(column.values) == 2 else range(len(column.values))
        found = []
        for code in codes:
            share, shares = float((x == code).mean()), (replicated == code).mean(1)
            sd = math.sqrt(max(share * (1 - share), 1 / len(x)))
            name = f"{column.name} = {column.values[code]}"
            shift = (float(shares.mean()) - share) / sd
            found.append(("share", Statistic(name, share, float(shares.mean()), student_tail(share, shares), shift)))
        return found
    mean, means = float(x.mean()), replicated.mean(1)
    sd, sds = float(x.std()), replicated.std(1)
    shift = (float(means.mean()) - mean) / max(sd, 1e-12)
    middle = [_said(column, value) for value in (mean, float(means.mean()))]
    unit = 1.0 if column.kind == "count" else column.scale
    ratio = math.log(max(float(sds.mean()), 1e-12) / max(sd, 1e-12))
    return [
        ("mean", Statistic(column.name, middle[0], middle[1], student_tail(mean, means), shift)),
        ("spread", Statistic(column.name, sd * unit, float(sds.mean()) * unit, student_tail(sd, sds), ratio)),
    ]


def _said(column: Column, stored: float) -> float:
    """A stored number in the unit of the file."""
    if column.kind == "count":
        return stored
    value = column.loc + column.scale * stored
    return math.exp(min(value, 700.0)) if column.kind == "positive" else value


def holm(tail: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Holm's adjusted probabilities: the j-th smallest of m times m - j + 1, never falling, at most 1."""
    order = np.argsort(tail)
    adjusted = np.maximum.accumulate(tail[order] * np.arange(len(tail), 0, -1))
    found = np.empty_like(adjusted)
    found[order] = np.minimum(adjusted, 1.0)
    return found


def _line(label: str, several: Sequence[Statistic]) -> Check:
    tails = holm(np.asarray([1.0 if math.isnan(one.tail) else one.tail for one in several]))
    shifts = np.asarray([abs(one.shift) for one in several])
    clear = tails < TAIL
    # The largest of the shifts that are certain; where none is, the least likely.
    worst = int(np.argmax(np.where(clear, shifts, -1.0))) if clear.any() else int(np.argmin(tails))
    one, tail, shift = several[worst], float(tails[worst]), float(shifts[worst])
    misfit = tail < TAIL and shift > EFFECT[0]
    many = int((clear & (shifts > EFFECT[0])).sum())
    spread = label == LINES["spread"]
    how = f"a factor of {math.exp(one.shift):.3g}" if spread else f"{one.shift:+.2f} sd over data"
    wanted = "a log ratio" if spread else "a shift"
    return Check(
        f"predictive check: {label} (worst: {one.name})", tail,
        f">= {TAIL:g} after Holm, or {wanted} <= {EFFECT[0]:g}",
        "ok" if not misfit else "fail" if shift > EFFECT[1] else "warn",
        f"Real entries: {one.observed:.4g}; the same simulated by the fitted model: {one.replicated:.4g} ({how})"
        + (f". The model does not reproduce this property; {many} of {len(several)} are off." if misfit else
           ". The difference is real but small." if tail < TAIL else "."),
        "" if not misfit else
        "Another kind for the column (positive for a skewed one, count, categorical for few values); robust=True for "
        "outliers; scales='decoded'; more training; a larger decoder.",
    )  # fmt: skip
