"""Which number of facets and clusters, and which seed, without labels; and, with labels, how good that advice was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.checking.comparison import aligned
from inference.clustering.agreement import Stability, check_assignments, stability
from inference.clustering.metrics import accuracy, adjusted_rand, clusters_used, labelled

if TYPE_CHECKING:
    import pandas as pd

TIE = 2.0
"""Standard errors of the difference within which two evidences are tied."""
RULE = (
    "highest held-out evidence; among ties (within 2 standard errors) the highest agreement with the other seeds; "
    "first the configuration, then the run in it"
)
COLUMNS = (
    "runs", "evidence", "se", "behind", "behind_se", "stability", "stability_sd", "used", "silent", "tied", "chosen",
)  # fmt: skip
MEASURES: dict[str, Callable[[Any, Any], float]] = {"accuracy": accuracy, "ari": adjusted_rand}


@dataclass(frozen=True)
class Run:
    """One fitted run as :func:`choose` sees it.

    ``configuration``  name of what the run tries (J, K, recipe); runs that differ in their seed alone share it.
    ``evidence``       the table of ``inference.evidence`` on held-out data, or (mean, standard error) nats a datum.
    ``assignments``    {facet: labels (n,)}, on the same data for every run.
    """

    configuration: str
    evidence: Any
    assignments: Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """What :func:`choose` found.

    ``configurations``  one row a configuration, see :func:`choose`.
    ``runs``            one row a run: ``configuration, evidence, se`` (over data), ``stability`` (with the runs of its
                        configuration), ``used`` (mean clusters used a facet), ``silent`` (facets with one cluster),
                        ``tied`` (within 2 s.e. of the best of its configuration) and ``chosen``.
    ``configuration``, ``run``  names of the chosen ones.
    ``stability``       agreement of all pairs of runs.
    ``check``           with factors, how well the scores that use no labels ranked the runs: see :func:`choose`.
    """

    configurations: pd.DataFrame
    runs: pd.DataFrame
    configuration: str
    run: str
    stability: Stability
    check: pd.DataFrame | None = None


def choose(runs: Mapping[str, Run], factors: Mapping[str, Any] | None = None) -> Choice:
    """Choose configuration and run by held-out evidence, ties by the agreement between seeds; no label is used.

    The rule: the configuration with the highest mean evidence; of those within 2 standard errors of it (of the
    difference, over data and seeds) the one whose seeds agree most.  In it the run with the highest evidence; of
    those within 2 standard errors (over data, paired) the one that agrees most with the other seeds.  A configuration
    of one run has no agreement and loses ties; a run without finite evidence comes last.

    ================  =====  =====================================================================================
    column            unit   meaning, by configuration
    ================  =====  =====================================================================================
    ``runs``                 number of runs, its seeds
    ``evidence``      nats   mean log p(x) a datum over data and seeds
    ``se``            nats   its standard error, sqrt(data^2 + seeds^2): over data of the mean over seeds (for (mean,
                             s.e.) pairs the mean s.e., for seeds share their data), over seeds sd / sqrt(seeds)
    ``behind``        nats   evidence of the best configuration minus this one
    ``behind_se``     nats   standard error of ``behind``; paired over data where tables were given
    ``stability``            mean over pairs of its runs of their agreement, see :func:`inference.stability`
    ``stability_sd``         standard deviation over those pairs (ddof 1)
    ``used``                 mean number of clusters used a facet
    ``silent``               mean number of silent facets a run
    ``tied``, ``chosen``     within 2 ``behind_se`` of the best; chosen
    ================  =====  =====================================================================================

    ``factors``  known values by name, (n,) each, of the data that ``assignments`` label: an honest check afterwards.
                 ``check`` then has, for each factor, measure (accuracy, ARI; of the facet that serves the factor
                 best) and score (evidence, stability, and the rule): ``spearman``, the rank correlation of score
                 and measure over all runs; ``picked``, the run with the highest score; its ``value``, the ``best``
                 run's, and their difference, ``regret``.

    Raises ``ValueError`` for evidence of different data or observations and labels of different data.

    >>> choose({"a0": Run("J=1", table_a0, {"digit": labels}), ...}, factors={"digit": y}).run
    """
    import pandas as pd

    runs = {str(name): replace(run, assignments=_arrays(run.assignments)) for name, run in runs.items()}
    check_assignments({name: run.assignments for name, run in runs.items()})
    evidence = _evidence(runs)
    groups: dict[str, list[str]] = {}
    for name, run in runs.items():
        groups.setdefault(run.configuration, []).append(name)
    agreement = stability({name: run.assignments for name, run in runs.items()})
    by_run, by_configuration = [], []
    for configuration, members in groups.items():
        within = agreement.within(members)
        tied = _tied({name: [evidence[name]] for name in members})
        for name in members:
            used = [clusters_used(labels) for labels in runs[name].assignments.values()]
            row = {"run": name, "configuration": configuration, "evidence": evidence[name].mean}
            row |= {"se": evidence[name].se, "stability": float(within.runs.loc[name, "stability"])}
            row |= {"used": float(np.mean(used)), "silent": sum(count < 2 for count in used), "tied": tied[name][2]}
            by_run.append(row)
        mean, se = _pooled([evidence[name] for name in members])
        row = {"configuration": configuration, "runs": len(members), "evidence": mean, "se": se}
        by_configuration.append(row | {"stability": within.mean, "stability_sd": within.sd})
    found = pd.DataFrame(by_run).set_index("run")
    table = pd.DataFrame(by_configuration).set_index("configuration")
    tied = _tied({name: [evidence[m] for m in members] for name, members in groups.items()})
    for i, column in enumerate(("behind", "behind_se", "tied")):
        table[column] = [tied[name][i] for name in table.index]
    for column in ("used", "silent"):
        table[column] = found.groupby("configuration")[column].mean()
    configuration = _pick(table)
    best = _pick(found[found["configuration"] == configuration])
    table["chosen"], found["chosen"] = table.index == configuration, found.index == best
    check = None if factors is None else _check(found, runs, factors, best)
    return Choice(table[[*COLUMNS]], found, configuration, best, agreement, check)


def _arrays(assignments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {str(name): np.asarray(labels) for name, labels in assignments.items()}


def _pick(frame: pd.DataFrame) -> str:
    """Of the tied rows the most stable one, then the one with the most evidence; unknown stability comes last."""
    tied = frame[frame["tied"]].fillna({"stability": -math.inf})
    return str(tied.sort_values(["stability", "evidence"], ascending=False, kind="stable").index[0])


# ------------------------------------------------------------------------------------------------- evidence
@dataclass(frozen=True)
class _Evidence:
    """Mean log p(x) a datum of one run and its standard error over data; ``log_px`` (n,) where it is known."""

    mean: float
    se: float
    log_px: np.ndarray | None = None


def _evidence(runs: Mapping[str, Run]) -> dict[str, _Evidence]:
    """Read every run's evidence; tables are put into the same order and must be of the same data."""
    tables = {name: run.evidence for name, run in runs.items() if hasattr(run.evidence, "columns")}
    if len(tables) > 1:
        tables = aligned(tables)
    found = {}
    for name, run in runs.items():
        if name in tables:
            log_px = tables[name]["log_px"].to_numpy(np.float64)
            with np.errstate(invalid="ignore"):
                se = log_px.std(ddof=1) / math.sqrt(len(log_px)) if len(log_px) > 1 else math.nan
                found[name] = _Evidence(float(log_px.mean()), float(se), log_px)
            continue
        try:
            mean, se = map(float, run.evidence)
        except (TypeError, ValueError):
            raise ValueError(
                f"the evidence of run {name!r} is {run.evidence!r:.60}; expected the table of inference.evidence, or "
                "(mean, standard error) in nats a datum"
            ) from None
        found[name] = _Evidence(mean, se)
    return found


def _pooled(runs: list[_Evidence]) -> tuple[float, float]:
    """Mean evidence of runs on the same data, and its standard error over data and runs."""
    with np.errstate(invalid="ignore"):
        return float(np.mean([run.mean for run in runs])), math.sqrt(_over_data(runs) + _over_runs(runs))


def _over_data(runs: list[_Evidence]) -> float:
    """Squared standard error over data of the mean over runs, which share the data."""
    known = [run.log_px for run in runs if run.log_px is not None]
    if len(known) < len(runs):
        return float(np.mean([run.se for run in runs])) ** 2
    return float(np.mean(known, axis=0).var(ddof=1) / len(known[0])) if len(known[0]) > 1 else math.nan


def _over_runs(runs: list[_Evidence]) -> float:
    """Squared standard error over runs of their mean; 0 for a single run, whose spread is unknown."""
    return float(np.var([run.mean for run in runs], ddof=1) / len(runs)) if len(runs) > 1 else 0.0


def _tied(groups: Mapping[str, list[_Evidence]]) -> dict[str, tuple[float, float, bool]]:
    """How far each group of runs is behind the best, the standard error of that, and whether it is tied with it."""
    means = {name: _pooled(runs)[0] for name, runs in groups.items()}
    best = max(means, key=lambda name: means[name] if math.isfinite(means[name]) else -math.inf)
    found = {}
    for name, runs in groups.items():
        if name == best:
            found[name] = (0.0, 0.0, True)
            continue
        behind = means[best] - means[name]
        if not math.isfinite(behind):
            found[name] = (math.inf, math.nan, False)
            continue
        known = [[run.log_px for run in side if run.log_px is not None] for side in (groups[best], runs)]
        if len(known[0]) == len(groups[best]) and len(known[1]) == len(runs):
            difference = np.mean(known[0], axis=0) - np.mean(known[1], axis=0)
            data = float(difference.var(ddof=1) / len(difference)) if len(difference) > 1 else math.nan
        else:
            data = _over_data(groups[best]) + _over_data(runs)
        se = math.sqrt(data + _over_runs(groups[best]) + _over_runs(runs))
        found[name] = (behind, se, behind <= TIE * se)
    return found


# --------------------------------------------------------------------------------------------- honest check
def _check(found: pd.DataFrame, runs: Mapping[str, Run], factors: Mapping[str, Any], chosen: str) -> pd.DataFrame:
    """How the label-free scores rank the runs against their agreement with the known factors."""
    import pandas as pd

    n = len(next(iter(next(iter(runs.values())).assignments.values())))
    rows = []
    for factor, y in labelled(factors, n).items():
        for measure, of in MEASURES.items():
            value = pd.Series({name: max(of(c, y) for c in run.assignments.values()) for name, run in runs.items()})
            best = float(value.max())
            for score in ("evidence", "stability", "rule"):
                known = found.get(score, pd.Series(dtype=float)).replace([math.inf, -math.inf], math.nan).dropna()
                picked = chosen if score == "rule" else str(known.idxmax()) if len(known) else ""
                got = float(value[picked]) if picked else math.nan
                rows.append(
                    {
                        "factor": factor,
                        "measure": measure,
                        "score": score,
                        "spearman": spearman(known, value[known.index]),
                        "picked": picked,
                        "value": got,
                        "best": best,
                        "regret": best - got,
                    }
                )
    return pd.DataFrame(rows, columns=["factor", "measure", "score", "spearman", "picked", "value", "best", "regret"])


def spearman(a: Any, b: Any) -> float:
    """Rank correlation, ties at their mean rank; nan for fewer than three values or a constant."""
    from scipy.stats import spearmanr

    if len(a) < 3 or any(np.ptp(values) == 0 for values in (a, b)):
        return math.nan
    return float(spearmanr(a, b).statistic)
