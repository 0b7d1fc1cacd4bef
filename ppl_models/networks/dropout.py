"""Dropout with an explicit key, for networks that are pure functions of their weights (no random stream inside).

Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Drop = Callable[[Array], Array]
CALLS = 8
"""Masks that a cell of a looped network has at most."""


class Dropout:
    """Zero units with probability ``rate`` and scale up the rest; another mask at each call, all from one key.

    ``first`` is the number of the first mask; it may be traced.
    """

    def __init__(self, rate: Float[Array, ""] | float, key: Key[Array, ""], first: Any = 0) -> None:
        self.rate, self.keep, self.key, self.calls = rate, 1.0 - rate, key, first

    def __call__(self, h: Float[Array, "..."]) -> Float[Array, "..."]:
        self.calls += 1
        # 16 random bits a unit: half the cost of a uniform number.
        bits = jax.random.bits(jax.random.fold_in(self.key, self.calls), h.shape, jnp.uint16)
        kept = bits.astype(jnp.float32) < 65536.0 * self.keep
        return jnp.where(kept, h * jnp.asarray(1.0 / self.keep, h.dtype), jnp.zeros((), h.dtype))

    def at(self, cell: Any) -> Dropout:
        """The masks of one cell (a number, or traced), the same whether cells are written out or looped over."""
        return Dropout(self.rate, self.key, CALLS * (cell + 1))


def no_drop(h: Float[Array, "..."]) -> Float[Array, "..."]:
    """The dropout of evaluation."""
    return h


def drop_at(drop: Drop, cell: Any) -> Drop:
    """What ``drop`` is for one cell."""
    return drop.at(cell) if isinstance(drop, Dropout) else drop
