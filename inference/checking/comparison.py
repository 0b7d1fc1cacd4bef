"""Comparison of fitted models by their held-out evidence: paired differences and stacking weights.

Both act on log p(x_i | model), one number a datum, from :func:`inference.evidence`.  The expected log predictive
density of a model is estimated by the sum over data; differences are taken datum by datum, which removes the data's
own spread from the standard error (Vehtari, Gelman & Gabry 2017, "Practical Bayesian model evaluation", sec. 5).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from inference.checking.log_evidence import bits_per_dim, check_table
from inference.checking.psis import KHAT_BAD

if TYPE_CHECKING:
    import pandas as pd


def compare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rank models by held-out log predictive density; one row a model, best first, index ``name``.

    ================  =====  =====================================================================================
    column            unit   meaning
    ================  =====  =====================================================================================
    ``rank``                 0 is the best
    ``elpd``          nats   sum of log p(x_i) over the n data
    ``elpd_mean``     nats   the same per datum
    ``se``            nats   standard error of ``elpd`` over data, sqrt(n) sd(log p(x_i))
    ``elpd_diff``     nats   ``elpd`` minus that of the best model: 0 or negative
    ``dse``           nats   standard error of ``elpd_diff`` over data, paired: sqrt(n) sd(difference_i)
    ``weight``               stacking weight, see :func:`stacking_weights`
    ``mc_se``         nats   Monte Carlo error of ``elpd``, sqrt(sum se_i^2); more particles make it smaller
    ``khat_bad``             share of data with k-hat above 0.7 (or without verdict); nan if exact
    ``bits_per_dim``  bits   code length of a stored number, see :func:`inference.bits_per_dim`; nan if none
    ``n``                    number of data
    ``nonfinite``            data whose log p(x) is infinite or nan
    ================  =====  =====================================================================================

    A difference is worth believing when it is several ``dse``, and when ``mc_se`` is small against it.  A model with
    a non-finite log p(x) keeps its infinite or nan sums, ranks behind all finite ones and gets weight 0; one
    ``RuntimeWarning`` names it.  The sign of ``elpd_diff`` and the ranks are those of ArviZ.

    Raises ``ValueError`` for fewer than two tables or two data, a datum listed twice, tables of different data, and
    tables whose ``observation`` lines differ (densities of different things: pixels in [0, 1] and binarised pixels).

    >>> compare({"one facet": table_a, "two facets": table_b})
    """
    import pandas as pd

    scored = aligned(tables)
    names, n = list(scored), len(next(iter(scored.values())))
    log_px = np.stack([table["log_px"].to_numpy(np.float64) for table in scored.values()], axis=1)
    nonfinite = (~np.isfinite(log_px)).sum(axis=0)
    finite = nonfinite == 0
    if not finite.all():
        listed = ", ".join(f"{name!r} ({count} of {n})" for name, count in zip(names, nonfinite, strict=True) if count)
        warnings.warn(
            f"log p(x) is not finite in {listed}; such a model is ranked last with weight 0 - look at these data",
            RuntimeWarning,
            stacklevel=2,
        )
    elpd = log_px.sum(axis=0)
    order = np.lexsort((-np.nan_to_num(elpd, nan=-np.inf), ~finite))
    best = log_px[:, order[0]]
    weight = np.zeros(len(names))
    if finite.any():
        weight[finite] = stacking_weights(log_px[:, finite])
    rows = []
    for rank, m in enumerate(order):
        table = scored[names[m]]
        with np.errstate(invalid="ignore"):
            difference = log_px[:, m] - best
            rows.append(
                {
                    "name": names[m],
                    "rank": rank,
                    "elpd": elpd[m],
                    "elpd_mean": elpd[m] / n,
                    "se": math.sqrt(n) * log_px[:, m].std(ddof=1),
                    "elpd_diff": difference.sum() if rank else 0.0,
                    "dse": math.sqrt(n) * difference.std(ddof=1) if rank else 0.0,
                    "weight": weight[m],
                    "mc_se": math.sqrt((table["se"].to_numpy() ** 2).sum()),
                    "khat_bad": _khat_bad(table),
                    "bits_per_dim": bits_per_dim(table),
                    "n": n,
                    "nonfinite": nonfinite[m],
                }
            )
    result = pd.DataFrame(rows).set_index("name")
    result.attrs = {"observation": scored[names[0]].attrs["observation"]}
    return result


def _khat_bad(table: pd.DataFrame) -> float:
    if table.attrs["estimator"] == "exact":
        return math.nan
    return float((~(table["khat"].to_numpy() <= KHAT_BAD)).mean())


def aligned(tables: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Check that the tables score the same data in the same way; return them sorted by datum."""
    if not isinstance(tables, Mapping) or len(tables) < 2:
        got = f"{len(tables)} table(s)" if isinstance(tables, Mapping) else f"{type(tables).__name__}"
        raise ValueError(f'compare needs at least two tables by name, got {got}; pass {{"a": table_a, "b": table_b}}')
    result: dict[str, pd.DataFrame] = {}
    for name, table in tables.items():
        check_table(table, f"table {name!r}")
        if table["datum"].duplicated().any():
            twice = table["datum"][table["datum"].duplicated()].iloc[0]
            raise ValueError(f"table {name!r} lists datum {twice} more than once; keep one row a datum")
        if len(table) < 2:
            raise ValueError(
                f"table {name!r} has {len(table)} datum, a standard error needs at least 2; score more data"
            )
        result[name] = table.sort_values("datum")
    (first, reference), *others = result.items()
    for name, table in others:
        ours, theirs = reference.attrs["observation"], table.attrs["observation"]
        if ours != theirs:
            raise ValueError(
                f"tables {first!r} and {name!r} score different things: {ours!r} against {theirs!r}; densities of "
                "different observations cannot be compared - build both models for the same one"
            )
        if len(table) != len(reference) or (table["datum"].to_numpy() != reference["datum"].to_numpy()).any():
            raise ValueError(
                f"tables {first!r} and {name!r} score different rows: {len(reference)} and {len(table)} data; "
                "compute both on the same array"
            )
        differs = np.flatnonzero(table["x_crc"].to_numpy() != reference["x_crc"].to_numpy())
        if differs.size:
            raise ValueError(
                f"tables {first!r} and {name!r} score different data: {differs.size} of {len(table)} rows differ, "
                f"first datum {table['datum'].iloc[differs[0]]}; compute both on one array of one dtype"
            )
    return result


def stacking_weights(
    log_px: Float[np.ndarray, "data models"], *, tolerance: float = 1e-6
) -> Float[np.ndarray, " models"]:
    """Weights w on the simplex that maximise (1/n) sum_i log sum_m w_m p_m(x_i) (Yao, Vehtari, Simpson & Gelman 2018).

    The problem is concave.  At w, let g_m = (1/n) sum_i p_m(x_i) / sum_l w_l p_l(x_i): the optimum is at most
    max_m g_m - 1 above the value at w, and the iteration stops when that is below ``tolerance`` nats per datum.
    Sequential quadratic programming comes close, EM steps (w_m <- w_m g_m), which never lose, finish.

    Raises ``ValueError`` unless ``log_px`` is two-dimensional and finite, and ``RuntimeError`` if the tolerance is not
    reached (it always has been).
    """
    from scipy.optimize import minimize

    values = np.asarray(log_px, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"log_px must have axes (data, models), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("log_px has NaN or infinite values; drop the models concerned (compare() gives them weight 0)")
    models = values.shape[1]
    ratio = np.exp(values - values.max(axis=1, keepdims=True))

    def gradient(w: np.ndarray) -> np.ndarray:
        return (ratio / np.maximum(ratio @ w, 1e-300)[:, None]).mean(axis=0)

    w = np.full(models, 1 / models)
    if models > 1:
        found = minimize(
            lambda v: -np.log(np.maximum(ratio @ v, 1e-300)).mean(),
            w,
            jac=lambda v: -gradient(v),
            method="SLSQP",
            bounds=[(0.0, 1.0)] * models,
            constraints={"type": "eq", "fun": lambda v: v.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-12, "maxiter": 500},
        )
        # A weight that is exactly zero could never come back in the EM steps.
        start = np.clip(found.x, 1e-9, None)
        w = start / start.sum() if np.isfinite(start).all() else w
    for _ in range(100_000):
        g = gradient(w)
        if g.max() - 1 <= tolerance:
            return w
        w = w * g
        w /= w.sum()
    raise RuntimeError(f"stacking weights did not converge: gap {g.max() - 1:.2g} nats per datum above {tolerance:g}")
