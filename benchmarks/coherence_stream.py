"""May a stream be tested for coherence after every symbol, and how many symbols show that a rule repeats itself?

The tests by betting of ``inference.coherence.bet``: an alarm when a wealth first reaches 20.  False alarms at 5 % over
1,000 streams of 1,000 symbols drawn by rules that are right: exact Bayes under two priors, a die, Normal symbols of
unknown variance, and, where the martingale alone is tested, a moving average.  Then rules that are wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Claim
from inference import tune_runtime
from inference.coherence import bet
from ppl_models.in_context import BetaBernoulli, DirichletCategorical, NormalInverseGamma, parse_rule

BINARY = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0])
RIGHT: dict[str, tuple[Any, np.ndarray]] = {
    "bayes:1,1": (BetaBernoulli(), BINARY[:0]),
    "bayes:20,20": (BetaBernoulli(20.0, 20.0), BINARY),
    "bayes:.5,5": (BetaBernoulli(0.5, 5.0), BINARY[:1]),
    "die of 4": (DirichletCategorical((1.0, 1.0, 1.0, 1.0)), np.array([0, 1, 2])),
    "normal": (NormalInverseGamma(), np.array([0.3, -1.0, 2.0])),
}
AVERAGE = ("ewma:0.02", "ewma:0.1")
WRONG = ("sticky:0.1", "alternate:0.1", "window:20", "tempered:1.2", "drift:0.01", "ewma:0.1")
TESTS = {"martingale": "probabilities", "draws": "draws only", "order": "exchangeability, draws only"}
CHUNK = 100


def alarms(rule: Any, context: np.ndarray, streams: int, steps: int, seed: int) -> dict[str, np.ndarray]:
    """First alarms of each test in each stream, symbols; NaN where there is none."""
    found: dict[str, list[np.ndarray]] = {test: [] for test in TESTS}
    for chunk in range(0, streams, CHUNK):
        key = jax.random.fold_in(jax.random.key(seed), chunk)
        bets = bet(rule, context, key=key, steps=steps, streams=min(CHUNK, streams - chunk))
        for test in TESTS:
            found[test].append(bets.alarm(test))
    return {test: np.concatenate(parts) for test, parts in found.items()}


def _say(name: str, found: dict[str, np.ndarray]) -> None:
    shares = {test: round(float(np.isfinite(a).mean()), 4) for test, a in found.items()}
    print(f"{name}: alarms {shares}", file=sys.stderr, flush=True)


def _median(alarm: np.ndarray) -> float:
    return float(np.median(np.where(np.isnan(alarm), np.inf, alarm)))


def run(quick: bool) -> Iterator[Claim]:
    """False alarms of each test, the symbols it needs for 10 % of stickiness, and what it sees of other faults."""
    tune_runtime()
    streams, steps, seed = (20, 100, 0) if quick else (1000, 1000, 0)
    level: dict[str, dict[str, float]] = {test: {} for test in TESTS}
    cells = dict(RIGHT) if not quick else {"bayes:1,1": RIGHT["bayes:1,1"]}
    cells |= {name: (parse_rule(name), BINARY) for name in AVERAGE[quick:]}
    for name, (rule, context) in cells.items():
        found = alarms(rule, context, streams, steps, seed)
        _say(name, found)
        for test, alarm in found.items():
            if not (name in AVERAGE and test == "order"):  # not exchangeable, and no false alarm
                level[test][name] = float(np.isfinite(alarm).mean())
    for test, words in TESTS.items():
        worst = max(level[test], key=level[test].__getitem__)
        yield Claim(
            f"false_alarms_{test}",
            f"test by betting ({words}): streams of {steps:,} symbols with a false alarm at 5 %, worst of "
            f"{len(level[test])} rules", level[test][worst], "share", target="<= 0.05", seeds=(seed,),
            detail={"streams": streams, "worst": worst, "by_rule": level[test]},
        )  # fmt: skip
    # Draws alone say little a symbol: 10 % of stickiness is about .005 nats, so they are given longer streams.
    streams, steps = (20, 200) if quick else (200, 5000)
    seen = {}
    for name in WRONG[: 1 if quick else None]:
        seen[name] = alarms(parse_rule(name), BINARY, streams, steps, seed + 1)
        _say(name, seen[name])
    table = {
        name: {
            test: {"alarms": float(np.isfinite(alarm).mean()), "median_step": _median(alarm)}
            for test, alarm in found.items()
        }
        for name, found in seen.items()
    }
    for test, words in TESTS.items():
        alarm = seen["sticky:0.1"][test]
        quantiles = np.nanquantile(np.where(np.isnan(alarm), np.inf, alarm), (0.1, 0.9), method="lower")
        yield Claim(
            f"sticky_{test}",
            f"test by betting ({words}) on sticky:0.1: median number of symbols at the alarm",
            _median(alarm), "symbols", seeds=(seed + 1,),
            detail={
                "streams": streams,
                "steps": steps,
                "quantiles_10_90": quantiles.tolist(),
                "alarms_by_rule": {name: row[test] for name, row in table.items()},
            },
        )  # fmt: skip
