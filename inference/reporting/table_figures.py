"""Figures of the rows of a table, one small axis a column, in the units of the file.

``x`` and ``there`` are stored numbers (n, D) and where they are there; missing entries are not shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from inference.reporting.style import BLUE, INK, MUTED, ORANGE, canvas, styled
from ppl_models.program import Column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN, ACROSS = 24, 4
"""Columns of a table that a figure shows, and how many side by side."""
CLASSES = 8
"""Classes of a column that a figure shows, the most frequent first."""


def _axes(columns: Sequence[Column], height: float = 1.9) -> tuple[Any, list[tuple[int, Column, Any]]]:
    """A figure, and (position, column, axis) of each column that it shows."""
    shown = list(enumerate(columns))[:SHOWN]
    across = min(ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    figure, axes = canvas(2.5 * across + 0.2, height * down + 0.4, down, across)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for (_, column), axis in zip(shown, axes.flat, strict=False):
        axis.set_title(_short(column.name, 30), fontsize=9)
        axis.tick_params(labelsize=7)
    return figure, [(d, column, axis) for (d, column), axis in zip(shown, axes.flat, strict=False)]


def left_out(columns: Sequence[Column]) -> str:
    """Words for a caption where a figure does not show every column."""
    return f" The first {SHOWN} of {len(columns)} columns." if len(columns) > SHOWN else ""


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _legend(figure: Any, axes: Sequence[tuple[int, Column, Any]]) -> None:
    """One legend for all axes."""
    found: dict[str, Any] = {}
    for _, _, axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found = {**dict(zip(labels, handles, strict=True)), **found}
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=len(found))


def _classes(column: Column, codes: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Codes of the most frequent classes, in the order of the codes, and their names."""
    counts = np.bincount(codes.astype(int), minlength=len(column.values))
    kept = np.sort(np.argsort(-counts, kind="stable")[:CLASSES])
    return kept, [_short(str(column.values[k]), 12) for k in kept]


def _logarithmic(axis: Any) -> None:
    """Marks at 1, 2 and 5 of each decade, plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _dates(axis: Any) -> None:
    """Few, short dates on an axis of days since 1970."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(3))
    # matplotlib's own locator of dates warns of ranges that it has no good interval for.
    axis.set_major_formatter(FuncFormatter(lambda day, _: str(np.datetime64(round(day), "D"))))


@styled
def predicted(
    columns: Sequence[Column],
    x: Float[np.ndarray, "n D"],
    there: Bool[np.ndarray, "n D"],
    replicated: Shaped[np.ndarray, "S n D"],
) -> Figure:
    """Each entry against the median of its posterior predictive draws; of classes the share of draws that agree."""
    figure, axes = _axes(columns, 2.3)
    for d, column, axis in axes:
        known = there[:, d]
        if not known.any():
            continue
        real, drawn = x[known, d], replicated[:, known, d]
        if column.values:
            kept, names = _classes(column, real)
            agreed = [(drawn[:, real == k] == k).mean() if (real == k).any() else 0.0 for k in kept]
            axis.bar(range(len(kept)), agreed, color=BLUE, width=0.7, label="entries and predictions agree")
            chance = [(drawn == k).mean() for k in kept]
            axis.scatter(range(len(kept)), chance, marker="_", s=220, color=INK, label="by chance", zorder=3)
            axis.set_xticks(range(len(kept)), names, rotation=30, ha="right")
            axis.set_ylim(0, 1)
            continue
        found, expected = (_numbers(column, stored) for stored in (real, np.median(drawn, 0)))
        axis.plot(found, expected, ".", color=BLUE, ms=3, alpha=0.6, label="a row")
        both = np.concatenate([found, expected])
        axis.plot([both.min(), both.max()], [both.min(), both.max()], color=ORANGE, lw=1, label="as in the table")
        if column.kind == "positive":
            axis.set(xscale="log", yscale="log")
            _logarithmic(axis.xaxis)
            _logarithmic(axis.yaxis)
        for side in (axis.xaxis, axis.yaxis) if column.date else ():
            _dates(side)
        axis.set_xlabel("in the table", fontsize=7.5)
        axis.set_ylabel("predicted", fontsize=7.5)
    _legend(figure, axes)
    return figure


@styled
def beside(
    columns: Sequence[Column],
    x: Float[np.ndarray, "n D"],
    there: Bool[np.ndarray, "n D"],
    drawn: Shaped[np.ndarray, "m D"],
) -> Figure:
    """Distribution of each column in the data, and in rows that the model makes up."""
    figure, axes = _axes(columns)
    for d, column, axis in axes:
        real, made = x[there[:, d], d], drawn[:, d]
        if column.values:
            kept, names = _classes(column, real)
            for shift, values, color, label in ((-0.2, real, MUTED, "data"), (0.2, made, ORANGE, "model")):
                share = [(values == k).mean() if len(values) else 0.0 for k in kept]
                axis.bar(np.arange(len(kept)) + shift, share, width=0.4, color=color, label=label)
            axis.set_xticks(range(len(kept)), names, rotation=30, ha="right")
            continue
        # On the stored scale bins are even; a tail that the model makes up may leave the picture.
        low, high = (real.min(), real.max()) if real.size else (0.0, 1.0)
        margin = 0.15 * (high - low) + 1e-6
        if column.kind == "count":
            step = max(1, round((high - low) / 25))
            edges: Any = np.arange(max(low - margin // 1 - 1, 0) - 0.5, high + margin + step + 0.5, step)
            inside = np.clip(made, edges[0], edges[-1])
        else:
            edges = np.linspace(low - margin, high + margin, 26)
            inside = np.clip(made, edges[0], edges[-1])
        shown = _numbers(column, edges)
        for values, color, label in ((real, MUTED, "data"), (inside, ORANGE, "model")):
            height = np.histogram(values, edges)[0] / max(1, len(values))
            axis.stairs(height, shown, color=color, fill=label == "data", alpha=0.8, lw=1.4, label=label)
        if column.kind == "positive":
            axis.set_xscale("log")
            _logarithmic(axis.xaxis)
        if column.date:
            _dates(axis.xaxis)
        axis.set_yticks([])
    _legend(figure, axes)
    return figure


def _numbers(column: Column, stored: np.ndarray) -> np.ndarray:
    """Cells as floats; dates as days since 1970."""
    if column.kind == "count":
        return stored
    v = column.loc + column.scale * stored
    return np.exp(v) if column.kind == "positive" else v


@styled
def profiles(names: Sequence[str], features: Sequence[str], difference: Float[np.ndarray, "K F"]) -> Figure:
    """Difference of each cluster to the rest, in standard deviations, a row a cluster and a column a feature."""
    K, F = difference.shape
    figure, axes = canvas(1.8 + 0.5 * F, 1.5 + 0.32 * K)
    axis, most = axes[0, 0], max(1.0, float(np.nanmax(np.abs(difference))))
    picture = axis.imshow(difference, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for (r, c), value in np.ndenumerate(difference):
        color = "white" if abs(value) > 0.65 * most else INK
        axis.text(c, r, f"{value:+.1f}", ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(F), [_short(name, 22) for name in features], rotation=40, ha="right", fontsize=7.5)
    axis.set_yticks(range(K), names, fontsize=8)
    axis.grid(visible=False)
    figure.colorbar(picture, ax=axis, label="standard deviations", shrink=0.9)
    return figure
