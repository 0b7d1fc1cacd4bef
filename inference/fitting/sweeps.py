"""Many fits of one spec: seeds and settings, together where they are one program, restartable, in one table.

Members that differ in seed and learning rate alone are one compiled program (:mod:`inference.fitting.ensemble`); other
settings (batch size, a width of the spec) are other programs and run one after another, or in processes.  Each member
is a run folder like that of :func:`inference.fit` with this seed; its numbers are the same but for rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from inference.fitting.arguments import plain
from inference.fitting.checkpoint import checkpoints
from inference.fitting.ensemble import run_together
from inference.fitting.fitted import Fit, load
from inference.fitting.folder import RunFolder, write_text
from inference.fitting.loop import Loop
from inference.fitting.prepare import prepared
from inference.fitting.progress import Progress
from inference.fitting.run import fit
from ppl_models.program import did_you_mean, spec_from_json, spec_to_json

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "ppl-models sweep 1"
_OWN = ("program", "data", "key", "out", "resume", "card", "progress", "validation", "mesh", "callbacks")
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(fit).parameters.items()
    if name not in _OWN and parameter.default is not inspect.Parameter.empty
}
"""Arguments of a fit that a sweep takes, and that its grid may vary, with their defaults; and ``steps``."""
MEASURES = ("loss", "elbo", "validation", "log_px")
"""Columns of the table whose spread over seeds is stated."""


@dataclass(frozen=True)
class Member:
    """One fit of a sweep: its seed, the setting that the grid gave it, and what these come to."""

    seed: int
    setting: Mapping[str, Any]
    spec: Any
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return ",".join(f"{name}={value}" for name, value in {**self.setting, "seed": self.seed}.items())

    @property
    def program(self) -> tuple[str, str]:
        """Members of which this is equal can run together."""
        rest = {name: plain(value) for name, value in self.arguments.items() if name != "learning_rate"}
        return spec_to_json(self.spec), json.dumps(rest, sort_keys=True, default=str)


@dataclass(frozen=True)
class Sweep:
    """What a sweep left: ``folder/NAME`` for each member, and a table of them.

    ``table``  one row a member, in the order of the grid: ``run`` (name of its folder), ``seed``, the varied settings;
               ``stopped`` (``"failed"`` where its numbers ended), ``steps``, ``seconds``, ``skipped``; ``loss`` and
               ``elbo``, means over the last tenth of training, and ``validation``, the best, in nats per datum.
    """

    folder: Path
    table: pd.DataFrame
    settings: tuple[str, ...]

    def load(self, run: str) -> Fit:
        """The fit of a member, :func:`inference.load`."""
        return load(self.folder / run)

    def spread(self) -> pd.DataFrame:
        """One row a setting: over its seeds, the number, mean, standard deviation, least and largest of each measure.

        Failed members are counted and left out.  The standard deviation of one seed is NaN: nothing is known of it.
        """
        return spread(self.table, self.settings)


def spread(table: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """:meth:`Sweep.spread` of a table of members, by the columns ``settings``."""
    import pandas as pd

    rows = []
    for _, group in table.groupby(list(settings), sort=False, dropna=False) if settings else [((), table)]:
        done = group[group["stopped"] != "failed"]
        row = {name: group[name].iloc[0] for name in settings}
        row |= {"seeds": len(done), "failed": len(group) - len(done)}
        for name in (n for n in MEASURES if n in table and table[n].notna().any()):
            values = done[name].dropna()
            row |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std(ddof=1)}
            row |= {f"{name}_min": values.min(), f"{name}_max": values.max()}
        rows.append(row)
    return pd.DataFrame(rows)


def sweep(
    spec: Any,
    data: Any = None,
    *,
    steps: int,
    seeds: int | Iterable[int],
    out: str | Path,
    grid: Mapping[str, Sequence[Any]] | None = None,
    validation: Any = None,
    card: Mapping[str, Any] | None = None,
    processes: int = 1,
    initializer: Callable[[], None] | None = None,
    progress: bool = True,
    **arguments: Any,
) -> Sweep:
    """Fit ``spec`` once for every seed and every setting of the grid; a run folder for each, and one table.

    ``spec``       what to fit; a member is ``fit(spec.build(key), data, key=key, ...)`` with ``key`` of its seed.
    ``data``       stored data as for :func:`inference.fit`; ``None``: the program's own draws.
    ``seeds``      how many, 0, 1, ..., or which.
    ``grid``       values by name: an argument of a fit (``{"learning_rate": (1e-3, 3e-3)}``) or a field of the spec.
                   Every combination is fitted.
    ``out``        folder of the sweep: sweep.json, sweep.csv, and a run folder for each member.  Called again with the
                   same arguments it goes on where it stopped: finished members are kept, others resume from their
                   checkpoints.
    ``processes``  how many programs run at a time, each in a process of its own (``spawn``: call from under
                   ``if __name__ == "__main__"``; ``initializer()`` is called in each).  With 1, all run here in turn.
    Other arguments are those of :func:`inference.fit`.

    Members that differ in seed and learning rate alone are one compiled program, their arrays stacked: memory and
    step grow with their number, compilation does not.  On a CPU programs with convolutions are left out of this, for
    XLA has no fast convolution with as many kernels as data: each member is a program of its own.  ``seconds`` of
    members that ran together is the time of all.

    A member whose numbers end (``FloatingPointError``) is marked ``failed`` and the others go on.  Raises
    ``ValueError`` before any work for unknown names, values that the spec refuses, and a folder of another sweep.

    >>> found = sweep(spec, x, steps=2000, seeds=10, grid={"learning_rate": (1e-3, 3e-3)}, out="runs/sweep")
    >>> found.spread()[["learning_rate", "elbo_mean", "elbo_sd"]]
    """
    out, grid = Path(out), dict(grid or {})
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    members = _members(spec, chosen, grid, {"steps": steps, **arguments})
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes must be a whole number of at least 1, got {processes!r}")
    if callable(data) and processes > 1:
        raise ValueError("a sampler cannot be sent to other processes; pass data=None for the program's own draws, or "
                         "processes=1")  # fmt: skip
    _claim(out, spec, chosen, grid, {"steps": steps, **arguments}, card)
    open_ = [member for member in members if not finished(out / member.name)]
    jobs = [_Job(tuple(group), data, validation, dict(card or {}), out) for group in _groups(open_, out, data)]
    with Progress(len(members), "sweep", unit="fits", show=progress, start=len(members) - len(open_)) as bar:
        done = len(members) - len(open_)
        if processes == 1 or len(jobs) < 2:
            for job in jobs:
                _run(job, progress)
                done += len(job.members)
                bar.update(done)
        else:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(processes, len(jobs)), spawn, initializer) as pool:
                waiting = {pool.submit(_run, job, False): job for job in jobs}
                for ended in as_completed(waiting):
                    ended.result()
                    done += len(waiting[ended].members)
                    bar.update(done)
    found = Sweep(out, _table(out, members, tuple(grid)), tuple(grid))
    write_text(out / "sweep.csv", found.table.to_csv(index=False))
    return found


# --------------------------------------------------------------------------------------------------- members
def _members(
    spec: Any, seeds: Sequence[int], grid: Mapping[str, Sequence[Any]], given: Mapping[str, Any]
) -> list[Member]:
    """Every combination; ``ValueError`` for what a fit does not take or the spec refuses."""
    fields = {field.name for field in dataclasses.fields(spec)}
    takes = {"steps", *DEFAULTS}
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds are different whole numbers of at least 0, got {list(seeds)}; try seeds=10")
    for name in given:
        if name not in takes:
            raise ValueError(f"a fit takes no {name!r}{did_you_mean(name, takes)}")
    for name, values in grid.items():
        if name not in takes | fields:
            near = did_you_mean(name, takes | fields)
            raise ValueError(f"the grid varies arguments of a fit or fields of the spec, {name!r} is neither{near}")
        if isinstance(values, str) or not len(values) or len({str(value) for value in values}) < len(values):
            raise ValueError(f"the grid holds different values to try, got {values!r} for {name!r}")
        if any(callable(value) or isinstance(value, Mapping) or "/" in str(value) for value in values):
            raise ValueError(
                f"values of the grid become names of folders: numbers or words, got {values!r} for {name!r}"
            )
    members = []
    for combination in itertools.product(*grid.values()):
        setting = dict(zip(grid, combination, strict=True))
        own = _changed(spec, {name: value for name, value in setting.items() if name not in takes})
        arguments = {**given, **{name: value for name, value in setting.items() if name in takes}}
        members += [Member(seed, setting, own, arguments) for seed in seeds]
    return members


def _changed(spec: Any, changes: Mapping[str, Any]) -> Any:
    """The spec with other fields, read as from a file: lists become tuples, and the spec's own checks speak."""
    if not changes:
        return spec
    held = json.loads(spec_to_json(spec))
    return spec_from_json({**held, "spec": {**held["spec"], **changes}})


def _claim(out: Path, spec: Any, seeds: list[int], grid: Any, arguments: Any, card: Any) -> None:
    """Make the folder, or make sure that it holds this sweep."""
    told = {
        "format": FORMAT, "spec": json.loads(spec_to_json(spec)), "seeds": seeds,
        "grid": {name: list(values) for name, values in grid.items()},
        "arguments": {name: plain(value) for name, value in arguments.items()}, "card": dict(card or {}),
    }  # fmt: skip
    told = json.loads(json.dumps(told, default=str))
    file = out / "sweep.json"
    if file.exists():
        try:
            before = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is torn or not JSON ({error}); give another folder") from error
        for name, value in told.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{out} holds a sweep with another {name}: {str(before.get(name)):.200}, now {str(value):.200}; "
                    "give the arguments it was started with, or another folder"
                )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and holds no sweep; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(told, indent=2) + "\n")


def finished(folder: Path) -> bool:
    """Whether a member has ended: fitted, or failed."""
    if not (folder / "run.json").exists():
        return False
    return RunFolder(folder).read_run()["info"].get("stopped") in ("steps", "patience", "failed")


# -------------------------------------------------------------------------------------------------- programs
@dataclass(frozen=True)
class _Job:
    """Members that run together, and what they are fitted to."""

    members: tuple[Member, ...]
    data: Any
    validation: Any
    card: Mapping[str, Any]
    out: Path


def _groups(members: Sequence[Member], out: Path, data: Any) -> list[list[Member]]:
    """Members of one program that stand at one step; each by itself where a CPU would convolve for all."""
    found: dict[Any, list[Member]] = {}
    for member in members:
        found.setdefault((member.program, _at(out / member.name), _rate(member) is None), []).append(member)
    groups = []
    for (_, _, alone), group in found.items():
        alone = alone or (len(group) > 1 and jax.default_backend() == "cpu" and _convolves(group[0], data))
        groups += [[member] for member in group] if alone else [group]
    return groups


def _at(folder: Path) -> int:
    """The step that a member would go on from; -1 without a checkpoint."""
    files = checkpoints(folder / "checkpoint")
    return int(files[-1].stem[5:]) if files else -1


def _rate(member: Member) -> float | None:
    """Adam's learning rate where it is a number, and so may differ between members of one program."""
    rate = member.arguments.get("learning_rate")
    if member.arguments.get("optimizer") is not None or callable(rate):
        return None
    return 1e-3 if rate is None else float(rate)


def _prepared(member: Member, job: _Job, *, going_on: bool, folder: bool = True, **more: Any) -> Any:
    """:func:`inference.fitting.prepare.prepared` for a member: a context with its loop, its key, whether it goes on."""
    key = jax.random.key(member.seed)
    program = member.spec.build(key)
    data = program.observation.sampler if job.data is None else job.data
    if data is None:
        raise ValueError(f"{type(member.spec).__name__} draws no data of its own; pass data")
    chosen = {**DEFAULTS, **member.arguments, "progress": False, **more}
    return prepared(
        program, data, key=key, validation=job.validation, card=job.card, resume=going_on, mesh=None, callbacks=(),
        out=job.out / member.name if folder else None, **chosen,
    )  # fmt: skip


def _convolves(member: Member, data: Any) -> bool:
    job = _Job((member,), data, None, {}, Path())
    with _prepared(member, job, going_on=False, folder=False, patience=None) as (loop, key, _):
        return loop.trainer.convolves(loop.trainer.init(key))


def _run(job: _Job, progress: bool) -> None:
    """Run the members of a job to their ends; what they leave is in their folders."""
    going_on = _at(job.out / job.members[0].name) >= 0  # all members of a job stand at one step
    loops: list[Loop] = []
    keys = []
    with contextlib.ExitStack() as held:
        for member in job.members:
            if not going_on:  # killed before its first checkpoint
                shutil.rmtree(job.out / member.name, ignore_errors=True)
            shared: dict[str, Any] = {"evaluate": loops[0].evaluate} if loops and job.validation is not None else {}
            loop, key, _ = held.enter_context(_prepared(member, job, going_on=going_on, **shared))
            if loops and not callable(job.data) and job.data is not None:
                loop.trainer.source.store = loops[0].trainer.source.store  # one copy of the data
            loops.append(loop)
            keys.append(key)
        if len(loops) == 1:
            loops[0].show = progress
            try:
                loops[0].run(keys[0], going_on)
            except FloatingPointError as error:
                _failed(loops[0], error)
            return
        rates = [_rate(member) or 1e-3 for member in job.members]
        clip = job.members[0].arguments.get("clip")
        outcomes = run_together(loops, keys, rates, clip, resume=going_on, progress=progress)
        for loop, outcome in zip(loops, outcomes, strict=True):
            if isinstance(outcome, FloatingPointError):
                _failed(loop, outcome)


def _failed(loop: Loop, error: FloatingPointError) -> None:
    """Say in run.json that the numbers of a member ended, so that it is not tried again."""
    assert loop.folder is not None
    run = loop.folder.read_run()
    run.pop("format")
    loop.folder.write_run({**run, "info": {"stopped": "failed", "steps": loop.at, "error": str(error)}})


# ----------------------------------------------------------------------------------------------------- table
def _table(out: Path, members: Sequence[Member], settings: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for member in members:
        info = RunFolder(out / member.name).read_run()["info"]
        history = (
            pd.read_csv(out / member.name / "history.csv") if (out / member.name / "history.csv").exists() else None
        )
        row: dict[str, Any] = {"run": member.name, "seed": member.seed}
        row |= {name: str(v) if isinstance(v := member.setting[name], list | tuple) else v for name in settings}
        row |= {name: info.get(name) for name in ("stopped", "steps", "seconds", "skipped")}
        late = None if history is None else history[history["step"] > 0.9 * history["step"].max()]
        for name in ("loss", "elbo"):
            row[name] = np.nan if late is None else late[name].mean()
        best = info.get("best_validation")
        row["validation"] = np.nan if best is None else best
        rows.append(row)
    return pd.DataFrame(rows)
