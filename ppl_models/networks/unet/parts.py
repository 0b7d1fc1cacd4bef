"""Encoders, projections, decoders and bottlenecks to put into a :class:`UNetOperator`, for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.function_spaces.images import details
from ppl_models.networks.separable import Image, SeparableConv, lax_convolution, pool, upsample

Out = Float[Array, "batch height width c_out"]
Coarse = Float[Array, "batch half_height half_width c_coarse"]


def tile(v: Image, channels: int) -> Out:
    """Channels repeated, ``out[c] = v[c mod C]``, to ``channels`` of them."""
    times = -(-channels // v.shape[-1])
    return jnp.tile(v, (1, 1, 1, times))[..., :channels]


class Tile(nnx.Module):
    """``v`` with its channels repeated: images into a space of more channels, without parameters."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, v: Image, c: Any = None) -> Out:
        return tile(v, self.channels)


class Blocks(nnx.Module):
    """Blocks ``(h, c) -> h`` one after another."""

    def __init__(self, blocks: Sequence[nnx.Module]) -> None:
        self.blocks = nnx.List(blocks)

    def __call__(self, h: Image, c: Any = None) -> Out:
        for block in self.blocks:
            h = block(h, c)
        return h


class Pool(nnx.Module):
    """``P``: the mean over 2 x 2 pixels (the orthogonal projection to V_i), then ``change`` of the channels.

    ``change`` is ``None``, a module such as a 1 x 1 convolution, or :class:`Tile`, as in a Multi-ResNet.
    """

    def __init__(self, change: nnx.Module | None = None) -> None:
        self.change = change

    def __call__(self, e: Image) -> Coarse:
        if e.shape[1] % 2 or e.shape[2] % 2:
            raise ValueError(
                f"pooling halves height and width, got an image of {e.shape[1]} x {e.shape[2]} pixels; use fewer "
                "levels, or pad the images to a multiple of 2^levels"
            )
        h = pool(e)
        return h if self.change is None else self.change(h)


class PoolNoise(nnx.Module):
    """``P`` of a noisy image that is a noisy image again: pooled, scaled back, its noise level lowered to match.

    Pooling ``alpha x_0 + sigma eps`` over 2 x 2 pixels halves the noise: ``alpha P x_0 + (sigma / 2) eps'``.  Divided
    by ``c = sqrt(alpha^2 + sigma^2 / 4)`` it is variance preserving again, ``l = log(sigma / alpha)`` lower by log 2.
    So a coarse level inside a finer network reads what it reads as a network of its own.  ``change`` as in
    :class:`Pool`.
    """

    def __init__(self, change: nnx.Module | None = None) -> None:
        self.pool = Pool(change)

    def carry(self, e: Image, level: Float[Array, " batch"]) -> tuple[Coarse, Float[Array, " batch"]]:
        """``(P e / c, l - log 2)`` at ``level`` l, one a datum."""
        # c^2 = alpha^2 + sigma^2 / 4 with alpha^2 = sigmoid(-2 l)
        c = jnp.sqrt(0.25 + 0.75 * jax.nn.sigmoid(-2 * level))
        return self.pool(e) / c[:, None, None, None], level - math.log(2)

    def __call__(self, e: Image) -> Coarse:
        raise ValueError("PoolNoise needs the noise level: use carry(e, level), or Pool for images without noise")


class Stride(nnx.Module):
    """``P``: a learned 3 x 3 convolution of stride 2, pixel 2 i in the middle of its window."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv = SeparableConv(channels, channels, rngs=rngs)

    def __call__(self, e: Image) -> Coarse:
        B, H, W, C = e.shape
        if H % 2 or W % 2:
            raise ValueError(f"a stride of 2 needs an even height and width, got {H} x {W}; pad the images")
        if self.conv.by_lax:
            return lax_convolution(e, self.conv.kernel[...], 2) + self.conv.bias[...][None, None, None]
        padded = jnp.pad(e, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [padded[:, i : i + H : 2, j : j + W : 2] for i in range(3) for j in range(3)]
        patches = jnp.concatenate(taps, axis=-1).reshape(-1, 9 * C)
        kernel = self.conv.kernel[...].reshape(9 * C, -1)
        return (patches @ kernel).reshape(B, H // 2, W // 2, -1) + self.conv.bias[...][None, None, None]


class Trail(nnx.Module):
    """``E``: blocks whose every state is kept, ``E v = (v, h_1, .., h_n)``, for a :class:`TrailDecoder`."""

    def __init__(self, blocks: Sequence[nnx.Module]) -> None:
        self.blocks = nnx.List(blocks)

    def __call__(self, v: Image, c: Any = None) -> tuple[Array, ...]:
        states = [v]
        for block in self.blocks:
            states.append(block(states[-1], c))
        return tuple(states)


class Last(nnx.Module):
    """``P`` of the last state of a :class:`Trail`."""

    def __init__(self, project: nnx.Module) -> None:
        self.project = project

    def __call__(self, e: tuple[Array, ...]) -> Coarse:
        return self.project(e[-1])


class Join(nnx.Module):
    """``D(w | v) = blocks([v, repeat(narrow w)])``: narrowed on the coarse grid, then repeated 2 x 2 and joined to v.

    ``narrow`` changes the channels of w: narrowing first is the same sum as after repeating, at a quarter of the work.
    ``pass_details``  ``narrow`` reads, beside w, the three Haar bands of v that the pooling drops (orthonormal, of the
    first so many channels of v): they live on the coarse grid.
    """

    def __init__(self, narrow: nnx.Module, blocks: Sequence[nnx.Module], pass_details: int = 0) -> None:
        self.narrow, self.blocks = narrow, nnx.List(blocks)
        self.pass_details = pass_details

    def __call__(self, w: Coarse, v: Image, c: Any = None) -> Out:
        if self.pass_details:
            w = jnp.concatenate([w, details(v[..., : self.pass_details])], axis=-1)
        h = jnp.concatenate([v, upsample(self.narrow(w))], axis=-1)
        for block in self.blocks:
            h = block(h, c)
        return h


class TrailDecoder(nnx.Module):
    """``D(w | e)``: w repeated 2 x 2 and convolved, then one block for each state of e, the last first.

    Block k reads ``[h, state]``.  Where e is one image (a Multi-ResNet), every block reads that.  ``conv`` may be
    absent, and at the coarsest level w is not repeated (``resize=False``).
    """

    def __init__(self, conv: nnx.Module | None, blocks: Sequence[nnx.Module], *, resize: bool = True) -> None:
        self.conv, self.blocks, self.resize = conv, nnx.List(blocks), resize

    def __call__(self, w: Any, e: Any, c: Any = None) -> Out:
        h = upsample(w) if self.resize else w
        if self.conv is not None:
            h = self.conv(h)
        states = reversed(e) if isinstance(e, tuple) else [e] * len(self.blocks)
        for block, state in zip(self.blocks, states, strict=True):
            h = block(jnp.concatenate([h, state], axis=-1), c)
        return h


class TrailBottleneck(nnx.Module):
    """``U_0(e)``: blocks on the last state of e, then a decoder on the same grid."""

    def __init__(self, middle: Sequence[nnx.Module], decoder: TrailDecoder) -> None:
        self.middle, self.decoder = nnx.List(middle), decoder

    def __call__(self, e: Any, c: Any = None) -> Out:
        h = e[-1] if isinstance(e, tuple) else e
        for block in self.middle:
            h = block(h, c)
        return self.decoder(h, e, c)
