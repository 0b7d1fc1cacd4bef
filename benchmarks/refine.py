"""Do posteriors optimised datum by datum pass their own checks, and what do they cost?

Scikit-learn's 297 held-out digits under four fits, each with its amortised posterior and with ``inference.refine`` at
its defaults: the quickstart's two facets (black and white), ``mfcvae:digits`` (17 grey levels, a categorical
likelihood), ``hvae:digits`` (three levels, 24 dimensions) and ``hvae:digits8`` (1,928 dimensions, low rank, 200
steps, 60 of the digits).  Every number comes from 512 fresh draws a datum.  Seconds are wall time of refinement and
evidence, compilation included.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.harness import Claim
from inference import evidence, fit, refine
from inference.cli.quickstart import FULL, QUICK, TWO, specs
from ppl_models import datasets
from ppl_models.program import resolve

PARTICLES = 512


class Case(NamedTuple):
    """A fit to refine: the words of its claims, its spec, steps and training, how many data, and how refined."""

    words: str
    spec: Callable[[bool], Any]
    steps: int
    more: dict[str, Any]
    data: int | None = None
    settings: dict[str, Any] = {}


CASES = {
    "quickstart": Case(
        "the quickstart's two facets", lambda quick: specs(quick)[TWO], FULL.steps,
        {"batch_size": FULL.batch_size, "learning_rate": FULL.learning_rate, "average": FULL.average},
    ),
    "categorical": Case(
        "mfcvae:digits, categorical likelihood", lambda quick: resolve("mfcvae:digits"), 10_000,
        {"batch_size": 128, "learning_rate": 2e-3, "average": 0.999},
    ),
    "hvae": Case(
        "hvae:digits", lambda quick: resolve("hvae:digits"), 10_000,
        {"batch_size": 128, "learning_rate": 2e-3, "average": 0.999},
    ),
    "hvae8": Case(
        "hvae:digits8", lambda quick: resolve("hvae:digits8"), 2_000,
        {"batch_size": 128, "learning_rate": 2e-3, "average": 0.99}, 60, {"steps": 200},
    ),
}  # fmt: skip


def summary(table: Any) -> dict[str, float]:
    """What a table says of its posterior: nats, and draws of :data:`PARTICLES`."""
    return {
        "khat_above_0.7": float((~(table["khat"] <= 0.7)).mean()),
        "gap": float((table["log_px"] - table["elbo"]).mean()),
        "ess_median": float(table["ess"].median()),
        "log_px": float(table["log_px"].mean()),
        "refined": float((table["estimator"] == "refined").mean()),
    }


def measure(case: Case, x: dict[str, np.ndarray], quick: bool) -> dict[str, Any]:
    """Train, then score the test data three ways: amortised, flagged rows refined, all rows refined."""
    spec, more, test = case.spec(quick), dict(case.more), x["test"][: case.data]
    if quick:
        more["average"] = QUICK.average
    fitted = fit(
        spec.build(jax.random.key(0)), x["train"], steps=QUICK.steps if quick else case.steps, key=jax.random.key(0),
        validation=x["validation"], progress=False, **more,
    )  # fmt: skip
    particles, key = QUICK.particles if quick else PARTICLES, jax.random.key(9)
    found: dict[str, Any] = {}
    for name in ("none", "flagged"):
        begun = time.perf_counter()
        table = evidence(fitted, test, particles=particles, key=key, refine=name, progress=False)
        found[name] = {**summary(table), "seconds": time.perf_counter() - begun}
    begun = time.perf_counter()
    refined = refine(fitted, test, key=jax.random.key(8), particles=particles, progress=False, **case.settings)
    table = evidence(refined, test, particles=particles, key=key, progress=False)
    found["all"] = {**summary(table), "seconds": time.perf_counter() - begun}
    sizes = refined.locals.q.loc.shape
    return {**found, "dimensions": sizes[1], "data": sizes[0], "settings": dataclasses.asdict(refined.settings)}


def run(quick: bool) -> Iterator[Claim]:
    """Yield share beyond the bound on k-hat, gap and seconds of each case."""
    train, _ = datasets.load("digits", "train")
    test, _ = datasets.load("digits", "test")
    x = {"train": train[:-200], "validation": train[-200:], "test": test[:30] if quick else test}
    for name, case in CASES.items():
        if quick and name not in ("quickstart", "hvae"):  # the others train for minutes
            continue
        found = measure(case, x, quick)
        first = name == "quickstart"
        was = found["none"]
        yield Claim(
            f"{name}_khat", f"{case.words}: share of held-out digits with k-hat > 0.7, every posterior refined",
            found["all"]["khat_above_0.7"], "share", target="<= 0.03" if first else "<= 0.05", seeds=(0,),
            reference=f"{was['khat_above_0.7']:.3f} amortised, {found['flagged']['khat_above_0.7']:.3f} with those "
            "beyond it refined", detail=found,
        )  # fmt: skip
        yield Claim(
            f"{name}_gap", f"{case.words}: log p(x) - ELBO of refined posteriors", found["all"]["gap"], "nats",
            target="<= 0.25" if first else "", seeds=(0,), reference=f"{was['gap']:.2f} amortised",
        )  # fmt: skip
        if first:
            yield Claim(
                "quickstart_seconds", f"{case.words}: refining and scoring {found['data']} digits",
                found["all"]["seconds"], "s", target="<= 10", seeds=(0,),
                reference=f"{was['seconds']:.1f} s without refinement",
            )  # fmt: skip
