"""The line of a diagnosis that sets a model beside classical densities of the same data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ppl_models.program import Check

if TYPE_CHECKING:
    import pandas as pd

SIMPLE = {
    "independent": "independent columns or pixels",
    "gaussian": "one Gaussian",
    "linear-regression": "linear regression",
}
"""Baselines that a model should never lose to, and what they are in words."""
FAR = 2.0
"""Paired standard errors that count as a loss."""


def classical_check(table: pd.DataFrame, baselines: Mapping[str, pd.DataFrame]) -> list[Check]:
    """Compare held-out log p(x) of a model with that of each baseline, datum by datum; no line without baselines.

    ``value`` is the difference of means to the best baseline, nats a datum; its standard error is that of paired
    differences, ``sd(difference_i) / sqrt(n)``, in which the model's Monte Carlo error is contained.  It warns where
    the model is behind by two standard errors, and fails where it is so behind one of :data:`SIMPLE`.  Baselines may
    score the first rows of the table only.

    Raises ``ValueError`` for baselines of other data or another observation.
    """
    if not baselines:
        return []
    differences = {name: _difference(table, name, other) for name, other in baselines.items()}
    best = min(differences, key=lambda name: float(np.mean(differences[name])))
    gap, se, n = *_summary(differences[best]), len(differences[best])
    mean = float(table["log_px"].iloc[:n].mean())
    losses = {name: _summary(differences[name]) for name in SIMPLE if name in differences}
    lost = {name: found for name, found in losses.items() if not found[0] >= -FAR * found[1]}
    behind = not gap >= -FAR * se
    verdict = "fail" if lost else "warn" if behind else "ok"
    setting = ", ".join(f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
                        for key, value in baselines[best].attrs.get("baseline", {}).items()
                        if key in ("components", "covariance", "rank", "ridge"))  # fmt: skip
    about = (
        f"Held-out log p(x) is {mean:.3f} nats per datum, that of the best classical model of the same data "
        f"({best}{f': {setting}' if setting else ''}) {mean - gap:.3f}: "
    )
    if not behind:
        ahead = gap > FAR * se
        said = f"{gap:.3g} ± {se:.2g} more." if ahead else f"no clear difference ({gap:+.3g} ± {se:.2g})."
    else:
        said = f"the model is {-gap:.3g} ± {se:.2g} nats behind."
        worst = [name for name in lost if name != best]
        said += "".join(f" It loses to {SIMPLE[name]} by {-lost[name][0]:.3g} ± {lost[name][1]:.2g}." for name in worst)
        if best in lost:
            said += f" It loses to {SIMPLE[best]}: what it learnt beyond that does not help."
    return [
        Check(
            "log p(x) against classical models", gap, f">= {-FAR * se:.3g} nats ({FAR:g} paired s.e.)", verdict,
            about + said,
            "" if verdict == "ok" else
            "Longer training; another likelihood or a learnt noise scale (a shared or fixed one costs most); a linear "
            "path in the decoder; a classical start. `ppl-models compare RUN --baselines` (inference.baselines) fits "
            "these models with all their settings.",
        )
    ]  # fmt: skip


def _difference(table: pd.DataFrame, name: str, other: pd.DataFrame) -> np.ndarray:
    """log p of the model less that of the baseline, (n,)."""
    n = len(other)
    same = n <= len(table) and (
        "x_crc" not in table or (table["x_crc"].to_numpy()[:n] == other["x_crc"].to_numpy()).all()
    )
    if not same or table.attrs.get("observation") != other.attrs.get("observation"):
        raise ValueError(
            f"baseline {name!r} scores {n} data as {other.attrs.get('observation')!r}, the model {len(table)} as "
            f"{table.attrs.get('observation')!r}, or other data; make them by baselines(fit.program, train, x, key=...)"
        )
    with np.errstate(invalid="ignore"):
        return table["log_px"].to_numpy(np.float64)[:n] - other["log_px"].to_numpy(np.float64)


def _summary(difference: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    n = len(difference)
    with np.errstate(invalid="ignore"):
        return float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
