"""The protocol of a predictive rule: what the next symbol of a sequence may be, given those seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Num, Shaped
from numpyro.distributions import Distribution


@runtime_checkable
class Predictor(Protocol):
    """A predictive rule ``p(z_{n+1} | z_{1:n})`` for one sequence, in three pure functions.

    ``init(context)``    read z_{1:n}, an array (n,) with n >= 0, and return the state.
    ``predict(state)``   the NumPyro distribution of the next symbol.
    ``update(state, z)`` the state after one more symbol.

    A state is a pytree whose shapes do not depend on the symbols, so that a path is one ``lax.scan`` and many
    paths, contexts or tree nodes are one ``vmap``; ``update`` must agree with ``init`` on the longer context.  A rule
    is best a pytree itself (``jax.tree_util.register_dataclass``): it then passes through ``jit`` as an argument, and
    a check can run it in double precision.  A rule that can hold only so many symbols, context included, says how
    many in a static field ``capacity``.
    """

    def init(self, context: Shaped[Array, " n"]) -> Any: ...

    def predict(self, state: Any) -> Distribution: ...

    def update(self, state: Any, z: Shaped[Array, ""]) -> Any: ...


class HostPaths(NamedTuple):
    """J continuations by N symbols, as :class:`HostPredictor` returns them; probabilities NaN where unknown.

    ``p``      (path, step + 1, feature): E g(Z) before each draw and after the last.
    ``log_p``  log-probability of each drawn symbol, nats.
    """

    z: Num[np.ndarray, "path step"]
    p: Float[np.ndarray, "path step_1 feature"]
    log_p: Float[np.ndarray, "path step"]


@runtime_checkable
class HostPredictor(Protocol):
    """A predictive rule that cannot be traced, a language model behind an endpoint for example.

    ``names``                               the features g: ``("z=1",)``; ``("z=0", ...)``; ``("z", "z^2")``.
    ``paths(context, steps, paths, seed)``  draw paths from the rule after one context (n,).
    ``score(sequences)``                    E g(Z) after each whole sequence, (sequence, feature).
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def paths(self, context: Num[np.ndarray, " n"], steps: int, paths: int, seed: int) -> HostPaths: ...

    def score(self, sequences: Sequence[Num[np.ndarray, " _"]]) -> Float[np.ndarray, "sequence feature"]: ...
