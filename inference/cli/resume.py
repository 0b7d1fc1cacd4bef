"""``ppl-models resume``: go on with an interrupted run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.cli import devices, files, runs
from inference.cli.arguments import Common, Devices, Evaluation, Run, Tracking, check_evaluation
from inference.cli.common import (
    read_run,
    say,
    start,
)
from inference.cli.track import trackers


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with an interrupted run from its last checkpoint, exactly as if it had never stopped.

    A run that is already fitted is evaluated again.

    Examples:
      ppl-models resume runs/digits
    """

    folder: Run
    """Run folder."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    devices: Devices = field(default_factory=Devices)
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Resume, evaluate, say where to look."""
        resume(self)


def resume(command: Resume) -> None:
    """Continue a run from its last checkpoint, evaluate it, and say where to look."""
    check_evaluation(command.evaluation)
    first = devices.begin(command.devices)
    record = read_run(command.folder)
    card = runs.run_card(command.folder, command.common.plugin)
    start()
    from inference.fitting import load
    from inference.fitting.folder import RunFolder

    asks = card["name"] == runs.OWN or files.of_card(card) is not None
    if asks:  # the program draws its data, or says how the rows of a file are stored
        program = runs.build(RunFolder(command.folder).read_spec(), 0)
        data = runs.data_of(program, card, test_n=command.evaluation.test_n)
    else:
        data = runs.load_data(card, None, test_n=command.evaluation.test_n)
    place = devices.place(command.devices, record["arguments"]["batch_size"])
    with runs.resumable(command.folder):
        if record["info"].get("stopped") in ("steps", "patience"):
            say(f"{command.folder} is fitted already: {record['info']['steps']:,} steps")
            fitted = load(command.folder).on(place)
        else:
            shown = {"progress": not command.evaluation.quiet, "mesh": place}
            shown["callbacks"] = trackers(command.tracking.track, command.folder) if first else ()
            fitted = _go_on(command.folder, record, data, **shown)
        devices.finish(command.devices, first, fitted, data, command.evaluation)


def _go_on(folder: Path, record: dict[str, Any], data: runs.Data, **shown: Any) -> Any:
    """Continue from the last checkpoint; a run stopped before its first one starts again, with the same numbers."""
    import jax
    import jax.numpy as jnp

    from inference.fitting import fit as run_fit, resume as run_resume
    from inference.fitting.checkpoint import checkpoints
    from inference.fitting.folder import RunFolder
    from inference.fitting.record import key_numbers

    if checkpoints(folder / "checkpoint"):
        return run_resume(folder, data.fitted_to, validation=data.validation, **shown)
    say(f"{folder} has no checkpoint yet: starting at step 0")
    arguments = {name: value for name, value in record["arguments"].items() if name not in ("key", "validation")}
    key = jax.random.wrap_key_data(jnp.asarray(key_numbers(record, folder / "run.json"), jnp.uint32))
    program = RunFolder(folder).read_spec().build(key)
    return run_fit(
        program, data.fitted_to, validation=data.validation, key=key, out=folder, card=record["card"], resume=True,
        **shown, **arguments,
    )  # fmt: skip
