"""Pictures of data: reconstructions, prior samples, the data that the model finds least likely.

A datum of shape (H, W) or (H, W, C) with C of 1, 3 or 4 is an image; anything else is drawn as a line over its flat
entries, or as a heat map where it has two axes or more and is no image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.reporting.style import BLUE, MUTED, ORANGE, canvas, note, styled

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


def show(axis: Any, datum: Any, span: tuple[float, float], color: str = BLUE) -> None:
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
    _bare(axis)


def tile(images: np.ndarray, span: tuple[float, float], columns: int) -> np.ndarray:
    """Images (n, H, W) or (n, H, W, C) side by side in one picture (.., .., 3) in [0, 1], with white gaps.

    One picture is drawn many times faster than one axis an image.
    """
    scaled = np.clip((np.asarray(images, float) - span[0]) / (span[1] - span[0]), 0, 1)
    scaled = scaled[..., None] if scaled.ndim == 3 else scaled[..., :3]
    scaled = np.broadcast_to(scaled, (*scaled.shape[:3], 3))
    n, height, width, _ = scaled.shape
    gap, rows = max(1, round(0.1 * width)), math.ceil(n / columns)
    picture = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for i, image in enumerate(scaled):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def _bare(axis: Any) -> None:
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
    span = span or limits(data)
    if is_image(shape) and not titles:
        figure, axes = canvas(width * columns + 0.1, height * rows + 0.1)
        axes[0, 0].imshow(tile(data, span, columns), interpolation="nearest")
        _bare(axes[0, 0])
        return figure
    figure, axes = canvas(width * columns + 0.2, (height + (0.2 if titles else 0.04)) * rows + 0.15, rows, columns)
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
    if len(shape) <= 1:
        return _line_reconstructions(observed[:n], mean[:n], draws[:, :n])
    width, height = _cell(shape)
    image = is_image(shape)
    figure, axes = canvas(width * n + 0.7, height * len(rows) + 0.2, len(rows), 1 if image else n)
    for row, label in enumerate(labels):
        if image:
            axes[row, 0].imshow(tile(rows[row], span, n), interpolation="nearest")
            _bare(axes[row, 0])
        else:
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


def prior_samples(
    draws: np.ndarray, n: int = 32, span: tuple[float, float] | None = None, observed: np.ndarray | None = None
) -> Figure:
    """Data (N, *shape) drawn from the fitted model without any observation: the first ``n`` in a grid.

    Data of one or two numbers are points, not pictures: all of them as histograms or a scatter, with ``observed``.
    """
    draws = np.asarray(draws)
    if math.prod(draws.shape[1:]) <= 2:
        flat = draws.reshape(len(draws), -1)
        real = {} if observed is None else {"data": np.asarray(observed).reshape(len(observed), -1)}
        return _cloud({**real, "model": flat})
    return grid(draws[:n], span=span)


@styled
def _cloud(samples: dict[str, np.ndarray]) -> Figure:
    """Samples (N, 1) as histograms or (N, 2) as a scatter, one colour each."""
    figure, axes = canvas(4.4, 3.8)
    axis, both = axes[0, 0], np.concatenate(list(samples.values()))
    bins = np.linspace(both[:, 0].min(), both[:, 0].max() + 1e-9, 41)
    for color, (name, points) in zip((MUTED, ORANGE), samples.items(), strict=False):
        if points.shape[1] == 1:
            axis.hist(points[:, 0], bins=bins, density=True, color=color, alpha=0.55, label=name)
        else:
            axis.scatter(*points.T, s=7, color=color, alpha=0.6, lw=0, label=name)
    axis.set(xlabel="entry 1", ylabel="density" if both.shape[1] == 1 else "entry 2")
    axis.legend()
    return figure


def lowest_evidence(observed: np.ndarray, log_px: np.ndarray, khat: np.ndarray | None = None, n: int = 16) -> Figure:
    """The ``n`` data with the lowest log p(x), worst first, each with its value in nats (and k-hat above 0.7)."""
    log_px = np.asarray(log_px, float)
    order = np.argsort(np.where(np.isfinite(log_px), log_px, -np.inf), kind="stable")[:n]
    titles = [f"#{i}: {log_px[i]:.1f}" + (" k!" if khat is not None and not khat[i] <= 0.7 else "") for i in order]
    return grid(np.asarray(observed)[order], titles)


@styled
def message(text: str) -> Figure:
    """A figure that only says ``text``: what stands in place of a figure that does not apply."""
    figure, axes = canvas(5.0, 1.2)
    note(axes[0, 0], text)
    return figure
