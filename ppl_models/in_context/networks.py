"""The networks of the family: a causal transformer that reads symbols, and a set encoder that forgets their order.

They map arrays to arrays; which distribution an output means is the task's business.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from ppl_models.networks.flow import CouplingFlow
from ppl_models.networks.set_encoder import DeepSet, Summary
from ppl_models.networks.transformer import Cache, CausalTransformer


class SequenceNet(nnx.Module):
    """``z_1..z_t -> `` parameters of ``p(z_{t+1} | z_{1:t})``, for all t at once or one step at a time.

    Row 0 reads a start symbol only.  ``symbols`` is the number K of discrete symbols, or ``None`` for real ones.
    """

    def __init__(
        self,
        *,
        symbols: int | None,
        out: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        positions: int | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.symbols = symbols
        rows = 2 if symbols is None else symbols + 1  # the last row is the start symbol
        self.embedding = nnx.Param(0.5 * jax.random.normal(rngs.params(), (rows, width)))
        self.body = CausalTransformer(
            width=width, layers=layers, heads=heads, hidden=hidden, out=out, positions=positions, rngs=rngs
        )

    def embed(self, z: Num[Array, "*n"]) -> Float[Array, "*n width"]:
        """Embedding of symbols: a row of the table, or the first row times the value."""
        table = self.embedding[...]
        return table[z.astype(jnp.int32)] if self.symbols is not None else z[..., None].astype(table.dtype) * table[0]

    def _inputs(self, z: Num[Array, "*batch n"]) -> Float[Array, "*batch n_1 width"]:
        start = jnp.broadcast_to(self.embedding[...][-1], (*z.shape[:-1], 1, self.embedding.shape[-1]))
        return jnp.concatenate([start, self.embed(z)], -2)

    def __call__(self, z: Num[Array, "*batch n"]) -> Float[Array, "*batch n out"]:
        """Row t holds the parameters of ``p(z_{t+1} | z_{1:t})``, t = 0..n-1."""
        return self.body(self._inputs(z[..., :-1]))

    def read(self, context: Num[Array, " n"]) -> tuple[Float[Array, " out"], Cache]:
        """Parameters of the symbol after the whole context, and the cache to go on from."""
        out, cache = self.body.read(self._inputs(context))
        return out[-1], cache

    def step(self, z: Num[Array, ""], cache: Cache, position: Int[Array, ""]) -> tuple[Float[Array, " out"], Cache]:
        """Parameters of the symbol after one more symbol, whose place among the inputs is ``position``."""
        return self.body.step(self.embed(z), cache, position)


class SetNet(nnx.Module):
    """``{z_1..z_n} -> `` parameters of ``q(theta | z_{1:n})``; the order of the symbols cannot matter.

    ``posterior`` names the family that they are of; ``flow`` is (numbers of theta, of the context) of
    couplings, if any.
    """

    def __init__(
        self,
        *,
        symbols: int | None,
        out: int,
        width: int,
        posterior: str = "conjugate",
        flow: tuple[int, int] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.symbols, self.posterior = symbols, posterior
        self.body = DeepSet(inputs=1 if symbols is None else symbols, width=width, out=out, rngs=rngs)
        if flow is not None:
            self.flow = CouplingFlow(*flow, rngs=rngs)

    def _element(self, z: Num[Array, "*n"]) -> Float[Array, "*n inputs"]:
        dtype = self.body.phi_in.kernel.dtype
        if self.symbols is None:
            return z[..., None].astype(dtype)
        return jax.nn.one_hot(z.astype(jnp.int32), self.symbols, dtype=dtype)

    def __call__(self, z: Num[Array, "*batch n"], seen: Bool[Array, "*batch n"]) -> Float[Array, "*batch out"]:
        """Parameters given the symbols that are seen."""
        return self.body(self._element(z), seen)

    def read(self, context: Num[Array, " n"]) -> Summary:
        """Running sums of a context."""
        return self.body.summary(self._element(context), jnp.ones(context.shape, bool))

    def add(self, summary: Summary, z: Num[Array, ""]) -> Summary:
        """Running sums with one more symbol."""
        return self.body.add(summary, self._element(z))
