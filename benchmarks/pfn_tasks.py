"""How close do prior-fitted networks come to exact Bayes on coins, Normal sequences and regression?

A transformer on the coin of ``pfn`` with more steps (three CPU minutes are allowed); a network of sets, whose
predictions do not know the order, on the same; a head of 128 bars on Normal sequences; linear regression as rows of an
input and an output, where the loss is that of the output.  64 fresh sequences of 64 numbers a step, the recipe of
``pfn``; the loss is the mean of KL(exact || network) before each symbol of held-out sequences, from both laws.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._pfn_real import fitted, kl_along
from benchmarks.harness import Claim
from benchmarks.pfn import probabilities
from inference import tune_runtime
from ppl_models.program import resolve

COINS = {"coin": ("transformer without positions", 1600, "<= 5e-5"), "coin_invariant": ("network of sets", 1000, "")}
REAL = {
    "gaussian_bars": ("network of sets with 128 bars on Normal sequences", 900, "<= 1e-3"),
    "regression": ("network of sets on linear regression, one input, 32 rows: outputs", 1400, "<= 5e-3"),
}
"""Preset: words, steps, target of the loss."""


def order_effect(rule: Any, contexts: np.ndarray, orders: int = 200) -> float:
    """Largest difference of p(1 | context) between orders of the same symbols."""
    rng = np.random.default_rng(0)
    z = np.stack([[rng.permutation(context) for _ in range(orders)] for context in contexts])
    p = jax.jit(lambda z: jax.lax.map(jax.vmap(lambda row: rule.predict(rule.init(row)).probs), z))(z)
    return float(np.ptp(np.asarray(p), axis=1).max())


def coin(preset: str, steps: int, held_out: int) -> dict[str, Any]:
    """Loss and order effect of one network on coins."""
    spec = resolve(f"in_context:{preset}")
    made, cpu = fitted(spec, steps, 0)
    rule = made.program.exact.predictor(made.params)
    z = spec.sampler(jax.random.key(1), held_out).astype(jnp.int32)
    p, q = (np.asarray(probabilities(r, z), np.float64) for r in (spec.exact, rule))
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(0)
    return {
        "kl": float(kl.mean()),
        "kl_at": {n: float(kl[n]) for n in (0, 5, 20, 40, 63)},
        "order": order_effect(rule, np.asarray(z[:5])),
        "cpu_seconds": cpu,
        "parameters": made.program.parameter_count,
        "steps": steps,
    }


def run(quick: bool) -> Iterator[Claim]:
    """Loss of each network, and how much the order of symbols matters to the network of sets."""
    tune_runtime()
    rows = {}
    left_out = ("coin", "gaussian_bars") if quick else ()
    for preset, (words, steps, target) in COINS.items():
        if preset in left_out:
            continue
        row = rows[preset] = coin(preset, *((20, 100) if quick else (steps, 4000)))
        yield Claim(
            f"{preset}_kl", f"{words} on coins: mean KL(exact || network) over n = 0..63", row["kl"], "nats",
            target=target, seeds=(0,), detail=row,
        )  # fmt: skip
        yield Claim(f"{preset}_seconds", f"{words} on coins: CPU time of the fit", row["cpu_seconds"], "s", "<= 180")
    yield Claim(
        "order", "network of sets on coins: largest difference of a prediction over 200 orders of 64 symbols",
        rows["coin_invariant"]["order"], "probability", target="<= 1e-6", seeds=(0,),
        detail={"contexts": 5, "of_the_transformer": None if quick else rows["coin"]["order"]},
    )  # fmt: skip
    for preset, (words, steps, target) in REAL.items():
        if preset in left_out:
            continue
        spec = resolve(f"in_context:{preset}")
        steps, sequences = (20, 32) if quick else (steps, 512)
        made, cpu = fitted(spec, steps, 0)
        P = getattr(spec.task, "period", 1)
        kl = kl_along(spec, made.program.exact.predictor(made.params), sequences, 1).reshape(-1, P)
        yield Claim(
            f"{preset}_kl", f"{words}: mean KL(exact || network)", float(kl[:, -1].mean()), "nats", target=target,
            seeds=(0,),
            detail={
                "steps": steps, "cpu_seconds": cpu, "parameters": made.program.parameter_count, "sequences": sequences,
                "kl_of_inputs": float(kl[:, :-1].mean()) if P > 1 else None,
                "kl_after": {int(n): float(kl[n, -1]) for n in (0, 1, 5, 20, len(kl) - 1)},
            },
        )  # fmt: skip
