"""Fully connected parts: a stack, and the two ways to give every latent block its own place in it.

``shared``: one stack feeds all heads, one stack decodes the concatenated latents.  ``ladder``: a chain of blocks,
and each latent block branches off (and enters again) at its own depth.  Weights start as N(0, 1 / fan_in), biases
at zero.  Latent blocks are ordered from shallow (near the data) to deep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Activation = Callable[[Array], Array]
View = Callable[[Array], Array]
Gaussian = tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]  # loc, log_scale
Outputs = tuple[Float[Array, "batch _"], ...]
"""A :data:`Gaussian`; of a richer posterior ``(loc, log_scale, mixing, context)``, see :class:`Extra`."""

LOG_SCALE_BOUND = 6.0
"""Posterior standard deviations stay within exp(-6) and exp(6): beyond them only overflow is found."""


class Dense(nnx.Module):
    """``activation(W h + b)``."""

    def __init__(self, fan_in: int, width: int, activation: Activation, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(fan_in, width, rngs=rngs)
        self.activation = activation

    def __call__(self, h: Float[Array, "batch fan_in"]) -> Float[Array, "batch width"]:
        return self.activation(self.linear(h))


class Stack(nnx.Module):
    """Dense layers one after another; ``width`` is that of the last (``fan_in`` if there is none)."""

    def __init__(self, fan_in: int, widths: Sequence[int], activation: Activation, *, rngs: nnx.Rngs) -> None:
        sizes = (fan_in, *widths)
        self.layers = nnx.List([Dense(a, b, activation, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:], strict=True)])
        self.width = sizes[-1]

    def __call__(self, h: Float[Array, "batch fan_in"]) -> Float[Array, "batch width"]:
        for layer in self.layers:
            h = layer(h)
        return h


class Extra(NamedTuple):
    """What a head gives beside mean and log scale: numbers that mix the latents, and the context of a flow."""

    mixing: int = 0
    context: int = 0


NONE = Extra()


class GaussianHead(nnx.Module):
    """Two linear maps to the mean and the bounded log standard deviation ``6 tanh(raw / 6)`` of a latent block.

    With ``extra``, two more: ``mixing``, at first zero, and ``context``.
    """

    def __init__(self, fan_in: int, dim: int, extra: Extra = NONE, *, rngs: nnx.Rngs) -> None:
        self.loc = nnx.Linear(fan_in, dim, rngs=rngs)
        self.log_scale = nnx.Linear(fan_in, dim, rngs=rngs)
        self.rich = extra != NONE
        if extra.mixing:
            self.mixing = nnx.Linear(fan_in, extra.mixing, kernel_init=nnx.initializers.zeros, rngs=rngs)
        if extra.context:
            self.context = nnx.Linear(fan_in, extra.context, rngs=rngs)

    def __call__(self, h: Float[Array, "batch fan_in"]) -> Outputs:
        # tanh, not clip: the gradient never vanishes exactly, so a saturated unit can come back.
        found = self.loc(h), LOG_SCALE_BOUND * jnp.tanh(self.log_scale(h) / LOG_SCALE_BOUND)
        if not self.rich:
            return found
        none = jnp.zeros((h.shape[0], 0), h.dtype)
        mixing = self.mixing(h) if hasattr(self, "mixing") else none
        return *found, mixing, self.context(h) if hasattr(self, "context") else none


def _extras(extras: Sequence[Extra], dims: Sequence[int]) -> Sequence[Extra]:
    return extras or (NONE,) * len(dims)


# ------------------------------------------------------------------------------------------------- encoders
def _flat(x: Float[Array, "batch ..."]) -> Float[Array, "batch features"]:
    return x.reshape(x.shape[0], -1)


class LadderEncoder(nnx.Module):
    """Block j feeds head j and block j + 1: ``h_j = act(W_j h_{j-1} + b_j)``, ``(m_j, log s_j) = head_j(h_j)``."""

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        dims: Sequence[int],
        activation: Activation,
        extras: Sequence[Extra] = (),
        *,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = (math.prod(shape), *widths)
        self.blocks = nnx.List([Dense(a, b, activation, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:], strict=True)])
        each = zip(widths, dims, _extras(extras, dims), strict=True)
        self.heads = nnx.List([GaussianHead(w, d, extra, rngs=rngs) for w, d, extra in each])

    def __call__(self, x: Float[Array, "batch ..."]) -> tuple[Outputs, ...]:
        h, found = _flat(x), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            h = block(h)
            found.append(head(h))
        return tuple(found)


class SharedEncoder(nnx.Module):
    """One stack, one head for each latent block."""

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        dims: Sequence[int],
        activation: Activation,
        extras: Sequence[Extra] = (),
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.stack = Stack(math.prod(shape), widths, activation, rngs=rngs)
        each = zip(dims, _extras(extras, dims), strict=True)
        self.heads = nnx.List([GaussianHead(self.stack.width, d, extra, rngs=rngs) for d, extra in each])

    def __call__(self, x: Float[Array, "batch ..."]) -> tuple[Outputs, ...]:
        h = self.stack(_flat(x))
        return tuple(head(h) for head in self.heads)


def whole(x: Array) -> Array:
    """The view that leaves nothing out."""
    return x


class SeparateEncoders(nnx.Module):
    """One stack and head for each latent block; they share nothing but the data.

    ``views``: what each of them sees, functions of a batch of data; the whole of it by default.
    """

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        dims: Sequence[int],
        activation: Activation,
        views: Sequence[View] | None = None,
        extras: Sequence[Extra] = (),
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.views = tuple(views or (whole,) * len(dims))
        datum = jax.ShapeDtypeStruct((1, *shape), "float32")
        shapes = [jax.eval_shape(view, datum).shape[1:] for view in self.views]
        each = zip(shapes, dims, _extras(extras, dims), strict=True)
        self.encoders = nnx.List([SharedEncoder(s, widths, (d,), activation, (e,), rngs=rngs) for s, d, e in each])

    def __call__(self, x: Float[Array, "batch ..."]) -> tuple[Outputs, ...]:
        return tuple(encoder(view(x))[0] for encoder, view in zip(self.encoders, self.views, strict=True))


# --------------------------------------------------------------------------------------------------- merges
@runtime_checkable
class Merge(Protocol):
    """How a rung joins the backbone of a ladder decoder; ``out_width`` is the width of the result."""

    out_width: int

    def __call__(
        self, backbone: Float[Array, "batch width"], rung: Float[Array, "batch width"], fade: Any
    ) -> Float[Array, "batch out_width"]: ...


MakeMerge = Callable[[int, nnx.Rngs], Merge]


class GatedAdd(nnx.Module):
    """``backbone + gate * fade * rung`` with one scalar gate, fixed or learnt."""

    def __init__(self, width: int, gate: float, *, learned: bool) -> None:
        self.out_width = width
        self.gate = nnx.Param(jnp.asarray(gate, "float32")) if learned else float(gate)

    def __call__(
        self, backbone: Float[Array, "batch width"], rung: Float[Array, "batch width"], fade: Any = 1.0
    ) -> Float[Array, "batch width"]:
        gate = self.gate[...] if isinstance(self.gate, nnx.Param) else self.gate
        return backbone + (gate * fade) * rung


class Concat(nnx.Module):
    """``[backbone, fade * rung]``."""

    def __init__(self, width: int) -> None:
        self.out_width = 2 * width

    def __call__(
        self, backbone: Float[Array, "batch width"], rung: Float[Array, "batch width"], fade: Any = 1.0
    ) -> Float[Array, "batch out_width"]:
        return jnp.concatenate([backbone, fade * rung], axis=-1)


class NormAdd(nnx.Module):
    """``LayerNorm(backbone) + fade * LayerNorm(rung)``: both sides weigh the same whatever their scale."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.out_width = width
        self.backbone = nnx.LayerNorm(width, rngs=rngs)
        self.rung = nnx.LayerNorm(width, rngs=rngs)

    def __call__(
        self, backbone: Float[Array, "batch width"], rung: Float[Array, "batch width"], fade: Any = 1.0
    ) -> Float[Array, "batch width"]:
        # The fade comes after the norm, which would cancel it.
        return self.backbone(backbone) + fade * self.rung(rung)


# ------------------------------------------------------------------------------------------------- decoders
class LadderDecoder(nnx.Module):
    """Deepest to shallowest: ``h = fade_j rung_j(z_j)`` at the deepest, then ``h = block_j(merge_j(h, rung_j(z_j)))``.

    ``rung_j``: d_j -> w_j; ``block_j``: (merged) w_j -> w_{j-1}, and w_0 -> w_0 at the end; then one linear map to the
    data.  A fade of 0 takes a latent block out of the picture, a fade of 1 lets it in whole.
    """

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        dims: Sequence[int],
        activation: Activation,
        merge: MakeMerge,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.shape = tuple(shape)
        self.rungs = nnx.List([Dense(d, w, activation, rngs=rngs) for d, w in zip(dims, widths, strict=True)])
        self.merges = nnx.List([merge(w, rngs) for w in widths[:-1]])
        fan_in = (*(m.out_width for m in self.merges), widths[-1])
        below = (widths[0], *widths[:-1])
        self.blocks = nnx.List([Dense(a, b, activation, rngs=rngs) for a, b in zip(fan_in, below, strict=True)])
        self.out = nnx.Linear(widths[0], math.prod(shape), rngs=rngs)

    def __call__(self, zs: Sequence[Float[Array, "batch _"]], fades: Sequence[Any]) -> Float[Array, "batch ..."]:
        deepest = len(self.rungs) - 1
        h = self.blocks[deepest](fades[deepest] * self.rungs[deepest](zs[deepest]))
        for j in reversed(range(deepest)):
            h = self.blocks[j](self.merges[j](h, self.rungs[j](zs[j]), fades[j]))
        return self.out(h).reshape(h.shape[0], *self.shape)


class ConcatDecoder(nnx.Module):
    """One stack over the concatenation of ``fade_j z_j``, then one linear map to the data."""

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
        self.stack = Stack(sum(dims), widths, activation, rngs=rngs)
        self.out = nnx.Linear(self.stack.width, math.prod(shape), rngs=rngs)

    def __call__(self, zs: Sequence[Float[Array, "batch _"]], fades: Sequence[Any]) -> Float[Array, "batch ..."]:
        h = self.stack(jnp.concatenate([fade * z for fade, z in zip(fades, zs, strict=True)], axis=-1))
        return self.out(h).reshape(h.shape[0], *self.shape)
