"""How many nats does binary MNIST cost a hierarchy that half an hour on one CPU core can train?

The preset ``hvae:mnist``: a dense ladder, the image as one position.  Stochastic binarisation (Burda, Grosse &
Salakhutdinov 2016): a pixel is 1 with probability grey / 255, drawn anew at every training step; each test image is
drawn once, by a hash of its grey levels.  59,000 images to fit, 1,000 to choose the step by; log p(x) of all 10,000
test images by importance sampling, unrefined, and of the first 100 of them with ten times as many particles: with
more, the estimate can only rise in expectation.  Beside it a mixture of Bernoullis, fitted by EM to such draws.

``PPL_MODELS_DATA`` names the folder of mnist.npz.  A run that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.harness import HERE, Claim
from benchmarks.hvae_digits import mixture
from inference import evidence, fit, load
from ppl_models import datasets
from ppl_models.hvae import PRESETS
from ppl_models.hvae.training import mnist_training

SPEC = PRESETS["mnist"]
STEPS, BATCH, SEED = 32_000, 128, 0
PARTICLES, MORE, FIRST = 500, 5_000, 100
MIXED, COMPONENTS = 20_000, 200
"""Training images and components of the mixture."""


def data(quick: bool) -> dict[str, np.ndarray]:
    """Stored grey levels to fit, to choose by, to test."""
    if quick and not os.environ.get("PPL_MODELS_DATA"):
        # A quick run only sees that everything runs: any images of this size will do.
        rng = np.random.default_rng(0)
        train, test = (rng.integers(0, 256, (n, 28, 28)).astype("uint8") for n in (200, 20))
    else:
        train, _ = datasets.load("mnist", "train", n=200 if quick else None)
        test, _ = datasets.load("mnist", "test", n=20 if quick else None)
    kept = 40 if quick else 1_000
    return {"train": train[:-kept], "validation": train[-kept:], "test": test}


def trained(x: dict[str, np.ndarray], quick: bool) -> Any:
    """The fit: that of an earlier run, or one that continues where it ended, else a new one."""
    spec = dataclasses.replace(SPEC, width=16, dec="1x2") if quick else SPEC
    steps = 20 if quick else STEPS
    folder = HERE / "work" / ("hvae_mnist_quick" if quick else "hvae_mnist")
    begun = not quick and (folder / "run.json").is_file() and any((folder / "checkpoint").glob("*.npz"))
    if begun:
        earlier = load(folder)
        if earlier.info.get("stopped") == "steps" and earlier.program.spec == spec:
            return earlier
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return fit(
        spec.build(jax.random.key(SEED)), x["train"], steps=steps, batch_size=BATCH, key=jax.random.key(100 + SEED),
        validation=x["validation"], validate_every=max(1, steps // 40), checkpoint_every=max(1, steps // 20),
        out=folder, resume=begun, progress=not quick, **mnist_training(steps),
    )  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Yield the evidence of the test images, what more particles add, and the gain over a mixture."""
    x = data(quick)
    start = time.process_time()
    fitted = trained(x, quick)
    seconds = time.process_time() - start
    draws, more, first = (16, 32, 10) if quick else (PARTICLES, MORE, FIRST)
    table = evidence(fitted, x["test"], particles=draws, key=jax.random.key(9), refine="none", progress=not quick)
    log_px = table["log_px"].to_numpy()
    detail = {
        "step": fitted.info["best_step"], "steps": fitted.info["steps"], "parameters": fitted.info["parameters"],
        "epochs": fitted.info["steps"] * BATCH / len(x["train"]), "cpu_seconds_of_this_process": seconds,
        "fit_seconds": fitted.info["seconds"], "particles": draws, "test_images": len(log_px),
        "binarisation": "stochastic; test images drawn once, by a hash of their grey levels",
        "elbo": float(table["elbo"].mean()), "se_over_images": float(log_px.std(ddof=1) / np.sqrt(len(log_px))),
        "khat_above_0.7": float((~(table["khat"] <= 0.7)).mean()), "observation": table.attrs["observation"],
        "validation_elbo": fitted.info["best_validation"],
        "rates": {n: float(fitted.history[f"kl/{n}"].iloc[-1]) for n in fitted.program.latents},
    }  # fmt: skip
    yield Claim(
        "evidence", f"binary MNIST, {len(log_px):,} test images, half an hour on a core: -log p(x), {draws} particles",
        -log_px.mean(), "nats", target="" if quick else "<= 88", seeds=(SEED,), detail=detail,
        reference="86.76 and 85.33: one and two stochastic levels, 3,280 epochs, 5,000 particles (Burda et al. 2016, "
        "table 1, VAE); 81.74: five levels, 2,000 epochs (Sonderby et al. 2016)",
        if_missed="half an hour of one core is some seventy epochs of such a network; the references took thousands",
    )  # fmt: skip
    finer = evidence(
        fitted, x["test"][:first], particles=more, key=jax.random.key(10), refine="none", progress=not quick
    )
    gain = finer["log_px"].to_numpy() - log_px[:first]
    yield Claim(
        "more_particles", f"the same, first {first} test images: log p(x) with {more:,} particles less with {draws}",
        gain.mean(), "nats", seeds=(SEED,),
        detail={"log_px": float(finer["log_px"].mean()), "se": float(gain.std(ddof=1) / np.sqrt(first)),
                "khat_above_0.7": float((~(finer["khat"] <= 0.7)).mean())},
    )  # fmt: skip
    rng = np.random.default_rng(SEED)
    grey = x["train"][:MIXED].reshape(-1, 784)
    K, rounds = (5, 3) if quick else (COMPONENTS, 40)
    fitted_to = (255 * rng.random(grey.shape) < grey).astype(float)
    mixed = mixture(fitted_to, K, 1.0, SEED, rounds)
    scored = np.asarray(fitted.prepare(x["test"], jax.random.key(0)), float).reshape(-1, 784)
    paired = log_px - mixed.log_prob(scored)
    yield Claim(
        "over_mixture", f"the same: log p(x) less that of a mixture of {K} Bernoulli images, by EM",
        paired.mean(), "nats", target="" if quick else "> 0", seeds=(SEED,),
        detail={"mixture": float(mixed.log_prob(scored).mean()), "images_fitted_to": len(grey), "rounds": rounds,
                "se": float(paired.std(ddof=1) / np.sqrt(len(paired)))},
    )  # fmt: skip
