"""Do the calibrated drift and lag tests reject true martingales as often as they say, 5 % of the time?

Contexts of 20 symbols of frequency .3, .5, .7 in turn, 100 paths of 40 steps each.  Exact Bayes under two priors, and
a moving average that is a martingale without being exchangeable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Claim
from inference import tune_runtime
from inference.coherence._call import call
from inference.coherence.calibrated import drift_test, halves, lag_test, t_test
from inference.coherence.paths import draw_paths
from ppl_models.in_context import parse_rule
from ppl_models.program import Predictor

N, STEPS, PATHS = 20, 40, 100
MARTINGALES = {"beta_1_1": "bayes:1,1", "beta_20_20": "bayes:20,20", "ewma_0_1": "ewma:0.1"}


def contexts(repetitions: int, seed: int) -> np.ndarray:
    """Independent contexts (repetitions, 20)."""
    frequency = np.array([0.3, 0.5, 0.7])[np.arange(repetitions) % 3]
    return (np.random.default_rng(seed).random((repetitions, N)) < frequency[:, None]).astype(np.int32)


def _one(predictor: Predictor, context: Any, key: Any) -> Mapping[str, Any]:
    path_key, drift_key, lag_key = jax.random.split(key, 3)
    drawn = draw_paths(predictor, context, path_key, steps=STEPS, paths=PATHS)
    g = drawn.z[..., None].astype(float)
    return {
        "drift": drift_test(drawn.p, drift_key).p_value,
        "lag": lag_test(g, drawn.p, lag_key).p_value,
        "drift_from_draws": t_test(halves(g)[:, 0]).p_value,
    }


def _all(predictor: Predictor, contexts: Any, keys: Any) -> Mapping[str, Any]:
    return jax.lax.map(lambda item: _one(predictor, item[0], item[1]), (contexts, keys), batch_size=50)


def p_values(rule: str, repetitions: int, seed: int) -> dict[str, np.ndarray]:
    """p-values of each test for a rule, one context a repetition."""
    keys = jax.random.split(jax.random.key(seed), repetitions)
    found = call(_all, parse_rule(rule), contexts(repetitions, seed), keys)
    return {name: np.asarray(p) for name, p in found.items()}


def rejected(p: np.ndarray) -> float:
    """Share of p-values below 5 %."""
    return float((p < 0.05).mean())


def both(p: Mapping[str, np.ndarray]) -> float:
    """Share of contexts where drift or lag is below 5 % after Holm's adjustment over the two."""
    return float((np.minimum(p["drift"], p["lag"]) < 0.025).mean())


def run(quick: bool) -> Iterator[Claim]:
    """Size of each test on each martingale."""
    tune_runtime()
    repetitions, seed = (200, 0) if quick else (5000, 0)
    for name, rule in MARTINGALES.items():
        p = p_values(rule, repetitions, seed)
        detail = {
            "repetitions": repetitions,
            "se": float(np.sqrt(0.05 * 0.95 / repetitions)),
            "drift_from_draws": rejected(p["drift_from_draws"]),
            "either_after_holm": both(p),
        }
        for test in ("drift", "lag"):
            yield Claim(
                f"{test}_{name}", f"calibrated {test} test on {rule}: share rejected at 5 %",
                rejected(p[test]), "share", target="0.036 to 0.064", seeds=(seed,), detail=detail,
            )  # fmt: skip
