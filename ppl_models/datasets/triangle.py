"""Digits on a triangle: scikit-learn's digits as fields of a triangle's cells, laid out on a square by address."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ppl_models.datasets.describe import Info
from ppl_models.datasets.packaged import Digits, Loaded, Root


@dataclass(frozen=True)
class TriangleDigits:
    """The digits, each in the square at the right angle of a triangle of 16 pixels a side, which it just fits.

    The triangle's 4^4 = 256 cells stand at the pixel of equal address of a 16 x 16 square
    (``function_spaces.to_square``): 2 x 2 pooling there is the mean over the parent cell of the triangle.  No pixel is
    resampled, none is lost: ``function_spaces.from_square(TRIANGLE, x)[:, :8, :8]`` is the digit.
    """

    name: str = "triangle_digits"

    def info(self, root: Root = None) -> Info:
        """What the catalogue says of the set."""
        return replace(
            Digits().info(root),
            name=self.name,
            shape=(16, 16),
            description="the digits on a triangle of 256 cells, laid out on a 16x16 square, grey 0..16",
        )

    def read(self, split: str, n: int | None, seed: int, root: Root = None) -> Loaded:
        """Load one split: the same digits in the same order as ``digits``."""
        import jax.numpy as jnp

        from ppl_models.function_spaces import TRIANGLE, to_square

        digits, factors = Digits().read(split, n, seed, root)
        images = jnp.asarray(np.pad(digits, ((0, 0), (0, 8), (0, 8))))
        return np.array(to_square(TRIANGLE, images)), factors
