"""Figures and the section of a page that say whether a posterior is calibrated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference.checking.ecdf_bands import ecdf
from inference.checking.simulated import DENSITIES, LOG_Q, TARP
from inference.reporting import markup
from inference.reporting.section import Section
from inference.reporting.style import BLUE, GREEN, INK, MUTED, ORANGE, PINK, RED, canvas, styled
from ppl_models.program import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inference.checking.calibration import Calibration

CURVES = 40
"""Most latent numbers whose curves are drawn, those furthest from uniform."""
LISTED = 12
COLORS = dict(zip(DENSITIES, (GREEN, BLUE, RED, ORANGE), strict=True))


@styled
def calibration(found: Calibration) -> Figure:
    """ECDF of the ranks minus uniform with its simultaneous bands, expected coverage, and TARP's coverage."""
    figure, axes = canvas(9.6, 3.7, 1, 3)
    left, middle, right = axes[0]
    single, joint = found.bands(), found.bands(joint=True)
    at = single.at
    left.fill_between(at, single.low - at, single.high - at, color=MUTED, alpha=0.25, lw=0, label="95 %, one curve")
    for edge in (joint.low, joint.high):
        left.plot(at, edge - at, color=INK, lw=0.9, ls="--", label="95 %, all curves" if edge is joint.low else None)
    rows = found.table.sort_values("p_value")
    latents = [name for name in rows.index if name not in COLORS][:CURVES]
    for i, name in enumerate(latents):
        label = f"{len(latents)} furthest of z" if len(latents) > 1 else str(name)
        left.plot(at, ecdf(found.ranks[name]) - at, color=PINK, lw=0.8, alpha=0.7, label=None if i else label)
    for name, color in COLORS.items():
        left.plot(at, ecdf(found.ranks[name]) - at, color=color, lw=1.3, label=name)
    left.set(title="Ranks: ECDF - uniform", xlabel="rank fraction", ylabel="difference")
    figure.legend(loc="outside lower center", ncols=7, fontsize=7.5)
    for axis, curve, title, color in (
        (middle, found.coverage(), "Regions of highest q", COLORS[LOG_Q]),
        (right, found.tarp(), "TARP: balls", COLORS[TARP]),
    ):
        axis.fill_between(curve["credibility"], curve["low"], curve["high"], color=MUTED, alpha=0.25, lw=0)
        axis.plot([0, 1], [0, 1], color=INK, lw=0.9, ls="--")
        axis.plot(curve["credibility"], curve["coverage"], color=color)
        axis.set(title=title, xlabel="credibility", ylabel="share that hold the truth", xlim=(0, 1), ylim=(0, 1))
    return figure


def calibration_section(found: Calibration) -> Section:
    """The page's section on calibration: the figure and the quantities furthest from uniform."""
    attrs = found.table.attrs
    where = f"near {attrs['around']} observed data" if attrs["around"] else "from the fitted model"
    verdict = "nothing speaks against" if found.calibrated else "the ranks speak against"
    return Section(
        "calibration", "Are its intervals what they say",
        f"{attrs['simulations']:,} data were drawn {where}, so their latents are known, and the {attrs['posterior']} "
        f"posterior was asked for them with {attrs['draws']} draws each. Joint p-value {markup.number(found.p_value)} "
        f"over {len(found.table)} quantities: {verdict} calibration. It is the posterior that is checked here, "
        "not whether the model fits.",
        lambda: [
            Panel(
                "calibration",
                "Calibration. Left: of each latent number and of four functions (log p(x|z), log q(z|x), the log "
                "weight and TARP's distance), the distribution of the truth's rank among the draws, less uniform. "
                "Middle and right: how often regions of the posterior hold the truth. Good: curves inside the grey "
                "bands. A curve below the diagonal in the middle: the posterior is too narrow or in the wrong place; "
                "above: too wide.",
                lambda: calibration(found),
            )
        ],
        text=lambda: _listed(found),
    )  # fmt: skip


def _listed(found: Calibration) -> str:
    rows = found.table.sort_values("p_value", kind="stable").head(LISTED)
    columns = ("coverage_50", "coverage_90", "mean", "ks", "p_value", "p_holm")
    body: list[tuple[Any, ...]] = [
        (str(name), *(float(np.round(row[c], 6)) if row[c] > 1e-4 else float(row[c]) for c in columns))
        for name, row in rows.iterrows()
    ]
    return markup.table(("quantity", *columns), body)
