"""The arguments of a fit: checked before any work, recorded in run.json, compared when a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from inference.fitting import checkpoint
from inference.fitting.folder import RunFolder
from inference.fitting.loss import DEFAULTS
from ppl_models.program import Program


def check_arguments(
    steps: int, key: Any, average: float | None, patience: int | None, validation: Any, **every: Any
) -> None:
    if not checkpoint.is_key(key) or key.shape != ():
        raise ValueError(f"key must be one new-style random key, got {key!r:.60}; use key=jax.random.key(0)")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    for name, value in every.items():
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, or None, got {value!r}")
    if average is not None and not 0 < average < 1:
        raise ValueError(f"average is the decay of the parameter average, between 0 and 1, got {average!r}; try 0.999")
    if patience is not None and validation is None:
        raise ValueError("patience needs validation data: pass validation=x_validation, or drop patience")
    if patience is not None and patience < 1:
        raise ValueError(f"patience counts validations without a better one, at least 1, got {patience!r}")


def check_dispatch(wanted: int | str) -> None:
    if wanted != "auto" and not (isinstance(wanted, int) and wanted >= 1):
        raise ValueError(f"steps_per_dispatch must be 'auto' or a whole number of at least 1, got {wanted!r}")


def dispatch(wanted: int | str, steps: int, every: list[int], convolves: Callable[[], bool]) -> int:
    """Steps per dispatch: a divisor of every interval, so that each falls on the end of a dispatch."""
    common = int(np.gcd.reduce([steps, *every]))
    if wanted == "auto":
        if jax.default_backend() == "cpu" and convolves():
            return 1  # XLA:CPU runs convolutions inside loops tens of times slower
        limit = min(10, max(1, steps // 100))  # a row of the history at least every hundredth
    else:
        limit = int(wanted)
        if jax.default_backend() == "cpu" and limit > 1 and convolves():
            raise ValueError(
                f"steps_per_dispatch={wanted} would put convolutions inside a scan, which is tens of times slower on "
                "a CPU; use steps_per_dispatch=1 (or 'auto')"
            )
    return max(d for d in range(1, limit + 1) if common % d == 0)


def plain(value: Any) -> Any:
    """The JSON form of an argument; schedules and optimisers are recorded by name only."""
    return (
        {"callable": getattr(value, "__qualname__", type(value).__name__)}
        if callable(value) or isinstance(value, tuple)
        else value
    )


def same_run(folder: RunFolder, program: Program, arguments: Mapping[str, Any]) -> None:
    before = {**DEFAULTS, **folder.read_run()["arguments"]}
    if program.spec != folder.read_spec():
        raise ValueError(f"{folder.path} holds a run of another spec; resume with the spec in its spec.json")
    for name, value in arguments.items():
        if name != "steps" and before.get(name) != value:
            raise ValueError(
                f"cannot resume {folder.path} exactly: {name} was {before.get(name)!r}, now {value!r}; "
                "pass the original value, or start a new run in another folder"
            )
