"""A verdict on conditional sampling: do the runs agree, do the weights say that the law is right, do the ranks?

Runs that agree (R-hat) say only that they share a law.  Guidance (DPS) has runs that agree on a posterior that is too
narrow; its importance weights log p(path, y) - log q(path) have tails that no number of draws mends (k-hat), and the
ranks of simulated truths among its draws are not uniform.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.checking.column_checks import holm
from inference.checking.ecdf_bands import p_values
from inference.checking.psis import KHAT_BAD, pareto_k
from ppl_models.program import Check

if TYPE_CHECKING:
    import pandas as pd

RHAT = (1.01, 1.05)
"""Largest rank R-hat from which the line warns (Vehtari et al. 2021, arXiv 1903.08008), fails (ours)."""
ESS = (100.0, 25.0)
"""Effective draws a run below which the line warns (Vehtari et al. 2021), fails (ours)."""
SBC = (0.05, 0.01)
"""Joint p-value of the ranks below which the line warns, fails."""
EVIDENCE = (0.7, 2.0)
"""Standard deviation over runs of log p(y), nats, from which the line warns, fails (ours; at 0.7 the weights of the
runs, exp of it, vary by more than half)."""
COLLAPSED = 0.01
"""Share of particles whose weight counts, at the worst step, below which the line warns (ours)."""


def sampler_verdict(tree: Any, *, ranks: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """One row a check: ``check, value, threshold, verdict (ok | warn | fail), meaning, remedy``.

    ``tree``   of ``inference.sampling.condition``, or any DataTree with chains; weights and divergences are judged
               where ``sample_stats`` has ``log_weight``, ``ess`` (by step) and ``diverging``.
    ``ranks``  of ``inference.sampling.calibration_ranks``: rank fractions in (0, 1) by quantity, one a simulation, or a
               dict of arrays (simulation, ...).

    R-hat and effective draws are rank-based, the worst over all numbers of the posterior; they need two chains.  k-hat
    is the largest over runs; guidance has the weights of whole paths, sequential Monte Carlo those since its last
    resampling.  A k-hat that cannot be computed fails.  Where runs have a log p(y) of their own, its spread is judged.
    ``attrs["unchecked"]`` of the table lists what this tree cannot say, each with the call that can.  Raises
    ``ValueError`` for a tree without a posterior.

    >>> tree = inference.sampling.condition(law, likelihood, y, method="dps", key=key)
    >>> inference.sampler_verdict(tree)[["check", "value", "verdict"]]
    """
    import pandas as pd

    if not is_tree(tree):
        raise ValueError("the tree has no group 'posterior'; pass the DataTree of inference.sampling.condition")
    stats = tree["sample_stats"] if "sample_stats" in tree.children else {}
    draws = {str(name): np.asarray(v.values, float) for name, v in tree["posterior"].data_vars.items()}
    checks = [_finite(draws), *_chains(draws)]
    if "diverging" in stats:
        checks.append(_divergences(np.asarray(stats["diverging"].values)))
    if "log_weight" in stats:
        checks.append(_weights(np.asarray(stats["log_weight"].values), str(tree.attrs.get("method", "this method"))))
    if "ess" in stats and bool(np.asarray(stats["resampled"].values).any()):
        checks.append(_particles(np.asarray(stats["ess"].values), stats["log_weight"].values.shape[1]))
    if "log_evidence" in stats and stats["log_evidence"].size > 1:
        checks.append(_evidence(np.asarray(stats["log_evidence"].values, float)))
    if ranks is not None:
        checks.append(_ranks(ranks))
    table = pd.DataFrame(
        [dataclasses.asdict(check) for check in checks], columns=[f.name for f in dataclasses.fields(Check)]
    )
    runs = next(iter(draws.values())).shape[0]
    table.attrs["unchecked"] = _unchecked(tree.attrs.get("method"), "log_weight" in stats, runs, ranks is not None)
    return table


def is_tree(value: Any) -> bool:
    """Whether this is a DataTree with draws in its group ``posterior``."""
    return "posterior" in getattr(value, "children", {})


def flagged(verdict: pd.DataFrame) -> bool:
    """Whether k-hat or the ranks say that the draws follow another law than the posterior."""
    of = verdict["check"].str.startswith(("k-hat", "simulated ranks"))
    return bool((verdict["verdict"][of] == "fail").any())


def rank_p_value(ranks: Mapping[str, Any]) -> tuple[float, str]:
    """Joint p-value of the ranks' uniformity, the least of Holm's over all numbers, and the number it belongs to."""
    columns = {
        (name if values.ndim == 1 else f"{name}{list(at)}"): values[(slice(None), *at)]
        for name, values in ((name, np.asarray(v, float)) for name, v in ranks.items())
        for at in np.ndindex(values.shape[1:])
    }
    p = holm(p_values(np.stack(list(columns.values()), axis=1)))
    return float(np.min(p)), list(columns)[int(np.argmin(p))]


def _finite(draws: Mapping[str, np.ndarray]) -> Check:
    bad = int(sum((~np.isfinite(v)).sum() for v in draws.values()))
    return Check(
        "non-finite draws", float(bad), "0", "fail" if bad else "ok",
        f"{bad} numbers of the draws are infinite or not a number." if bad else "All draws are finite numbers.",
        "More steps=, or a method whose steps are bounded: tds with twist='tweedie' or 'gaussian'." if bad else "",
    )  # fmt: skip


def _chains(draws: Mapping[str, np.ndarray]) -> list[Check]:
    from arviz_stats.base import array_stats

    rhats, sizes, where = [], [], []
    chains = next(iter(draws.values())).shape[0]
    for name, values in draws.items():
        for at in np.ndindex(values.shape[2:]):
            column = values[(slice(None), slice(None), *at)]
            if not np.isfinite(column).all() or np.ptp(column) == 0:
                continue
            where.append(name + (str(list(at)) if at else ""))
            sizes.append(float(array_stats.ess(column, method="bulk")))
            rhats.append(float(array_stats.rhat(column, method="rank")) if chains > 1 else math.nan)
    if not where:
        return []
    least = min(sizes) / chains
    few = "ok" if least >= ESS[0] else "warn" if least >= ESS[1] else "fail"
    found = [
        Check(
            "effective draws a run (least)", least, f">= {ESS[0]:g} (fails below {ESS[1]:g})", few,
            f"The draws of {where[int(np.argmin(sizes))]} are worth {least:.0f} independent ones a run.",
            "" if few == "ok" else "More draws=; more steps= or a better twist= where particles share ancestors.",
        )
    ]  # fmt: skip
    if chains > 1:
        worst = float(np.max(rhats))
        apart = "ok" if worst < RHAT[0] else "warn" if worst < RHAT[1] else "fail"
        found.insert(0, Check(
            "R-hat over runs (largest)", worst, f"< {RHAT[0]:g} (fails from {RHAT[1]:g})", apart,
            "Independent runs found the same law; whether it is the posterior, the lines below say." if apart == "ok"
            else f"Independent runs disagree about {where[int(np.argmax(rhats))]}: each saw a part of the posterior.",
            "" if apart == "ok" else "More draws=; where modes lie far apart, tds or noise_hmc instead of nuts.",
        ))  # fmt: skip
    return found


def _divergences(diverging: np.ndarray) -> Check:
    share = float(diverging.mean())
    verdict = "ok" if share == 0 else "warn" if share < 0.01 else "fail"
    return Check(
        "divergent transitions", share, "0 (fails from 1 %)", verdict,
        f"{share:.2%} of the transitions diverged" + ("." if share == 0 else ": the chain avoids a part of the space."),
        "" if share == 0 else "target_accept_prob=0.95, or method='noise_hmc'.",
    )  # fmt: skip


def _weights(log_weight: np.ndarray, method: str) -> Check:
    k = pareto_k(log_weight.T)
    worst = float(np.max(np.where(np.isnan(k), np.inf, k)))
    bad = not worst <= KHAT_BAD
    return Check(
        "k-hat of the weights (largest)", worst, f"<= {KHAT_BAD:g}", "fail" if bad else "ok",
        (f"The draws of {method} follow another law than the posterior: too narrow or in the wrong place, where their "
         "importance weights are heavy." if bad else
         "The importance weights of the particles have light tails: the law that moved them is near the posterior."),
        "tds, noise_hmc or nuts in the place of guidance; for tds a better twist=, more steps=, draws=." if bad else "",
    )  # fmt: skip


def _particles(ess: np.ndarray, particles: int) -> Check:
    worst = float(ess.min()) / particles
    verdict = "ok" if worst >= COLLAPSED else "warn"
    return Check(
        "particles that count (least share)", worst, f">= {COLLAPSED:g}", verdict,
        f"At the worst step {worst:.2%} of the particles carried the weights.",
        "" if verdict == "ok" else "A better twist= (tweedie, gaussian, smoothed), more draws=.",
    )  # fmt: skip


def _evidence(log_evidence: np.ndarray) -> Check:
    sd = float(log_evidence.std(ddof=1))
    verdict = "ok" if sd < EVIDENCE[0] else "warn" if sd < EVIDENCE[1] else "fail"
    return Check(
        "log p(y), spread over runs", sd, f"< {EVIDENCE[0]:g} nats (fails from {EVIDENCE[1]:g})", verdict,
        "Runs agree about log p(y)." if verdict == "ok" else
        "The luckiest run carries the estimate of log p(y), which is likely too low; each run found another part of "
        "the posterior.",
        "" if verdict == "ok" else "More draws=; a better twist=; more runs.",
    )  # fmt: skip


def _unchecked(method: str | None, weighted: bool, runs: int, ranked: bool) -> list[str]:
    """What was not checked, and how to check it."""
    found = []
    if runs < 2:
        found.append("whether runs agree (R-hat): one run alone; condition(..., runs=4)")
    if not weighted:
        found.append(
            "whether the law is right (k-hat): chains have no importance weights; compare with condition(..., "
            "method='tds'), by R-hat over both, or simulate (below)"
        )
    if not ranked:
        ours = "ranks = inference.sampling.calibration_ranks(law, likelihood, method='{}', key=key)"
        how = ours.format(method) if weighted and method else "ranks of simulated truths from a loop over simulated y"
        found.append(
            f"whether intervals hold the truth as often as they say (simulated problems): {how}; then "
            "inference.diagnose(tree, ranks=ranks)"
        )
    return found


def _ranks(ranks: Mapping[str, Any]) -> Check:
    p, where = rank_p_value(ranks)
    verdict = "ok" if p >= SBC[0] else "warn" if p >= SBC[1] else "fail"
    pits = np.concatenate([np.asarray(v, float).reshape(len(v), -1) for v in ranks.values()], axis=1)
    held = float((np.abs(pits - 0.5) <= 0.45).mean())
    return Check(
        "simulated ranks (joint p-value)", p, f">= {SBC[0]:g} (fails below {SBC[1]:g})", verdict,
        f"In {len(pits)} simulated problems, 90 % intervals hold the truth {held:.1%} of the time"
        + ("." if verdict == "ok" else f"; furthest from uniform are the ranks of {where}."),
        "" if verdict == "ok" else "An exact method (tds, mcgdiff, noise_hmc, nuts); more steps= and draws=.",
    )  # fmt: skip
