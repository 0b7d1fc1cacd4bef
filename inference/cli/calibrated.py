"""``--calibration N``: simulation-based calibration of a run's posterior, where it is asked for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from inference.cli.common import say

if TYPE_CHECKING:
    from inference.checking.calibration import Calibration


def calibrated(
    fitted: Any, x: Any, verdict: Any, simulations: int | None, *, key: Any, progress: bool = True
) -> tuple[Any, Calibration | None]:
    """Calibrate with so many simulations, write calibration.csv, and add its line to the table of checks.

    ``x`` are stored data, whose inputs a conditional program draws its data given.  A model without a posterior is
    left as it is, and one line says so.
    """
    if simulations is None:
        return verdict, None
    if fitted.program.posterior is None or not fitted.program.latents:
        say("nothing to calibrate: this model has no latent variables")
        return verdict, None
    import pandas as pd

    from inference.checking.calibration import calibrate
    from inference.fitting.folder import write_text

    if progress:
        say(f"calibrating the posterior on {simulations:,} data drawn from the model")
    inputs = x if fitted.program.observation.given else None
    found = calibrate(fitted, key=key, simulations=simulations, inputs=inputs, progress=progress)
    write_text(fitted.folder / "calibration.csv", found.table.to_csv())
    line = pd.DataFrame([dataclasses.asdict(found.check())])
    return pd.concat([verdict, line], ignore_index=True), found
