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


def rows_begun(z: Num[Array, "*batch n"], period: int) -> Float[Array, "*batch n two_periods"]:
    """For each symbol of a sequence of rows: its row up to and with it, zeros behind, and which place it has."""
    n = z.shape[-1]
    padded = jnp.concatenate([z, jnp.zeros((*z.shape[:-1], -n % period), z.dtype)], -1)
    rows = padded.reshape(*z.shape[:-1], -1, 1, period) * jnp.tril(jnp.ones((period, period), z.dtype))
    begun = rows.reshape(*z.shape[:-1], -1, period)[..., :n, :]
    place = jnp.broadcast_to(jnp.eye(period, dtype=z.dtype)[jnp.arange(n) % period], (*z.shape[:-1], n, period))
    return jnp.concatenate([begun, place], -1)


class SequenceNet(nnx.Module):
    """``z_1..z_t -> `` parameters of ``p(z_{t+1} | z_{1:t})``, for all t at once or one step at a time.

    Row 0 reads a start symbol only.  ``symbols`` is the number K of discrete symbols, or ``None`` for real ones.
    ``period`` numbers are a row of a table: a symbol is then embedded together with what came before it in its row.
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
        period: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        self.symbols, self.period = symbols, period
        rows = 2 * period + 1 if period > 1 else 2 if symbols is None else symbols + 1  # the last: start symbol
        self.embedding = nnx.Param(0.5 * jax.random.normal(rngs.params(), (rows, width)))
        self.body = CausalTransformer(
            width=width, layers=layers, heads=heads, hidden=hidden, out=out, positions=positions, rngs=rngs
        )

    def embed(self, z: Num[Array, "..."]) -> Float[Array, "... width"]:
        """Embedding of symbols: a row of the table, or the first row times the value; of rows begun, their sum."""
        table = self.embedding[...]
        if self.period > 1:
            return z.astype(table.dtype) @ table[:-1]
        return table[z.astype(jnp.int32)] if self.symbols is not None else z[..., None].astype(table.dtype) * table[0]

    def _inputs(self, z: Num[Array, "*batch n"]) -> Float[Array, "*batch n_1 width"]:
        start = jnp.broadcast_to(self.embedding[...][-1], (*z.shape[:-1], 1, self.embedding.shape[-1]))
        z = rows_begun(z, self.period) if self.period > 1 else z
        return jnp.concatenate([start, self.embed(z)], -2)

    def __call__(self, z: Num[Array, "*batch n"]) -> Float[Array, "*batch n out"]:
        """Row t holds the parameters of ``p(z_{t+1} | z_{1:t})``, t = 0..n-1."""
        return self.body(self._inputs(z[..., :-1]))

    def read(self, context: Num[Array, " n"]) -> tuple[Float[Array, " out"], Cache]:
        """Parameters of the symbol after the whole context, and the cache to go on from."""
        out, cache = self.body.read(self._inputs(context))
        return out[-1], cache

    def step(self, z: Num[Array, "*row"], cache: Cache, position: Int[Array, ""]) -> tuple[Float[Array, " out"], Cache]:
        """Parameters of the symbol after one more symbol, whose place among the inputs is ``position``.

        Of a sequence of rows, ``z`` is the row begun, as in :func:`rows_begun`.
        """
        return self.body.step(self.embed(z), cache, position)


class PrefixNet(nnx.Module):
    """The same without order: parameters of ``p(z_{t+1} | {z_1..z_t})`` from running sums over the set read so far.

    Elements are symbols, or whole rows of ``period`` numbers; what is begun of the next row is asked of the set.
    """

    def __init__(
        self, *, symbols: int | None, out: int, width: int, hidden: int, period: int = 1, rngs: nnx.Rngs
    ) -> None:
        self.symbols, self.period = symbols, period
        self.body = DeepSet(
            inputs=symbols or period, width=width, out=out, query=0 if period == 1 else 2 * period, hidden=hidden,
            rngs=rngs,
        )  # fmt: skip

    def element(self, z: Num[Array, "..."]) -> Float[Array, "... inputs"]:
        """What a symbol, or with ``period`` > 1 a row in the last axis, is among the elements."""
        dtype = self.body.phi_in.kernel[...].dtype
        if self.symbols is not None:
            return jax.nn.one_hot(z.astype(jnp.int32), self.symbols, dtype=dtype)
        return (z if self.period > 1 else z[..., None]).astype(dtype)

    def all(self, z: Num[Array, "*batch n"]) -> tuple[Summary, Float[Array, "*batch n_1 query"] | None]:
        """Running sums before each symbol and after the last, and what is begun of a row there."""
        P = self.period
        if P == 1:
            return self.body.prefixes(self.element(z)), None
        n = z.shape[-1]
        z = z.astype(self.body.phi_in.kernel[...].dtype)
        sums = self.body.prefixes(z[..., : n - n % P].reshape(*z.shape[:-1], -1, P))
        done = jnp.arange(n + 1) // P
        sums = Summary(sums.total[..., done, :], sums.positive[..., done, :], sums.number[..., done])
        begun = rows_begun(z, P)
        first = jnp.zeros_like(begun[..., :1, :]) if n else jnp.zeros((*z.shape[:-1], 1, 2 * P), z.dtype)
        ended = (jnp.arange(n + 1) % P == 0)[:, None]
        return sums, jnp.where(ended, 0.0, jnp.concatenate([first, begun], -2))

    def __call__(self, z: Num[Array, "*batch n"]) -> Float[Array, "*batch n out"]:
        """Row t holds the parameters of ``p(z_{t+1} | z_{1:t})``, t = 0..n-1."""
        sums, query = self.all(z[..., :-1])
        return self.body.read(sums, query)


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
