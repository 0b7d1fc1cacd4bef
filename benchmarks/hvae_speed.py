"""What do a training step of a hierarchical VAE, its memory and its compilation cost on a CPU?

``small28`` (10 levels, 342,209 parameters), batch 32, Adam, against the same network of Flax's and JAX's own layers
with every cell written out (``_plain_hvae``), which computes the same loss (a test).  Every form runs in a process of
its own, bound to one core, one thread; steps are timed in turns: CPU seconds, least of the rounds.  Ours as this
package's command line runs it (``tune_runtime``), the plain one with and without.  Compilation is that of the training
step, tracing included, without a cache; ``deep28`` has 27 levels.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Claim

FORMS: dict[str, dict[str, Any]] = {
    "unrolled": {"plain": False, "tuned": True, "execution": "unroll"},
    "scanned": {"plain": False, "tuned": True, "execution": "scan"},
    "plain": {"plain": True, "tuned": False},
    "plain_tuned": {"plain": True, "tuned": True},
}
PARAMETERS = 342_209
MEMORY_STEPS = 200
QUICK = {"enc": "4x2,4d4,1x1", "dec": "1x1,4m1,4x2", "shape": (4, 4), "width": 8, "zdim": 2, "mid_ratio": 0.5}


class Worker:
    """A form in its own process."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._hvae_worker", json.dumps(given)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.built = self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker of hvae_speed ended early; its error stands above")
        return json.loads(line)

    def ask(self, line: str) -> dict[str, float]:
        """Send a line, wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run(quick: bool) -> Iterator[Claim]:
    """Time of a step, memory, time to compile."""
    size: dict[str, Any] = {"spec": QUICK, "batch": 4} if quick else {"spec": "small28", "batch": 32}
    names = ("unrolled", "scanned", "plain") if quick else tuple(FORMS)
    rounds, memory_steps = (2, 8) if quick else (4, MEMORY_STEPS)
    words = "a small pyramid, batch 4" if quick else "small28, batch 32"
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            workers[name] = Worker(FORMS[name] | size)
        built = {name: worker.built for name, worker in workers.items()}
        if not quick and any(found["parameters"] != PARAMETERS for found in built.values()):
            raise RuntimeError(f"the networks are not the published one: {built}, expected {PARAMETERS} parameters")
        spent: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds + 1):  # the first is warm-up
            for name in names if turn % 2 else reversed(names):
                seconds = workers[name].ask("train 2")["seconds"]
                if turn:
                    spent[name].append(seconds)
        yield from _times(spent, {"built": built, **size}, f"{words}, one thread")
        kept = ("unrolled", names[-1])
        done, found = 2 * (rounds + 1), {}
        for name in kept:
            workers[name].ask("memory")
            workers[name].ask(f"train {memory_steps - done}")
            found[name] = workers[name].ask("memory")
        yield _memory(found["unrolled"], found[names[-1]], {"memory": found, "built": built, **size}, words)
    finally:
        for worker in workers.values():
            worker.close()
    if not quick:
        yield _compilation(built["scanned"], size)


def _times(spent: dict[str, list[float]], detail: dict[str, Any], words: str) -> Iterator[Claim]:
    least = {name: min(values) for name, values in spent.items()}
    detail = {"seconds_a_step": spent, "least": least, **detail}
    titles = {"plain": "as a script runs it", "plain_tuned": "with our allocator"}
    for other in [name for name in titles if name in least]:
        yield Claim(
            name=f"over_{other}",
            claim=f"CPU time of a training step over Flax's and JAX's own layers {titles[other]}, {words}",
            value=least["unrolled"] / least[other],
            unit="ratio",
            target="<= 0.40" if other == "plain" else "",
            detail=detail,
            if_missed="what is saved is XLA's slow gradients of convolutions, erfc in GELU, and by our allocator "
            "page faults; GELU itself, additions and narrow products of 16 channels stay in both",
        )
    yield Claim(
        name="scan_over_unroll",
        claim=f"CPU time of a training step, cells in loops over cells written out, {words}",
        value=least["scanned"] / least["unrolled"],
        unit="ratio",
        target="<= 1.2",
        detail=detail,
        if_missed="a loop stacks what the backward pass needs, and its body is not fused with what stands around it",
    )
    yield Claim(
        name="step_ms",
        claim=f"CPU time of a training step, {words}",
        value=1e3 * least["unrolled"],
        unit="ms",
        detail=detail,
    )


def _memory(ours: dict[str, float], plain: dict[str, float], detail: dict[str, Any], words: str) -> Claim:
    return Claim(
        name="memory_over_plain",
        claim=f"resident memory after {ours['steps']:.0f} training steps over that of Flax's and JAX's own layers, "
        f"both with our allocator, {words}",
        value=ours["resident"] / plain["resident"],
        unit="ratio",
        target="<= 1.0",
        detail=detail,
        if_missed="matrix products read the taps of a convolution, three copies of its input, where XLA's convolution "
        "reads the input itself",
    )


def _compilation(small: dict[str, float], size: dict[str, Any]) -> Claim:
    worker = Worker(FORMS["scanned"] | size | {"spec": "deep28"})
    deep = worker.built
    worker.close()
    total = {name: found["trace_seconds"] + found["compile_seconds"] for name, found in _named(small, deep)}
    return Claim(
        name="compile_deep_over_small",
        claim="CPU time to trace and compile a training step with cells in loops, deep28 (27 levels) over small28 (10)",
        value=total["deep28"] / total["small28"],
        unit="ratio",
        target="<= 1.3",
        detail={"small28": small, "deep28": deep, "seconds": total},
        if_missed="each level keeps its own weights, optimiser state, site and rate, however its cell runs",
    )


def _named(small: dict[str, float], deep: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
    return [("small28", small), ("deep28", deep)]
