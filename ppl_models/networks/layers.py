"""An image as layers: an object over a background, each with a latent block of its own.

The decoder composes ``f = a o + (1 - a) b`` pixel by pixel: ``a`` in (0, 1) the object's coverage, ``o`` and ``b`` one
colour each for the object and for the background.  A latent block that can change only a colour cannot tell of shapes,
so blocks divide the factors of such images among themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.networks.mlp import Activation, Stack


class Colour(nnx.Module):
    """z -> one value a channel, the same at every pixel: (batch, 1, 1, C)."""

    def __init__(
        self, dim: int, widths: Sequence[int], channels: int, activation: Activation, *, rngs: nnx.Rngs
    ) -> None:
        self.stack = Stack(dim, widths, activation, rngs=rngs)
        self.out = nnx.Linear(self.stack.width, channels, rngs=rngs)

    def __call__(self, z: Float[Array, "batch dim"]) -> Float[Array, "batch 1 1 channel"]:
        return self.out(self.stack(z))[:, None, None, :]


class LayersDecoder(nnx.Module):
    """``f = a(z_coverage) o(z_colour) + (1 - a(z_coverage)) b(z_background)``, every z scaled by its fade.

    Three blocks: (background, colour, coverage).  Two: (background, coverage), and ``o`` is one learnt colour.  With a
    colour that depends on the coverage's block, that block could tell of the background too, by covering it.
    ``a`` is the sigmoid of an MLP's output (batch, H, W, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        dims: Sequence[int],
        activation: Activation,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.shape = tuple(shape)
        H, W, channels = (*shape, 1)[:3]
        self.background = Colour(dims[0], widths[:1], channels, activation, rngs=rngs)
        one = len(dims) == 2
        self.colour: nnx.Param[Array] | Colour = (
            nnx.Param(jnp.zeros(channels)) if one else Colour(dims[1], widths[:1], channels, activation, rngs=rngs)
        )
        self.mask = Stack(dims[-1], widths, activation, rngs=rngs)
        small = nnx.initializers.constant(-3.0)  # so the object starts, see start_colours
        self.out = nnx.Linear(self.mask.width, H * W, bias_init=small, rngs=rngs)

    def __call__(self, zs: Sequence[Float[Array, "batch _"]], fades: Sequence[Any]) -> Float[Array, "batch ..."]:
        zs = [fade * z for fade, z in zip(fades, zs, strict=True)]
        H, W = self.shape[:2]
        a = jax.nn.sigmoid(self.out(self.mask(zs[-1]))).reshape(-1, H, W, 1)
        colour = self.colour[...] if isinstance(self.colour, nnx.Param) else self.colour(zs[1])
        f = self.background(zs[0]) * (1 - a) + colour * a
        return f.reshape(-1, *self.shape)


def start_colours(
    parameters: Mapping[str, Any], x: Float[Array, "n H W C"], decoded: Callable[[Array], Array]
) -> dict[str, Any]:
    """Parameters of a :class:`LayersDecoder` whose object and background begin in colours of the data.

    In each image the background is the half of the pixels that is nearest to the mean colour, the object the 5 % that
    is farthest from it; colours are averaged over images.  ``decoded`` maps a colour to the decoder's scale.  Started
    anywhere else, most runs exchange the two: the background is what covers, and coverage tells of its colour.
    """
    n, channels = x.shape[0], x.shape[-1]
    pixels = x.reshape(n, -1, channels)
    order = jnp.argsort(((pixels - pixels.mean(1, keepdims=True)) ** 2).sum(-1), axis=1)
    ranked = jnp.take_along_axis(pixels, order[..., None], axis=1)
    count = pixels.shape[1]
    background = decoded(ranked[:, : count // 2].mean((0, 1)))
    colour = decoded(ranked[:, -max(1, count // 20) :].mean((0, 1)))

    def biased(layer: Mapping[str, Any], bias: Array) -> dict[str, Any]:
        return {**layer, "out": {**layer["out"], "bias": bias}}

    old = parameters["colour"]
    return {
        **parameters,
        "background": biased(parameters["background"], background),
        "colour": biased(old, colour) if isinstance(old, Mapping) else colour,
    }
