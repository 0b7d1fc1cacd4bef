"""``ppl-models sweep``: many seeds and settings of one spec, fitted together, in one table and one page."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from inference.cli import runs, tables
from inference.cli.arguments import Common, Evaluation, check_at_least, opt
from inference.cli.common import Interrupted, UsageError, load_plugins, shell, start, table_text, usage
from inference.cli.fit import VALIDATION, Fit, check_data, check_numbers, load_for

if TYPE_CHECKING:
    from inference.fitting.sweeps import Sweep as Found


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Fit one spec with many seeds and settings, and show how far its numbers vary from seed to seed.

    Runs that differ in seed and learning rate alone are one compiled program; others run in processes. Each run is a
    folder that load, diagnose, report and compare take. sweep.csv has a row a run, spread.csv a row a setting,
    sweep.html shows both. The same command goes on where it was stopped.

    Examples:
      ppl-models sweep mfcvae:digits --data digits --seeds 10 --out sweeps/digits
      ppl-models sweep hvae:digits --data digits --seeds 3 --grid learning_rate=1e-3,3e-3 --out sweeps/rates
      ppl-models sweep in_context:coin --data own --grid batch_size=64,256 --out sweeps/coin
    """

    model: Annotated[Positional[str], opt("FAMILY[:PRESET]|SPEC.json|SPEC.toml")]
    """What to fit: a family (`ppl-models families`; the preset defaults to tiny) or a spec file."""
    data: Annotated[str, opt("NAME|own")]
    """Data set by name (`ppl-models data list`), a file of a table, or own: draws of the program itself."""
    out: Annotated[Path, opt("DIR")]
    """Folder of the sweep, to make or to go on with."""
    seeds: Annotated[int, opt("N")] = 5
    """Fits of each setting, with the seeds 0, 1, ... [fits]."""
    grid: Annotated[UseAppendAction[tuple[str, ...]], opt("NAME=VALUE,VALUE...", "one setting")] = ()
    """Values to try, of an option of fit or a field of the spec; several --grid are combined."""
    processes: Annotated[int | None, opt("N", "the cores of this machine")] = None
    """Programs that run at a time, each in a process of its own [processes]."""
    steps: Annotated[int, opt("N")] = 2000
    """Updates of the parameters [steps]."""
    batch_size: Annotated[int, opt("N")] = 128
    """Data in one update [data]."""
    learning_rate: Annotated[float, opt("RATE")] = 1e-3
    """Step size of Adam."""
    n: Annotated[int | None, opt("N", "all")] = None
    """Fit to a random subset of N of the training data [data]."""
    validation: Annotated[int | None, arg(metavar="N", help_behavior_hint=VALIDATION)] = None
    """Keep the last N of the training data out of the fit, and choose the best step by them [data]."""
    validate_every: Annotated[int | None, opt("N", "chosen from --steps")] = None
    """Steps between two validations [steps]."""
    patience: Annotated[int | None, opt("N", "never stop early")] = None
    """Stop after N validations without improvement; needs --validation [validations]."""
    average: Annotated[float | None, opt("DECAY", "the weights as they are")] = None
    """Evaluate an exponential average of the weights with this decay a step, e.g. 0.999."""
    clip: Annotated[float | None, opt("NORM", "no clipping")] = None
    """Largest global norm of the gradient, longer ones are scaled down [nats a datum per unit parameter]."""
    objective: Literal["elbo", "iwae", "dreg"] = "elbo"
    """What is maximised: the ELBO; the importance-weighted bound; the same by doubly reparameterised gradients."""
    no_evaluate: bool = False
    """Leave out the held-out log p(x) of each run."""
    test_n: Annotated[int, opt("N")] = 500
    """Evaluate on the first N of the held-out data [data]."""
    particles: Annotated[int, opt("K")] = 512
    """Draws from q(z | x) a datum, for its importance-weighted log p(x) [draws]."""
    quiet: bool = False
    """No progress on stderr."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Fit all, evaluate each, print the spread."""
        sweep(self)


def sweep(command: Sweep) -> None:
    """Fit every seed and setting, evaluate each run, and print, and write, how far the numbers vary."""
    check_at_least(1, seeds=command.seeds, processes=command.processes)
    values = grid_of(command.grid)
    shared = {entry.name for entry in dataclasses.fields(Fit)} & {entry.name for entry in dataclasses.fields(Sweep)}
    one = Fit(
        **{name: getattr(command, name) for name in shared},
        evaluation=Evaluation(test_n=command.test_n, particles=command.particles),
    )
    check_numbers(one)
    plugins = load_plugins(command.common.plugin)
    program, card, data, batch_size = load_for(one, plugins, lambda: None)
    check_data(one, program, data)
    from inference.fitting.sweeps import sweep as run_sweep

    arguments: dict[str, Any] = {
        "steps": command.steps, "batch_size": batch_size, "learning_rate": command.learning_rate, "clip": command.clip,
        "average": command.average, "objective": command.objective, "validate_every": command.validate_every,
        "patience": command.patience,
    }  # fmt: skip
    try:
        with usage():
            found = run_sweep(
                program.spec, None if callable(data.train) else data.fitted_to, seeds=command.seeds, out=command.out,
                grid=values, validation=data.validation, card=card, progress=not command.quiet,
                processes=command.processes or os.cpu_count() or 1,
                initializer=functools.partial(_ready, tuple(command.common.plugin)), **arguments,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        raise Interrupted(f"{str(stop) or 'interrupted'}; the same command goes on") from None
    if not command.no_evaluate:
        found = dataclasses.replace(found, table=_with_evidence(found, data, command.particles))
    conclude(found)


def _ready(plugins: tuple[Path, ...]) -> None:
    """What a process needs before it fits."""
    start()
    load_plugins(plugins)


def grid_of(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The grid that ``NAME=VALUE,VALUE`` describe; values are read as JSON, words as they are."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, mark, values = text.partition("=")
        name = {"train_particles": "particles"}.get(name := name.strip().replace("-", "_"), name)
        if not mark or not name or not all(part.strip() for part in values.split(",")):
            raise UsageError(f"--grid takes NAME=VALUE,VALUE (learning_rate=1e-3,3e-3), got {text!r}")
        if name in grid:
            raise UsageError(f"--grid names {name!r} twice; give all of its values at once")
        grid[name] = [_value(part.strip()) for part in values.split(",")]
    return grid


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _with_evidence(found: Found, data: runs.Data, particles: int) -> Any:
    """The table with the mean held-out log p(x) of each run (nats a datum); each run's own evidence is kept with it."""
    programs: dict[Any, Any] = {}
    mean = []
    for row in found.table.itertuples():
        if row.stopped == "failed":
            mean.append(float("nan"))
            continue
        fitted = found.load(row.run)
        # Runs of one spec are loaded as one program: compiled once for all.
        program = programs.setdefault(repr(fitted.program.spec), fitted.program)
        table = tables.table_of(dataclasses.replace(fitted, program=program), data.test, particles=particles)
        mean.append(float(table["log_px"].mean()))
    return found.table.assign(log_px=mean)


def conclude(found: Found) -> None:
    """Write sweep.csv, spread.csv and sweep.html; print the spread, and where to look."""
    from inference.reporting.sweep_page import sweep_report

    spread = found.spread()
    runs.write_table(found.table, found.folder / "sweep.csv")
    runs.write_table(spread, found.folder / "spread.csv")
    page = sweep_report(found)
    measures = [name.removesuffix("_mean") for name in spread if name.endswith("_mean")]
    header = [*found.settings, "seeds", *(f"{name} (s.d.; least to most)" for name in measures)]
    rows = []
    for _, row in spread.iterrows():
        cells = [str(row[name]) for name in (*found.settings, "seeds")]
        for name in measures:
            mean, sd, low, high = (row[f"{name}_{part}"] for part in ("mean", "sd", "min", "max"))
            cells.append(f"{mean:.2f} ({sd:.2f}; {low:.2f} to {high:.2f})")
        rows.append(cells)
    print(table_text(rows, header))
    if failed := int(spread["failed"].sum()):
        print(f"{failed} of {len(found.table)} fits ended in numbers that are not finite; see sweep.csv")
    print(f"look at: {page}")
    print(f"next: ppl-models compare {shell(found.folder)}/seed=* (a run folder each)" if not found.settings else
          f"next: ppl-models compare {shell(found.folder)}/*/ (a run folder each)")  # fmt: skip
