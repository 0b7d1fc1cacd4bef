"""Noisy pictures of one shape, and the mask of the shape: a segmentation task with a known answer, from a seed.

Canvas [0, 1]^2.  A shape is an ellipse (half axes .12 to .3, any angle) or a polygon of 3 to 7 corners c, at
angles 2 pi (i + .4 U(0, 1)) / c and distances of .15 to .35 from its centre; centres lie in [.3, .7]^2.  The picture is

    x = background + slope . (position - 1/2) + contrast * coverage + noise

with the background .2 to .5, a slope of up to .3 a side, a contrast of .3 to .6 in size and of either sign, and noise
N(0, .25^2) a pixel.  ``coverage`` is the share of a pixel inside the shape, by 4 x 4 points; the mask, coverage >= 1/2.
"""

from __future__ import annotations

import numpy as np

NOISE, FINE = 0.25, 4


def draw_masks(rng: np.random.Generator, n: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (n, side, side) float32, masks (n, side, side) uint8, and 1 where the shape is a polygon."""
    at = (np.arange(side * FINE) + 0.5) / (side * FINE)
    u, v = at[None, :, None], at[None, None, :]
    centre = rng.uniform(0.3, 0.7, (2, n, 1, 1))
    polygon = rng.integers(2, size=n)
    half, angle = rng.uniform(0.12, 0.3, (2, n, 1, 1)), rng.uniform(0, np.pi, (n, 1, 1))
    du, dv = u - centre[0], v - centre[1]
    along, over = np.cos(angle) * du + np.sin(angle) * dv, np.cos(angle) * dv - np.sin(angle) * du
    inside = (along / half[0]) ** 2 + (over / half[1]) ** 2 <= 1
    for i in range(n):
        corners = rng.integers(3, 8)
        turns = 2 * np.pi * (np.arange(corners) + rng.uniform(0, 0.4, corners)) / corners
        reach = rng.uniform(0.15, 0.35, corners)
        if polygon[i]:
            inside[i] = _in_polygon(du[i], dv[i], reach * np.cos(turns), reach * np.sin(turns))
    coverage = inside.reshape(n, side, FINE, side, FINE).mean((2, 4))
    level, contrast = rng.uniform(0.2, 0.5, (n, 1, 1)), rng.uniform(0.3, 0.6, (n, 1, 1))
    sign, slope = rng.choice([-1.0, 1.0], (n, 1, 1)), rng.uniform(-0.3, 0.3, (2, n, 1, 1))
    middle = (np.arange(side) + 0.5) / side - 0.5
    ground = level + slope[0] * middle[:, None] + slope[1] * middle[None, :]
    picture = ground + sign * contrast * coverage + rng.normal(0, NOISE, coverage.shape)
    return picture.astype("f4"), (coverage >= 0.5).astype(np.uint8), polygon


def _in_polygon(u: np.ndarray, v: np.ndarray, corner_u: np.ndarray, corner_v: np.ndarray) -> np.ndarray:
    """Whether points lie inside: a ray to the right crosses an odd number of edges."""
    inside = np.zeros(np.broadcast_shapes(u.shape, v.shape), bool)
    for a, b, c, d in zip(corner_u, corner_v, np.roll(corner_u, 1), np.roll(corner_v, 1), strict=True):
        spans = (b > v) != (d > v)
        inside ^= spans & (u < a + (c - a) * (v - b) / np.where(d == b, 1.0, d - b))
    return inside
