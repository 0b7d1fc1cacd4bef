"""How a network is told the noise level, and a class."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

LARGEST = 8.0
"""Log noise-to-signal ratios are clipped to +-8: beyond them x is the datum, or noise, to three digits."""


def fourier_features(level: Float[Array, " batch"], size: int) -> Float[Array, "batch size"]:
    """``[sin(w_k l), cos(w_k l)]`` of a log ratio ``l`` in [-8, 8], ``w_k`` geometric from 2 pi / 64 to 2 pi / 2."""
    frequencies = 2 * math.pi * jnp.geomspace(1 / 64, 1 / 2, size // 2, dtype=level.dtype)
    angles = level[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """``silu(W_2 silu(W_1 fourier(l)))`` of ``l = log(sigma / alpha)``: (batch,) -> (batch, width)."""

    def __init__(self, width: int, *, features: int = 32, rngs: nnx.Rngs) -> None:
        if features < 2 or features % 2:
            raise ValueError(f"features must be an even number >= 2 (pairs of sine and cosine), got {features}")
        self.features = features
        self.first = nnx.Linear(features, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, level: Float[Array, " batch"]) -> Float[Array, "batch width"]:
        clipped = jnp.clip(level, -LARGEST, LARGEST)
        return jax.nn.silu(self.second(jax.nn.silu(self.first(fourier_features(clipped, self.features)))))


class ClassEmbedding(nnx.Module):
    """A vector for each of ``classes`` classes, and a last one for none: (batch,) -> (batch, width).

    Label -1 stands for no class.  All start at zero: a new network does not know of classes.
    """

    def __init__(self, classes: int, width: int, *, rngs: nnx.Rngs) -> None:
        del rngs
        self.table = nnx.Param(jnp.zeros((classes + 1, width)))

    def __call__(self, label: Int[Array, " batch"]) -> Float[Array, "batch width"]:
        return self.table[...][label]


def embed(time: TimeEmbedding, classes: ClassEmbedding | None, level: Array, label: Array | None) -> Array:
    """What a network reads of noise level and class; without a ``label`` that of no class."""
    e = time(level)
    if classes is None:
        if label is not None:
            raise ValueError("this network was built without classes and takes no label; build it with classes=N")
        return e
    return e + classes(jnp.full(level.shape, -1) if label is None else label)
