"""Which columns of a matrix of counts set each cluster apart.

With p_ic the probability that row i is in cluster c, and a a half count spread over all rows by p:

    share_cd = (sum_i p_ic x_id + a) / sum_e (...),    score_cd = log2(share_cd / share of d in all other clusters)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from ppl_models.distributions import Counts
from ppl_models.program import Panel

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE

CLUSTERS, COLUMNS = 12, 8
"""Clusters, the largest first, and columns of each that a figure shows."""
LEAST = 10.0
"""Counts in a cluster below which a column is not shown: its share is not known."""


def marks(p: Float[np.ndarray, "n K"], counts: Num[np.ndarray, "n D"]) -> Float[np.ndarray, "K D"]:
    """``log2`` of the share of each column in a cluster over that in the rest, 0 where a cluster has no share."""
    inside = p.T @ counts.astype(np.float64)  # (K, D)
    weight = p.sum(0)[:, None] / max(len(p), 1)
    rest = inside.sum(0) - inside + 0.5 * (1 - weight)
    inside = inside + 0.5 * weight
    shares = (a / np.maximum(a.sum(1, keepdims=True), 1e-12) for a in (inside, rest))
    mine, others = (np.maximum(share, 1e-12) for share in shares)
    return np.where(weight > 1e-6, np.log2(mine / others), 0.0)


def panels(spec: MFCVAE, p: Mapping[str, Float[np.ndarray, "n K"]], counts: Any) -> list[Panel]:
    """One figure for each facet of several clusters."""
    assert isinstance(spec.likelihood, Counts)
    names = spec.likelihood.column_names(spec.shape[0])
    return [_panel(facet, q, np.asarray(counts)[: len(q)], names) for facet, q in p.items() if q.shape[1] > 1]


def _panel(facet: str, p: Float[np.ndarray, "n K"], counts: np.ndarray, names: tuple[str, ...]) -> Panel:
    label = p.argmax(1)
    sizes = np.bincount(label, minlength=p.shape[1])
    order = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    rest = f" The {CLUSTERS} largest of {len(order)} clusters." if len(order) > CLUSTERS else ""

    def draw() -> Any:
        from matplotlib.figure import Figure

        score, within = marks(p, counts), p.T @ counts.astype(np.float64)
        shown = order[:CLUSTERS]
        across = min(3, len(shown))
        down = -(-len(shown) // across)
        figure = Figure(figsize=(1.0 + 3.2 * across, 0.3 + 2.1 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axis, c in zip(grid, shown, strict=False):
            known = np.flatnonzero(within[c] >= LEAST)
            top = known[np.argsort(-score[c, known], kind="stable")[:COLUMNS]]
            axis.barh(range(len(top)), score[c, top], color="#0072B2")
            words = [names[d] if len(names[d]) < 23 else names[d][:21] + "…" for d in top]
            axis.set_yticks(range(len(top)), words, fontsize=7.5)
            axis.invert_yaxis()
            axis.tick_params(axis="x", labelsize=7)
            axis.set_title(f"cluster {c}: {sizes[c] / len(label):.0%}", fontsize=9, loc="left")
            axis.spines[["top", "right"]].set_visible(False)
        for axis in grid[len(shown) :]:
            axis.set_visible(False)
        return figure

    caption = (
        f"Facet {facet}: the columns whose share of the counts in a cluster is most above that in all other data, as "
        f"log2 of the ratio (1: twice the share), among those with at least {LEAST:g} counts in it. Good: the columns "
        f"of a cluster belong together, and differ from those of the others.{rest}"
    )
    return Panel(f"{facet}_columns", caption, draw)
