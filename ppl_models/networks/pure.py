"""A Flax NNX module as a pure function, ``apply(params, *args)``, and its start as one compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key


@dataclass(frozen=True)
class Apply:
    """The structure of a module without its weights; hashable, so it may be static under ``jit``."""

    graph: Any

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the module with the weights ``params``."""
        return nnx.merge(self.graph, params)(*args, **kwargs)


def pure(module: nnx.Module) -> tuple[Apply, Any]:
    """Split a stateless module into ``apply`` and its parameters.

    Two modules of the same structure give equal ``apply``.  Raises ``ValueError`` for a module with other state than
    parameters (running statistics, random streams): its output would not be a function of the weights and the input.
    """
    split: Any = nnx.split(module, nnx.Param, ...)
    graph, params, rest = split
    state = nnx.to_pure_dict(rest)
    if state:
        raise ValueError(
            f"{type(module).__name__} carries state beside its parameters ({', '.join(map(str, state))}); "
            "use layers without running statistics or dropout"
        )
    return Apply(graph), params


def at_once(make: Callable[[nnx.Rngs], nnx.Module], key: Key[Array, ""]) -> nnx.Module:
    """``make(nnx.Rngs(key))``: one compilation instead of one a layer, without optimisation that one run cannot repay.

    Under a trace, where only shapes are asked for, nothing is compiled.
    """
    graph: Any = None

    def start(key: Array) -> Any:
        nonlocal graph
        graph, state = nnx.split(make(nnx.Rngs(key)))
        return state

    if not isinstance(key, jax.core.Tracer):  # a compilation with options cannot stand inside another
        start = jax.jit(start, compiler_options={"xla_backend_optimization_level": 0})
    state = start(key)
    return nnx.merge(graph, state)
