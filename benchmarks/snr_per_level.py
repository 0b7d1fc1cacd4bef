"""Does noise drown the fine resolutions of images first, and do they follow one another at equal steps?

Images in [-1, 1], padded with the background to a power of two, mean image removed, and split into Haar levels, which
is an isometry: noise of standard deviation sigma has it in every coefficient, so SNR_j = (alpha / sigma)^2 E d_j^2, and
level j is drowned at l_j = log(sigma / alpha) = log(E d_j^2) / 2.  The law: energies fall geometrically, so l_j is a
line in j.  Measured: the slope of that line with a bootstrap interval over images, and the share of variance that a
line explains.  Beside it: the slope of a 1/f^2 spectrum, -log 2 = -0.69 a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Claim
from ppl_models.datasets import DataMissingError, load
from ppl_models.function_spaces import level_energies, project_image, slope

SETS = {"digits": "scikit-learn's digits, 8x8", "fashion_mnist": "Fashion-MNIST, padded to 32x32",
        "mnist": "MNIST, padded to 32x32", "cifar10_png4k": "CIFAR-10 grey, 32x32"}  # fmt: skip
TITLES = {"cifar10_png4k": "cifar10_grey"}
IMAGES = 10_000
DRAWS = 2000
ONE_OVER_F = -math.log(2)


def images(name: str, n: int) -> np.ndarray:
    """The first images of a set's training split, in [-1, 1], (n, side, side, 1)."""
    x, _ = load(name)
    x = x[:n].astype("f4")
    if x.ndim == 4:
        x = x @ np.array([0.299, 0.587, 0.114], "f4")  # luminance
    x = 2 * x / (16 if name == "digits" else 255) - 1
    side = 1 << (x.shape[1] - 1).bit_length()
    pad = (side - x.shape[1]) // 2
    return np.pad(x, ((0, 0), (pad, pad), (pad, pad)), constant_values=-1)[..., None]


def energies(x: np.ndarray, levels: int) -> np.ndarray:
    """``d_j^2`` a coefficient of each image, (n, levels), coarse to fine."""
    each = jax.jit(jax.vmap(lambda image: level_energies(image[None], levels)))
    return np.concatenate([np.asarray(each(jnp.asarray(x[i : i + 1000]))) for i in range(0, len(x), 1000)])


def crossings(found: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """l_j of all images (first row) and of ``draws`` bootstrap samples."""
    rng = np.random.default_rng(seed)
    weights = np.stack([rng.multinomial(len(found), np.full(len(found), 1 / len(found))) for _ in range(draws)])
    means = np.concatenate([found.mean(0, keepdims=True), weights @ found / len(found)])
    return 0.5 * np.log(means)


def isometry(n: int) -> Claim:
    """Noise keeps its variance in every band, and pooling k times leaves standard deviation 2^-k."""
    noise = np.random.default_rng(0).normal(size=(n, 32, 32, 1)).astype("f4")
    bands = energies(noise, 5).mean(0)
    pooled = [float(np.asarray(project_image(jnp.asarray(noise), k)).std()) for k in range(5)]
    counts = n * 3 * 4 ** np.arange(5)
    return Claim(
        name="noise_isometry",
        claim="white noise in five Haar levels of 32x32 images: variance of a coefficient, largest |error| in s.e.",
        value=float(np.max(np.abs(bands - 1) / np.sqrt(2 / counts))),
        unit="s.e.",
        target="<= 3.5",
        seeds=(0,),
        detail={
            "variance_coarse_to_fine": bands,
            "pooled_std": pooled,
            "pooled_std_exact": [2.0**-k for k in range(5)],
        },
    )


def run(quick: bool) -> Iterator[Claim]:
    """The noise's isometry, then two claims for each data set that is on this machine."""
    yield isometry(200 if quick else 4000)
    for name, words in SETS.items():
        try:
            x = images(name, 500 if quick else IMAGES)
        except DataMissingError:
            continue
        levels = int(math.log2(x.shape[1]))
        found = energies(x - x.mean(0, keepdims=True), levels)
        rows = crossings(found, 200 if quick else DRAWS, seed=0)
        line = slope(rows)
        # The coarsest coefficients are few and depend on how the images are framed: the fine levels by themselves, too.
        fine = slope(rows[:, max(0, levels - 3) :])
        mean = found.mean(0)
        ratios = mean[:-1] / mean[1:]
        drawn = np.exp(2 * (rows[1:, :-1] - rows[1:, 1:]))
        detail = {
            "images": len(x),
            "energy_coarse_to_fine": mean,
            "ratios_coarse_to_fine": ratios,
            "ratios_low": np.quantile(drawn, 0.025, axis=0),
            "ratios_high": np.quantile(drawn, 0.975, axis=0),
            "slope": line._asdict(),
            "slope_three_finest": fine._asdict(),
            "share_of_draws_in_order": float((np.diff(rows[1:, max(0, levels - 3) :], axis=1) < 0).all(1).mean()),
        }
        title = TITLES.get(name, name)
        yield Claim(
            name=f"{title}_slope",
            claim=f"{words}: slope of the noise level that drowns a Haar level, three finest levels, "
            f"95 % interval {fine.low:.3f} to {fine.high:.3f}",
            value=fine.value,
            unit="nats/level",
            target="< 0",
            seeds=(0,),
            reference=f"a 1/f^2 spectrum: {ONE_OVER_F:.3f}",
            detail=detail,
        )
        yield Claim(
            name=f"{title}_linear",
            claim=f"{words}: share of the variance of these noise levels that one line explains, all {levels} levels",
            value=line.r_squared,
            unit="R^2",
            target=">= 0.95",
            seeds=(0,),
            if_missed="energies grow more slowly, or fall, towards the coarsest levels: centred objects on an even "
            "ground have little left there once the mean image is removed; the order of the fine levels holds",
            detail=detail,
        )
