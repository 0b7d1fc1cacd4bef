"""Which columns of a table each facet explains, for networks whose effects add up.

    f_d(z) = b_d + sum_j e_jd(z_j),   share_jd = Cov_x(e_jd, f_d) / Var_x f_d,   sum_j share_jd = 1

over data x at the posterior means of z; of a categorical column covariances are summed over its centred logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpyro.handlers import substitute

from ppl_models.distributions import Columns
from ppl_models.mfcvae.networks import Additive
from ppl_models.program import Panel, bind

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE

SHOWN = 40
"""Columns of the table that the figure shows."""


def explained(
    spec: MFCVAE, fit: Any, z: dict[str, Float[np.ndarray, "n dim"]]
) -> tuple[Float[np.ndarray, "J D"], Float[np.ndarray, " D"]]:
    """``(share, spread)``: share of each facet in the variance of f_d over data, and the standard deviation of f_d.

    A share is 0 where nothing varies, and below 0 where a facet works against the others.
    """
    assert isinstance(spec.likelihood, Columns)
    with substitute(data=fit.params):
        decoder = bind("decoder", fit.program.views.modules["decoder"])
    effects = [np.asarray(e, np.float64) for e in decoder.effects([jnp.asarray(z[f.name]) for f in spec.facets])]
    effects = [e - e.mean(0) for e in effects]
    share, spread = [], []
    slices = spec.likelihood.slices()
    for column in spec.likelihood.columns:
        mine = [e[:, slices[column.name]] for e in effects]
        if column.kind == "categorical":  # a softmax does not see what is added to all logits
            mine = [e - e.mean(1, keepdims=True) for e in mine]
        total = np.sum(mine, 0)
        variance = float((total**2).mean(0).sum())
        share.append([float((e * total).mean(0).sum()) / variance if variance > 0 else 0.0 for e in mine])
        spread.append(np.sqrt(variance))
    return np.asarray(share).T, np.asarray(spread)


def panels(spec: MFCVAE, fit: Any, tree: Any) -> list[Panel]:
    """The figure of shares; none for networks whose effects do not add up."""
    if not isinstance(spec.network, Additive):
        return []
    z = {f.name: np.asarray(tree["posterior"][f"z_{f.name}"].values, "float32") for f in spec.facets}
    z = {name: draws.reshape(-1, *draws.shape[-2:]).mean(0) for name, draws in z.items()}

    def draw() -> Any:
        return _draw_shares(spec, *explained(spec, fit, z))

    columns = spec.likelihood.columns if isinstance(spec.likelihood, Columns) else ()
    several = len(spec.facets) > 1
    left = (
        "Left: the share of each facet in the variance of what the decoder says of a column, over data (a bar to the "
        "left of 0 works against the others). "
        if several
        else ""
    )
    return [
        Panel(
            "explained columns",
            f"Which columns {'each facet explains' if several else 'the facet explains'}. {left}"
            f"{'Right: the' if several else 'The'} standard deviation of that over data, for numbers in standard "
            "deviations of the column (1: all of it is explained, 0: none), for classes of their log odds. Good: "
            + ("each facet has columns of its own that it explains." if several else "few columns near 0.")
            + (f" The first {SHOWN} of {len(columns)} columns." if len(columns) > SHOWN else ""),
            draw,
        )
    ]


_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")


def _draw_shares(spec: MFCVAE, share: Float[np.ndarray, "J D"], spread: Float[np.ndarray, " D"]) -> Any:
    from matplotlib.figure import Figure

    assert isinstance(spec.likelihood, Columns)
    names = [column.name if len(column.name) < 31 else column.name[:29] + "…" for column in spec.likelihood.columns]
    names, share, spread = names[:SHOWN], share[:, :SHOWN], spread[:SHOWN]
    several, where = len(share) > 1, np.arange(len(names))
    figure = Figure(figsize=(9.0 if several else 5.5, 1.3 + 0.26 * len(names)), layout="constrained")
    axes = figure.subplots(1, 2 if several else 1, squeeze=False, sharey=True)[0]
    if several:
        above, below = np.zeros(len(names)), np.zeros(len(names))
        for j, facet in enumerate(spec.facets):
            start = np.where(share[j] >= 0, above, below)
            axes[0].barh(where, share[j], left=start, color=_COLOURS[j % len(_COLOURS)], label=facet.name)
            above, below = above + np.maximum(share[j], 0), below + np.minimum(share[j], 0)
        axes[0].set_title("share of each facet", fontsize=10, loc="left")
    classes = np.asarray([bool(column.values) for column in spec.likelihood.columns[:SHOWN]])
    for mine, colour, label in (
        (np.logical_not(classes), "#5b6675", "numbers"),
        (classes, "#b9c0ca", "classes (log odds)"),
    ):
        if mine.any():
            axes[-1].barh(where[mine], spread[mine], color=colour, label=label)
    axes[-1].axvline(1.0, color="black", lw=0.8, ls=":")
    axes[-1].set_title("standard deviation over data", fontsize=10, loc="left")
    for axis in axes:
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.5 / len(names)), ncols=4)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(where, names, fontsize=8)
    axes[0].invert_yaxis()
    return figure
