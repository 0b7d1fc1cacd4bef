"""Pictures of data: reconstructions, prior samples, the data that the model finds least likely.

A datum of shape (H, W) or (H, W, C) with C of 1, 3 or 4 is an image; anything else is drawn as a line over its flat
entries, or as a heat map where it has two axes or more and is no image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference._style import BLUE, MUTED, ORANGE, canvas, note, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether one datum of this shape is drawn as an image."""
    if len(shape) == 2:
        return min(shape) > 1
    return len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 1


def limits(*arrays: np.ndarray) -> tuple[float, float]:
    """Common range of grey or colour for several arrays of data, from the finite values of the first."""
    values = np.asarray(arrays[0], float)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def show(axis: Any, datum: np.ndarray, span: tuple[float, float], color: str = BLUE) -> None:
    """Draw one datum on an axis: image, line or heat map by its shape; ``span`` is the range of values."""
    datum = np.asarray(datum, float)
    low, high = span
    if is_image(datum.shape):
        if datum.ndim == 3 and datum.shape[2] > 1:
            axis.imshow(np.clip((datum - low) / (high - low), 0, 1), interpolation="nearest")
        else:
            axis.imshow(datum.reshape(datum.shape[:2]), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    elif datum.ndim <= 1:
        flat = np.atleast_1d(datum)
        axis.plot(np.arange(len(flat)), flat, color=color, lw=1.1, marker="." if len(flat) <= 32 else "")
        margin = 0.05 * (high - low)
        axis.set_ylim(low - margin, high + margin)
        axis.set_xticks([])
        axis.tick_params(axis="y", labelsize=6)
        return
    else:
        axis.imshow(datum.reshape(datum.shape[0], -1), cmap="viridis", vmin=low, vmax=high, aspect="auto",
                    interpolation="nearest")  # fmt: skip
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _cell(shape: tuple[int, ...]) -> tuple[float, float]:
    """Width and height in inches of one datum's cell."""
    if is_image(shape):
        ratio = min(max(shape[0] / shape[1], 0.4), 2.5)
        return 0.8, 0.8 * ratio
    return 1.2, 0.9


@styled
def grid(data: np.ndarray, titles: Sequence[str] | None = None, columns: int = 8,
         span: tuple[float, float] | None = None) -> Figure:  # fmt: skip
    """Data (n, *shape) in a grid of cells, each with an optional title."""
    data = np.asarray(data)
    shape, n = data.shape[1:], len(data)
    if not is_image(shape):
        columns = min(columns, 6)
    columns = min(columns, n)
    width, height = _cell(shape)
    rows = math.ceil(n / columns)
    figure, axes = canvas(width * columns + 0.2, (height + (0.2 if titles else 0.04)) * rows + 0.15, rows, columns)
    span = span or limits(data)
    for i, axis in enumerate(axes.flat):
        if i >= n:
            axis.set_axis_off()
            continue
        show(axis, data[i], span)
        if titles:
            axis.set_title(titles[i], fontsize=7.5, fontweight="normal", loc="center", pad=2)
    return figure


@styled
def reconstructions(observed: np.ndarray, mean: np.ndarray, draws: np.ndarray, n: int = 10) -> Figure:
    """Rows: real data (N, *shape), their posterior predictive mean (N, *shape), and draws (S, N, *shape) of it."""
    n = min(n, len(observed))
    shape, draws = observed.shape[1:], np.asarray(draws)[:3]
    labels = ["data", "mean"] + [f"draw {i + 1}" for i in range(len(draws))]
    rows = [observed[:n], mean[:n], *(draw[:n] for draw in draws)]
    span = limits(observed[:n])
    if not is_image(shape) and math.prod(shape) > 0 and len(shape) <= 1:
        return _line_reconstructions(observed[:n], mean[:n], draws[:, :n])
    width, height = _cell(shape)
    figure, axes = canvas(width * n + 0.7, height * len(rows) + 0.2, len(rows), n)
    for row, label in enumerate(labels):
        for column in range(n):
            show(axes[row, column], rows[row][column], span)
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6)
    return figure


def _line_reconstructions(observed: np.ndarray, mean: np.ndarray, draws: np.ndarray) -> Figure:
    n = len(observed)
    columns = min(n, 5)
    figure, axes = canvas(2.0 * columns, 1.5 * math.ceil(n / columns) + 0.4, math.ceil(n / columns), columns)
    for i, axis in enumerate(axes.flat):
        if i >= n:
            axis.set_axis_off()
            continue
        index = np.arange(np.size(observed[i]))
        for draw in draws:
            axis.plot(index, np.ravel(draw[i]), color=MUTED, lw=0.6, alpha=0.6, label="draws")
        axis.plot(index, np.ravel(mean[i]), color=ORANGE, lw=1.4, label="mean")
        axis.plot(index, np.ravel(observed[i]), color=BLUE, lw=1.2, marker=".", ms=4, label="data")
        axis.tick_params(labelsize=6)
        axis.set_xticks([])
    found = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=3)
    return figure


def prior_samples(draws: np.ndarray, n: int = 32, span: tuple[float, float] | None = None) -> Figure:
    """Data (n, *shape) drawn from the fitted model without any observation."""
    return grid(np.asarray(draws)[:n], span=span)


def lowest_evidence(
    observed: np.ndarray, log_px: np.ndarray, khat: np.ndarray | None = None, n: int = 16
) -> Figure:
    """The ``n`` data with the lowest log p(x), worst first, each with its value in nats (and k-hat above 0.7)."""
    log_px = np.asarray(log_px, float)
    order = np.argsort(np.where(np.isfinite(log_px), log_px, -np.inf), kind="stable")[:n]
    titles = [
        f"#{i}: {log_px[i]:.1f}" + (" k!" if khat is not None and not khat[i] <= 0.7 else "") for i in order
    ]
    return grid(np.asarray(observed)[order], titles)


@styled
def message(text: str) -> Figure:
    """A figure that only says ``text``: what stands in place of a figure that does not apply."""
    figure, axes = canvas(5.0, 1.2)
    note(axes[0, 0], text)
    return figure
