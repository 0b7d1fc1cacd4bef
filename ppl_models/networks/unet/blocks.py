"""Blocks and norms of the published U-Nets, on images (batch, height, width, channel).

All convolutions are the matrix products of ``separable.py``.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.networks.activations import gelu
from ppl_models.networks.separable import Image, SeparableConv

Out = Float[Array, "batch height width c_out"]
Context = Float[Array, "batch embedding"]


class GroupNorm(nnx.Module):
    """``scale (h - mean) / sqrt(var + 1e-5) + bias``, moments of each datum over its pixels and a group of channels.

    Pixels are summed first, so the image is read once for the moments and once for the result.
    """

    def __init__(self, channels: int, groups: int = 1) -> None:
        if groups < 1 or channels % groups:
            raise ValueError(f"groups must divide the channels, got {groups} groups of {channels}")
        self.groups = groups
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def affine(self, h: Image) -> tuple[Float[Array, "batch channel"], Float[Array, "batch channel"]]:
        """``(a, b)`` with ``norm(h) = a h + b`` for each datum and channel."""
        groups, size = self.groups, h.shape[-1] // self.groups

        def grouped(moment: Array) -> Array:
            mean = moment.reshape(-1, groups, size).mean(-1, keepdims=True)
            return jnp.broadcast_to(mean, (mean.shape[0], groups, size)).reshape(-1, groups * size)

        mean = grouped(h.mean((1, 2)))
        variance = jnp.maximum(grouped((h * h).mean((1, 2))) - mean * mean, 0.0)
        scale = self.scale[...][None] * jax.lax.rsqrt(variance + 1e-5)
        return scale, self.bias[...][None] - mean * scale

    def __call__(self, h: Image) -> Image:
        scale, shift = self.affine(h)
        return h * scale[:, None, None] + shift[:, None, None]


class PlainBlock(nnx.Module):
    """``g + gelu(norm(conv g))`` with ``g = gelu(norm(conv x))``: 3 x 3 convolutions, one group.

    ``conv(c_in, c_out) + conv(c_out, c_out) + 4 c_out`` parameters, ``conv(i, o) = 9 i o + o``.
    """

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs) -> None:
        self.first, self.first_norm = SeparableConv(c_in, c_out, rngs=rngs), GroupNorm(c_out)
        self.second, self.second_norm = SeparableConv(c_out, c_out, rngs=rngs), GroupNorm(c_out)

    def __call__(self, x: Image, c: Context | None = None) -> Out:
        g = gelu(self.first_norm(self.first(x)))
        return g + gelu(self.second_norm(self.second(g)))


class ResidualPlainBlock(nnx.Module):
    """``x + gelu(norm(conv gelu(norm(conv x))))``: 3 x 3 convolutions, one group."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.first, self.first_norm = SeparableConv(channels, channels, rngs=rngs), GroupNorm(channels)
        self.second, self.second_norm = SeparableConv(channels, channels, rngs=rngs), GroupNorm(channels)

    def __call__(self, x: Image, c: Context | None = None) -> Image:
        g = gelu(self.first_norm(self.first(x)))
        return x + gelu(self.second_norm(self.second(g)))


class Modulated(nnx.Module):
    """``(1 + a) block(x) + b``, (a, b) a linear function of the context ``c`` that starts at zero."""

    def __init__(self, block: nnx.Module, channels: int, embedding: int, *, rngs: nnx.Rngs) -> None:
        self.block = block
        self.modulate = nnx.Linear(embedding, 2 * channels, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Image, c: Context) -> Out:
        a, b = jnp.split(self.modulate(c)[:, None, None, :], 2, axis=-1)
        return (1 + a) * self.block(x, c) + b


class GuidedBlock(nnx.Module):
    """``skip(h) + conv_2 silu((1 + a(c)) norm(conv_1 silu(norm h)) + b(c))``, ``groups`` of channels in the norms.

    The block of guided diffusion (Dhariwal and Nichol, 2021, arXiv 2105.05233), with its zero start of ``conv_2``;
    ``skip`` is a 1 x 1 convolution where the number of channels changes.  Where ``groups`` does not divide them,
    their greatest common divisor is taken.
    """

    def __init__(self, c_in: int, c_out: int, embedding: int, *, groups: int = 32, rngs: nnx.Rngs) -> None:
        self.first_norm, self.second_norm = (GroupNorm(c, math.gcd(c, groups)) for c in (c_in, c_out))
        self.first = SeparableConv(c_in, c_out, rngs=rngs)
        self.modulate = nnx.Linear(embedding, 2 * c_out, rngs=rngs)
        self.second = SeparableConv(c_out, c_out, scale=0.0, rngs=rngs)
        self.skip = None if c_in == c_out else SeparableConv(c_in, c_out, 1, rngs=rngs)

    def __call__(self, h: Image, c: Context) -> Out:
        a, b = jnp.split(self.modulate(c), 2, axis=-1)
        r = self.first(jax.nn.silu(self.first_norm(h)))
        # Norm and modulation are one multiplication and one addition of the image.
        scale, shift = self.second_norm.affine(r)
        scale, shift = (1 + a) * scale, (1 + a) * shift + b
        r = self.second(jax.nn.silu(r * scale[:, None, None] + shift[:, None, None]))
        return (h if self.skip is None else self.skip(h)) + r


class Attention(nnx.Module):
    """``h + W_o attention(W_q g, W_k g, W_v g)``, g = norm(h): all pixels see one another; ``W_o`` starts at zero."""

    def __init__(self, channels: int, heads: int = 4, *, groups: int = 32, rngs: nnx.Rngs) -> None:
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide the channels, got {heads} heads of {channels} channels")
        self.heads = heads
        self.norm = GroupNorm(channels, math.gcd(channels, groups))
        self.qkv = SeparableConv(channels, 3 * channels, 1, rngs=rngs)
        self.out = SeparableConv(channels, channels, 1, scale=0.0, rngs=rngs)

    def __call__(self, h: Image, c: Context | None = None) -> Image:
        B, H, W, C = h.shape
        q, k, v = jnp.split(self.qkv(self.norm(h)).reshape(B, H * W, self.heads, -1), 3, axis=-1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (C // self.heads) ** -0.5
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
        return h + self.out(mixed.reshape(B, H, W, C))
