"""A fully connected network of a noisy datum and its noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from ppl_models.networks.time_embedding import ClassEmbedding, TimeEmbedding, embed


class ScoreMLP(nnx.Module):
    """(x, l) -> (batch, *shape, outputs): residual blocks ``h + W_2 silu((1 + a(l)) * (W_1 h) + b(l))``.

    ``l = log(sigma / alpha)`` of each datum, (batch,).  The last layer starts at zero, so the output does.  With
    ``classes`` it also reads a label of each datum, (batch,), -1 or none for no class.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 1,
        *,
        width: int = 128,
        depth: int = 2,
        embedding: int = 64,
        classes: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.shape, self.outputs = tuple(shape), outputs
        size = math.prod(self.shape)
        self.time = TimeEmbedding(embedding, rngs=rngs)
        self.classes = None if classes is None else ClassEmbedding(classes, embedding, rngs=rngs)
        self.lift = nnx.Linear(size, width, rngs=rngs)
        self.first = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.modulate = nnx.List([nnx.Linear(embedding, 2 * width, rngs=rngs) for _ in range(depth)])
        self.second = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        zero = nnx.initializers.zeros_init()
        self.head = nnx.Linear(width, size * outputs, kernel_init=zero, rngs=rngs)

    def __call__(
        self, x: Float[Array, " batch *shape"], level: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, " batch *shape_outputs"]:
        e = embed(self.time, self.classes, level, label)
        h = self.lift(x.reshape(x.shape[0], -1))
        for first, modulate, second in zip(self.first, self.modulate, self.second, strict=True):
            a, b = jax.numpy.split(modulate(e), 2, axis=-1)
            h = h + second(jax.nn.silu((1 + a) * first(h) + b))
        return self.head(jax.nn.silu(h)).reshape(x.shape[0], *self.shape, self.outputs)
