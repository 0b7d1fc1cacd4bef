"""The score networks with the layers that Flax and JAX offer: the straightforward program that ``unet_speed`` measures.

Same structure and parameters; convolutions are ``nnx.Conv``, norms ``nnx.GroupNorm``, pooling ``nnx.avg_pool``,
repeating ``jax.image.resize``, attention ``jax.nn.dot_product_attention``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ppl_models.networks.unet import LiftedUNet, ScoreUNet, tile


def conv(c_in: int, c_out: int, k: int = 3, stride: int = 1) -> nnx.Conv:
    """A convolution with one pixel of padding, or of one pixel."""
    padding: Any = ((1, 1), (1, 1)) if k == 3 else "SAME"
    return nnx.Conv(c_in, c_out, (k, k), (stride, stride), padding=padding, rngs=nnx.Rngs(0))


def norm(channels: int) -> nnx.GroupNorm:
    """32 groups."""
    return nnx.GroupNorm(channels, num_groups=32, epsilon=1e-5, rngs=nnx.Rngs(0))


def mlp(features: int, width: int) -> nnx.Sequential:
    """Of the time."""
    first, second = nnx.Linear(features, width, rngs=nnx.Rngs(0)), nnx.Linear(width, width, rngs=nnx.Rngs(0))
    return nnx.Sequential(first, jax.nn.silu, second, jax.nn.silu)


class Block(nnx.Module):
    """The block of guided diffusion."""

    def __init__(self, c_in: int, c_out: int, embedding: int) -> None:
        self.first_norm, self.first = norm(c_in), conv(c_in, c_out)
        self.modulate = nnx.Linear(embedding, 2 * c_out, rngs=nnx.Rngs(0))
        self.second_norm, self.second = norm(c_out), conv(c_out, c_out)
        self.skip = None if c_in == c_out else conv(c_in, c_out, 1)

    def __call__(self, h: Array, e: Array) -> Array:
        a, b = jnp.split(self.modulate(e)[:, None, None], 2, axis=-1)
        r = self.first(jax.nn.silu(self.first_norm(h)))
        r = self.second(jax.nn.silu(self.second_norm(r) * (1 + a) + b))
        return (h if self.skip is None else self.skip(h)) + r


class Attention(nnx.Module):
    """Four heads over all pixels."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        self.norm, self.qkv, self.out = norm(channels), conv(channels, 3 * channels, 1), conv(channels, channels, 1)
        self.heads = heads

    def __call__(self, h: Array, e: Array) -> Array:
        B, H, W, C = h.shape
        q, k, v = jnp.split(self.qkv(self.norm(h)).reshape(B, H * W, self.heads, -1), 3, axis=-1)
        return h + self.out(jax.nn.dot_product_attention(q, k, v).reshape(B, H, W, C))


class Net(nnx.Module):
    """Two blocks down and three up a level, one width; ``down`` as in :class:`ScoreUNet`."""

    def __init__(self, spec: ScoreUNet) -> None:
        self.width, self.learned = spec.base * spec.multipliers[0], spec.down == "stride"
        w, e, levels = self.width, 4 * spec.base, range(len(spec.multipliers))
        self.times = nnx.List([mlp(spec.base, e) for _ in levels])
        n = spec.blocks
        self.down = nnx.List([nnx.List([Block(w, w, e) for _ in range(n)]) for _ in levels] if self.learned else [])
        self.strides = nnx.List([conv(w, w, stride=2) for _ in levels[1:]] if self.learned else [])
        self.middle: Any = nnx.List([Block(w, w, e), Attention(w), Block(w, w, e)])
        self.up = nnx.List([nnx.List([Block(2 * w, w, e) for _ in range(n + 1)]) for _ in levels])
        self.resize = nnx.List([conv(w, w) for _ in levels[1:]])
        self.heads = nnx.List([nnx.Sequential(norm(w), jax.nn.silu, conv(w, spec.outputs, 1)) for _ in levels])

    def __call__(self, x: Array, features: Array) -> Array:
        es = [time(features) for time in self.times]
        h, seen = tile(x, self.width), []
        for level, e in enumerate(es):  # fine to coarse
            states = [h]
            for block in self.down[level] if self.learned else ():
                states.append(block(states[-1], e))
            seen.append(states if self.learned else [h] * len(self.up[level]))
            if level + 1 < len(es):
                h = self.strides[level](states[-1]) if self.learned else nnx.avg_pool(h, (2, 2), (2, 2))
        h = seen[-1][-1]
        for block in self.middle:
            h = block(h, es[-1])
        for level in reversed(range(len(es))):
            if level + 1 < len(es):
                B, H, W, C = h.shape
                h = self.resize[level](jax.image.resize(h, (B, 2 * H, 2 * W, C), "nearest"))
            for block, state in zip(self.up[level], reversed(seen[level]), strict=True):
                h = block(jnp.concatenate([h, state], axis=-1), es[level])
        return self.heads[0](h)


def copy_weights(ours: LiftedUNet, plain: Net) -> None:
    """Give ``plain`` the weights of ``ours``, so that the two can be compared."""
    fine_first = lambda modules: list(reversed(list(modules)))  # noqa: E731
    pairs: list[tuple[Any, Any]] = []
    for time, theirs in zip(fine_first(ours.unet.embeddings), plain.times, strict=True):
        pairs += [(time.first, theirs.layers[0]), (time.second, theirs.layers[2])]
    bottleneck: Any = ours.unet.bottleneck
    decoders = [*fine_first(ours.unet.decoders), bottleneck.decoder]
    for decoder, blocks in zip(decoders, plain.up, strict=True):
        pairs += zip(decoder.blocks, blocks, strict=True)
    pairs += zip((decoder.conv for decoder in decoders[:-1]), plain.resize, strict=True)
    pairs += zip(bottleneck.middle, plain.middle, strict=True)
    if plain.learned:
        for encoder, blocks in zip(fine_first(ours.unet.encoders), plain.down, strict=True):
            pairs += zip(encoder.blocks, blocks, strict=True)
        projections = fine_first(ours.unet.projections)
        pairs += [(p.project.conv, stride) for p, stride in zip(projections, plain.strides, strict=True)]
    for head, theirs in zip(fine_first(ours.heads), plain.heads, strict=True):
        pairs += [(head.norm, theirs.layers[0]), (head.conv, theirs.layers[2])]
    for mine, theirs in pairs:
        nnx.update(theirs, nnx.state(mine, nnx.Param))
