"""Is training a U-Net coarse to fine better than training it at once, for the same floating-point operations?

Diffusion on scikit-learn's digits, a Multi-ResNet of two levels (8 x 8, 4 x 4), and on Fashion-MNIST, three levels (28,
14, 7).  Direct: all steps at the full resolution.  Staged: a tenth of the operations at the coarser ones, the rest at
the full one with the coarse levels frozen, or learning on.  Operations are those of the gradient of the training loss,
counted by XLA before optimisation.  Bits a pixel of the 297 test digits, of 300 test images of Fashion-MNIST: the
denoising bound, as in ``diffusion_digits``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from benchmarks.diffusion_digits import recipe
from benchmarks.harness import Claim
from inference import fit
from ppl_models.datasets import DataMissingError, load
from ppl_models.diffusion import PRESETS, Diffusion, GuidedUNet, bound, coarsen, grow, learning, stages

SEEDS = (0, 1, 2)
BATCH = 32
COARSE = 0.1
"""Share of the operations that go to the coarse levels, in equal parts."""
PARTS = 8
"""The draws of a bound are taken in so many parts, for memory."""
WAYS = ("direct", "frozen", "learning")


def operations(spec: Diffusion) -> float:
    """Floating-point operations of the gradient of the loss of one batch."""
    program = spec.build(jax.random.key(0))
    x = jnp.zeros((BATCH, *spec.shape))
    site = "denoiser$params"
    start = handlers.trace(handlers.seed(program.model, jax.random.key(0))).get_trace(x)[site]["value"]

    def loss(params: Any, x: Any) -> Any:
        model = handlers.substitute(handlers.seed(program.model, jax.random.key(0)), data={site: params})
        found = handlers.trace(model).get_trace(x)["x"]
        return -found["fn"].log_prob(found["value"]).sum()

    analysis: Any = jax.jit(jax.grad(loss)).lower(start, x).cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])


class Case(NamedTuple):
    """Images and the model for them, the steps of direct training, draws of the bound, and test images."""

    words: str
    dataset: str
    whole: Diffusion
    steps: int
    draws: int
    test: int | None


def network(base: int, multipliers: tuple[int, ...]) -> GuidedUNet:
    """A Multi-ResNet whose levels correct the answer of the coarser ones."""
    return GuidedUNet(base, multipliers, preconditioned=True)


CASES = {
    "digits": Case(
        "digits 8x8", "digits", dataclasses.replace(PRESETS["digits_multi_resnet"], network=network(16, (2, 2))),
        700, 64, None,
    ),
    "fashion": Case(
        "Fashion-MNIST 28x28", "fashion_mnist",
        dataclasses.replace(PRESETS["fashion_multi_resnet"], network=network(4, (2, 2, 2))), 250, 8, 300,
    ),
}  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims of each set of images; quick: digits, one seed, 16 steps, few images, the frozen way only."""
    for name, case in CASES.items():
        if quick and name == "digits":
            whole = dataclasses.replace(case.whole, network=network(4, (2, 2)))
            yield from claims(name, case._replace(whole=whole, steps=16, draws=8, test=16), SEEDS[:1], WAYS[:2], quick)
        elif not quick:
            try:
                yield from claims(name, case, SEEDS, WAYS, quick)
            except DataMissingError as missing:
                print(f"staged: {case.words} is left out: {missing}", file=sys.stderr)


def claims(name: str, case: Case, seeds: tuple[int, ...], ways: tuple[str, ...], quick: bool) -> Iterator[Claim]:
    """Bits a pixel of each way, then what the staged ways gain."""
    data, _ = load(case.dataset, "train")
    test, _ = load(case.dataset, "test")
    whole, test = case.whole, test[: case.test]
    parts = {"direct": (whole,), "frozen": stages(whole), "learning": stages(whole, freeze=False)}
    coarse = parts["frozen"][:-1]
    cost = {way: [operations(spec) for spec in parts[way]] for way in ways}
    direct, budget = cost["direct"][0], case.steps * cost["direct"][0]
    steps = {"direct": [case.steps]}
    for way in ways[1:]:
        before = [round(COARSE * budget / len(coarse) / each) for each in cost[way][:-1]]
        left = budget - sum(n * each for n, each in zip(before, cost[way][:-1], strict=True))
        steps[way] = [*before, round(left / cost[way][-1])]
    found: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    for seed in seeds:
        for way in ways:
            fitted = train(parts[way], data, steps[way], seed)
            found[way].append(_bits(fitted, test, seed, case.draws))
            print(f"staged: {name}, {way}, seed {seed}: {found[way][-1].mean():.3f} bits/dim", file=sys.stderr)
    mean = {way: np.mean(values, axis=0) for way, values in found.items()}  # by image
    root = math.sqrt(len(test))
    detail = {
        "bits_per_dim_by_seed": {way: [float(v.mean()) for v in values] for way, values in found.items()},
        "standard_error_over_images": {way: float(v.std(ddof=1) / root) for way, v in mean.items()},
        "operations_per_step": cost,
        "operations_of_direct": direct,
        "steps": steps,
        "share_of_operations_at_coarse_levels": COARSE,
        "test_images": len(test),
    }
    for way in ways:
        yield Claim(
            name=f"{name}_{way}_bound",
            claim=f"{case.words}, Multi-ResNet, {TEXTS[way]}: held-out bound at the operations of {case.steps} direct "
            "steps",
            value=float(mean[way].mean()),
            unit="bits/dim",
            reference=f"standard error over images {mean[way].std(ddof=1) / root:.3f}, spread of seeds "
            f"{np.std([v.mean() for v in found[way]]):.3f}",
            seeds=seeds,
            detail=detail,
        )
    for way in ways[1:]:
        less = mean["direct"] - mean[way]
        by_seed = [float((a - b).mean()) for a, b in zip(found["direct"], found[way], strict=True)]
        yield Claim(
            name=f"{name}_{way}_gain",
            claim=f"the same, {TEXTS[way]}: gain over direct training, less two paired standard errors over images",
            value=float(less.mean() - 2 * less.std(ddof=1) / root),
            unit="bits/dim",
            target="> 0",
            reference=f"gain {less.mean():.3f}; by seed " + " ".join(f"{gain:.3f}" for gain in by_seed),
            if_missed="" if quick else MISSED[way],
            seeds=seeds,
            detail={
                "gain": float(less.mean()),
                "paired_standard_error": float(less.std(ddof=1) / root),
                "gain_by_seed": by_seed,
            },
        )


def train(parts: tuple[Diffusion, ...], data: np.ndarray, steps: list[int], seed: int) -> Any:
    """Train one stage after the other, each around the one before; the fit of the last."""
    start_key, data_key, coarse_key, fit_key = jax.random.split(jax.random.key(seed), 4)
    common: dict[str, Any] = {"batch_size": BATCH, "average": 0.99, "progress": False}
    program, last = parts[0].build(start_key), len(parts) - 1
    for j, (spec, count) in enumerate(zip(parts, steps, strict=True)):
        key = fit_key if j == last else jax.random.fold_in(coarse_key, j)
        x = data if j == last else coarsen(parts[-1], data, spec.shape, jax.random.fold_in(data_key, j))
        optimizer = learning(recipe(count), spec)
        fitted = fit(program, x, steps=count, key=key, optimizer=optimizer, **common)
        if j < last:
            program = grow(fitted.program, fitted.params, parts[j + 1], start_key)
    return fitted


TEXTS = {
    "direct": "trained at once",
    "frozen": "coarse to fine, coarse level frozen",
    "learning": "coarse to fine, all levels learning on",
}
MISSED = {
    "frozen": "likely: features of a coarse denoiser that no longer learns are not what the fine level would ask for",
    "learning": "likely: the table of grey levels and the fine level, which make most of the bits, start late",
}


def _bits(fitted: Any, test: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """Bits a pixel of each test image by the bound; the same noise for all ways."""
    program, params, spec = fitted.program, fitted.params, fitted.program.spec
    x = program.observation.prepare(jnp.asarray(test), jax.random.key(100 + seed), False)
    part = jax.jit(lambda key: bound(program, params, key, x, draws=draws // PARTS))
    keys = jax.random.split(jax.random.key(200 + seed), PARTS)
    nats = np.mean([np.asarray(part(key), float) for key in keys], axis=0)
    return math.log2(spec.levels) - nats / (math.prod(spec.shape) * math.log(2))
