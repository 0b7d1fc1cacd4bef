"""Figures of a fitted surrogate: prediction beside truth, error and sd; reliability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_models.program import Panel
from ppl_models.surrogate.conformal import coverage
from ppl_models.surrogate.scores import reliability
from ppl_models.surrogate.use import predict

if TYPE_CHECKING:
    from ppl_models.surrogate.spec import Surrogate

COLUMNS = 6
LEVELS = np.linspace(0.1, 0.95, 18)
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "0.6"


def panels(spec: Surrogate, fit: Any, x: Any) -> list[Panel]:
    """The two figures, on held-out data."""
    if spec.likelihood.kind == "bernoulli":
        curve = (
            "Pixels by predicted probability: how often they are 1 (line), and how many there are (bars, log scale). "
            "Good: the line follows the diagonal."
        )
    else:
        curve = (
            "Share of the pixels of held-out fields inside intervals of each nominal level. Good: the line follows the "
            "diagonal; below it the intervals are too narrow (conformal intervals mend that)."
        )
    return [
        Panel(
            "predictions",
            "Held-out data, one a column: input, truth, prediction, error and predictive standard deviation (error and "
            "sd on one scale). Good: errors without structure, and as large as the sd says.",
            lambda: draw_predictions(spec, fit, x),
        ),
        Panel("reliability", curve, lambda: draw_reliability(spec, fit, x)),
    ]


def draw_predictions(spec: Surrogate, fit: Any, x: Any) -> Any:
    """Rows: input, truth, prediction, error, sd of the first channel."""
    from matplotlib.figure import Figure

    inputs, truth = (np.asarray(x[name])[:COLUMNS] for name in ("x", "y"))
    found = predict(fit, inputs)
    truth, mean, sd = (np.asarray(a, float)[..., 0] for a in (truth, found.mean, found.sd))
    span, error = (truth.min(), truth.max()), truth - mean
    most = max(float(np.abs(error).max()), float(sd.max()), 1e-12)
    rows: list[tuple[str, np.ndarray, str, float | None, float | None]] = [
        ("input", np.asarray(inputs, float)[..., 0], "viridis", None, None),
        ("truth", truth, "viridis", *span),
        ("prediction", mean, "viridis", *span),
        ("error", error, "RdBu_r", -most, most),
        ("sd", sd, "RdBu_r", -most, most),
    ]
    count = len(truth)
    figure = Figure(figsize=(1.3 + 1.15 * count, 1.15 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for r, (label, fields, cmap, low, high) in enumerate(rows):
        for c in range(count):
            shown = axes[r, c].imshow(fields[c], cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
            axes[r, c].set_xticks([])
            axes[r, c].set_yticks([])
        axes[r, 0].set_ylabel(label, fontsize=8)
        if low is not None:
            figure.colorbar(shown, ax=list(axes[r]), fraction=0.03, pad=0.01).ax.tick_params(labelsize=6)
    return figure


def draw_reliability(spec: Surrogate, fit: Any, x: Any) -> Any:
    """Frequencies over predicted probabilities of a mask, or coverage over nominal levels."""
    from matplotlib.figure import Figure

    found, y = predict(fit, np.asarray(x["x"])), np.asarray(x["y"])
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    if spec.likelihood.kind == "bernoulli":
        bins = reliability(y, found.mean)
        axis.plot(bins["probability"], bins["frequency"], color=BLUE, marker="o", ms=4)
        beside = axis.twinx()
        beside.bar(np.arange(0.05, 1, 0.1), bins["share"], width=0.09, color=ORANGE, alpha=0.3)
        beside.set(yscale="log", ylabel="share of pixels")
        axis.set(xlabel="predicted probability", ylabel="frequency", title=f"calibration error {bins['ece']:.3f}")
    else:
        reached = [coverage(y, found.mean, found.sd, float(level)).mean() for level in LEVELS]
        axis.plot(LEVELS, reached, color=BLUE, marker="o", ms=3)
        at = float(coverage(y, found.mean, found.sd, 0.9).mean())
        axis.set(xlabel="nominal level", ylabel="share of pixels covered", title=f"90 % intervals cover {at:.1%}")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    return figure
