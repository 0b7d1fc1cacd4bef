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
    """Keys and values of the symbols read, how many inputs that is, and the parameters of the next symbol."""

    cache: Cache
    inputs: Int[Array, ""]
    out: Float[Array, " out"]


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

    def init(self, context: Shaped[Array, " n"]) -> TransformerState:
        n = context.shape[0]
        if n > self.capacity:
            raise ValueError(
                f"a context of {n} symbols exceeds the capacity of {self.capacity}; give a larger capacity"
            )
        out, cache = _merge(self.graph, self.weights).read(context)
        return TransformerState(extend(cache, self.capacity + 1), jnp.asarray(n + 1, jnp.int32), out)

    def predict(self, state: TransformerState) -> dist.Distribution:
        return self.task.predictive(state.out)

    def update(self, state: TransformerState, z: Shaped[Array, ""]) -> TransformerState:
        out, cache = _merge(self.graph, self.weights).step(jnp.asarray(z), state.cache, state.inputs)
        return TransformerState(cache, state.inputs + 1, out)


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
