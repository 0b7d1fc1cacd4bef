"""Deep sets (Zaheer et al. 2017): a function of a set that does not know the order of its elements.

    f(x_1..x_n) = rho( mean_i phi(x_i), log(1 + sum_i softplus(phi(x_i))), log(1 + n) )

The summary is a running sum, so one more element costs one evaluation of phi; the log of a positive sum lets counts
reach the head on the scale on which concentrations and precisions grow.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


class Summary(NamedTuple):
    """Running sums over the elements seen."""

    total: Float[Array, "*batch d"]
    positive: Float[Array, "*batch d"]
    number: Float[Array, "*batch"]


class DeepSet(nnx.Module):
    """Elements (n, inputs) to (out,); ``seen`` masks elements out."""

    def __init__(self, *, inputs: int, width: int, out: int, rngs: nnx.Rngs) -> None:
        self.phi_in = nnx.Linear(inputs, width, rngs=rngs)
        self.phi_out = nnx.Linear(width, width, rngs=rngs)
        self.rho_in = nnx.Linear(2 * width + 1, width, rngs=rngs)
        self.rho_out = nnx.Linear(width, out, rngs=rngs)

    def phi(self, x: Float[Array, "*n inputs"]) -> Float[Array, "*n d"]:
        """Features of one element."""
        return self.phi_out(jax.nn.gelu(self.phi_in(x)))

    def summary(self, x: Float[Array, "*batch n inputs"], seen: Bool[Array, "*batch n"]) -> Summary:
        """Running sums over the elements that are seen."""
        weight = seen.astype(x.dtype)
        features = self.phi(x)
        return Summary(
            jnp.einsum("...n,...nd->...d", weight, features),
            jnp.einsum("...n,...nd->...d", weight, jax.nn.softplus(features)),
            weight.sum(-1),
        )

    def add(self, summary: Summary, x: Float[Array, "*batch inputs"]) -> Summary:
        """The sums with one more element."""
        features = self.phi(x)
        one = jnp.ones((), x.dtype)
        return Summary(summary.total + features, summary.positive + jax.nn.softplus(features), summary.number + one)

    def read(self, summary: Summary) -> Float[Array, "*batch out"]:
        """Output for the set that the sums describe; the empty set is allowed."""
        count = summary.number[..., None]
        one = jnp.ones((), count.dtype)
        parts = [summary.total / jnp.maximum(count, one), jnp.log1p(summary.positive), jnp.log1p(count)]
        return self.rho_out(jax.nn.gelu(self.rho_in(jnp.concatenate(parts, -1))))

    def __call__(self, x: Float[Array, "*batch n inputs"], seen: Bool[Array, "*batch n"]) -> Float[Array, "*batch out"]:
        """Output for a whole set."""
        return self.read(self.summary(x, seen))
