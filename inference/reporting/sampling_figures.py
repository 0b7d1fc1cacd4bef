"""Figures of conditional sampling, from the DataTree of ``inference.sampling.condition`` and from ranks alone.

``x`` of the groups ``posterior`` (chain, draw, *shape) and ``denoising_path`` (chain, step, particle, *shape) is drawn
as grey images where shape is (rows, columns), as a cloud where it is (2,), and number by number else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.reporting.style import BLUE, CYCLE, INK, MUTED, ORANGE, canvas, styled
from ppl_models.program import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
"""Draws of a run, and steps of a path, in a row of images."""
ROWS = 4
"""Runs, particles and numbers of a vector that are drawn."""
INTERVALS = 40
"""Most numbers of a vector whose intervals are drawn."""
POINTS = 1500


def draws_of(tree: Any, group: str = "posterior") -> np.ndarray:
    """``x`` of a group of the tree; raises ``ValueError`` where it has none."""
    if group not in tree.children or "x" not in tree[group]:
        raise ValueError(
            f"the tree has no {group}/x; pass the DataTree of inference.sampling.condition"
            + (", of a particle method: chains have no denoising path" if group == "denoising_path" else "")
        )
    return np.asarray(tree[group]["x"].values, float)


@styled
def draws_beside(tree: Any, truth: Any = None) -> Figure:
    """Posterior draws run by run, beside the truth (*shape) where it is known.

    Images: the truth, posterior mean and standard deviation in the first row, then a row of draws a run.  Points in the
    plane: one cloud a run.  Else median, 50 % and 90 % intervals of every number, over all runs.
    """
    x = draws_of(tree)
    known = _known(truth, x.shape[2:])
    if x.ndim == 4:
        return _images(x, known)
    if x.shape[2:] == (2,):
        figure, axes = canvas(4.6, 3.8)
        axis, each = axes[0, 0], max(1, x.shape[0] * x.shape[1] // POINTS)
        for run, color in zip(x, CYCLE, strict=False):
            axis.scatter(*run[::each].T, s=5, alpha=0.5, color=color, lw=0)
        if known is not None:
            axis.scatter(*known, marker="x", s=60, color=INK, label="truth", zorder=3)
            axis.legend()
        axis.set(title="Posterior draws, a colour a run", xlabel="x[0]", ylabel="x[1]")
        return figure
    flat = x.reshape(-1, int(np.prod(x.shape[2:])))[:, :INTERVALS]
    low, quarter, median, three, high = np.quantile(flat, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    figure, axes = canvas(max(4.0, 1.4 + 0.2 * flat.shape[1]), 3.4)
    axis, at = axes[0, 0], np.arange(flat.shape[1])
    axis.vlines(at, low, high, color=BLUE, lw=1.2, label="90 %")
    axis.vlines(at, quarter, three, color=BLUE, lw=3.5, label="50 %")
    axis.scatter(at, median, s=14, color=BLUE, zorder=3)
    if known is not None:
        axis.scatter(at, known.reshape(-1)[: len(at)], marker="x", s=30, color=ORANGE, label="truth", zorder=4)
    axis.set(title="Posterior intervals", xlabel="number of x", ylabel="x")
    axis.legend(ncols=3)
    return figure


@styled
def denoising_path(tree: Any, truth: Any = None) -> Figure:
    """What the denoiser makes of particles on their way from noise (left) to data: E[x_0 | x_t] of the first run.

    Images: a row a particle.  Else one axis for each of the first numbers, a line a particle, the truth dashed.
    """
    path = draws_of(tree, "denoising_path")[0]
    known = _known(truth, path.shape[2:])
    steps = len(path)
    if path.ndim == 4:
        at = np.unique(np.linspace(0, steps - 1, COLUMNS).astype(int))
        rows = [path[at, particle] for particle in range(min(ROWS, path.shape[1]))]
        return _mosaic(rows, [f"particle {i + 1}" for i in range(len(rows))], [f"step {k + 1}" for k in at])
    flat = path.reshape(steps, path.shape[1], -1)[..., :ROWS]
    figure, axes = canvas(1.2 + 2.6 * flat.shape[2], 3.0, 1, flat.shape[2])
    for i, axis in enumerate(axes[0]):
        axis.plot(np.arange(1, steps + 1), flat[..., i], color=BLUE, lw=0.8, alpha=0.7)
        if known is not None:
            axis.axhline(known.reshape(-1)[i], color=INK, lw=0.9, ls="--")
        axis.set(title=f"E[x[{i}] | x_t]", xlabel="step, from noise to data")
    return figure


@styled
def coverage(ranks: Mapping[str, Any]) -> Figure:
    """Share of simulated truths that central intervals hold, against their nominal mass, a curve a quantity.

    ``ranks``  rank fractions in (0, 1) by label, (simulation, ...): those of ``inference.sampling.calibration_ranks``,
               or one of its quantities by method; numbers of one label are pooled.  Grey: where nineteen of twenty
               curves of a single right number would lie at each mass (binomial).
    """
    from scipy.stats import binom

    if not ranks:
        raise ValueError("there are no ranks to draw; pass those of inference.sampling.calibration_ranks")
    found = {name: np.abs(np.asarray(values, float) - 0.5).reshape(len(values), -1) for name, values in ranks.items()}
    mass = np.linspace(0.05, 0.95, 19)
    figure, axes = canvas(4.6, 3.6)
    axis, n = axes[0, 0], min(len(values) for values in found.values())
    low, high = (binom.ppf(q, n, mass) / n for q in (0.025, 0.975))
    axis.fill_between(mass, low, high, color=MUTED, alpha=0.25, lw=0)
    axis.plot([0, 1], [0, 1], color=INK, lw=0.9, ls="--")
    for name, off in found.items():
        axis.plot(mass, [(off <= c / 2).mean() for c in mass], label=name)
    axis.set(title="Coverage over simulations", xlabel="mass of the interval", ylabel="share that hold the truth",
             xlim=(0, 1), ylim=(0, 1))  # fmt: skip
    axis.legend()
    return figure


def sampling_panels(tree: Any, *, truth: Any = None, ranks: Mapping[str, Any] | None = None) -> Sequence[Panel]:
    """The figures that a tree allows, with captions that say what is good."""
    found = [
        Panel(
            "posterior draws",
            "Posterior draws. Good: runs that look alike, plausible data, and a truth (where it is known) that would "
            "not stand out among them. Draws that hardly differ from one another though y leaves much open: too sure.",
            lambda: draws_beside(tree, truth),
        )
    ]
    if "denoising_path" in tree.children:
        found.append(
            Panel(
                "denoising path",
                "Denoising path. The denoised datum of some particles, from noise to data. Good: from the prior's "
                "mean through modes to a datum, different particles to different data. All alike from the start: "
                "guidance left the prior no say; copies run together after a resampling.",
                lambda: denoising_path(tree, truth),
            )
        )
    if ranks is not None:
        found.append(
            Panel(
                "coverage",
                "Coverage. Good: curves inside the grey band. Below the dashed line: intervals are too short.",
                lambda: coverage(ranks),
            )
        )
    return found


# ------------------------------------------------------------------------------------------------- images
def _known(truth: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if truth is not None and np.shape(truth) != shape:
        raise ValueError(f"truth has shape {np.shape(truth)}, expected that of a draw, {shape}")
    return None if truth is None else np.asarray(truth, float)


def _images(x: np.ndarray, known: np.ndarray | None) -> Figure:
    flat = x.reshape(-1, *x.shape[2:])
    sd = flat.std(0)
    first = [*([] if known is None else [known]), flat.mean(0), sd]
    titles = [*([] if known is None else ["truth"]), "mean", "sd"]
    at = np.linspace(0, x.shape[1] - 1, min(COLUMNS, x.shape[1])).astype(int)
    rows: list[Any] = [first, *(run[at] for run in x[:ROWS])]
    labels = ["", *(f"run {i + 1}" for i in range(len(rows) - 1))]
    return _mosaic(rows, labels, titles, own_scale=len(first) - 1)


def _mosaic(rows: Sequence[Any], labels: Sequence[str], titles: Sequence[str], own_scale: int | None = None) -> Figure:
    """Rows of grey images on one scale, but for image ``own_scale`` of the first row (0 white to its largest)."""
    columns = max(len(row) for row in rows)
    held = [image for r, row in enumerate(rows) for c, image in enumerate(row) if (r, c) != (0, own_scale)]
    low, high = np.quantile(np.stack(held), [0.005, 0.995])
    figure, axes = canvas(1.4 + 0.75 * columns, 0.6 + 0.8 * len(rows), len(rows), columns)
    for r, row in enumerate(rows):
        for c in range(columns):
            axis = axes[r, c]
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if c < len(row):
                ends = (0.0, float(np.max(row[c]))) if (r, c) == (0, own_scale) else (low, high)
                axis.imshow(row[c], cmap="gray_r", vmin=ends[0], vmax=ends[1], interpolation="nearest")
            if r == 0 and c < len(titles):
                axis.set_title(titles[c], fontsize=8, fontweight="normal")
        axes[r, 0].set_ylabel(labels[r], rotation=0, ha="right", va="center", fontsize=8)
    return figure
