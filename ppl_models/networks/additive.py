"""Networks of several latent blocks whose effects add up, each with a linear path beside its hidden layers.

    decoder   f(z) = b + sum_j fade_j (W_j z_j + g_j(z_j))
    encoder   m_j(x) = A_j x + c_j + u_j(h(x)),   log s_j(x) = l_j + v_j(h(x))

The last layers of ``g``, ``u`` and ``v`` start at zero: at first both are linear, so they can start at a classical fit
(principal components, factor analysis) and training only adds to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.networks.mlp import LOG_SCALE_BOUND, Activation, Extra, Outputs, Stack


def _silent(fan_in: int, width: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer that starts at zero."""
    return nnx.Linear(fan_in, width, kernel_init=nnx.initializers.zeros, rngs=rngs)


class AdditiveEncoder(nnx.Module):
    """One stack for all blocks; of each block a linear map of the data and two heads, to mean and log scale.

    ``mixing[j]`` holds the entries below the diagonal of a unit lower triangular T_j, for a posterior
    ``N(m_j, (diag s_j T_j) (diag s_j T_j)^T)``; whoever wants a diagonal posterior does not read it.  Of ``extras``
    there is the context alone, a linear map of the hidden layer: T_j is the same for all data.
    """

    def __init__(
        self,
        features: int,
        widths: Sequence[int],
        dims: Sequence[int],
        activation: Activation,
        extras: Sequence[Extra] = (),
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.stack = Stack(features, widths, activation, rngs=rngs)
        self.linear = nnx.List([nnx.Linear(features, d, rngs=rngs) for d in dims])
        self.loc = nnx.List([_silent(self.stack.width, d, rngs) for d in dims])
        self.log_scale = nnx.List([_silent(self.stack.width, d, rngs) for d in dims])
        self.mixing = nnx.List([nnx.Param(jnp.zeros(d * (d - 1) // 2)) for d in dims])
        if extras:
            self.context = nnx.List([nnx.Linear(self.stack.width, extra.context, rngs=rngs) for extra in extras])

    def __call__(self, x: Float[Array, "batch features"]) -> tuple[Outputs, ...]:
        h = self.stack(x)
        heads = zip(self.linear, self.loc, self.log_scale, strict=True)
        found = tuple(
            (linear(x) + loc(h), LOG_SCALE_BOUND * jnp.tanh(log_scale(h) / LOG_SCALE_BOUND))
            for linear, loc, log_scale in heads
        )
        if not hasattr(self, "context"):
            return found
        rest = zip(found, self.mixing, self.context, strict=True)
        return tuple(
            (*head, jnp.broadcast_to(mixing[...], (len(h), mixing.shape[0])), context(h))
            for head, mixing, context in rest
        )


class AdditiveDecoder(nnx.Module):
    """``f(z) = b + sum_j fade_j (W_j z_j + g_j(z_j))``, g_j with hidden layers of its own."""

    def __init__(
        self, outputs: int, widths: Sequence[int], dims: Sequence[int], activation: Activation, *, rngs: nnx.Rngs
    ) -> None:
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.linear = nnx.List([nnx.Linear(d, outputs, use_bias=False, rngs=rngs) for d in dims])
        self.stacks = nnx.List([Stack(d, widths, activation, rngs=rngs) for d in dims])
        self.out = nnx.List([_silent(stack.width, outputs, rngs) for stack in self.stacks])

    def __call__(
        self, zs: Sequence[Float[Array, "batch dim"]], fades: Sequence[Any] | None = None
    ) -> Float[Array, "batch outputs"]:
        parts = self.effects(zs)
        return self.bias[...] + sum(
            (fade * part for fade, part in zip(fades or (1.0,) * len(parts), parts, strict=True)), jnp.zeros(())
        )

    def effects(self, zs: Sequence[Float[Array, "batch dim"]]) -> list[Float[Array, "batch outputs"]]:
        """What each block adds, ``W_j z_j + g_j(z_j)``: whose variance over data says which outputs it explains."""
        return [
            linear(z) + out(stack(z))
            for linear, stack, out, z in zip(self.linear, self.stacks, self.out, zs, strict=True)
        ]
