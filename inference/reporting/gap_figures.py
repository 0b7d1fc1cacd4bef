"""Figures of :func:`inference.inference_gaps`: what of the gap is the family's, and what the encoder's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from inference.checking.gap_decomposition import gap_summary
from inference.reporting.style import BLUE, INK, MUTED, ORANGE, RED, canvas, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def gap_bars(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """One bar a fit: approximation and amortisation gap, means over data in nats, with two Monte Carlo errors each."""
    frame = gap_summary(tables)
    figure, axes = canvas(7.2, 1.4 + 0.5 * len(frame))
    axis, where, left = axes[0, 0], np.arange(len(frame)), np.zeros(len(frame))
    for gap, color in (("approximation", BLUE), ("amortisation", ORANGE)):
        width = frame[gap].to_numpy(float)
        axis.barh(where, width, left=left, height=0.6, color=color, label=gap)
        left = left + width
        axis.errorbar(left, where, xerr=2 * frame[f"{gap}_se"], fmt="none", ecolor=INK, lw=1.2, capsize=3)
    axis.axvline(0, color=MUTED, lw=1)
    lost = frame["untrusted"].to_numpy(int)
    axis.set_yticks(where, [f"{n}\n({k} left out)" if k else str(n) for n, k in zip(frame.index, lost, strict=True)])
    axis.set_ylim(len(frame) - 0.5, -0.5)
    axis.set(title="Where the ELBO loses log p(x)", xlabel="nats per datum (lower is better)")
    axis.legend(loc="lower right")
    return figure


@styled
def gap_by_datum(table: pd.DataFrame) -> Figure:
    """Amortisation gap against approximation gap of each datum, nats; rows without a reference to believe in red."""
    figure, axes = canvas(4.8, 3.6)
    axis = axes[0, 0]
    x, y, sure = (table[name].to_numpy() for name in ("approximation", "amortisation", "trusted"))
    for rows, color, label in ((sure, BLUE, "datum"), (~sure, RED, "log p(x) not to be trusted")):
        if rows.any():
            axis.errorbar(x[rows], y[rows], xerr=table["approximation_se"][rows], yerr=table["amortisation_se"][rows],
                          fmt="o", ms=3.5, lw=0.6, color=color, alpha=0.7, label=label)  # fmt: skip
    axis.axhline(0, color=MUTED, lw=1, ls="--")
    axis.axvline(0, color=MUTED, lw=1, ls="--")
    axis.set(xlabel="approximation gap (nats): the family", ylabel="amortisation gap (nats): the encoder",
             title="Inference gap by datum")  # fmt: skip
    axis.legend()
    return figure
