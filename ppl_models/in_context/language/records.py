"""Records (x, y) by one binary rule: for the attribute, and for the symptom given each attribute."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Shaped

from ppl_models.in_context._rule import rule
from ppl_models.in_context.predictors import BetaBernoulli


class RecordState(NamedTuple):
    """States of the rule of x, and of y where x is 0 and 1."""

    x: Any
    y: tuple[Any, Any]


@rule("base")
class Records:
    """Symbols ``2 x + y``: ``p(x) p(y | x)`` with ``base`` applied to the attributes and to the symptoms of each.

    With exact Bayes as base this is exact Bayes for independent unknown frequencies.  The context is read symbol by
    symbol from an empty one, by ``update``.

    >>> rule = Records(BetaBernoulli(1.0, 1.0))
    >>> fn = rule.predict(rule.init(jnp.array([3, 3, 0])))
    >>> float(fn.probs[3])  # (1 + 2) / 5 of x, (1 + 2) / 4 of y
    0.45...
    """

    base: Any = BetaBernoulli()

    def init(self, context: Shaped[Array, " n"]) -> RecordState:
        none = jnp.asarray(context).astype(jnp.int32)[:0]
        start = RecordState(self.base.init(none), (self.base.init(none), self.base.init(none)))
        start = jax.tree.map(lambda leaf: jnp.asarray(leaf), start)
        # Once around before the loop, so that the types of the state are those that an update leaves.
        like = jax.eval_shape(self.update, start, jnp.zeros((), jnp.int32))
        start = jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), start, like)
        return jax.lax.scan(lambda state, z: (self.update(state, z), None), start, jnp.asarray(context))[0]

    def predict(self, state: RecordState) -> dist.Distribution:
        x, y0, y1 = (self.base.predict(s).probs for s in (state.x, *state.y))
        return dist.Categorical(probs=jnp.stack([(1 - x) * (1 - y0), (1 - x) * y0, x * (1 - y1), x * y1]))

    def update(self, state: RecordState, z: Shaped[Array, ""]) -> RecordState:
        x, y = jnp.asarray(z).astype(jnp.int32) // 2, jnp.asarray(z).astype(jnp.int32) % 2
        moved = tuple(
            jax.tree.map(lambda new, old, i=i: jnp.where(x == i, new, old), self.base.update(s, y), s)
            for i, s in enumerate(state.y)
        )
        return RecordState(self.base.update(state.x, x), (moved[0], moved[1]))
