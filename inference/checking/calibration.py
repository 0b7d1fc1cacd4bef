"""Simulation-based calibration of posteriors: amortised ones in one call without a refit, and refined ones.

Draw (z*, x) from the program, L draws from q(z | x), and find the rank of f(z*, x) among f(z_1, x) .. f(z_L, x).  If q
is the posterior of the program, the rank of every function f is uniform (Talts et al. 2018, arXiv 1804.06788).  A guide
costs one pass a simulation, where MCMC or a refitted guide costs a run each.

Ranked are every number of z, and four functions that see what those do not:

    log_lik     log p(x | z): a guide that ignores the data and returns the prior has uniform ranks in every number of
                z, but not in this one (Modrak et al. 2023, arXiv 2211.02383)
    log_q       log q(z | x): 1 - rank is the level of the smallest region of highest q that holds z*, so its
                distribution is the expected coverage of those regions (Hermans et al. 2022, arXiv 2110.06581, eq. 6;
                Miller et al. 2021, arXiv 2107.01214)
    log_weight  log p(x, z) - log q(z | x): given x, the likelihood ratio between z* ~ p(z | x) and a draw of q, up to a
                constant: where the two differ, no other function tells them apart better (Neyman & Pearson)
    tarp        the distance of z to a reference point (Lemos et al. 2023, arXiv 2302.03026, algorithm 2); the point
                depends on x, or else a guide that returns the prior would pass: of four prior draws, the likeliest

Posterior SBC (Säilynoja, Schmitt, Bürkner & Vehtari 2025, arXiv 2502.03279) asks the same near observed data x_o alone:
z* ~ pi(z) = q(z | x_o), x ~ p(x | z*).  A guide takes one datum and knows no other prior than p(z), so its posterior
under the prior pi is q(z | x) pi(z) / p(z), up to a constant: draws of q(z | x) with weights w = pi / p.  If q(z | x) =
p(z | x), then z* and the draws are exchangeable but for these weights (Tibshirani et al. 2019, arXiv 1904.06019, lemma
3), and

    (sum_l w_l 1[f_l < f*] + u (w* + sum_l w_l 1[f_l = f*])) / (w* + sum_l w_l),   u ~ U(0, 1)

is uniform for any number of draws and any pi: nothing has to converge.  With w = 1 it is the rank above.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key

from inference.checking.column_checks import holm
from inference.checking.ecdf_bands import Band, band, ecdf, p_values, points
from inference.checking.sbc_ranks import rank_fractions, settings_of
from inference.checking.simulated import LOG_LIK as LOG_LIK, LOG_Q, TARP, Function
from inference.fitting.sources import stored
from ppl_models.program import Check, rows

INTERVALS = (0.5, 0.9)
LEVEL = 0.05
"""Level of the joint verdict."""
FAR = 0.15
"""Distance of an ECDF from uniform from which a posterior is not to be relied on (ours)."""
FEW = 10.0
"""Median effective number of weighted draws below which a check can see little (ours)."""


@dataclass(frozen=True)
class Calibration:
    """What simulation-based calibration found.

    ``table``  one row a quantity: ``coverage_50`` and ``coverage_90`` of central intervals (should be .5 and .9),
               ``mean`` of the rank fraction (below .5: q sits too high), ``ks`` the largest distance of its
               distribution from uniform, ``p_value`` that of its ECDF (below .05 exactly where the ECDF leaves its 95 %
               band), ``p_holm`` over all quantities.
    ``ranks``  rank fraction in (0, 1) of each quantity, (simulation,): uniform if calibrated.
    ``ess``    effective number of draws of each simulation; all of them where they are not weighted.
    """

    table: pd.DataFrame
    ranks: dict[str, Float[np.ndarray, " simulation"]]
    ess: Float[np.ndarray, " simulation"] = field(default_factory=lambda: np.empty(0))

    @property
    def p_value(self) -> float:
        """The joint p-value: the least of Holm's.  Its test of all quantities together keeps its level."""
        return float(self.table["p_holm"].min())

    @property
    def calibrated(self) -> bool:
        """The joint verdict at the level of 5 %."""
        return self.p_value >= LEVEL

    def coverage(self, level: float = LEVEL) -> pd.DataFrame:
        """Expected coverage of the regions of highest q(z | x): ``credibility``, ``coverage``, ``low``, ``high``.

        Coverage below credibility: q is too narrow or off.  ``low`` and ``high`` hold the whole curve with probability
        1 - ``level`` if q is calibrated.
        """
        return _curve(1 - self.ranks[LOG_Q], "coverage", level)

    def tarp(self, level: float = LEVEL) -> pd.DataFrame:
        """The same of balls about reference points, whose credibility is the share of draws inside."""
        return _curve(self.ranks[TARP], "coverage", level)

    def bands(self, level: float = LEVEL, *, joint: bool = False) -> Band:
        """The band that the ECDF of one quantity leaves with probability ``level``, or any of all, ``joint``."""
        found = len(self.table) if joint else 1
        return band(len(next(iter(self.ranks.values()))), level / found)

    def tree(self) -> Any:
        """DataTree with a group ``prior_sbc`` of rank fractions: ``arviz.plot_ecdf_pit(tree)`` draws its bands."""
        import arviz as az

        return az.from_dict({"prior_sbc": {name: pit[None] for name, pit in self.ranks.items()}})

    def check(self) -> Check:
        """One line for a diagnosis."""
        worst = self.table["p_holm"].idxmin()
        row, attrs = self.table.loc[worst], self.table.attrs
        about = f"near {attrs['around']} observed data" if attrs["around"] else "drawn from the model"
        verdict = "ok" if self.calibrated else "fail" if self.table["ks"].max() > FAR else "warn"
        coverage = self.coverage()
        held = float(np.interp(0.9, coverage["credibility"], coverage["coverage"]))
        said = (
            f"On {attrs['simulations']:,} data {about}, whose latents are known, the {attrs['posterior']} posterior's "
            f"90 % regions hold the truth {held:.0%} of the time"
        )
        if self.calibrated:
            return Check(
                "calibration (joint p-value)", self.p_value, f">= {LEVEL:g}", verdict,
                f"{said}; no rank departs from uniform. That it inverts the model does not say that the model fits.",
                "",
            )  # fmt: skip
        return Check(
            "calibration (joint p-value)", self.p_value, f">= {LEVEL:g} (fails if an ECDF is off by over {FAR:g})",
            verdict, f"{said}; furthest from uniform are the ranks of {worst} (off by {row['ks']:.2f}, p = "
            f"{row['p_value']:.2g}).",
            "Refine the posterior of the data that matter, or train the encoder longer or with a richer family; "
            "intervals of this posterior are not what they say.",
        )  # fmt: skip


def calibrate(
    fit: Any,
    *,
    key: Key[Array, ""],
    simulations: int = 1000,
    draws: int = 100,
    chunk: int = 100,
    around: Any = None,
    inputs: Any = None,
    quantities: Mapping[str, Function] | None = None,
    refine: bool | Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Calibration:
    """Simulation-based calibration of ``fit.program``'s posterior at ``fit.params``; vectorised over simulations.

    ``fit`` is a ``Fit``, a ``Refined``, or anything with ``program``, ``params`` and ``mutable``.  Data are the
    program's own draws ``model(size=n)``, with the fitted generative part if it has parameters: this asks whether q
    inverts p, not whether p fits any data.  ``chunk`` simulations are run at once.

    ``around``      stored observed data (N, *shape): posterior SBC near them, simulation i near datum i mod N.  It
                    checks q(z | x) of replicates x of those data, where z is plausible given both.  If q(z | x_o) is
                    exact, that is p(z | x_o, x), of two data of one z.  It sees no error of q elsewhere, none of
                    q(z | x_o) at an observed datum itself (z* is drawn from that, and any such density makes a valid
                    check), and none of the parameters of p.  With many latent numbers few draws carry all weight:
                    faults then go unseen, and a ``UserWarning`` says so (``ess``).
    ``inputs``      stored data (N, *shape) whose inputs a conditional program draws its data given, in turn.
    ``quantities``  further functions to rank: ``name: f(z, x)`` of latents by site (n, *event) and prepared data x
                    gives (n,).
    ``refine``      refine the posterior of every simulated datum (:func:`inference.refine`) and check that one:
                    ``True`` or settings of ``refine``.  Where not set, ``widen`` is 1: a proposal that is widened for
                    importance sampling is too wide on purpose.  A ``Refined`` is checked with its own settings.

    Latents that are discrete have ties, which are broken at random.

    Raises ``ValueError`` for a program without latents, a conditional one without ``inputs`` or ``around``, and for a
    prior that cannot be sampled.  A quantity that is not a number gets the p-value 0 and is named in a ``UserWarning``.

    >>> found = calibrate(fit, simulations=1000, key=jax.random.key(0))
    >>> found.table[["coverage_90", "ks", "p_holm"]]
    >>> found.calibrated, found.coverage(), calibrate(fit, around=x_test[:1], key=jax.random.key(1))
    """
    ranks, ess = rank_fractions(
        fit, key=key, simulations=simulations, draws=draws, chunk=chunk, around=around, inputs=inputs,
        quantities=quantities, refine=refine, progress=progress,
    )  # fmt: skip
    table = _table(ranks)
    found = 0 if around is None else rows(stored(fit.program, around, "around"))
    how = "amortised" if settings_of(fit, refine) is None else "refined"
    table.attrs.update(simulations=simulations, draws=draws, around=found, posterior=how)
    if lost := [name for name, pit in ranks.items() if np.isnan(pit).any()]:
        share = np.isnan(ranks[lost[0]]).mean()
        warnings.warn(
            f"{', '.join(lost[:5])} is not a number in {share:.1%} of the simulations, so p_value is 0 there; lower "
            "the learning rate, or check the densities of the program at its own draws",
            UserWarning, stacklevel=2,
        )  # fmt: skip
    if (middle := float(np.median(ess))) < FEW <= draws:
        warnings.warn(
            f"half of the simulations near the observed data have fewer than {middle:.1f} effective draws of {draws}: "
            "the check keeps its level but sees little; take more draws, or calibrate without around",
            UserWarning, stacklevel=2,
        )  # fmt: skip
    return Calibration(table, ranks, ess)


def _table(ranks: Mapping[str, np.ndarray]) -> pd.DataFrame:
    pits = np.stack(list(ranks.values()), axis=1)
    # The largest distance of an ECDF from uniform, at its steps.
    steps, n = np.sort(pits, axis=0), len(pits)
    top = np.arange(1, n + 1)[:, None] / n
    ks = np.maximum(top - steps, steps - top + 1 / n).max(0)
    coverage = {f"coverage_{100 * c:.0f}": (np.abs(pits - 0.5) <= c / 2).mean(0) for c in INTERVALS}
    p = p_values(pits)
    columns = {**coverage, "mean": pits.mean(0), "ks": ks, "p_value": p, "p_holm": holm(p)}
    return pd.DataFrame(columns, index=pd.Index(list(ranks), name="quantity"))


def _curve(pit: Float[np.ndarray, " n"], what: str, level: float) -> pd.DataFrame:
    held = band(len(pit), level)
    return pd.DataFrame({"credibility": points(len(pit)), what: ecdf(pit), "low": held.low, "high": held.high})
