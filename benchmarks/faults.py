"""Does a run that is killed at any moment, or hit by any other fault, end with the results of the run left alone?

A small model is fitted, its evidence, posterior and coherence computed, by a process that is killed (SIGKILL) at random
moments of each of these stages and started again each time.  Then disks fill, files are torn, clocks jump.  One process
imports everything and is forked for each attempt before JAX starts, so that an attempt costs a second or two.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import HERE, Claim

SEED = 0


def run(quick: bool) -> Iterable[Claim]:
    """Yield kills without a trace, kills after which nothing was lost, and the other faults that were lived through."""
    with tempfile.TemporaryDirectory() as temporary:
        chains, each = (1, 1) if quick else (5, 5)
        command = [sys.executable, "-m", "benchmarks.faults", temporary, str(chains), str(each), str(int(quick))]
        subprocess.run(command, cwd=HERE.parent, check=True, stdout=sys.stderr)
        found = json.loads((Path(temporary) / "found.json").read_text())
    kills, cases, wanted = found["kills"], found["cases"], 4 * chains * each
    yield Claim(
        name="kills_without_a_trace",
        claim=f"Of {len(kills)} SIGKILLs at random moments, those whose resumed run has all bits of the run left alone",
        value=sum(kill["equal"] for kill in kills),
        unit="kills",
        target="" if quick else f"== {wanted}",
        seeds=(SEED,),
        detail={"kills": kills, "chains": chains, "cpu_seconds": found["cpu_seconds"]},
    )
    yield Claim(
        name="kills_without_a_loss",
        claim="Of these, those that left every finished file whole, and no earlier checkpoint than before",
        value=sum(kill["kept"] for kill in kills),
        unit="kills",
        target="" if quick else f"== {wanted}",
        seeds=(SEED,),
    )
    survived = [name for name, case in cases.items() if case["holds"]]
    yield Claim(
        name="faults_lived_through",
        claim=f"Of {len(cases)} other faults, those that end in a clear message and a folder that is read and resumed",
        value=len(survived),
        unit="faults",
        target=f"== {len(cases)}",
        seeds=(SEED,),
        detail={"cases": cases},
    )


# ----------------------------------------------------------------------------------- the process that is forked
def serve(folder: Path, chains: int, each: int, quick: bool) -> dict[str, Any]:
    """Kill, injure, compare; the parent of every attempt."""
    from benchmarks import _faults_cases, _faults_work as work
    from benchmarks._faults_fork import start
    from benchmarks._faults_place import Place

    work.warm()
    log, cache = folder / "log", str(HERE / "work" / "faults")
    whole, lasts = folder / "whole", {}
    for _ in range(1 if quick else 2):  # the first may compile; the second is what later attempts are like
        shutil.rmtree(whole, ignore_errors=True)
        child = start(work.work, whole, cache, log=log)
        seen = [(stage, time.monotonic()) for stage in iter(child.line, None)]
        if (found := child.end())["code"] != 0:
            raise RuntimeError(f"the run left alone failed: {found}; {log.read_text()[-2000:]}")
        marks = [(stage, at) for stage, at in seen if stage in (*work.STAGES, "done")]
        lasts = {s: b - a for (s, a), (_, b) in zip(marks, marks[1:], strict=False)}
    print(f"a run left alone: {', '.join(f'{s} {t:.1f} s' for s, t in lasts.items())}", flush=True)
    reference, kills = work.contents(whole), list[dict[str, Any]]()
    rng = np.random.default_rng(SEED)
    stages = work.STAGES[:2] if quick else work.STAGES
    for chain in range(chains):
        kills += _chain(folder / f"chain{chain}", cache, log, {s: lasts[s] for s in stages}, each, rng, reference)
        print(f"{len(kills)} kills, {sum(k['equal'] for k in kills)} without a trace", flush=True)
    place = Place(folder, cache, whole, log, rng)
    names = ("torn texts", "old formats", "lying endpoint") if quick else tuple(_faults_cases.CASES)
    cases = {name: _case(_faults_cases.CASES[name], place) for name in names}
    return {"kills": kills, "cases": cases, "cpu_seconds": round(sum(_cpu()), 1)}


def _chain(
    folder: Path, cache: str, log: Path, lasts: dict[str, float], each: int, rng: np.random.Generator, reference: Any
) -> list[dict[str, Any]]:
    """One run, killed ``each`` times in each stage of ``lasts`` (stage -> seconds that it takes), then left to end."""
    from benchmarks import _faults_work as work
    from benchmarks._faults_fork import start

    kills, before = [], -1
    for at, stage in enumerate(lasts):
        made = 0
        while made < each:
            child = start(work.work, folder, cache, log=log)
            seen = child.wait_for(*work.STAGES[at:], "done")
            moment = float(rng.uniform(0, lasts[stage]))
            time.sleep(moment)
            child.kill()
            if (ended := child.end()["code"]) != -signal.SIGKILL:  # it was done before: the last stage once more
                if ended:
                    raise RuntimeError(f"an attempt ended with {ended}; {log.read_text()[-2000:]}")
                (folder / "contexts.csv").unlink()
                continue
            made += 1
            kept, why = True, ""
            try:
                step = work.check_readable(folder)
                kept, before = step >= before, max(step, before)
            except (ValueError, OSError) as error:
                kept, why = False, str(error)
            kills.append({"stage": seen, "after": round(moment, 3), "step": before, "kept": kept, "why": why})
    last = start(work.work, folder, cache, log=log).end()
    found = (
        work.differ(work.contents(folder), reference) if last["code"] == 0 else [f"the last start ended with {last}"]
    )
    left = [str(path) for path in folder.rglob("*.tmp")]
    return [{**kill, "equal": not found and not left, "differ": found[:5], "left": left[:3]} for kill in kills]


def _case(function: Any, place: Any) -> dict[str, Any]:
    try:
        found = {"holds": True, "says": function(place)}
    except (AssertionError, TimeoutError, OSError, ValueError) as error:
        found = {"holds": False, "says": f"{type(error).__name__}: {error}"}
    print(f"{function.__name__}: {'holds' if found['holds'] else 'FAILS'}: {found['says']}"[:600], flush=True)
    return found


def _cpu() -> list[float]:
    import resource

    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [one.ru_utime + one.ru_stime for one in used]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    made = serve(place, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1")
    with contextlib.suppress(FileNotFoundError):
        (place / "log").unlink()
    (place / "found.json").write_text(json.dumps(made))
