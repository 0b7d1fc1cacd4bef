"""A causal transformer over a sequence, read in parallel or one symbol at a time from a cache.

Pre-norm blocks without biases: ``x += attn(norm x)``, ``x += ffn(norm x)``, a last norm, one linear head.  The two
ways of reading give the same outputs; the cache has a fixed capacity, so that a step can be scanned and vmapped.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

Cache = tuple["KeyValue", ...]


class KeyValue(NamedTuple):
    """Keys and values of one layer; entries at and beyond the current position are not read."""

    k: Float[Array, "*batch capacity heads head_dim"]
    v: Float[Array, "*batch capacity heads head_dim"]


def fan_in(rngs: nnx.Rngs, shape: tuple[int, ...], gain: float = 1.0) -> nnx.Param:
    """A weight matrix (inputs, ..., outputs) from N(0, gain^2 / inputs)."""
    return nnx.Param(gain * shape[0] ** -0.5 * jax.random.normal(rngs.params(), shape))


def layer_norm(x: Float[Array, "*n d"], scale: Float[Array, " d"]) -> Float[Array, "*n d"]:
    """``scale (x - mean) / sd`` over the last axis, without a shift."""
    centred = x - x.mean(-1, keepdims=True)
    return scale * centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + jnp.asarray(1e-6, x.dtype))


class Block(nnx.Module):
    """One pre-norm layer: causal self-attention, then a GELU net; residual projections start at half size."""

    def __init__(self, width: int, heads: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.norm_attn = nnx.Param(jnp.ones(width))
        self.qkv = fan_in(rngs, (width, 3 * width))
        self.out = fan_in(rngs, (width, width), 0.5)
        self.norm_ffn = nnx.Param(jnp.ones(width))
        self.up = fan_in(rngs, (width, hidden))
        self.down = fan_in(rngs, (hidden, width), 0.5)

    def _project(self, x: Float[Array, "*n d"]) -> tuple[Array, Array, Array]:
        qkv = layer_norm(x, self.norm_attn[...]) @ self.qkv[...]
        q, k, v = (part.reshape(*x.shape[:-1], self.heads, -1) for part in jnp.split(qkv, 3, -1))
        return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v

    def _rest(self, x: Float[Array, "*n d"], mixed: Float[Array, "*n heads head_dim"]) -> Float[Array, "*n d"]:
        x = x + mixed.reshape(x.shape) @ self.out[...]
        return x + jax.nn.gelu(layer_norm(x, self.norm_ffn[...]) @ self.up[...]) @ self.down[...]

    def __call__(self, x: Float[Array, "*batch n d"]) -> tuple[Float[Array, "*batch n d"], KeyValue]:
        """All positions at once; also returns the keys and values for :meth:`step`."""
        n = x.shape[-2]
        q, k, v = self._project(x)
        scores = jnp.einsum("...qhd,...khd->...hqk", q, k)
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf), -1)
        return self._rest(x, jnp.einsum("...hqk,...khd->...qhd", weights, v)), KeyValue(k, v)

    def step(
        self, x: Float[Array, " d"], cache: KeyValue, position: Int[Array, ""]
    ) -> tuple[Float[Array, " d"], KeyValue]:
        """One more position of one sequence."""
        q, k, v = self._project(x)
        keys = jax.lax.dynamic_update_index_in_dim(cache.k, k, position, 0)
        values = jax.lax.dynamic_update_index_in_dim(cache.v, v, position, 0)
        scores = jnp.einsum("hd,khd->hk", q, keys)
        seen = jnp.arange(keys.shape[0]) <= position
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
        return self._rest(x, jnp.einsum("hk,khd->hd", weights, values)), KeyValue(keys, values)


class CausalTransformer(nnx.Module):
    """Inputs (n, width) to outputs (n, out): row t reads inputs 0..t.

    ``positions`` is the largest number of inputs if positions are learned, or ``None`` for a net without positions,
    which takes any length; causal attention alone still tells orders of the same symbols apart.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        out: int,
        positions: int | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.width, self.heads = width, heads
        start = None if positions is None else 0.1 * jax.random.normal(rngs.params(), (positions, width))
        self.positions = None if start is None else nnx.Param(start)
        self.blocks = nnx.List([Block(width, heads, hidden, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.Param(jnp.ones(width))
        self.head = fan_in(rngs, (width, out), 0.1)

    def _head(self, x: Float[Array, "*n d"]) -> Float[Array, "*n out"]:
        return layer_norm(x, self.norm[...]) @ self.head[...]

    def __call__(self, x: Float[Array, "*batch n d"]) -> Float[Array, "*batch n out"]:
        """Outputs at all positions."""
        return self.read(x)[0]

    def read(self, x: Float[Array, "*batch n d"]) -> tuple[Float[Array, "*batch n out"], Cache]:
        """Outputs at all positions, and the keys and values of every layer."""
        if self.positions is not None:
            x = x + self.positions[...][: x.shape[-2]]
        cache = []
        for block in self.blocks:
            x, kv = block(x)
            cache.append(kv)
        return self._head(x), tuple(cache)

    def step(self, x: Float[Array, " d"], cache: Cache, position: Int[Array, ""]) -> tuple[Float[Array, " out"], Cache]:
        """Output at the next ``position`` (from zero) of one sequence, and the cache with it written."""
        if self.positions is not None:
            x = x + self.positions[...][position]
        written = []
        for block, kv in zip(self.blocks, cache, strict=True):
            x, kv = block.step(x, kv, position)
            written.append(kv)
        return self._head(x), tuple(written)


def extend(cache: Cache, capacity: int) -> Cache:
    """Pad a cache of :meth:`CausalTransformer.read` to a capacity; the new entries are not read before written."""

    def pad(a: Float[Array, "n heads head_dim"]) -> Float[Array, "capacity heads head_dim"]:
        return jnp.pad(a, ((0, capacity - a.shape[0]), (0, 0), (0, 0)))

    return tuple(KeyValue(pad(kv.k), pad(kv.v)) for kv in cache)
