"""Images of 14x14 for the studies of convolutional hierarchies on a CPU, and how a difference of models is stated."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from benchmarks.harness import Claim
from benchmarks.hvae_digits import mixture
from ppl_models import datasets

TEST = 1_000
MIXED, COMPONENTS, ROUNDS = 10_000, 100, 40


def small_images(quick: bool) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, training and test images (n, 14, 14), 256 grey levels: means over 2x2 pixels of Fashion-MNIST, or MNIST."""
    if datasets.info("fashion_mnist").available():
        name = "fashion_mnist"
    elif os.environ.get("PPL_MODELS_DATA") or not quick:
        name = "mnist"
    else:
        # A quick run only sees that everything runs: any images of this size will do.
        rng = np.random.default_rng(0)
        train, test = (rng.integers(0, 256, (n, 14, 14)).astype("uint8") for n in (200, 20))
        return "noise", train, test
    train, _ = datasets.load(name, "train", n=200 if quick else None)
    test, _ = datasets.load(name, "test", n=20 if quick else TEST)
    return name, pooled(train), pooled(test)


def pooled(x: np.ndarray) -> np.ndarray:
    """Means over 2x2 pixels, rounded to grey levels."""
    n, H, W = x.shape
    return np.round(x.reshape(n, H // 2, 2, W // 2, 2).mean((2, 4))).astype("uint8")


def of_mixture(train: np.ndarray, test: np.ndarray, quick: bool) -> np.ndarray:
    """log p of each test image, black and white, under a mixture of Bernoulli images fitted by EM."""
    black = [(x.reshape(len(x), -1) > 127.5).astype(float) for x in (train[:MIXED], test)]
    found = mixture(black[0], 5 if quick else COMPONENTS, 1.0, 0, 3 if quick else ROUNDS)
    return found.log_prob(black[1])


def gain(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Mean over data of a - b, (seeds, data) each, its standard error over seeds and over data, nats; and by seed."""
    difference = a - b
    by_seed, by_datum = difference.mean(1), difference.mean(0)
    return {
        "gain": float(difference.mean()),
        "se_seeds": float(by_seed.std(ddof=1) / np.sqrt(len(by_seed))) if len(by_seed) > 1 else None,
        "se_data": float(by_datum.std(ddof=1) / np.sqrt(len(by_datum))),
        "by_seed": by_seed.tolist(),
    }


def said(found: dict[str, Any]) -> str:
    """A gain by seed and its errors, in words."""
    seeds = " ".join(f"{value:+.2f}" for value in found["by_seed"])
    error = "" if found["se_seeds"] is None else f"; s.e. over seeds {found['se_seeds']:.2f}"
    return f"by seed {seeds}{error}; over data {found['se_data']:.2f}"


def over_mixture(
    title: str, elbo: np.ndarray, data: tuple[np.ndarray, np.ndarray], seeds: tuple[int, ...], quick: bool
) -> Claim:
    """ELBOs (seeds, images) beside log p(x) of a mixture of Bernoulli images fitted to the same data."""
    mixed = of_mixture(*data, quick)
    gained = gain(elbo, np.broadcast_to(mixed, elbo.shape))
    return Claim(
        "over_mixture", f"{title} less log p(x) of a mixture of Bernoulli images", gained["gain"], "nats", seeds=seeds,
        reference=said(gained), detail={"gain": gained, "mixture": float(mixed.mean())},
    )  # fmt: skip
