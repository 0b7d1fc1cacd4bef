"""How often do the calibrated tests notice a rule that is not Bayesian, from 100 paths of 40 steps after one context?

Tempered and drifting rules move the probabilities and are the drift test's business; a sticky rule moves the next
probability only, which is the lag test's.  Setting as in ``coherence_level``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.coherence_level import both, p_values, rejected
from benchmarks.harness import Claim
from inference import tune_runtime

WRONG = {
    "tempered_1_2": ("tempered:1.2", "drift", ">= 0.6"),
    "tempered_0_8": ("tempered:0.8", "drift", ">= 0.6"),
    "sticky_0_1": ("sticky:0.1", "lag", ">= 0.99"),
    "drift_0_01": ("drift:0.01", "drift", ">= 0.85"),
    "window_20": ("window:20", "drift", ""),
    "alternate_0_1": ("alternate:0.1", "lag", ""),
}


def run(quick: bool) -> Iterator[Claim]:
    """Power of the test that a defect calls for; the other test and both together stand in the detail."""
    tune_runtime()
    repetitions, seed = (200, 1) if quick else (1000, 1)
    for name, (rule, test, target) in WRONG.items():
        p = p_values(rule, repetitions, seed)
        power = rejected(p[test])
        yield Claim(
            name, f"calibrated {test} test on {rule}: share rejected at 5 %", power, "share", target=target,
            seeds=(seed,),
            detail={
                "repetitions": repetitions,
                "se": float(np.sqrt(power * (1 - power) / repetitions)),
                **{other: rejected(values) for other, values in p.items()},
                "either_after_holm": both(p),
            },
        )  # fmt: skip
