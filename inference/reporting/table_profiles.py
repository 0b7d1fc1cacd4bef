"""What the clusters of a table are: how each differs from the rest, with intervals, and its most typical rows.

Clusters are those of the site ``resp_<facet>``; a row belongs to its most probable one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from inference.reporting import markup
from ppl_models.program import Column, decode_frame

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 1.959964
"""Standard normal quantile of the 95 % intervals."""
CLUSTERS, DIFFERENCES, ROWS, COLUMNS, LEAST = 12, 4, 3, 12, 2
"""Clusters shown, columns in which each differs, typical rows, columns of a row, members that make a cluster."""


@dataclass(frozen=True)
class Feature:
    """A number a row that clusters may differ in: a column, or whether it has one of its classes.

    ``v``  (n,) float64, NaN where missing; of a positive column its log.
    """

    column: Column
    value: Any
    v: Float[np.ndarray, " n"]

    @property
    def name(self) -> str:
        return self.column.name if self.value is None else f"{self.column.name} = {self.value}"


def features(columns: Sequence[Column], x: Float[np.ndarray, "n D"], there: Bool[np.ndarray, "n D"]) -> list[Feature]:
    """One feature a number, one a binary column, one a class of a categorical."""
    found = []
    for d, column in enumerate(columns):
        stored, missing = x[:, d].astype("float64"), ~there[:, d]
        if column.values:
            codes = range(len(column.values)) if len(column.values) > 2 else (1,)
            found += [
                Feature(column, column.values[k], np.where(missing, np.nan, (stored == k).astype(float))) for k in codes
            ]
        else:
            v = stored if column.kind == "count" else column.loc + column.scale * stored
            found.append(Feature(column, None, np.where(missing, np.nan, v)))
    return found


def used(label: Int[np.ndarray, " n"]) -> list[int]:
    """Clusters with members enough to speak of, the largest first."""
    sizes = np.bincount(label)
    return [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c] >= LEAST][:CLUSTERS]


def differences(found: Sequence[Feature], label: Int[np.ndarray, " n"], clusters: Sequence[int]) -> np.ndarray:
    """(clusters, features): mean in the cluster less mean of the rest, in standard deviations over all rows."""
    out = np.zeros((len(clusters), len(found)))
    for j, feature in enumerate(found):
        known = np.isfinite(feature.v)
        spread = feature.v[known].std() if known.any() else 0.0
        for r, c in enumerate(clusters):
            inside, rest = feature.v[known & (label == c)], feature.v[known & (label != c)]
            if spread > 0 and inside.size and rest.size:
                out[r, j] = (inside.mean() - rest.mean()) / spread
    return out


def interval(feature: Feature, rows: Bool[np.ndarray, " n"]) -> str:
    """Mean (of a positive column the geometric mean, of a class its share) of these rows and its 95 % interval."""
    v = feature.v[rows & np.isfinite(feature.v)]
    n = len(v)
    if not n:
        return "unknown"
    mean = float(v.mean())
    if feature.value is not None:
        # Wilson's score interval.
        centre = (mean + LEVEL**2 / (2 * n)) / (1 + LEVEL**2 / n)
        half = LEVEL / (1 + LEVEL**2 / n) * math.sqrt(mean * (1 - mean) / n + LEVEL**2 / (4 * n * n))
        return f"{mean:.0%} ({max(0.0, centre - half):.0%} to {min(1.0, centre + half):.0%})"
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1) * v.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    ends = (mean, mean - half, mean + half)
    if feature.column.date:
        ends_text = [str(np.datetime64("1970-01-01") + np.timedelta64(round(e), "D")) for e in ends if abs(e) < 1e7]
    else:
        decode: Any = {"positive": math.exp, "count": lambda e: max(e, 0.0)}.get(feature.column.kind, float)
        ends_text = [f"{decode(e):.4g}" for e in ends if abs(e) < 700 or feature.column.kind != "positive"]
    return f"{ends_text[0]} ({ends_text[1]} to {ends_text[2]})" if n > 1 and len(ends_text) == 3 else ends_text[0]


def profile_table(facet: str, found: Sequence[Feature], label: Int[np.ndarray, " n"], clusters: Sequence[int]) -> str:
    """HTML: for each cluster the features that set it apart most, in it and in the rest."""
    apart = differences(found, label, clusters)
    rows: list[list[Any]] = []
    for r, c in enumerate(clusters):
        members = label == c
        seen: set[str] = set()
        for j in np.argsort(-np.abs(apart[r]), kind="stable"):
            feature = found[j]
            if feature.column.name in seen or apart[r, j] == 0:
                continue
            first = not seen
            seen.add(feature.column.name)
            head = f"{c} ({members.sum():,} rows, {members.mean():.0%})" if first else ""
            geometric = " (geometric mean)" if feature.column.kind == "positive" else ""
            rows.append(
                [head, feature.name + geometric, interval(feature, members), interval(feature, ~members),
                 f"{apart[r, j]:+.2f}"]
            )  # fmt: skip
            if len(seen) == DIFFERENCES:
                break
    header = ["cluster", "column", "in the cluster (95 % interval)", "in the rest", "difference [sd]"]
    return (
        f"<h3>Facet {escape(facet)}: what sets each cluster apart</h3><p>Mean or share over the rows of each cluster, "
        f"most probable cluster a row, against all other rows; the {DIFFERENCES} columns that differ most. Missing "
        "entries are left out. Intervals that do not overlap: the cluster is different there; the columns are chosen "
        "because they differ, so small differences are worth little.</p>" + markup.table(header, rows)
    )


def typical_table(
    facet: str,
    columns: Sequence[Column],
    x: Float[np.ndarray, "n D"],
    there: Bool[np.ndarray, "n D"],
    p: Float[np.ndarray, "n K"],
    log_px: Float[np.ndarray, " n"],
    clusters: Sequence[int],
    names: Sequence[Any],
) -> str:
    """HTML: of each cluster the rows that are surest of it; of equally sure ones those of highest log p(x)."""
    label, missing = p.argmax(1), (~there).sum(1)
    chosen = []
    for c in clusters:
        members = np.flatnonzero(label == c)
        order = np.lexsort((-log_px[members], missing[members], -np.round(p[members, c], 2)))
        chosen += [(c, int(i)) for i in members[order][:ROWS]]
    lead = [[str(c), f"{p[i, c]:.2f}"] for c, i in chosen]
    return (
        f"<h3>Facet {escape(facet)}: the most typical rows of each cluster</h3><p>The rows that belong to the cluster "
        "most surely (p), of equally sure ones those with the fewest missing entries that the model finds most likely. "
        "Good: you can say what the rows of a cluster have in common." + _cut(columns) + "</p>"
        + rows_table(columns, x, there, [i for _, i in chosen], names, ["cluster", "p"], lead)
    )  # fmt: skip


def lowest_table(
    columns: Sequence[Column],
    x: Float[np.ndarray, "n D"],
    there: Bool[np.ndarray, "n D"],
    table: pd.DataFrame,
    names: Sequence[Any],
    most: int = 10,
) -> str:
    """HTML: the rows with the lowest log p(x), worst first."""
    log_px, khat = table["log_px"].to_numpy(float), table["khat"].to_numpy(float)
    order = np.argsort(np.where(np.isfinite(log_px), log_px, -np.inf), kind="stable")[:most]
    lead = [[f"{log_px[i]:.2f}" + (" (k-hat > 0.7)" if khat[i] > 0.7 else "")] for i in order]
    return (
        "<h3>Rows that the model finds least likely</h3><p>Log p(x) in nats, worst first. Good: odd rows, the ones a "
        "person would also call odd or mistyped; ordinary rows here show what the model misses. A row with missing "
        "entries is scored for the others alone." + _cut(columns)
        + "</p>" + rows_table(columns, x, there, order.tolist(), names, ["log p(x)"], lead)
    )  # fmt: skip


def rows_table(
    columns: Sequence[Column],
    x: Float[np.ndarray, "n D"],
    there: Bool[np.ndarray, "n D"],
    rows: Sequence[int],
    names: Sequence[Any],
    header: Sequence[str],
    lead: Sequence[Sequence[str]],
) -> str:
    """HTML of rows in the units of the file, with cells of ``lead`` before each; missing entries stay empty."""
    kept = list(columns)[:COLUMNS]
    at, D = np.asarray(rows, int), len(kept)
    frame = decode_frame(kept, x[at][:, :D], there[at][:, :D])
    cells = []
    for r, i in enumerate(rows):
        entries = [_cell(frame.iloc[r, d]) if there[i, d] else "" for d in range(D)]
        cells.append([*lead[r], str(names[i]), *entries])
    return markup.table([*header, "row", *(column.name for column in kept)], cells)


def _cell(value: Any) -> str:
    if hasattr(value, "strftime"):
        return str(value.strftime("%Y-%m-%d"))
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _cut(columns: Sequence[Column]) -> str:
    return f" The first {COLUMNS} of {len(columns)} columns." if len(columns) > COLUMNS else ""
