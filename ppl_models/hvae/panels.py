"""Figures of a fitted hierarchy: the state's norm as a clock, what each level adds, what it leaves open.

A ``fit`` is anything with ``model`` (the program's model with the trained weights); ``tree`` is the DataTree of
``inference.posterior``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from ppl_models.hvae.use import shared as shared, truncated as truncated
from ppl_models.program import Panel

if TYPE_CHECKING:
    from ppl_models.hvae.spec import HVAE

ROWS, COLUMNS = 10, 12
NAMED = 16
"""Levels up to which each is named by its resolution and step; beyond, by its number."""
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # told apart by everyone


def panels(spec: HVAE, fit: Any, x: Any, tree: Any) -> list[Panel]:
    """All figures; those of images only where a datum is an image: (H, W), (H, W, 1) or (H, W, 3)."""
    del x
    norms = np.asarray(tree["posterior"]["state_norm"].values, float).reshape(-1, len(spec.latents))
    found = [
        Panel(
            "state_norm",
            "State against level. Root mean square of the top-down state after each level (median and 90 % of data "
            "and draws), by resolution. The cells are not told which one they are: where the norm grows steadily "
            f"they can read it off. {_clock_text(spec, norms)}",
            lambda: _draw_norms(spec, norms),
        )
    ]
    if len(spec.shape) == 2 or (len(spec.shape) == 3 and spec.shape[2] in (1, 3)):
        cuts = shown_cuts(len(spec.latents))
        found += [
            Panel(
                "what_levels_add",
                "What each level adds. Top row: data, as scored. Below: the expected image when only the first levels "
                "are taken from the posterior of the datum and the others from their mean given those above. Good: "
                "rows approach the data step by step; a row like the one above it is a level without effect.",
                lambda: _draw_truncated(spec, fit, tree, cuts),
            ),
            Panel(
                "what_levels_leave_open",
                "What the levels leave open. Images from the prior (expected value of each pixel): in a row all share "
                "the first levels and draw the others anew. Good: variety shrinks downwards, and early rows vary in "
                "more than small strokes; rows that all look alike mean that later levels do nothing.",
                lambda: _draw_shared(spec, fit, cuts),
            ),
        ]
    return found


def shown_cuts(levels: int) -> list[int]:
    """Numbers of leading levels that get a row: all from 0 to ``levels``, or about ten of them."""
    return sorted({round(cut) for cut in np.linspace(0, levels, min(levels + 1, ROWS))})


# -------------------------------------------------------------------------------------------------- norms
def clock(norms: Float[np.ndarray, "n levels"]) -> tuple[float, float]:
    """How well the position of a cell can be read off the state's norm: R^2 of a line, share of increasing steps."""
    time = np.broadcast_to(np.linspace(0, 1, norms.shape[1]), norms.shape)
    constant = norms.std() == 0
    fit = 0.0 if constant else float(np.corrcoef(time.ravel(), norms.ravel())[0, 1] ** 2)
    return fit, float((np.diff(norms, axis=1) > 0).mean())


def _clock_text(spec: HVAE, norms: Float[np.ndarray, "n levels"]) -> str:
    resolutions = np.array([cell.res for cell in spec.decoder_cells])
    parts = []
    for res in np.unique(resolutions):
        if (resolutions == res).sum() > 2:
            fit, rising = clock(norms[:, resolutions == res])
            parts.append(f"{res}x{res}: R² of position on norm {fit:.2f}, {rising:.0%} of steps rise")
    return "; ".join(parts) + "." if parts else "(Too few cells a resolution to fit a line.)"


def _draw_norms(spec: HVAE, norms: Float[np.ndarray, "n levels"]) -> Any:
    from matplotlib.figure import Figure

    low, middle, high = np.quantile(norms, [0.05, 0.5, 0.95], axis=0)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    resolutions = np.array([cell.res for cell in spec.decoder_cells])
    for colour, res in zip(_COLOURS * 3, np.unique(resolutions), strict=False):
        at = np.flatnonzero(resolutions == res)
        axes.errorbar(at, middle[at], (middle[at] - low[at], high[at] - middle[at]), fmt="o-", color=colour, capsize=2,
                      label=f"{res}x{res}")  # fmt: skip
    if len(resolutions) <= NAMED:
        steps = [int((resolutions[:i] == res).sum()) for i, res in enumerate(resolutions)]
        axes.set_xticks(
            range(len(steps)), [f"{res}x{res}\n{i}" for res, i in zip(resolutions, steps, strict=True)], fontsize=8
        )
        axes.set_xlabel("resolution, and step there")
    else:
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("level")
    axes.set(ylabel="root mean square of the state", ylim=(0, None))
    axes.set_title("state after each level", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# ------------------------------------------------------------------------------------------------- images
def _draw_truncated(spec: HVAE, fit: Any, tree: Any, cuts: list[int]) -> Any:
    data = np.asarray(tree["observed_data"]["x"].values)[:COLUMNS]
    z = {name: tree["posterior"][name].values[0, 0, :COLUMNS] for name in spec.latents}
    rows = np.concatenate([data[None], truncated(spec, fit, z, cuts)])
    return _draw_rows(rows, ["data", *(_levels(cut) for cut in cuts)], "expected image from the first levels")


def _draw_shared(spec: HVAE, fit: Any, cuts: list[int]) -> Any:
    rows = shared(spec, fit, cuts, COLUMNS, key=jax.random.key(0))
    return _draw_rows(rows, [f"{_levels(cut)} shared" for cut in cuts], "images from the prior that share levels")


def _levels(cut: int) -> str:
    return "no level" if cut == 0 else "1 level" if cut == 1 else f"{cut} levels"


def _draw_rows(rows: Float[np.ndarray, "rows columns ..."], labels: list[str], title: str) -> Any:
    from matplotlib.figure import Figure

    images = np.clip(rows if rows.ndim == 5 else rows[..., None], 0.0, 1.0)
    count, columns, H, W, C = images.shape
    seam = max(1, H // 16)
    padded = np.pad(images, ((0, 0), (0, 0), (seam, 0), (seam, 0), (0, 0)), constant_values=1.0)
    picture = padded.transpose(0, 2, 1, 3, 4).reshape(count * (H + seam), columns * (W + seam), C)
    figure = Figure(figsize=(1.4 + 0.45 * columns * W / H, 0.5 + 0.45 * count), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture.squeeze(-1) if C == 1 else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks((np.arange(count) + 0.5) * (H + seam), labels, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    return figure
