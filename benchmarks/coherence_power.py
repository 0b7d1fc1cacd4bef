"""How often do the calibrated tests notice a rule that is not Bayesian, from 100 paths of 40 steps after one context?

Tempered and drifting rules move the probabilities and are the drift test's business; a sticky rule moves the next
probability only, which is the lag test's; forgetting all but a window does both.  Setting as in ``coherence_level``.
A moving average is a martingale that is not exchangeable: no test of the martingale property can see it, and the exact
tree shows it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.coherence_level import both, contexts, p_values, rejected
from benchmarks.harness import Claim
from inference import tune_runtime
from inference.coherence import tree_table
from ppl_models.in_context import parse_rule

WRONG = {
    "tempered_1_2": ("tempered:1.2", "drift", ">= 0.6"),
    "tempered_0_8": ("tempered:0.8", "drift", ">= 0.6"),
    "sticky_0_1": ("sticky:0.1", "lag", ">= 0.99"),
    "alternate_0_1": ("alternate:0.1", "lag", ">= 0.99"),
    "drift_0_01": ("drift:0.01", "drift", ">= 0.85"),
    "window_20": ("window:20", "either_after_holm", ">= 0.65"),
}


def run(quick: bool) -> Iterator[Claim]:
    """Power of the test that a defect calls for; the other test and both together stand in the detail."""
    tune_runtime()
    repetitions, seed = (200, 1) if quick else (1000, 1)
    given = contexts(repetitions, seed)
    for name, (rule, test, target) in WRONG.items():
        p = p_values(rule, given, seed)
        family = test == "either_after_holm"
        power = both(p) if family else rejected(p[test])
        named = "drift or lag after Holm" if family else f"calibrated {test} test"
        yield Claim(
            name, f"{named} on {rule}: share rejected at 5 %", power, "share", target=target,
            seeds=(seed,),
            detail={
                "repetitions": repetitions,
                "se": float(np.sqrt(power * (1 - power) / repetitions)),
                **{other: rejected(values) for other, values in p.items()},
                "either_after_holm": both(p),
            },
        )  # fmt: skip
    # Rounding leaves a divergence of about 1e-16 a symbol to exact Bayes: 1e-9 tells the two apart without an error.
    some = given[:20]
    kl = {rule: tree_table(parse_rule(rule), some, depth=8)["kl_per_symbol"] for rule in ("ewma:0.1", "bayes:1,1")}
    yield Claim(
        "ewma_0_1_order", "exact tree on ewma:0.1: share of contexts found not exchangeable (above 1e-9 nats a symbol)",
        float((kl["ewma:0.1"] > 1e-9).mean()), "share", target=">= 0.8", seeds=(seed,),
        detail={
            "contexts": len(some),
            "depth": 8,
            "kl_per_symbol": float(kl["ewma:0.1"].mean()),
            "of_exact_bayes": float(kl["bayes:1,1"].max()),
        },
    )  # fmt: skip
