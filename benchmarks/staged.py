"""Is training a U-Net coarse to fine better than training it at once, for the same floating-point operations?

Diffusion on scikit-learn's digits, a Multi-ResNet of two levels (8 x 8, 4 x 4).  Direct: all steps at 8 x 8.  Staged: a
tenth of the operations at 4 x 4, the rest at 8 x 8 with the coarse level frozen, or learning on.  Operations are those
of the gradient of the training loss, counted by XLA before optimisation.  Bits a pixel of the 297 test digits: the
denoising bound, as in ``diffusion_digits``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from benchmarks.diffusion_digits import bits, recipe
from benchmarks.harness import Claim
from inference import fit
from ppl_models.datasets import load
from ppl_models.diffusion import PRESETS, Diffusion, GuidedUNet, bound, coarsen, grow, learning, stages

SEEDS = (0, 1, 2)
STEPS = 700
BATCH = 32
COARSE = 0.1
"""Share of the operations that go to the coarse level."""
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


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: one seed, 16 steps, few images, the frozen way only."""
    seeds, total, draws = (SEEDS[:1], 16, 8) if quick else (SEEDS, STEPS, 64)
    data, _ = load("digits", "train")
    test, _ = load("digits", "test")
    test = test[:16] if quick else test
    ways = WAYS[:2] if quick else WAYS
    whole = dataclasses.replace(
        PRESETS["digits_multi_resnet"], network=GuidedUNet(4 if quick else 16, (2, 2), preconditioned=True)
    )
    first, fine_frozen = stages(whole)
    fine = stages(whole, freeze=False)[1]
    specs = {"direct": whole, "frozen": fine_frozen, "learning": fine}
    cost = {"coarse": operations(first)} | {way: operations(specs[way]) for way in ways}
    budget = total * cost["direct"]
    before = round(COARSE * budget / cost["coarse"])
    left = budget - before * cost["coarse"]
    steps = {"coarse": before} | {way: total if way == "direct" else round(left / cost[way]) for way in ways}
    common: dict[str, Any] = {"batch_size": BATCH, "average": 0.99, "progress": False}
    found: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    for seed in seeds:
        start_key, data_key, coarse_key, fit_key = jax.random.split(jax.random.key(seed), 4)
        coarse = fit(
            first.build(start_key), coarsen(whole, data, first.shape, data_key), steps=before, key=coarse_key,
            optimizer=recipe(before), **common,
        )  # fmt: skip
        for way in ways:
            spec, count = specs[way], steps[way]
            program = spec.build(start_key) if way == "direct" else grow(coarse.program, coarse.params, spec, start_key)
            fitted = fit(program, data, steps=count, key=fit_key, optimizer=learning(recipe(count), spec), **common)
            found[way].append(_bits(fitted, test, seed, draws))
    mean = {way: np.mean(values, axis=0) for way, values in found.items()}  # by image
    root = math.sqrt(len(test))
    detail = {
        "bits_per_dim_by_seed": {way: [float(v.mean()) for v in values] for way, values in found.items()},
        "standard_error_over_images": {way: float(v.std(ddof=1) / root) for way, v in mean.items()},
        "operations_per_step": cost,
        "steps": steps,
        "share_of_operations_at_4x4": COARSE,
        "baselines_of": "diffusion_digits/bound",
    }
    for way in ways:
        yield Claim(
            name=f"{way}_bound",
            claim=f"digits, Multi-ResNet, {TEXTS[way]}: held-out bound at the operations of {total} direct steps",
            value=float(mean[way].mean()),
            unit="bits/dim",
            seeds=seeds,
            detail=detail,
        )
    for way in ways[1:]:
        less = mean["direct"] - mean[way]
        yield Claim(
            name=f"{way}_gain",
            claim=f"the same, {TEXTS[way]}: gain over direct training, less two paired standard errors over images",
            value=float(less.mean() - 2 * less.std(ddof=1) / root),
            unit="bits/dim",
            target="> 0",
            if_missed="" if quick else MISSED[way],
            seeds=seeds,
            detail={
                "gain": float(less.mean()),
                "paired_standard_error": float(less.std(ddof=1) / root),
                "gain_by_seed": [float((a - b).mean()) for a, b in zip(found["direct"], found[way], strict=True)],
            },
        )


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
    program, params = fitted.program, fitted.params
    x = program.observation.prepare(jnp.asarray(test), jax.random.key(100 + seed), False)
    return bits(jax.jit(lambda key: bound(program, params, key, x, draws=draws))(jax.random.key(200 + seed)))
