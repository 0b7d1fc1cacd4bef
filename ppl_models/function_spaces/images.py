"""Haar steps on images (batch, height, width, channel), without tables: reshape and mean only.

On a block (a b; c d): ``LL = (a + b + c + d) / 2``, the three details ``(a - b + c - d) / 2``, ``(a + b - c - d) / 2``
and ``(a - b - c + d) / 2``.  Orthonormal: ``LL`` is twice the block's mean.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl_models.function_spaces.haar import haar_matrix

Image = Float[Array, "batch height width channel"]
Bands = Float[Array, "batch half_height half_width channel_times_3"]


def _blocks(x: Image) -> Float[Array, "batch half_height half_width four channel"]:
    B, H, W, C = x.shape
    if H % 2 or W % 2:
        raise ValueError(f"a Haar step needs an even height and width, got {H} x {W}; pad the images")
    return x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, H // 2, W // 2, 4, C)


def _step(x: Image) -> Float[Array, "batch half_height half_width four channel"]:
    return jnp.einsum("bhwic,ji->bhwjc", _blocks(x), jnp.asarray(haar_matrix(4), x.dtype))


def details(x: Image) -> Bands:
    """The three detail bands of one Haar step, side by side on the channel axis: what pooling drops."""
    B, H, W, C = x.shape
    return _step(x)[..., 1:, :].reshape(B, H // 2, W // 2, 3 * C)


def analyse_image(x: Image, levels: int) -> tuple[Float[Array, "batch h w channel"], tuple[Float[Array, "..."], ...]]:
    """``levels`` Haar steps: the coarse band, and the detail bands (batch, h, w, 3 channel) coarse to fine."""
    found = []
    for _ in range(levels):
        parts = _step(x)
        found.append(parts[..., 1:, :].reshape(*parts.shape[:3], -1))
        x = parts[..., 0, :]
    return x, tuple(reversed(found))


def synthesise_image(coarse: Image, bands: tuple[Float[Array, "..."], ...]) -> Float[Array, "batch H W channel"]:
    """The image of a coarse band and its details: the inverse of :func:`analyse_image`."""
    for band in bands:
        B, H, W, C = coarse.shape
        parts = jnp.concatenate([coarse[..., None, :], band.reshape(B, H, W, 3, C)], axis=-2)
        blocks = jnp.einsum("bhwjc,ji->bhwic", parts, jnp.asarray(haar_matrix(4), coarse.dtype))
        coarse = blocks.reshape(B, H, W, 2, 2, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, 2 * H, 2 * W, C)
    return coarse


def project_image(x: Image, levels: int = 1) -> Float[Array, "batch h w channel"]:
    """Mean over blocks of ``2^levels`` x ``2^levels`` pixels."""
    B, H, W, C = x.shape
    k = 2**levels
    if H % k or W % k:
        raise ValueError(f"{levels} poolings need height and width as multiples of {k}, got {H} x {W}; pad the images")
    return x.reshape(B, H // k, k, W // k, k, C).mean((2, 4))
