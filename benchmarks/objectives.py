"""Which objective of a fit gives the better model, and the better posterior, of scikit-learn's digits?

Two models, each trained by the ELBO, by the importance-weighted bound of 8 draws (``iwae``), by the same bound with
doubly reparameterised gradients (``dreg``), and by the ELBO with a sleep phase of weight 1; three seeds.  All take
equal steps of equal batches; ``longer`` is the ELBO with as much CPU time as ``dreg`` (the ratio of CPU time a step is
measured first, in turns).  Nothing was tuned for any of them: batches and rates are the quickstart's, steps are fewer.
Each fit keeps the best parameters by its own bound on the 200 validation digits.

Of 150 held-out digits: log p(x) by importance sampling, posteriors refined where they need it; the ELBO of the
amortised posterior, its distance to log p(x), and the share of digits with k-hat above 0.7, all before refinement.
Differences are over the same digits, averaged over seeds; for their standard error see ``paired``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.harness import Claim, interleaved_cpu_time
from inference import evidence, fit
from inference.cli.quickstart import TWO, specs
from inference.fitting.loss import make_loss
from inference.fitting.sources import ArraySource
from inference.fitting.trainer import Trainer, make_optimizer, scheduled
from ppl_models import datasets
from ppl_models.program import resolve

PARTICLES, BATCH, RATE, K = 256, 128, 2e-3, 8
METHODS: dict[str, dict[str, Any]] = {
    "elbo": {},
    "iwae": {"objective": "iwae", "particles": K},
    "dreg": {"objective": "dreg", "particles": K},
    "sleep": {"sleep": 1.0},
    "longer": {},
}
SEEDS = (0, 1, 2)


class Case(NamedTuple):
    """A model: the words of its claims, its spec, and how many steps it is trained for."""

    words: str
    spec: Callable[[bool], Any]
    steps: int


CASES = {
    "quickstart": Case("the quickstart's two facets", lambda quick: specs(False)[TWO], 1500),
    "hvae": Case("hvae:digits", lambda quick: resolve("hvae:tiny" if quick else "hvae:digits"), 500),
}


def costs(spec: Any, x: np.ndarray, *, rounds: int, steps: int) -> dict[str, float]:
    """CPU time of a step of each objective over that of the ELBO: the median of rounds in turns."""
    program, source = spec.build(jax.random.key(0)), ArraySource(x, BATCH, jax.random.key(0))
    states: dict[str, Any] = {}
    trainers = {}
    for name in ("elbo", "iwae", "dreg", "sleep"):
        asked: dict[str, Any] = {"objective": "elbo", "particles": None, "sleep": 0.0, **METHODS[name]}
        loss = make_loss(program, **asked)
        trainers[name] = Trainer(
            program, source, make_optimizer(RATE, None, None), scheduled(program, None), 0.999, loss
        )
        states[name] = trainers[name].init(jax.random.key(1))

    def step(name: str) -> Callable[[], Any]:
        def one() -> Any:
            states[name] = trainers[name].update(states[name], source.feed(0, 1))
            return states[name].step

        return one

    spent = interleaved_cpu_time({name: step(name) for name in trainers}, rounds=rounds, steps=steps)
    base = spent["elbo"].rounds
    found = {name: median(a / b for a, b in zip(each.rounds, base, strict=True)) for name, each in spent.items()}
    return {**found, "elbo_ms": 1e3 * spent["elbo"].median}


def measure(spec: Any, x: dict[str, np.ndarray], steps: int, seed: int, quick: bool, **more: Any) -> dict[str, Any]:
    """Train by one objective and score the test data."""
    began = time.process_time()
    fitted = fit(
        spec.build(jax.random.key(seed)), x["train"], steps=steps, key=jax.random.key(seed), batch_size=BATCH,
        learning_rate=RATE, average=0.98 if quick else 0.999, validation=x["validation"], progress=False, **more,
    )  # fmt: skip
    spent, key = time.process_time() - began, jax.random.key(100 + seed)
    particles = 64 if quick else PARTICLES
    before, after = (
        evidence(fitted, x["test"], particles=particles, key=key, refine=refine, progress=False)
        for refine in ("none", "flagged")
    )
    return {
        "log_px": after["log_px"].to_numpy(), "elbo": before["elbo"].to_numpy(), "khat": before["khat"].to_numpy(),
        "left": float((~(after["khat"] <= 0.7)).mean()), "best_step": fitted.info["best_step"], "steps": steps,
        "cpu_seconds": spent,
    }  # fmt: skip


def paired(runs: dict[str, list[dict[str, Any]]], a: str, b: str) -> tuple[float, float]:
    """Mean of log p(x) under ``a`` minus that under ``b``, and its standard error.

    The larger of the error over digits (of differences averaged over seeds) and over seeds (of averages over digits):
    three seeds say little of their spread, but digits alone would leave it out.
    """
    each = np.stack([one["log_px"] - two["log_px"] for one, two in zip(runs[a], runs[b], strict=True)])
    over_digits = each.mean(0).std(ddof=1) / np.sqrt(each.shape[1])
    over_seeds = each.mean(1).std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0
    return float(each.mean()), float(max(over_digits, over_seeds))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Averages over digits, one entry a seed."""
    of = lambda f: [round(float(f(run)), 4) for run in runs]  # noqa: E731
    return {
        "log_px": of(lambda r: r["log_px"].mean()),
        "elbo": of(lambda r: r["elbo"].mean()),
        "gap": of(lambda r: (r["log_px"] - r["elbo"]).mean()),
        "khat_above_0.7": of(lambda r: (~(r["khat"] <= 0.7)).mean()),
        "khat_above_0.7_refined": of(lambda r: r["left"]),
        "best_step": [run["best_step"] for run in runs],
        "steps": runs[0]["steps"],
        "cpu_seconds": of(lambda r: r["cpu_seconds"]),
    }


def mean(found: dict[str, Any], method: str, column: str) -> float:
    """Average over seeds of a column of the summary."""
    return float(np.mean(found[method][column]))


def claims(name: str, case: Case, x: dict[str, np.ndarray], quick: bool) -> Iterator[Claim]:
    """Train one model by every objective, and compare."""
    spec, steps, seeds = case.spec(quick), 60 if quick else case.steps, (0,) if quick else SEEDS
    methods = {n: METHODS[n] for n in (("elbo", "dreg") if quick else METHODS)}
    ratio = {"dreg": 1.0} if quick else costs(spec, x["train"], rounds=5, steps=15)
    longer = 10 * round(steps * ratio["dreg"] / 10)
    runs: dict[str, list[dict[str, Any]]] = {}
    for method, more in methods.items():
        count = longer if method == "longer" else steps
        runs[method] = [measure(spec, x, count, seed, quick, **more) for seed in seeds]
    found = {method: summary(each) for method, each in runs.items()}
    detail = {"methods": found, "cpu_time_of_a_step_over_elbo": ratio, "digits": len(x["test"]), "particles": K}

    def difference(a: str, b: str) -> dict[str, Any]:
        value, se = paired(runs, a, b)
        return {
            "value": value, "unit": "nats", "seeds": seeds, "detail": {**detail, "se": se},
            "reference": f"± {se:.2f}; log p(x) {mean(found, a, 'log_px'):.2f} against {mean(found, b, 'log_px'):.2f}",
        }  # fmt: skip

    yield Claim(
        f"{name}_dreg", f"{case.words}, {steps:,} steps: held-out log p(x), dreg K = {K} minus the ELBO",
        target="> 0", **difference("dreg", "elbo"),
    )  # fmt: skip
    if quick:
        return
    yield Claim(
        f"{name}_dreg_equal_time", f"{case.words}: the same, the ELBO trained with as much CPU time ({longer:,} steps)",
        target="> 0", **difference("dreg", "longer"),
    )  # fmt: skip
    yield Claim(
        f"{name}_dreg_iwae", f"{case.words}, {steps:,} steps: held-out log p(x), dreg minus iwae, K = {K}",
        target="> 0", **difference("dreg", "iwae"),
    )  # fmt: skip
    yield Claim(
        f"{name}_sleep", f"{case.words}, {steps:,} steps: held-out log p(x), the ELBO with a sleep phase minus without",
        target="> 0", **difference("sleep", "elbo"),
    )  # fmt: skip
    for method, words in (("sleep", "the ELBO with a sleep phase"), ("dreg", f"dreg K = {K}")):
        yield Claim(
            f"{name}_khat_{method}",
            f"{case.words}, {steps:,} steps: share of held-out digits with k-hat > 0.7, {words} minus the ELBO",
            mean(found, method, "khat_above_0.7") - mean(found, "elbo", "khat_above_0.7"), "share", target="< 0",
            seeds=seeds,
            reference="; ".join(
                f"{n}: {mean(found, n, 'khat_above_0.7'):.2f}, gap {mean(found, n, 'gap'):.2f} nats" for n in found
            ),
        )  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Yield the comparisons of the objectives for each model."""
    train, _ = datasets.load("digits", "train")
    test, _ = datasets.load("digits", "test")
    x = {"train": train[:-200], "validation": train[-200:], "test": test[: 20 if quick else 150]}
    for name, case in CASES.items():
        if quick and name != "hvae":  # the other is slow to compile
            continue
        yield from claims(name, case, x, quick)
