"""Gemma 3 as a Flax NNX model that continues many texts at once: keys and values kept, those of the prompt shared.

A layer, x (d): ``x += norm(attention(norm x)); x += norm(feed(norm x))``, every norm ``x w / sqrt(mean x^2 + eps)``
(w as in a GGUF file, 1 + w of the checkpoint), ``feed(x) = (gelu(x G) * (x U)) D`` with the tanh form of gelu.

Attention: queries and keys are normed a head, then turned by position (rotary, halves); one head of keys and values
for all heads of queries, scale ``head^-1/2``.  Every ``period``-th layer sees all tokens before (base
``base_global``), the others the last ``window`` (base ``base_local``).  The embedding is times sqrt(d) going in, and is
the head going out.

Gemma Team, *Gemma 3 Technical Report*, 2025 (arXiv 2503.19786), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int

UNSEEN = -1e30
"""Logit of a key that a query may not see."""
ROWS = 16_384
"""Rows of the embedding multiplied at a time where the whole head is asked for."""


@dataclass(frozen=True)
class GemmaShape:
    """Sizes of a Gemma 3 text model with one head of keys and values; the defaults are those of 270M.

    ``layers``, ``width`` (d), ``heads`` of queries, ``head`` (features of one), ``hidden`` (of the feed-forward part),
    ``vocabulary``, ``window`` (tokens), ``period`` (layers), ``base_global``, ``base_local``, ``eps``, ``longest``
    (tokens the model was made for).
    """

    layers: int = 18
    width: int = 640
    heads: int = 4
    head: int = 256
    hidden: int = 2048
    vocabulary: int = 262_144
    window: int = 512
    period: int = 6
    base_global: float = 1e6
    base_local: float = 1e4
    eps: float = 1e-6
    longest: int = 32_768

    def __post_init__(self) -> None:
        sizes = {
            name: getattr(self, name)
            for name in ("layers", "width", "heads", "head", "hidden", "vocabulary", "window", "period", "longest")
        }
        small = {name: value for name, value in sizes.items() if value < 1}
        if small or self.head % 2:
            raise ValueError(f"sizes must be at least 1 and head even, got {small or {'head': self.head}}")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights as a GGUF file holds them; matrices are (out, in)."""
        d, q, h, f = self.width, self.heads * self.head, self.head, self.hidden
        block = {
            "attn_norm": (d,), "attn_q": (q, d), "attn_k": (h, d), "attn_v": (h, d), "attn_q_norm": (h,),
            "attn_k_norm": (h,), "attn_output": (d, q), "post_attention_norm": (d,), "ffn_norm": (d,),
            "ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f), "post_ffw_norm": (d,),
        }  # fmt: skip
        named = {f"blk.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in block.items()}
        return {"token_embd.weight": (self.vocabulary, d), "output_norm.weight": (d,), **named}


class Cache(NamedTuple):
    """Keys (turned) and values of one layer: (text, token, head), or (token, head) of the prompt that texts share."""

    k: Float[Array, "*text token head"]
    v: Float[Array, "*text token head"]


class Prompt(NamedTuple):
    """What was read before the texts part: a cache a layer, and how many of its tokens are real."""

    caches: tuple[Cache, ...]
    length: Int[Array, ""]


def norm(x: Float[Array, "*batch d"], w: Float[Array, " d"], eps: float) -> Float[Array, "*batch d"]:
    """``x w / sqrt(mean x^2 + eps)``."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * w


def turned(x: Float[Array, "text token *heads head"], at: Int[Array, " token"], base: float) -> Float[Array, "..."]:
    """Rotary positions: feature i < head/2 and feature i + head/2 turned by the angle ``at base^(-2 i / head)``."""
    half = x.shape[-1] // 2
    angle = at[:, None] * base ** (-jnp.arange(half) / half)
    angle = angle.reshape(angle.shape[0], *(1,) * (x.ndim - 3), half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nnx.Module):
    """One layer; ``window`` None sees every token before."""

    def __init__(self, shape: GemmaShape, weights: Mapping[str, ArrayLike], layer: int) -> None:
        own = {name.split(".")[2]: jnp.asarray(w) for name, w in weights.items() if name.startswith(f"blk.{layer}.")}
        everywhere = (layer + 1) % shape.period == 0
        self.shape = shape
        self.window = None if everywhere else shape.window
        self.base = shape.base_global if everywhere else shape.base_local
        self.before = nnx.Param(own["attn_norm"])
        self.qkv = nnx.Param(jnp.concatenate([own["attn_q"], own["attn_k"], own["attn_v"]]).T)
        self.q_norm, self.k_norm = nnx.Param(own["attn_q_norm"]), nnx.Param(own["attn_k_norm"])
        self.out = nnx.Param(own["attn_output"].T)
        self.after = nnx.Param(own["post_attention_norm"])
        self.feed_before, self.feed_after = nnx.Param(own["ffn_norm"]), nnx.Param(own["post_ffw_norm"])
        self.gate_up = nnx.Param(jnp.concatenate([own["ffn_gate"], own["ffn_up"]]).T)
        self.down = nnx.Param(own["ffn_down"].T)

    def tensors(self) -> dict[str, Array]:
        """The layer's weights by their names in a GGUF file."""
        q = self.shape.heads * self.shape.head
        named = dict(
            zip(("attn_q", "attn_k", "attn_v"), jnp.split(self.qkv[...].T, [q, q + self.shape.head]), strict=True)
        )
        named |= dict(zip(("ffn_gate", "ffn_up"), jnp.split(self.gate_up[...].T, 2), strict=True))
        return named | {
            "attn_output": self.out[...].T, "ffn_down": self.down[...].T, "attn_norm": self.before[...],
            "attn_q_norm": self.q_norm[...], "attn_k_norm": self.k_norm[...], "post_attention_norm": self.after[...],
            "ffn_norm": self.feed_before[...], "post_ffw_norm": self.feed_after[...],
        }  # fmt: skip

    def __call__(
        self, x: Float[Array, "text token d"], cache: Cache, at: Int[Array, ""], prompt: Cache, length: Int[Array, ""]
    ) -> tuple[Float[Array, "text token d"], Cache]:
        """Read tokens at the places ``at``, ``at + 1``, ... of a cache that follows ``length`` tokens of a prompt."""
        eps = self.shape.eps
        heard, cache = self._attention(norm(x, self.before[...], eps), cache, at, prompt, length)
        x = x + norm(heard, self.after[...], eps)
        gate, up = jnp.split(norm(x, self.feed_before[...], eps) @ self.gate_up[...], 2, -1)
        return x + norm((jax.nn.gelu(gate, approximate=True) * up) @ self.down[...], self.feed_after[...], eps), cache

    def _attention(
        self, x: Float[Array, "text token d"], cache: Cache, at: Int[Array, ""], prompt: Cache, length: Int[Array, ""]
    ) -> tuple[Float[Array, "text token d"], Cache]:
        B, T, _ = x.shape
        H, D = self.shape.heads, self.shape.head
        q, k, v = jnp.split(x @ self.qkv[...], [H * D, (H + 1) * D], -1)
        place = length + at + jnp.arange(T)
        q = turned(norm(q.reshape(B, T, H, D), self.q_norm[...], self.shape.eps), place, self.base) * D**-0.5
        k = turned(norm(k, self.k_norm[...], self.shape.eps), place, self.base)
        zero = jnp.zeros((), at.dtype)
        cache = Cache(
            *(jax.lax.dynamic_update_slice(c, n, (zero, at, zero)) for c, n in zip(cache, (k, v), strict=True))
        )
        # The prompt is one matrix for all texts; what each text added to it is a batch of small ones.
        C, M = prompt.k.shape[0], cache.k.shape[1]
        q = q.reshape(B, T * H, D)
        logits = jnp.concatenate([q @ prompt.k.T, q @ cache.k.mT], -1).reshape(B, T, H, C + M)
        keys = jnp.concatenate([jnp.arange(C), length + jnp.arange(M)])
        real = jnp.concatenate([jnp.arange(C) < length, jnp.ones(M, bool)])
        seen = seen_keys(place, keys, self.window) & real
        p = jax.nn.softmax(jnp.where(seen[:, None], logits, UNSEEN), -1).reshape(B, T * H, C + M)
        heard = p[..., :C] @ prompt.v + p[..., C:] @ cache.v
        return heard.reshape(B, T, H * D) @ self.out[...], cache


def seen_keys(queries: Int[Array, " query"], keys: Int[Array, " key"], window: int | None) -> Bool[Array, "query key"]:
    """Which places a query at its place sees: itself and those before, the last ``window`` of them if given."""
    apart = queries[:, None] - keys
    return (apart >= 0) if window is None else (apart >= 0) & (apart < window)


class Gemma(nnx.Module):
    """The model, made of weights named and shaped as in :meth:`GemmaShape.tensors`; see the module for the equations.

    Raises ``ValueError`` where a weight is missing or has another shape.
    """

    def __init__(self, shape: GemmaShape, weights: Mapping[str, ArrayLike]) -> None:
        for name, expected in shape.tensors().items():
            if name not in weights:
                raise ValueError(f"no weight {name!r}, expected one of shape {expected}; is this a Gemma 3 text model?")
            if np.shape(weights[name]) != expected:
                raise ValueError(f"weight {name!r} must have the shape {expected}, got {np.shape(weights[name])}")
        self.shape = shape
        self.embedding = nnx.Param(jnp.asarray(weights["token_embd.weight"]))
        self.blocks = nnx.List([Block(shape, weights, layer) for layer in range(shape.layers)])
        self.last = nnx.Param(jnp.asarray(weights["output_norm.weight"]))

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights as a GGUF file names and shapes them."""
        named: dict[str, Array] = {"token_embd.weight": self.embedding[...], "output_norm.weight": self.last[...]}
        for i, block in enumerate(self.blocks):
            named |= {f"blk.{i}.{name}.weight": w for name, w in block.tensors().items()}
        return {name: np.asarray(w) for name, w in named.items()}

    def room(self, texts: int, tokens: int) -> tuple[Cache, ...]:
        """Empty caches for so many texts of so many tokens."""
        none = jnp.zeros((texts, tokens, self.shape.head), self.last[...].dtype)
        return tuple(Cache(none, none) for _ in self.blocks)

    def nothing(self) -> Prompt:
        """A prompt of no tokens."""
        return Prompt(tuple(Cache(c.k[0], c.v[0]) for c in self.room(1, 0)), jnp.zeros((), jnp.int32))

    def read(
        self, tokens: Int[Array, "text token"], caches: tuple[Cache, ...], at: Int[Array, ""], prompt: Prompt
    ) -> tuple[Float[Array, "text token d"], tuple[Cache, ...]]:
        """What the model makes of each token, ready for the head, and the caches with it."""
        x = self.embedding[...][tokens] * self.shape.width**0.5
        left = []
        for block, cache, shared in zip(self.blocks, caches, prompt.caches, strict=True):
            x, cache = block(x, cache, at, shared, prompt.length)
            left.append(cache)
        return norm(x, self.last[...], self.shape.eps), tuple(left)

    def logits(self, h: Float[Array, "*batch d"], words: Int[Array, " word"]) -> Float[Array, "*batch word"]:
        """Logits of some tokens only: as many rows of the embedding."""
        return h @ self.embedding[...][words].T

    def log_total(self, h: Float[Array, "text d"]) -> Float[Array, " text"]:
        """log of the sum of exp(logit) over the whole vocabulary, in nats."""
        rows = min(ROWS, self.shape.vocabulary)
        parts = -(-self.shape.vocabulary // rows)
        starts = jnp.minimum(jnp.arange(parts) * rows, self.shape.vocabulary - rows)

        def part(start: Int[Array, ""]) -> Float[Array, " text"]:
            # The last part may reach back into the one before; what it repeats is not counted again.
            fresh = start + jnp.arange(rows) >= jnp.where(start % rows == 0, 0, (parts - 1) * rows)
            rows_of = jax.lax.dynamic_slice_in_dim(self.embedding[...], start, rows)
            return jax.nn.logsumexp(jnp.where(fresh, h @ rows_of.T, -jnp.inf), -1)

        return jax.nn.logsumexp(jax.lax.map(part, starts), 0)
