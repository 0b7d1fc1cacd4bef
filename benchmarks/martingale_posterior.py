"""Are martingale posteriors of the Beta-Bernoulli rule the exact posterior, and do their intervals cover?

Three schemes: long paths, short paths with the law of the limit at their ends (hybrid), and the variance from the
observed context alone, by the shares of the innovations by which the rule moved.  Coverage is of theta drawn from the
prior, so that the exact posterior's is nominal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

import jax
import numpy as np
from scipy import stats

from benchmarks.harness import Claim
from inference import tune_runtime
from inference.coherence import martingale_posterior
from ppl_models.in_context import BetaBernoulli

RULE = BetaBernoulli(1.0, 1.0)
CASES = ((20, 7), (20, 2), (50, 25), (100, 10))
"""Contexts: symbols and ones among them."""
N = 50
Scheme = Literal["paths", "hybrid", "context"]
SCHEMES: tuple[tuple[Scheme, int], ...] = (("hybrid", N), ("paths", N), ("paths", 1000), ("context", 0))


def context(n: int, ones: int) -> np.ndarray:
    """Ones spread evenly."""
    return (np.floor(np.arange(1, n + 1) * ones / n) > np.floor(np.arange(n) * ones / n)).astype(np.int32)


def distances(draws: int) -> dict[str, dict[str, float]]:
    """Kolmogorov-Smirnov distance to the exact posterior of each scheme and context."""
    found: dict[str, dict[str, float]] = {}
    for n, ones in CASES:
        exact = stats.beta(1 + ones, 1 + n - ones)
        for scheme, steps in SCHEMES:
            start = time.process_time()
            tree = martingale_posterior(
                RULE, context(n, ones), key=jax.random.key(n + ones), steps=max(steps, 1), draws=draws, scheme=scheme
            )  # fmt: skip
            theta = tree["posterior"]["theta"].values.ravel()
            found.setdefault(f"{scheme}_{steps}" if steps else scheme, {})[f"{ones} of {n}"] = float(
                stats.kstest(theta, exact.cdf).statistic
            )
            found.setdefault("seconds", {})[f"{scheme}_{steps}"] = round(time.process_time() - start, 2)
    return found


def coverage(scheme: Scheme, sets: int, n: int, draws: int, seed: int) -> float:
    """Share of data sets whose 95 % interval holds theta."""
    rng, held = np.random.default_rng(seed), 0
    for i in range(sets):
        theta = rng.random()
        z = (rng.random(n) < theta).astype(np.int32)
        tree = martingale_posterior(
            RULE, z, key=jax.random.fold_in(jax.random.key(seed), i), steps=N, draws=draws, scheme=scheme
        )  # fmt: skip
        low, high = np.quantile(tree["posterior"]["theta"].values, [0.025, 0.975])
        held += bool(low <= theta <= high)
    return held / sets


def run(quick: bool) -> Iterator[Claim]:
    """Distance first, then coverage."""
    tune_runtime()
    draws, sets = (4000, 30) if quick else (40_000, 1000)
    found = distances(draws)
    hybrid = found["hybrid_50"]
    yield Claim(
        "ks_hybrid", f"hybrid scheme, {N} steps: largest KS distance to the exact Beta posterior",
        max(hybrid.values()), "KS", target="< 0.015", detail={"draws": draws, **found},
        reference=f"paths of {N} steps alone: {max(found['paths_50'].values()):.3f}; of 1,000: "
        f"{max(found['paths_1000'].values()):.3f}",
    )  # fmt: skip
    judged: tuple[Scheme, ...] = ("hybrid", "context")
    for scheme in judged:
        share = coverage(scheme, sets, 50, 400, seed=7)
        yield Claim(
            f"coverage_{scheme}", f"{scheme} scheme, 50 symbols: 95 % intervals that hold theta, {sets:,} data sets",
            share, "share", target="0.93 to 0.97", seeds=(7,),
            detail={"sets": sets, "draws": 400, "se": float(np.sqrt(0.95 * 0.05 / sets))},
        )  # fmt: skip
