"""Does a U-Net whose levels correct the answer of the coarser U-Net learn faster, at equal steps?

Diffusion on scikit-learn's digits, a Multi-ResNet of two levels (8 x 8, 4 x 4) of equal width.  Three ways with the
same budget of steps:

    plain        decoders D_i(w | e), all levels from random weights
    residual     decoders repeat(w) + D_i(w | e), all levels from random weights
    trained      the same, after U_0 has learned the digits at 4 x 4 for an eighth of the steps; those steps, though an
                 eighth of the price, count

Denoising loss: minus the bound on held-out digits, eight noise levels an image, the same noise for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.harness import Claim
from inference import fit
from ppl_models.datasets import load
from ppl_models.diffusion import PRESETS, GuidedUNet, coarsen, grow, stages

SEEDS = (0, 1, 2, 3, 4)
STEPS = 256
SHARE = 8
"""The coarse network gets one step in so many."""
ARMS = ("plain", "residual", "trained")


def recipe() -> optax.GradientTransformation:
    """Adam, a short warm-up, then a constant rate: a run of half the steps is the first half of a run."""
    return optax.adam(optax.linear_schedule(0.0, 3e-3, 30), b2=0.99)


def losses(arm: str, seed: int, data: np.ndarray, held: np.ndarray, steps: int, quick: bool) -> dict[int, float]:
    """Held-out denoising loss in nats an image, by the number of steps that were spent."""
    preset = PRESETS["digits_multi_resnet"]
    network = GuidedUNet(4 if quick else 16, (2, 2), preconditioned=arm != "plain", coarse_heads=arm == "trained")
    spec = dataclasses.replace(preset, network=network)
    start_key, coarse_key, data_key, fit_key = jax.random.split(jax.random.key(seed), 4)
    before = steps // SHARE if arm == "trained" else 0
    common: dict[str, Any] = {"batch_size": 32, "progress": False}
    if before:
        first, spec = stages(spec, freeze=False)
        small = coarsen(spec, data, first.shape, data_key)
        coarse = fit(
            first.build(start_key), small, steps=before, key=coarse_key, optimizer=recipe(), average=0.98, **common
        )
        program = grow(coarse.program, coarse.params, spec, start_key)
    else:
        program = spec.build(start_key)
    every = steps // 2 - before  # of the steps that are left: the first validation is at half of the budget
    history = fit(
        program, data, steps=2 * every, key=fit_key, optimizer=recipe(), average=0.98, validation=held,
        validate_every=every, **common,
    ).history  # fmt: skip
    seen = [(int(row["step"]), float(row["validation_elbo"])) for row in _rows(history)]
    return {before + step: -value for step, value in seen if step}


def _rows(history: Any) -> list[dict[str, Any]]:
    """Rows of a history with a validation."""
    return [row for row in history.to_dict("records") if row["validation_elbo"] == row["validation_elbo"]]


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: one seed, 16 steps, few images."""
    seeds, steps = (SEEDS[:1], 16) if quick else (SEEDS, STEPS)
    data, _ = load("digits", "train")
    test, _ = load("digits", "test")
    held = np.repeat(test[:16] if quick else test, 2 if quick else 8, axis=0)
    arms = ARMS[:2] if quick else ARMS
    found = {arm: [losses(arm, seed, data, held, steps, quick) for seed in seeds] for arm in arms}
    half = {arm: [run[steps // 2] for run in runs] for arm, runs in found.items()}
    last = {arm: [run[max(run)] for run in runs] for arm, runs in found.items()}
    detail = {
        "loss_at_half": half,
        "loss_at_end": last,
        "steps_at_end": {arm: max(runs[0]) for arm, runs in found.items()},
        "unit": "nats an image, minus the denoising bound on held-out digits",
        "coarse_steps_of_trained": steps // SHARE,
        "steps": steps,
    }
    texts = {
        "trained": "preconditioned by a U-Net trained at 4 x 4 (its steps count)",
        "residual": "residual decoders alone, all from random weights",
    }
    for arm in arms[1:]:
        ahead = np.asarray(half["plain"]) - np.asarray(half[arm])
        yield Claim(
            name=f"{arm}_half",
            claim=f"digits, {texts[arm]}: seeds of {len(seeds)} with a lower denoising loss than the plain U-Net at "
            f"half of {steps} steps",
            value=float((ahead > 0).sum()),
            unit="seeds",
            target=f"== {len(seeds)}",
            if_missed="" if quick else MISSED[arm],
            seeds=seeds,
            detail=detail | {"ahead_by": ahead, "mean_ahead_by": float(ahead.mean())},
        )


MISSED = {
    "residual": "likely: the skips of the blocks hand the repeated coarse answer on already, so the plain decoder is a "
    "correction, too",
    "trained": "likely: at so few steps the fine level is what lacks training, and the coarse steps count in full",
}
