"""The frame of every benchmark: a claim, the record that is kept of it, and the clock for overheads."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
QUICK = HERE / "work" / "quick"
VERSIONED = ("jax", "jaxlib", "numpyro", "flax", "optax", "arviz", "numpy")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TARGET = re.compile(rf"(?P<sign><=|>=|<|>|==) (?P<bound>{_NUMBER})|(?P<low>{_NUMBER}) to (?P<high>{_NUMBER})")


class UsageError(ValueError):
    """The command line, or a file that it needs, is wrong; nothing was measured."""


# ------------------------------------------------------------------------------------------------ claims
@dataclass(frozen=True)
class Claim:
    """One measured statement.

    ``name``       file name of its record: lower case, digits, underscores.
    ``claim``      the statement in one line, as the table shows it.
    ``value``      what was measured, in ``unit``.
    ``target``     ``"<= 1.05"``, ``">= 0.9"``, ``"< 2"``, ``"> 0"``, ``"== 20"`` or ``"0.93 to 0.97"``; empty for a
                   figure without one.  Whether it holds is computed from the value, never typed in.
    ``if_missed``  the explanation that stands in the table where the target is missed.
    ``reference``  the number to compare with and its source (a paper's, another implementation's).
    ``detail``     anything else worth keeping, as JSON.
    """

    name: str
    claim: str
    value: float
    unit: str
    target: str = ""
    seeds: tuple[int, ...] = ()
    if_missed: str = ""
    reference: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"a claim's name is a file name of a-z, 0-9 and _, got {self.name!r}")
        if self.target and not _TARGET.fullmatch(self.target):
            raise ValueError(f"target of {self.name!r} must read like '<= 1.05' or '0.93 to 0.97', got {self.target!r}")
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "seeds", tuple(int(seed) for seed in self.seeds))

    @property
    def holds(self) -> bool:
        """Whether the value is finite and meets the target."""
        if not math.isfinite(self.value):
            return False
        found = _TARGET.fullmatch(self.target)
        if found is None:
            return True
        if found["sign"] is None:
            return float(found["low"]) <= self.value <= float(found["high"])
        bound = float(found["bound"])
        return {
            "<=": self.value <= bound,
            ">=": self.value >= bound,
            "<": self.value < bound,
            ">": self.value > bound,
            "==": self.value == bound,
        }[found["sign"]]


@dataclass(frozen=True)
class Record:
    """A claim with everything needed to judge and repeat it; one JSON file.

    ``seconds`` is wall time from the start of the benchmark, or from its claim before, to this one.
    """

    benchmark: str
    name: str
    claim: str
    value: float
    unit: str
    target: str
    holds: bool
    if_missed: str
    reference: str
    seeds: tuple[int, ...]
    command: str
    versions: Mapping[str, str]
    device: str
    seconds: float
    date: str
    commit: str | None
    quick: bool
    detail: Mapping[str, Any]

    def write(self, folder: Path) -> Path:
        """Write ``folder/BENCHMARK/NAME.json``; whole or not at all."""
        path = folder / self.benchmark / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"
        fresh = path.with_suffix(f".{os.getpid()}.part")
        try:
            fresh.write_text(text)
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        return path


def read(path: Path) -> Record:
    """Read one record; raises ``UsageError`` that names the file if it is not one."""
    try:
        held = json.loads(path.read_text())
        held["seeds"] = tuple(held["seeds"])
        held["value"] = math.nan if held["value"] is None else held["value"]
        return Record(**held)
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is not a benchmark record ({error}); run the benchmark again") from error


def records(folder: Path = RESULTS) -> list[Record]:
    """All records below a folder, by benchmark and name."""
    return [read(path) for path in sorted(folder.glob("*/*.json"))]


def _plain(value: Any) -> Any:
    """The JSON form: arrays become lists, a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


# ------------------------------------------------------------------------------------------- surroundings
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONED}


def device() -> str:
    """What JAX ran on: the processor's model and the cores of this process, or the accelerator's name."""
    import jax

    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{first.device_kind} ({len(jax.devices())} devices)"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        model = found[1].strip()
    return f"{model}, {cores} cores"


def commit() -> str | None:
    """Commit of the checkout, with ``+changes`` if files differ from it; ``None`` outside one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # Records themselves do not count: the second claim of a run would else see the first.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results", ":!../README.md")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


# ------------------------------------------------------------------------------------------------ running
def benchmarks() -> dict[str, str]:
    """Name -> its question (first line of the docstring) of every benchmark, read without importing any."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        if path.stem.startswith("_") or path.stem == "harness":
            continue
        found[path.stem] = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    return found


def execute(
    name: str, run: Callable[[bool], Iterable[Claim]], *, quick: bool, folder: Path | None = None
) -> Iterator[Record]:
    """Run one benchmark; write and yield a record for each claim as soon as it is made.

    Quick results go to ``benchmarks/work/quick``, never among the real ones.  When a run ends well, the records of
    claims that it no longer makes are removed.
    """
    folder = folder or (QUICK if quick else RESULTS)
    command = f"python -m benchmarks run {name}" + (" --quick" if quick else "")
    code, made, start = commit(), set[str](), time.perf_counter()
    for claim in run(quick):
        if claim.name in made:
            raise ValueError(f"benchmark {name!r} makes the claim {claim.name!r} twice; give each its own name")
        made.add(claim.name)
        now = time.perf_counter()
        given = {f.name: getattr(claim, f.name) for f in dataclasses.fields(claim)}
        record = Record(
            benchmark=name,
            holds=claim.holds,
            command=command,
            versions=versions(),
            device=device(),
            seconds=round(now - start, 1),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            commit=code,
            quick=quick,
            **given,
        )
        record.write(folder)
        start = now
        yield record
    if not made:
        raise ValueError(f"benchmark {name!r} made no claim; run(quick) must yield at least one Claim")
    for path in (folder / name).glob("*.json"):
        if path.stem not in made:
            path.unlink()


def load(name: str) -> Callable[[bool], Iterable[Claim]]:
    """The function ``run`` of a benchmark; raises ``UsageError`` with the known names for an unknown one."""
    known = benchmarks()
    if name not in known:
        from ppl_models.program import did_you_mean

        listed = ", ".join(known) or "none yet"
        raise UsageError(f"unknown benchmark {name!r}{did_you_mean(name, known)}; known: {listed}")
    run = getattr(importlib.import_module(f"benchmarks.{name}"), "run", None)
    if not callable(run):
        raise UsageError(f"benchmarks/{name}.py has no function run(quick: bool) -> Iterable[Claim]")
    return run


# ------------------------------------------------------------------------------------------------ clock
@dataclass(frozen=True)
class CpuTime:
    """CPU seconds per step, one entry a round."""

    rounds: tuple[float, ...]

    @property
    def least(self) -> float:
        """The least of the rounds: what remains when nothing else disturbs."""
        return min(self.rounds)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)


def interleaved_cpu_time(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int = 20, steps: int = 50
) -> dict[str, CpuTime]:
    """CPU time per step of several functions, measured in turns so that a busy machine disturbs all alike.

    Each function does one step and returns something that depends on it (it is waited for).  In every round each
    function takes ``steps`` steps; the order is reversed from round to round.  The clock is CPU time of the whole
    process, threads included: other processes do not count, waiting does not either.  Call each function once
    before, if its first step compiles; this is done here too.
    """
    import jax

    if rounds < 1 or steps < 1:
        raise ValueError(f"rounds and steps must be at least 1, got {rounds} and {steps}")
    for function in functions.values():
        jax.block_until_ready(function())
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds):
        order = list(functions.items())
        for name, function in order if turn % 2 == 0 else reversed(order):
            start = time.process_time()
            result = None
            for _ in range(steps):
                result = function()
            jax.block_until_ready(result)
            spent[name].append((time.process_time() - start) / steps)
    return {name: CpuTime(tuple(values)) for name, values in spent.items()}
