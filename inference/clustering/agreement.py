"""Do runs with other seeds find the same clusterings?  Agreement between runs on the same data, without labels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from inference.clustering.metrics import adjusted_rand

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Stability:
    """How far runs agree on the clusters of the same data.

    ``pairs``   one row a matched pair of facets: ``run, other, facet, other_facet, ari``.
    ``runs``    one row a run, index ``run``: ``stability``, its mean agreement with the other runs, and ``sd`` of that
                over them (ddof 1); nan where there are too few.
    ``facets``  one row a facet of a run: ``run, facet, stability``, the mean over the runs it was matched in.
    ``mean``    mean agreement over pairs of runs, ``sd`` its standard deviation over them (ddof 1).
    """

    pairs: pd.DataFrame
    runs: pd.DataFrame
    facets: pd.DataFrame
    mean: float
    sd: float

    def within(self, runs: list[str]) -> Stability:
        """The same for some of the runs."""
        pairs = self.pairs
        return _summarise(pairs[pairs["run"].isin(runs) & pairs["other"].isin(runs)].reset_index(drop=True), runs)


def stability(assignments: Mapping[str, Mapping[str, Any]]) -> Stability:
    """Agreement of every pair of runs: mean adjusted Rand index of their facets, matched as well as can be.

    ``assignments``  {run: {facet: labels (n,)}}, all of the same data in the same order.

    Names of facets and numbers of clusters mean nothing: the facets of two runs are matched one to one with the
    largest sum of ARI.  Where one run has fewer facets, the mean is over those that it has.  A facet with a single
    cluster agrees with nothing (ARI 0), so that silent facets do not count as stable.

    Raises ``ValueError`` for a run without facets and for runs on different numbers of data.

    >>> stability({"seed 0": {"digit": a, "style": b}, "seed 1": {"digit": c, "style": d}}).mean
    """
    import pandas as pd

    runs = {str(run): {str(name): np.asarray(v) for name, v in facets.items()} for run, facets in assignments.items()}
    check_assignments(runs)
    rows = []
    for run, other in itertools.combinations(runs, 2):
        names, others = list(runs[run]), list(runs[other])
        table = np.array([[adjusted_rand(runs[run][a], runs[other][b]) for b in others] for a in names])
        rows += [(run, other, names[i], others[j], table[i, j]) for i, j in match(table)]
    return _summarise(pd.DataFrame(rows, columns=["run", "other", "facet", "other_facet", "ari"]), list(runs))


def match(table: Float[np.ndarray, "facets others"]) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) with the largest sum; the surplus of the longer side stays without a partner."""
    from scipy.optimize import linear_sum_assignment

    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True)]


def check_assignments(runs: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raise ``ValueError`` unless every run has facets and all label the same number of data."""
    empty = [run for run, facets in runs.items() if not facets]
    if not runs or empty:
        what = f"run {empty[0]!r} has no facet" if empty else "there is no run"
        raise ValueError(f"{what}; expected {{run: {{facet: labels (n,)}}}}")
    shapes = {f"{run}, {name}": v.shape for run, facets in runs.items() for name, v in facets.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if len(shape) != 1 or shape != shapes[first]:
            raise ValueError(
                f"labels of {name} have shape {shape}, those of {first} {shapes[first]}; expected one label a datum, "
                "of the same data in the same order"
            )


def _summarise(pairs: pd.DataFrame, runs: list[str]) -> Stability:
    import pandas as pd

    both = pd.concat(
        [pairs, pairs.rename(columns={"run": "other", "other": "run", "facet": "other_facet", "other_facet": "facet"})]
    )
    agreed = pairs.groupby(["run", "other"])["ari"].mean()
    by_run = both.groupby(["run", "other"])["ari"].mean().groupby("run").agg(["mean", "std"])
    by_run = by_run.reindex(pd.Index(runs, name="run")).rename(columns={"mean": "stability", "std": "sd"})
    facets = both.groupby(["run", "facet"], sort=False)["ari"].mean().rename("stability").reset_index()
    return Stability(
        pairs,
        by_run.astype(float),
        facets,
        float(agreed.mean()) if len(agreed) else float("nan"),
        float(agreed.std(ddof=1)) if len(agreed) > 1 else float("nan"),
    )
