"""Fitted networks as predictive rules, one step at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from ppl_models.in_context._rule import rule
from ppl_models.in_context.guides import guide
from ppl_models.networks.set_encoder import Summary
from ppl_models.networks.transformer import Cache, extend

SITE = "network$params"


def _split(net: nnx.Module, params: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """The static graph of a network and its weights: those of ``params``, a fit's parameters, if given."""
    graph, own = nnx.split(net, nnx.Param)
    weights = nnx.to_pure_dict(own)
    if params is None:
        return graph, weights
    if SITE not in params:
        raise ValueError(f"params has no {SITE!r}, got {sorted(params)}; pass the params of a fit of this program")
    return graph, params[SITE]


def _merge(graph: Any, weights: Any) -> Any:
    return nnx.merge(graph, nnx.State(weights)) if not isinstance(weights, nnx.State) else nnx.merge(graph, weights)


class TransformerState(NamedTuple):
    """Keys and values of the symbols read, how many inputs that is, the parameters of the next symbol, and what is
    begun of a row (nothing where symbols are no rows).
    """

    cache: Cache
    inputs: Int[Array, ""]
    out: Float[Array, " out"]
    row: Float[Array, " row"]


def _begun(context: Shaped[Array, " n"], period: int) -> Float[Array, " row"]:
    """The row that a context ends in, zeros where it has no number yet."""
    if period == 1:
        return jnp.zeros(0)
    left = context[context.shape[0] - context.shape[0] % period :].astype(jnp.result_type(float))
    return jnp.concatenate([left, jnp.zeros(period - left.shape[0], left.dtype)])


def _written(row: Float[Array, " row"], z: Shaped[Array, ""], place: Int[Array, ""]) -> Float[Array, " row"]:
    """The row with one more number; a new one at place 0."""
    kept = jnp.where(jnp.arange(row.shape[0]) < place, row, 0.0)
    return jnp.where(jnp.arange(row.shape[0]) == place, jnp.asarray(z, row.dtype), kept)


def _with_place(row: Float[Array, " row"], place: Int[Array, ""]) -> Float[Array, " two_rows"]:
    return jnp.concatenate([row, (jnp.arange(row.shape[0]) == place).astype(row.dtype)])


@rule("weights")
class FittedTransformer:
    """A prior-fitted transformer as a rule; ``capacity`` is the longest sequence it can hold, context included."""

    weights: Any
    graph: Any
    task: Any
    capacity: int

    @classmethod
    def of(
        cls, net: Any, task: Any, params: Mapping[str, Any] | None, length: int, capacity: int | None = None
    ) -> FittedTransformer:
        """The rule of fitted parameters; ``capacity`` defaults to the length trained for."""
        graph, weights = _split(net, params)
        positions = net.body.positions
        if capacity is not None and positions is not None and capacity >= positions.shape[0]:
            raise ValueError(
                f"capacity {capacity} exceeds the {positions.shape[0] - 1} symbols this network has positions for; "
                "build it with a longer shape, or without positions"
            )
        return cls(weights, graph, task, length if capacity is None else capacity)

    @classmethod
    def live(cls, net: Any, task: Any, length: int) -> FittedTransformer:
        """The rule of a network in use inside a program."""
        return cls.of(net, task, None, length)

    @property
    def period(self) -> int:
        """Numbers of one row of the sequence; 1 where symbols are alike."""
        return getattr(self.task, "period", 1)

    def init(self, context: Shaped[Array, " n"]) -> TransformerState:
        n = context.shape[0]
        if n > self.capacity:
            raise ValueError(
                f"a context of {n} symbols exceeds the capacity of {self.capacity}; give a larger capacity"
            )
        out, cache = _merge(self.graph, self.weights).read(context)
        row = _begun(context, self.period)
        return TransformerState(extend(cache, self.capacity + 1), jnp.asarray(n + 1, jnp.int32), out, row)

    def predict(self, state: TransformerState) -> dist.Distribution:
        return self.task.predictive(state.out)

    def update(self, state: TransformerState, z: Shaped[Array, ""]) -> TransformerState:
        z, row, period = jnp.asarray(z), state.row, self.period
        if period > 1:
            place = (state.inputs - 1) % period
            row = _written(row, z, place)
            z = _with_place(row, place)
        out, cache = _merge(self.graph, self.weights).step(z, state.cache, state.inputs)
        return TransformerState(cache, state.inputs + 1, out, row)


class PrefixState(NamedTuple):
    """Running sums over the symbols or whole rows read, what is begun of a row, and how many of its numbers."""

    sums: Summary
    row: Float[Array, " row"]
    place: Int[Array, ""]


@rule("weights")
class FittedPrefix:
    """A prior-fitted network over sets as a rule: exchangeable by construction, whatever was learnt."""

    weights: Any
    graph: Any
    task: Any

    @classmethod
    def of(cls, net: Any, task: Any, params: Mapping[str, Any] | None) -> FittedPrefix:
        """The rule of fitted parameters."""
        graph, weights = _split(net, params)
        return cls(weights, graph, task)

    @property
    def period(self) -> int:
        """Numbers of one row of the sequence; 1 where symbols are alike."""
        return getattr(self.task, "period", 1)

    def init(self, context: Shaped[Array, " n"]) -> PrefixState:
        net, P = _merge(self.graph, self.weights), self.period
        elements = context if P == 1 else context[: context.shape[0] - context.shape[0] % P].reshape(-1, P)
        x = net.element(elements)
        sums = net.body.summary(x, jnp.ones(x.shape[:1], bool))
        return PrefixState(sums, _begun(context, P), jnp.asarray(context.shape[0] % P, jnp.int32))

    def predict(self, state: PrefixState) -> dist.Distribution:
        net, P = _merge(self.graph, self.weights), self.period
        query = None
        if P > 1:
            query = jnp.where(state.place == 0, 0.0, _with_place(state.row, state.place - 1))
        return self.task.predictive(net.body.read(state.sums, query))

    def update(self, state: PrefixState, z: Shaped[Array, ""]) -> PrefixState:
        net, P, z = _merge(self.graph, self.weights), self.period, jnp.asarray(z)
        if P == 1:
            return PrefixState(net.body.add(state.sums, net.element(z)), state.row, state.place)
        row, ended = _written(state.row, z, state.place), state.place == P - 1
        added = net.body.add(state.sums, net.element(row))
        sums = Summary(*(jnp.where(ended, new, old) for new, old in zip(added, state.sums, strict=True)))
        return PrefixState(sums, jnp.where(ended, 0.0, row), jnp.where(ended, 0, state.place + 1).astype(jnp.int32))


@rule("weights")
class FittedSet:
    """The rule of an amortised posterior: ``p(z_{n+1} | z_{1:n}) = E_q p(z | theta)``, q as encoded after each symbol.

    Exchangeable in the context by construction.  A martingale exactly where q after one more symbol is Bayes' update
    of q: what a coherence check measures here is the error of amortisation.
    """

    weights: Any
    graph: Any
    task: Any

    @classmethod
    def of(cls, net: Any, task: Any, params: Mapping[str, Any] | None) -> FittedSet:
        """The rule of fitted parameters."""
        graph, weights = _split(net, params)
        return cls(weights, graph, task)

    def init(self, context: Shaped[Array, " n"]) -> Summary:
        return _merge(self.graph, self.weights).read(context)

    def posterior(self, state: Summary) -> dist.Distribution:
        """``q(theta | z_{1:n})``."""
        net = _merge(self.graph, self.weights)
        return guide(self.task, net, net.body.read(state))

    def predict(self, state: Summary) -> dist.Distribution:
        return self.task.marginal(self.posterior(state))

    def update(self, state: Summary, z: Shaped[Array, ""]) -> Summary:
        return _merge(self.graph, self.weights).add(state, jnp.asarray(z))
