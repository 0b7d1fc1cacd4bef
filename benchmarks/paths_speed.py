"""How many predictive paths a second, as one scan and one vmap, against a loop that re-reads the context?

The Beta(1,1) rule, 200 steps after a context of 20 symbols.  The loop keeps each path as a list and counts its ones
anew at every step, as a call to a model that is not cached does.  Then a prior-fitted transformer (``in_context:coin``,
its weights as built: their values cost nothing): paths from its key-value cache, 44 steps after the 20 symbols, against
the same network asked for each next symbol by reading the whole sequence so far, padded to 64 and compiled once, all
paths at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.harness import Claim
from inference import tune_runtime
from inference.coherence import predictive_paths
from ppl_models.in_context import BetaBernoulli
from ppl_models.in_context.neural import FittedTransformer
from ppl_models.program import resolve

STEPS, CALLS = 200, 10
LENGTH = 64
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


@partial(jax.jit, static_argnums=(0, 1))
def _following(graph: Any, task: Any, weights: Any, z: jax.Array, n: jax.Array, key: jax.Array) -> jax.Array:
    p = task.predictive(nnx.merge(graph, nnx.State(weights))(z)[:, n]).probs
    return z.at[:, n].set((jax.random.uniform(key, p.shape) < p).astype(z.dtype))


def reread(rule: FittedTransformer, paths: int, key: jax.Array) -> jax.Array:
    """Paths (paths, 44) of a transformer that reads every sequence from its start at each step, padded to 64."""
    z = jnp.zeros((paths, LENGTH), jnp.int32).at[:, : len(CONTEXT)].set(jnp.array(CONTEXT))
    for n in range(len(CONTEXT), LENGTH):
        z = _following(rule.graph, rule.task, rule.weights, z, n, jax.random.fold_in(key, n))
    return jax.block_until_ready(z[:, len(CONTEXT) :])


def transformer(quick: bool) -> Iterator[Claim]:
    """Paths of a transformer per CPU-second: from its cache, and by reading again, in one batch or path by path."""
    paths, rounds = (50, 1) if quick else (400, 4)
    rule: Any = resolve("in_context:coin").build(jax.random.key(0)).exact.predictor(None)
    context, steps = np.array(CONTEXT), LENGTH - len(CONTEXT)
    ways: dict[str, tuple[int, Callable[[int], object]]] = {
        "cache": (paths, lambda i: predictive_paths(rule, context, steps=steps, paths=paths, key=jax.random.key(i))),
        "reread": (paths, lambda i: reread(rule, paths, jax.random.key(i))),
        "one_by_one": (4, lambda i: [reread(rule, 1, jax.random.key(4 * i + j)) for j in range(4)]),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, (count, go) in ways.items():
            start = time.process_time()
            go(turn)
            if turn:  # the first compiles
                spent[name].append((time.process_time() - start) / count)
    ours, batch, single = (1 / min(spent[name]) for name in ways)
    detail = {
        "paths_per_cpu_second": ours, "reread_in_one_batch": batch, "reread_path_by_path": single, "steps": steps,
        "paths": paths, "rounds": rounds,
    }  # fmt: skip
    what = f"paths of {steps} steps of a transformer per CPU-second from its cache, against reading each sequence again"
    yield Claim("transformer", f"{what}, path by path", ours / single, "times", target=">= 30", detail=detail)
    yield Claim("transformer_batch", f"{what}, all paths in one batch", ours / batch, "times", detail=detail)


def run(quick: bool) -> Iterator[Claim]:
    """Paths per CPU-second both ways and their ratio."""
    tune_runtime()
    yield from transformer(quick)
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
