"""Figures of :func:`inference.coherence.run_study`: every setting, our test and the published one side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference.reporting.style import BLUE as OURS, GRID, INK, MUTED as THEIRS, RED as BAD, canvas, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def study_figure(study: Any) -> Figure:
    """One figure of a ``Study``: effects and p-values of every setting, or the spread against the length."""
    return _scaling(study) if study.scaling is not None else _martingale(study)


def _martingale(study: Any) -> Figure:
    table = study.table
    names = [f"{setting}, n = {n}, N = {N}" for setting, n, N in table.index]
    y = np.arange(len(names))
    figure, axes = canvas(11.0, 1.6 + 0.28 * len(names), 1, 3, sharey=True)
    left, middle, right = axes[0]
    grouped = study.contexts.groupby(["setting", "n", "N"], sort=False)
    for axis, value, low, high, colour in (
        (left, "drift", None, None, OURS), (middle, "T1", "T1_lower", "T1_upper", THEIRS),
    ):  # fmt: skip
        for at, (_, part) in zip(y, grouped, strict=True):
            if value not in part or part[value].isna().all():
                continue
            spread = np.linspace(-0.25, 0.25, len(part)) if len(part) > 1 else np.zeros(1)
            centre = part[value].to_numpy(float)
            if low is None:
                reach = 1.96 * part[f"{value}_se"].to_numpy(float)
                out = np.abs(centre) > reach
                axis.hlines(
                    at + spread, centre - reach, centre + reach, color=[BAD if o else colour for o in out], lw=1
                )
            else:
                ends = part[[low, high]].to_numpy(float)
                out = (centre < ends[:, 0]) | (centre > ends[:, 1])
                axis.hlines(at + spread, ends[:, 0], ends[:, 1], color=GRID, lw=3)
            axis.scatter(centre, at + spread, s=9, color=[BAD if o else colour for o in out], zorder=3)
        axis.axvline(0, color=INK, lw=0.8, ls="--")
    left.set(title="Ours: drift, 95 % interval", xlabel="first half - second half of p")
    middle.set(title="Published: T1 and its band", xlabel="first half - second half of draws")
    for name, marker in (("drift_p", "o"), ("lag_p", "^")):
        p = table[name].to_numpy(float)
        right.scatter(np.clip(p, 1e-6, 1), y, marker=marker, s=22, color=OURS, label=f"{name[:-2]}, over contexts")
    for axis in (left, middle):
        axis.locator_params(axis="x", nbins=4)
    right.axvline(0.05, color=INK, lw=0.8, ls="--")
    right.set(title="Ours: p-values before Holm", xscale="log", xlim=(7e-7, 1.5), xlabel="p (below 1e-6 at the edge)")
    right.legend(fontsize=7, loc="lower left")
    left.set_yticks(y, names, fontsize=8)
    left.invert_yaxis()
    return figure


def _scaling(study: Any) -> Figure:
    table, found = study.table, study.scaling
    n = table.index.to_numpy(float)
    figure, axes = canvas(9.0, 3.4, 1, 2)
    ours, theirs = axes[0]
    u, se = table["u"].to_numpy(float), table["se"].to_numpy(float)
    ours.errorbar(n, u, 1.96 * se, fmt="o", color=OURS, ms=4, label="U = V / W, 95 %")
    if np.isfinite(found.C):
        line = np.geomspace(n.min(), n.max(), 60)
        ours.plot(line, found.C / (line + found.c), color=INK, lw=0.9, ls="--",
                  label=f"beta = 1: {found.C:.2g} / (n + {found.c:.3g})")  # fmt: skip
    ours.set(xscale="log", yscale="log" if (u > 0).all() else "linear", title="Ours: spread of the long-run mean",
             xlabel="symbols in the context, n")  # fmt: skip
    ours.legend(fontsize=7)
    by_n = study.contexts.groupby("n")
    first = by_n.first()
    theirs.fill_between(n, first["T3_lower"], first["T3_upper"], color=GRID, label="band, first context")
    theirs.plot(n, by_n["T3"].median(), "o-", color=THEIRS, ms=4, lw=1, label="T3, median")
    theirs.set(
        xscale="log", yscale="log", title="Published: interquartile range of path means", xlabel="n, paths of n/2"
    )
    theirs.legend(fontsize=7)
    for axis in (ours, theirs):
        axis.set_xticks(n, [f"{k:.0f}" for k in n])
        axis.xaxis.minorticks_off()  # those of y are all that is labelled within one decade
    return figure
