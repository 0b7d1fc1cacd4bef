"""How close does a small transformer, trained on draws of a coin, come to exact Bayes - and how coherent is it?

Beta(1,1)-Bernoulli sequences of 64 symbols, 64 fresh ones a step.  The loss to exact Bayes is the mean over
n = 0..63 symbols seen of KL(exact || network), computed from both probabilities on held-out sequences; what a
probability test or T1-T3 can hardly separate, the exact tree does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Claim
from inference import fit, tune_runtime
from inference.coherence import exact_tree
from ppl_models.program import resolve

PRESETS = {"coin": "without positions", "coin_positions": "with learned positions"}
CONTEXTS = {"A": "10001000011111110010", "B": "00001100000100110100"}


def recipe(steps: int) -> Any:
    """AdamW, warm-up to 5e-3, cosine to 1e-5, gradients clipped at norm 1."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 5e-3, max(1, steps * 60 // 700), steps, 1e-5)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


def probabilities(rule: Any, z: Any) -> Any:
    """``p(1 | z_{1:n})`` for n = 0..T-1 of each sequence."""

    def one(row: Any) -> Any:
        def step(state: Any, symbol: Any) -> Any:
            return rule.update(state, symbol), rule.predict(state).probs

        return jax.lax.scan(step, rule.init(row[:0]), row)[1]

    return jax.jit(jax.vmap(one))(z)


def measure(preset: str, steps: int, held_out: int, seed: int) -> dict[str, Any]:
    """Train one network and compare it with the exact rule."""
    spec = resolve(f"in_context:{preset}")
    build_key, fit_key, data_key = jax.random.split(jax.random.key(seed), 3)
    program = spec.build(build_key)
    wall, cpu = time.perf_counter(), time.process_time()
    fitted = fit(
        program,
        program.observation.sampler,
        steps=steps,
        batch_size=64,
        optimizer=recipe(steps),
        key=fit_key,
        progress=False,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rule = program.exact.predictor(fitted.params)
    z = program.observation.sampler(data_key, held_out).astype(jnp.int32)
    p, q = (np.asarray(probabilities(r, z), np.float64) for r in (spec.exact, rule))
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(0)
    trees = {name: exact_tree(rule, np.array([int(c) for c in text]), depth=8).row() for name, text in CONTEXTS.items()}
    return {
        "kl": float(kl.mean()),
        "kl_at": {n: float(kl[n]) for n in (0, 5, 20, 40, 63)},
        "mean_error_of_p": float(np.abs(p - q).mean()),
        "max_error_of_p": float(np.abs(p - q).max()),
        "root_gap": max(abs(tree["root_gap"]) for tree in trees.values()),
        "tree_kl": max(tree["kl"] for tree in trees.values()),
        "trees": trees,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "parameters": program.parameter_count,
        "steps": steps,
    }


def run(quick: bool) -> Iterator[Claim]:
    """Loss to exact Bayes with and without positions, and the gap that only the exact tree shows."""
    tune_runtime()
    steps, held_out, seeds = (100, 500, (0,)) if quick else (700, 4000, (0, 1, 2))
    for preset, words in PRESETS.items():
        rows = [measure(preset, steps, held_out, seed) for seed in seeds]
        detail = {"per_seed": rows, "seconds_of_one_fit": max(row["wall_seconds"] for row in rows)}
        yield Claim(
            f"{preset}_kl", f"transformer {words} on coins: mean KL(exact || network) over n = 0..63",
            float(np.mean([row["kl"] for row in rows])), "nats", target="<= 2e-4", seeds=seeds, detail=detail,
            reference="1.13e-4 without, 1.45e-4 with positions (plain JAX, 45 CPU-seconds)",
        )  # fmt: skip
        yield Claim(
            f"{preset}_root_gap", f"transformer {words} on coins: largest exact root gap, k = 2..9, two contexts",
            float(np.mean([row["root_gap"] for row in rows])), "probability", seeds=seeds,
            reference=".0014 without, .0068 with positions (plain JAX)",
        )  # fmt: skip
        yield Claim(
            f"{preset}_seconds", f"transformer {words}: wall time of one fit of {steps} steps",
            max(row["wall_seconds"] for row in rows), "s", target="<= 180", seeds=seeds,
        )  # fmt: skip
