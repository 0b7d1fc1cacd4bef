"""Does uncertainty fall with the length of the context as Bayes' does, and is it noticed where it does not?

Contexts of 20, 50, 100, 200 and 400 symbols of frequency .5, 20 of each, 200 paths of 40 steps; log U = log C - beta
log(n + c) with beta, C and c fitted.  Beside it the published reading: the interquartile range of the means of paths
of n/2 steps against its 95 % band under a uniform prior.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Claim
from inference import tune_runtime
from inference.coherence import Scaling, published, uncertainty_scaling
from inference.coherence.scaling import SIZES
from ppl_models.in_context import parse_rule

EXACT = {"beta_1_1": "bayes:1,1", "beta_20_20": "bayes:20,20"}
MEMORY = {"ewma_0_1": "ewma:0.1", "window_20": "window:20"}
LEVELS = {"fractional_half": "fractional:0.5", "fractional_two": "fractional:2"}


def studies(rule: str, repetitions: int, seed: int, theta: float = 0.5) -> list[Scaling]:
    """Independent studies of a rule."""
    predictor, found = parse_rule(rule), []
    for i in range(repetitions):
        rng = np.random.default_rng([seed, i])
        contexts = [(rng.random((20, n)) < theta).astype(np.int32) for n in SIZES]
        found.append(uncertainty_scaling(predictor, contexts, key=jax.random.key(seed * 100_003 + i)))
    print(f"{rule} x {repetitions}: beta {np.mean([f.beta for f in found]):.3f}", file=sys.stderr, flush=True)
    return found


def summary(found: list[Scaling]) -> dict[str, Any]:
    """Mean and spread of what the studies fitted."""
    beta = np.array([f.beta for f in found])
    return {
        "repetitions": len(found),
        "beta": float(beta.mean()),
        "beta_sd": float(beta.std()),
        "beta_within_0_1": float((np.abs(beta - 1) < 0.1).mean()),
        "interval_holds_1": float(np.mean([f.interval[0] <= 1 <= f.interval[1] for f in found])),
        "C": float(np.median([f.C for f in found])),
        "c": float(np.median([f.c for f in found])),
        "level_test_rejects": float(np.mean([f.p_level < 0.05 for f in found])),
        "kinds": {kind: [f.kind for f in found].count(kind) for kind in sorted({f.kind for f in found})},
    }


def outside(rule: str, contexts: int, seed: int) -> float:
    """Share of contexts of 20 symbols whose published T_3 is outside its band."""
    rng = np.random.default_rng(seed)
    given = (rng.random((contexts, 20)) < 0.5).astype(np.int32)
    table = published(parse_rule(rule), given, key=jax.random.key(seed), steps=10, paths=200)
    return 1 - float(table.xs("T3", level="statistic")["inside"].astype(bool).mean())


def run(quick: bool) -> Iterator[Claim]:
    """Exact rules, fractional ones, finite memories."""
    tune_runtime()
    many, few, contexts = (10, 3, 10) if quick else (400, 60, 100)
    for name, rule in EXACT.items():
        found = studies(rule, many, seed=11)
        held = summary(found)
        held["published_t3_rejects"] = outside(rule, contexts, 5)
        error = float(np.sqrt(0.05 * 0.95 / many))
        yield Claim(
            f"beta_{name}", f"{rule}: distance of the mean fitted beta from 1 (C and c unknown)",
            abs(held["beta"] - 1), "beta", target="<= 0.1", seeds=(11,), detail=held,
        )  # fmt: skip
        yield Claim(
            f"within_{name}", f"{rule}: share of studies with beta within .1 of 1",
            held["beta_within_0_1"], "share", target=">= 0.9", seeds=(11,), detail={"beta_sd": held["beta_sd"]},
            if_missed="a prior worth 40 symbols leaves beta and c hard to tell apart at 200 paths; more paths help",
        )  # fmt: skip
        yield Claim(
            f"level_{name}", f"{rule}: share of studies that reject beta = 1 at 5 %",
            float(np.mean([f.p_value < 0.05 for f in found])), "share", target="0.02 to 0.08", seeds=(11,),
            detail={"se": error},
            reference=f"published T_3, 20 symbols: {held['published_t3_rejects']:.2f} rejected",
        )  # fmt: skip
        yield Claim(
            f"confidence_{name}", f"{rule}: share of studies that reject C = 1 at 5 %",
            held["level_test_rejects"], "share", target="0.02 to 0.08", seeds=(11,), detail={"se": error},
        )  # fmt: skip
    for name, rule in MEMORY.items():
        found = studies(rule, few, seed=12)
        yield Claim(
            f"power_{name}", f"{rule}: share of studies flagged as finite memory",
            float(np.mean([f.kind == "finite memory" for f in found])), "share", target=">= 0.9", seeds=(12,),
            detail=summary(found),
        )  # fmt: skip
    for name, rule in LEVELS.items():
        found = studies(rule, few, seed=13)
        yield Claim(
            f"kind_{name}", f"{rule}: share of studies called fractional Bayes, not non-Bayesian",
            float(np.mean([f.kind == "fractional" for f in found])), "share", target=">= 0.9", seeds=(13,),
            detail=summary(found),
        )  # fmt: skip
