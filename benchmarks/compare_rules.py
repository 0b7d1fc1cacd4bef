"""Which description fits a model's probabilities: is the rule that made them found among six?

Each of six rules continues 12 contexts of 10 symbols by 20; its log-odds get Normal noise of .1, a model's own error.
All six descriptions are fitted by NUTS and compared by leaving out whole sequences.  Every description but one holds
``beta`` as a limit, so that where Beta is true the others fit as well: it is found if none is ahead by two standard
errors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.harness import Claim
from inference import tune_runtime
from inference.coherence import Told, compare_rules, tell
from ppl_models.in_context import parse_rule

RULES = {
    "sticky": ("sticky:0.1", 0.1), "beta": ("bayes:2,3", None), "discounted": ("discounted:0.9", 0.9),
    "window": ("window:8", 8.0), "fractional": ("fractional:0.5", 0.5), "tempered": ("tempered:1.3", 1.3),
}  # fmt: skip
"""Description -> a rule it is true of, and its parameter."""


def run(quick: bool) -> Iterator[Claim]:
    """Rules found, and how far off the parameters are."""
    tune_runtime()
    seed, size = 0, 100 if quick else 300
    rng = np.random.default_rng(seed)
    found, off = {}, {}
    names = ("sticky", "beta") if quick else tuple(RULES)
    for i, name in enumerate(names[:1] if quick else names):
        rule, true = RULES[name]
        contexts = rng.integers(0, 2, (12, 10))
        told = tell(parse_rule(rule), contexts, key=jax.random.key(seed), steps=20)
        odds = np.log(told.p / (1 - told.p)) + rng.normal(0, 0.1, told.p.shape)
        noisy = Told(told.z, 1 / (1 + np.exp(-odds)))
        table = compare_rules(noisy, key=jax.random.key(100 + i), rules=names, draws=size, warmup=size).table
        row = table.loc[name]
        found[name] = {
            "rank": int(table.index.get_loc(name)),
            "behind": float(row["elpd_diff"]),
            "se": float(row["dse"]),
            "order": list(table.index),
            "r_hat": float(table["r_hat"].max()),
            "high_k_hat": bool(table["warning"].any()),
        }
        if true is not None:
            off[name] = {"true": true, "mean": float(row["mean"]), "sd": float(row["sd"])}
        print(f"{name}: {found[name]} {off.get(name)}", file=sys.stderr, flush=True)
    right = [r["rank"] == 0 or (name == "beta" and abs(r["behind"]) < 2 * r["se"]) for name, r in found.items()]
    yield Claim(
        "found", f"rules of {len(found)} whose own description fits their noisy probabilities best, by LOO",
        float(sum(right)), "rules", target=f"== {len(found)}", seeds=(seed,), detail=found,
        if_missed="see the order in the record",
    )  # fmt: skip
    yield Claim(
        "parameter", "own parameter of the right description: largest error, posterior standard deviations",
        max(abs(o["mean"] - o["true"]) / o["sd"] for o in off.values()), "sd", target="<= 3", seeds=(seed,), detail=off,
    )  # fmt: skip
