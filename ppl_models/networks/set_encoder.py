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
    """Elements (n, inputs) to (out,); ``seen`` masks elements out.

    ``query``   numbers beside the set that rho reads too: the question asked of it.
    ``hidden``  further hidden layers of rho, each added to what it reads.
    """

    def __init__(self, *, inputs: int, width: int, out: int, query: int = 0, hidden: int = 0, rngs: nnx.Rngs) -> None:
        self.phi_in = nnx.Linear(inputs, width, rngs=rngs)
        self.phi_out = nnx.Linear(width, width, rngs=rngs)
        self.rho_in = nnx.Linear(2 * width + 1 + query, width, rngs=rngs)
        self.rho_hidden = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(hidden)]) if hidden else None
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

    def prefixes(self, x: Float[Array, "*batch n inputs"]) -> Summary:
        """Running sums of the first 0, 1, ..., n elements, one more axis before the features."""
        features = self.phi(x)

        def sums(values: Float[Array, "*batch n d"]) -> Float[Array, "*batch n_1 d"]:
            return jnp.concatenate([jnp.zeros_like(values[..., :1, :]), jnp.cumsum(values, -2)], -2)

        number = jnp.broadcast_to(jnp.arange(x.shape[-2] + 1, dtype=x.dtype), (*x.shape[:-2], x.shape[-2] + 1))
        return Summary(sums(features), sums(jax.nn.softplus(features)), number)

    def read(self, summary: Summary, query: Float[Array, "*batch query"] | None = None) -> Float[Array, "*batch out"]:
        """Output for the set that the sums describe; the empty set is allowed."""
        count = summary.number[..., None]
        one = jnp.ones((), count.dtype)
        parts = [summary.total / jnp.maximum(count, one), jnp.log1p(summary.positive), jnp.log1p(count)]
        if query is not None:
            parts.append(query)
        hidden = jax.nn.gelu(self.rho_in(jnp.concatenate(parts, -1)))
        for layer in self.rho_hidden or ():
            hidden = hidden + jax.nn.gelu(layer(hidden))
        return self.rho_out(hidden)

    def __call__(self, x: Float[Array, "*batch n inputs"], seen: Bool[Array, "*batch n"]) -> Float[Array, "*batch out"]:
        """Output for a whole set."""
        return self.read(self.summary(x, seen))
