"""How many predictive paths a second, as one scan and one vmap, against a loop that re-reads the context?

The Beta(1,1) rule, 200 steps after a context of 20 symbols.  The loop keeps each path as a list and counts its ones
anew at every step, as a call to a model that is not cached does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.harness import Claim
from inference import tune_runtime
from inference.coherence import predictive_paths
from ppl_models.in_context import BetaBernoulli

STEPS, CALLS = 200, 10
CONTEXT = [0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


def loop(paths: int, seed: int) -> list[list[int]]:
    """Paths by a plain Python loop."""
    rng, found = random.Random(seed), []
    for _ in range(paths):
        z = list(CONTEXT)
        for _ in range(STEPS):
            p = (1 + sum(z)) / (2 + len(z))
            z.append(int(rng.random() < p))
        found.append(z[len(CONTEXT) :])
    return found


def run(quick: bool) -> Iterator[Claim]:
    """Paths per CPU-second both ways and their ratio."""
    tune_runtime()
    paths, rounds = (1000, 3) if quick else (1000, 20)
    context = np.array(CONTEXT)
    predictive_paths(BetaBernoulli(), context, steps=STEPS, paths=paths, key=jax.random.key(0))
    fast, slow = [], []
    for i in range(rounds):
        start = time.process_time()
        for j in range(CALLS):
            predictive_paths(BetaBernoulli(), context, steps=STEPS, paths=paths, key=jax.random.key(CALLS * i + j))
        fast.append((time.process_time() - start) / (CALLS * paths))
        start = time.process_time()
        loop(100, i)
        slow.append((time.process_time() - start) / 100)
    ours, naive = 1 / min(fast), 1 / min(slow)
    detail = {"paths_per_cpu_second": ours, "loop_paths_per_cpu_second": naive, "steps": STEPS, "rounds": rounds}
    yield Claim(
        "ratio", f"predictive paths of {STEPS} steps per CPU-second, against a loop that re-reads the context",
        ours / naive, "times", target=">= 50", detail=detail, reference="70 (256,000 against 3,670)",
    )  # fmt: skip
