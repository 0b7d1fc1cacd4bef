"""``--calibration N``: simulation-based calibration of a run's posterior, where it is asked for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from inference.cli import runs
from inference.cli.arguments import check_at_least
from inference.cli.common import UsageError, say

if TYPE_CHECKING:
    from inference.checking.calibration import Calibration


def check_calibration(fitted: Any, simulations: int | None) -> None:
    """Raise :class:`UsageError` for too few simulations, or a model without a posterior."""
    check_at_least(10, calibration=simulations)
    if simulations is not None and (fitted.program.posterior is None or not fitted.program.latents):
        raise UsageError("--calibration checks a posterior, and this model has no latent variables; leave it out")


def calibrated(fitted: Any, x: Any, verdict: Any, simulations: int | None) -> tuple[Any, Calibration | None]:
    """Calibrate with so many simulations, write calibration.csv, and add its line to the table of checks."""
    if simulations is None:
        return verdict, None
    import jax
    import pandas as pd

    from inference.checking.calibration import calibrate

    say(f"{fitted.folder}: calibration of the posterior on {simulations:,} data drawn from the model")
    key = jax.random.fold_in(runs.keys()["diagnose"], 1_000_001)
    inputs = x if fitted.program.observation.given else None
    found = calibrate(fitted, key=key, simulations=simulations, inputs=inputs)
    runs.write_table(found.table, fitted.folder / "calibration.csv", index=True)
    line = pd.DataFrame([dataclasses.asdict(found.check())])
    return pd.concat([verdict, line], ignore_index=True), found
