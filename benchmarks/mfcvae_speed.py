"""What does a training step of the published multi-facet networks cost, by itself and over the hand-written one?

The convolutional ladder of SVHN (32x32x3, 22 + 7 dimensions, 200 + 50 full mixtures, batch 150; layer norm where the
paper norms batches) and the dense ladder of MNIST (784-500-2000, 5 + 5 dimensions, 25 + 25 diagonal mixtures, batch
512).  As in ``svi_overhead``, the same loss is written by hand in JAX and Optax around the same networks, the two
losses and their gradients are found to agree, and the two steps are timed in turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

import numpy as np
import optax
from jax import Array

from benchmarks._by_hand import Case, agreement, facets, gaussian_pixels, steps_of
from benchmarks.harness import Claim, interleaved_cpu_time
from ppl_models.mfcvae import MFCVAE, ConvLadder, Facet, GreyBernoulli, MLPLadder, Normal


def _images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2048, *shape)).astype("uint8")


def _cross_entropy(x: Array, decoded: Array) -> Array:
    return -optax.sigmoid_binary_cross_entropy(decoded, x)


def convolutional(quick: bool) -> Case:
    """The network of SVHN, its published mixtures and its fixed, uniform weights."""
    facet, deep = Facet("shallow", 22, 200, "full"), Facet("deep", 7, 50, "full")
    spec = MFCVAE(
        facets=(Facet("shallow", 2, 3, "full"),) if quick else (facet, deep),
        shape=(8, 8, 3) if quick else (32, 32, 3),
        likelihood=Normal(sigma=0.3),
        network=ConvLadder((4,), norm="none") if quick else ConvLadder(),
        learn_weights=False,
    )
    return facets("convolutional ladder", spec, _images(*spec.shape), 1, gaussian_pixels(0.3))


def dense(quick: bool) -> Case:
    """The network of MNIST."""
    spec = MFCVAE(
        facets=(Facet("shallow", 5, 25), Facet("deep", 5, 25)),
        shape=(28, 28),
        likelihood=GreyBernoulli(),
        network=MLPLadder((32, 64) if quick else (500, 2000)),
    )
    return facets("dense ladder", spec, _images(*spec.shape), 4, _cross_entropy)


CASES = {"conv": (convolutional, 150, 1010), "mlp": (dense, 512, 144)}
"""Builder, published batch size, and milliseconds a step of the original in PyTorch (one thread, another machine)."""


def run(quick: bool) -> Iterable[Claim]:
    """Yield, for each network, the ratio of CPU time a step and the milliseconds of it."""
    for name, (build, batch, original) in CASES.items():
        case, batch = build(quick), 16 if quick else batch
        # One key at a time: a gradient for each of several keys at once would be a grouped convolution.
        equal = {} if quick and name == "mlp" else agreement(case, keys=8 if quick else 32, chunk=1)
        steps = 10 if quick else case.steps
        spent = interleaved_cpu_time(steps_of(case, batch), rounds=3 if quick else 31, steps=steps)
        ratios = [f / h for f, h in zip(spent["fit"].rounds, spent["hand"].rounds, strict=True)]
        detail = {
            "parameters": case.program.parameter_count,
            "hand_ms": 1e3 * spent["hand"].least,
            "fit_ms": 1e3 * spent["fit"].least,
            "ratio_of_least": spent["fit"].least / spent["hand"].least,
            "agreement": equal,
        }
        what = f"{case.title}, batch {batch}, {'x'.join(map(str, case.program.shape))}"
        yield Claim(
            name=f"{name}_ratio",
            claim=f"CPU time of a fit's step over the hand-written one, {what}",
            value=median(ratios),
            unit="ratio",
            target="<= 1.05",
            seeds=(0, 1),
            detail=detail,
        )
        yield Claim(
            name=f"{name}_ms",
            claim=f"CPU time of a fit's step, {what}",
            value=1e3 * spent["fit"].median,
            unit="ms",
            reference=f"the original in PyTorch, one thread of another machine: {original} ms",
            seeds=(0, 1),
            detail=detail,
        )
