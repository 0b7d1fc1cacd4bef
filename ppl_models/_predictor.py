"""The protocol of a predictive rule: what the next symbol of a sequence may be, given those seen so far."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Shaped
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
