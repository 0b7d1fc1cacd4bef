"""Draws the picture of the README: two clusterings of the same images, and an exchange of one facet.

    python examples/readme_picture.py docs/facets.png      (about five minutes on two cores; seed 0)

The images are procedural: a shape on a coloured floor, at any angle and place.  The model sees no label.
"""

import sys
from typing import Any

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from inference import fit, tune_runtime
from ppl_models.datasets import load
from ppl_models.mfcvae import PRESETS, assign, swap, top_examples

ROWS, ACROSS, PAIRS = 5, 7, 5


def strip(axis: Any, images: np.ndarray, title: str) -> None:
    """Images (rows, columns, height, width, 3) as one picture without a frame."""
    rows, columns, height, width = images.shape[:4]
    tiled = images.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    axis.imshow(np.clip(tiled, 0, 1), interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def main(path: str) -> None:
    tune_runtime()
    (x, _), (test, _) = load("facets_a"), load("facets_a", "test", n=2000)
    key = jax.random.key(0)
    fitted = fit(PRESETS["facets"].build(key), x, steps=4000, learning_rate=2e-3, key=key)
    grouped = assign(fitted, test, key=key)
    images = np.asarray(test) / 255.0
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", width_ratios=(ACROSS, ACROSS, 4))
    for axis, facet in zip(axes, ("shape", "floor"), strict=False):
        members = top_examples(grouped[facet].probabilities, ACROSS)
        full = [index for index in members.values() if len(index) == ACROSS][:ROWS]
        strip(axis, np.stack([images[index] for index in full]), f"clusters of facet {facet!r}, one a row")
    pairs = swap(fitted, test[:PAIRS], test[PAIRS : 2 * PAIRS], "floor")
    parts = [np.asarray(part.x) for part in (pairs.a, pairs.b, pairs.a_swapped, pairs.b_swapped)]
    strip(axes[2], np.stack(parts, 1), "a, b, and their floors exchanged")
    figure.savefig(path, dpi=100)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])
