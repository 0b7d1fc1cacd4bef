"""Is any input, however wrong, answered by one clear message: no hang, no traceback, nothing wrong taken for right?

Ten thousand inputs that are almost right - specs, names, run folders, checkpoints, tables, arrays, answers of
endpoints, command lines - each with a few changes.  What is accepted must be what an independent reading of it gives.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from benchmarks.harness import HERE, Claim

SEED = 0
COUNTS = {
    "specs": 1500, "names": 600, "records": 1200, "histories": 800, "contexts": 600, "rules": 500, "overrides": 500,
    "words": 800, "checkpoints": 1000, "evidence": 600, "tables": 700, "arrays": 400, "answers": 900, "counts": 250,
    "h5ad": 100, "posteriors": 150,
}  # fmt: skip
"""Inputs of each kind."""
HDF5 = ("h5ad", "posteriors")
"""Read by a library in C: in a process of their own, which a file may bring down."""
CPU_LIMIT, WALL_LIMIT = 10, 120
"""Seconds after which an input counts as hung."""


def targets() -> dict[str, Callable[[Path], Callable[[np.random.Generator], bool]]]:
    """What is fuzzed: a function of a scratch folder that returns one of a random generator, True for accepted."""
    from benchmarks import _fuzz_files as files, _fuzz_text as text

    return {
        "specs": text.Specs, "names": text.Names, "records": text.Records, "histories": text.Histories,
        "contexts": text.Contexts, "rules": text.Rules, "overrides": text.Overrides, "words": text.Words,
        "checkpoints": files.Checkpoints, "evidence": files.Evidence, "tables": files.Tables, "arrays": files.Arrays,
        "answers": files.Answers, "counts": files.Counts, "h5ad": lambda folder: files.Counts(folder, ".h5ad"),
        "posteriors": files.Posteriors,
    }  # fmt: skip


class Hang(BaseException):
    """An input that is worked on for too long."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raise :class:`Hang` after some seconds of work, or of waiting."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"stopped in {''.join(traceback.format_stack(frame)[-2:])}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
    signal.setitimer(signal.ITIMER_REAL, WALL_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def fuzz(names: Iterable[str], share: float, folder: Path, seed: int = SEED) -> dict[str, Any]:
    """Fuzz some targets with ``share`` of their inputs; returns counts, and what was found by kind."""
    import warnings

    from inference.cli.common import UsageError

    expected = (UsageError, ValueError, OSError)
    found: dict[str, Any] = {
        "inputs": {},
        "accepted": {},
        "hangs": [],
        "tracebacks": [],
        "wrong": [],
        "cpu_seconds": {},
    }
    known = targets()
    for name in names:
        place = folder / name
        place.mkdir()
        (folder / "now").write_text(name)
        began, accepted, n = time.process_time(), 0, max(1, round(share * COUNTS[name]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            once = known[name](place)
            for i in range(n):
                rng = np.random.default_rng([seed, *name.encode(), i])
                try:
                    with watched(), contextlib.redirect_stderr(sys.stdout):
                        accepted += once(rng)
                except AssertionError as error:
                    found["wrong"].append(f"{name} {i}: {error}"[:600])
                except Hang as error:
                    found["hangs"].append(f"{name} {i}: {error}"[:600])
                except expected as error:
                    if not str(error).strip():
                        found["tracebacks"].append(f"{name} {i}: {type(error).__name__} without a word")
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    said = f"{name} {i}: {type(error).__name__}: {error} at {where.filename}:{where.lineno}"
                    found["tracebacks"].append(said[:600])
        found["inputs"][name], found["accepted"][name] = n, accepted
        found["cpu_seconds"][name] = round(time.process_time() - began, 1)
        bad = sum(len(found[key]) for key in ("hangs", "tracebacks", "wrong"))
        print(f"{name}: {n:,} inputs, {accepted:,} accepted; {bad} found so far", file=sys.stderr, flush=True)
    return found


def run(quick: bool) -> Iterable[Claim]:
    """Yield hangs, tracebacks and wrong results among the inputs."""
    share, whole = 0.02 if quick else 1.0, dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary:
        for number, names in enumerate(([n for n in COUNTS if n not in HDF5], list(HDF5))):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            command = [sys.executable, "-m", "benchmarks.fuzz", str(folder), str(share), *names]
            ended = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.DEVNULL).returncode
            if ended:
                made: dict[str, Any] = {
                    "tracebacks": [f"the process ended with {ended} in {(folder / 'now').read_text()}"]
                }
            else:
                made = json.loads((folder / "found.json").read_text())
            for key, value in made.items():
                more = whole.get(key, type(value)())
                whole[key] = more | value if isinstance(value, dict) else more + value
    total = sum(whole.get("inputs", {}).values())
    told = {key: whole.get(key, {}) for key in ("inputs", "accepted", "cpu_seconds")}
    for name, key, what in (
        ("hangs", "hangs", f"worked on for more than {CPU_LIMIT} CPU seconds"),
        ("bare_tracebacks", "tracebacks", "that end in an error which is not meant for users"),
        ("wrong_results", "wrong", "that are accepted and taken for something else"),
    ):
        yield Claim(
            name=name,
            claim=f"Of {total:,} fuzzed inputs, those {what}",
            value=len(whole.get(key, [])),
            unit="inputs",
            target="== 0",
            seeds=(SEED,),
            detail={"found": whole.get(key, [])[:20], **told},
        )
    yield Claim(
        name="inputs",
        claim="Fuzzed inputs",
        value=total,
        unit="inputs",
        target="" if quick else ">= 10000",
        seeds=(SEED,),
    )


if __name__ == "__main__":
    faulthandler.enable()
    place = Path(sys.argv[1])
    made = fuzz(sys.argv[3:], float(sys.argv[2]), place)
    (place / "found.json").write_text(json.dumps(made))
