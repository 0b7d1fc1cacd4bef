"""Which levels of a hierarchy say nothing, read off the posterior draws.

``tree`` is the ArviZ DataTree of ``inference.posterior``; its ``posterior`` group holds ``z_<i>`` (chain, draw, datum,
height, width, channel), its ``sample_stats`` ``rate_z_<i>`` (chain, draw, datum), log q - log p of the level's draw, in
earlier files ``posterior`` did.  Rates and active units of the single levels are lines of ``inference.diagnose`` for
any program; here stands the verdict on the hierarchy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from ppl_models.program import Check

if TYPE_CHECKING:
    import pandas as pd

    from ppl_models.hvae.spec import HVAE

SILENT = 0.01
"""Rate in nats per datum below which a level says nothing (ours)."""
ACTIVE_VARIANCE = 0.01
"""A unit is active if its posterior mean varies over data by more than this (Burda et al. 2016)."""


class Level(NamedTuple):
    """One level as the data see it: its rate in nats per datum, its active units of ``units``, its resolution."""

    site: str
    rate: float
    active: int
    units: int
    res: int

    @property
    def collapsed(self) -> bool:
        """The posterior is the prior, and nothing in it follows the datum."""
        return self.rate < SILENT and not self.active

    @property
    def follows(self) -> bool:
        """Units vary with the datum, but only because the levels above do: nothing is added here."""
        return self.rate < SILENT and self.active > 0


def levels(tree: Any, spec: HVAE) -> list[Level]:
    """Rate and active units of every level, top-down."""
    posterior, found = tree["posterior"], []
    for site, cell in zip(spec.latents, spec.decoder_cells, strict=True):
        name = f"rate_{site}"
        stated = tree["sample_stats"] if "sample_stats" in tree.children else {}
        rates = np.asarray((stated if name in stated else posterior)[name].values, float)
        z = np.asarray(posterior[site].values)
        z = z.reshape(z.shape[0] * z.shape[1], z.shape[2], -1)  # (S, N, units)
        found.append(Level(site, float(rates.mean()), _active(z), z.shape[2], cell.res))
    return found


def level_table(tree: Any, spec: HVAE) -> pd.DataFrame:
    """One row a level, top-down, of the DataTree of ``inference.posterior``.

    ===============================  ==================================================================================
    ``site``                         its latent site
    ``resolution``, ``step``         side of its grid, and which of the cells there it is, from 0
    ``rate``                         nats per datum
    ``active``, ``units``            units that vary with the datum, of how many
    ``collapsed``, ``follows``       rate below .01 and none active; below .01 and some, which follow the levels above
    ``norm``, ``norm_5``, ``norm_95``  RMS of the state after it: median, 5 % and 95 % quantiles over data and draws
    ===============================  ==================================================================================

    >>> level_table(inference.posterior(fit, x, key=key), fit.program.spec).groupby("resolution")["rate"].sum()
    """
    import pandas as pd

    norms = np.asarray(tree["posterior"]["state_norm"].values, float).reshape(-1, len(spec.latents))
    sides = [cell.res for cell in spec.decoder_cells]
    return pd.DataFrame(
        {
            "site": level.site, "resolution": level.res, "step": sides[:i].count(level.res), "rate": level.rate,
            "active": level.active, "units": level.units, "collapsed": level.collapsed, "follows": level.follows,
            **dict(zip(("norm_5", "norm", "norm_95"), np.quantile(norms[:, i], [0.05, 0.5, 0.95]), strict=True)),
        }
        for i, level in enumerate(levels(tree, spec))
    )  # fmt: skip


def _active(z: Shaped[np.ndarray, "draws data units"]) -> int:
    """Number of units with Var_x(E_q[z | x]) above the threshold, and above what silent units show by chance."""
    draws, data, _ = z.shape
    if draws < 2 or data < 2:
        return 0
    # The mean of S draws varies over data by (variance of a draw) / S even where nothing follows the datum.
    chance = z.var(0, ddof=1, dtype=np.float64).mean(0) / draws
    variance = z.mean(0, dtype=np.float64).var(0, ddof=1) - chance
    return int((variance > np.maximum(ACTIVE_VARIANCE, 4 * chance * np.sqrt(2 / (data - 1)))).sum())


def checks(tree: Any, spec: HVAE) -> list[Check]:
    """Lines of ``inference.diagnose`` for a hierarchical VAE: the collapsed levels, by name."""
    found = levels(tree, spec)
    dead, idle = _named(level for level in found if level.collapsed), _named(level for level in found if level.follows)
    count = sum(level.collapsed for level in found)
    total = count == len(found)
    meaning = (
        f"Every level is in use: {sum(level.rate for level in found):.3g} nats per datum over {len(found)} levels."
    )
    if total:
        meaning = "Every level has collapsed: q(z|x) equals the prior throughout and the model ignores its latents."
    elif dead or idle:
        meaning = " ".join(
            [f"Collapsed, q(z|x) equals the prior and no unit follows the datum: {dead}."] * bool(dead)
            + [f"Silent, units only follow the levels above: {idle}."] * bool(idle)
        )
    return [
        Check(
            check="collapsed levels",
            value=float(count),
            threshold=f"0 of {len(found)} (rate < {SILENT:g} nats and no active unit)",
            verdict="fail" if total else "warn" if dead or idle else "ok",
            meaning=meaning,
            remedy=""
            if not (dead or idle)
            else "Train longer (coarse and fine levels often come last); fade the KL in (weights={'kl': schedule}); or "
            "take these cells out of dec: the model does without them.",
        )
    ]


def _named(levels: Iterable[Level]) -> str:
    return ", ".join(f"{level.site} ({level.res}x{level.res})" for level in levels)
