"""The lines of a diagnosis about training: skipped updates, a loss still falling, and the gap to held-out data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.checking import criticism, remedies
from inference.checking.criticism import EFFECT
from ppl_models.program import Check

if TYPE_CHECKING:
    import pandas as pd

SKIPPED = 0.01
"""Share of skipped updates from which the line fails (ours)."""


def verdict_of(value: float, warn: float, fail: float) -> str:
    """Verdict of a value that should stay at or below ``warn`` (not a number fails)."""
    if not value <= fail:
        return "fail"
    return "ok" if value <= warn else "warn"


def chosen_by_validation(info: Mapping[str, Any]) -> bool:
    """Whether validation kept the parameters of a step before the last fifth of training."""
    best = info.get("best_step")
    return best is not None and best < 0.8 * int(info.get("steps", 0))


def training_checks(history: pd.DataFrame, info: Mapping[str, Any]) -> list[Check]:
    """Were updates skipped, and was the loss still falling when training ended?"""
    steps, skipped = int(info.get("steps", 0)), int(info.get("skipped", 0))
    checks = []
    if steps:
        share = skipped / steps
        checks.append(
            Check(
                "updates skipped", share, f"0 (fails above {SKIPPED:g})", verdict_of(share, 0.0, SKIPPED),
                f"{skipped} of {steps} updates had a loss or gradient that was not finite and were left out."
                if skipped else "Every update had a finite loss and gradient.",
                "Lower the learning rate or set clip=; if it persists, look for data outside the support of the "
                "likelihood or a scale parameter that runs to zero." if skipped else "",
            )
        )  # fmt: skip
    found, which = None, "training"
    best_step = info.get("best_step")
    # Validation chose by the bound that was trained; the ELBO may fall while a tighter one still rises.
    column = next((name for name in ("validation_bound", "validation_elbo") if name in history), None)
    if column is not None:
        step, value = criticism.last_fifth(history, column)
        found, which = criticism.trend(step, -value), "validation"
    if chosen_by_validation(info) or (found is None and best_step is not None and best_step < steps):
        # Validation has chosen: more steps would not change the parameters in use, whatever the training loss does.
        return [
            *checks,
            Check(
                "still improving", 0.0, "the step kept by validation before the last", "ok",
                f"Validation kept the parameters of step {best_step:,} of {steps:,}: no step after it would help.", "",
            ),
        ]  # fmt: skip
    if found is None and "loss" in history:
        found, which = criticism.trend(*criticism.last_fifth(history, "loss")), "training"
    if found is None:
        return checks
    # A fall must be both clear of the noise and worth something: a thousandth of the loss, or 0.01 nats.
    bound = max(2 * found.se, 1e-3 * abs(found.level), 0.01)
    best = best_step
    verdict, rest, remedy = "ok", "that is within its noise or too small to matter.", ""
    if found.gain > bound:
        verdict, remedy = "warn", remedies.joined([remedies.LONGER])
        rest = (
            "clearly more than its noise: training ended before it had settled, and every other line describes an "
            "unfinished fit."
        )
    elif found.gain < -bound and best is not None:
        rest = f"so it got worse; the parameters of step {best}, the best by validation, are the ones in use."
    elif found.gain < -bound:
        verdict = "warn"
        rest = "so it got worse: the step size is too large, a weight was still fading in, or the fit overfits."
        remedy = remedies.joined(["lower the learning rate", "end schedules before training ends", remedies.EARLY])
    checks.append(
        Check(
            "still improving", found.gain, f"<= {bound:.3g} nats (2 s.e., 0.1 % of the loss)", verdict,
            f"Over the last fifth of training the {which} loss fell by {found.gain:.3g} ± {found.se:.2g} nats per "
            f"datum; {rest}", remedy,
        )
    )  # fmt: skip
    return checks


def training_elbo(history: pd.DataFrame) -> float | None:
    """Mean ELBO of the training batches in the last fifth of training: nats per datum, unweighted; None if unknown."""
    if "elbo" not in history:
        return None
    values = criticism.last_fifth(history, "elbo")[1]
    return float(values.mean()) if len(values) else None


def held_out_check(history: pd.DataFrame, table: pd.DataFrame, best_step: int | None = None) -> list[Check]:
    """Is the ELBO (or the exact log p(x)) of the data given here worse than that of the training batches?

    Where validation kept an earlier step, the batches are those before it: what came after is not in use.
    """
    if best_step:
        history = history[history["step"] <= max(best_step, history["step"].min())]
    trained = training_elbo(history)
    column = "log_px" if (table.attrs.get("estimator") == "exact") else "elbo"
    values = table[column].to_numpy(float)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    if trained is None or not math.isfinite(trained) or not sd > 0:
        return []
    what = "log p(x)" if (table.attrs.get("estimator") == "exact") else "ELBO"
    refined = int((table["estimator"] == "refined").sum()) if "estimator" in table else 0
    gap, se = trained - float(values.mean()), sd / math.sqrt(len(values))
    warn = max(EFFECT[0] * sd, 2 * se)
    verdict = verdict_of(gap, warn, max(EFFECT[1] * sd, 2 * se))
    return [
        Check(
            "held-out gap", gap, f"<= {warn:.3g} nats ({EFFECT[0]:g} sd over data, 2 s.e.)", verdict,
            f"{what} of the last training batches in use minus that of these data: {gap:.3g} ± {se:.2g} nats a datum. "
            + (f"It is larger than said: {refined} of these have a refined posterior. " if refined else "")
            + ("The model describes new data about as well as those it was fitted to." if verdict == "ok" else
               "The model describes the data it was fitted to clearly better than new ones: it overfits."),
            "" if verdict == "ok" else
            remedies.joined([remedies.MORE_DATA, remedies.SMALLER, remedies.EARLY])
            + (" Pass train= to tell the encoder's part from the model's." if what == "ELBO" else ""),
        )
    ]  # fmt: skip
