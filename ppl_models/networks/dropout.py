"""Dropout with an explicit key, for networks that are pure functions of their weights (no random stream inside).

Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Drop = Callable[[Array], Array]


class Dropout:
    """Zero units with probability ``rate`` and scale up the rest; another mask at each call, all from one key."""

    def __init__(self, rate: Float[Array, ""] | float, key: Key[Array, ""]) -> None:
        self.keep, self.key, self.calls = 1.0 - rate, key, 0

    def __call__(self, h: Float[Array, "..."]) -> Float[Array, "..."]:
        self.calls += 1
        # 16 random bits a unit: half the cost of a uniform number.
        bits = jax.random.bits(jax.random.fold_in(self.key, self.calls), h.shape, jnp.uint16)
        kept = bits.astype(jnp.float32) < 65536.0 * self.keep
        return jnp.where(kept, h * jnp.asarray(1.0 / self.keep, h.dtype), jnp.zeros((), h.dtype))


def no_drop(h: Float[Array, "..."]) -> Float[Array, "..."]:
    """The dropout of evaluation."""
    return h
