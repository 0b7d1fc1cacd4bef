"""How a predictive rule is declared: a frozen dataclass that is also a pytree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclass_transform(frozen_default=True)
def rule(*data: str) -> Callable[[type], type]:
    """Make a frozen dataclass a pytree whose leaves are the fields ``data``; the other fields are static.

    Rules then pass through ``jit`` and ``vmap`` as arguments: one compilation serves every value of the leaves.
    """

    def decorate(cls: type) -> type:
        made: Any = dataclass(frozen=True)(cls)
        meta = [f.name for f in fields(made) if f.name not in data]
        return jax.tree_util.register_dataclass(made, data_fields=list(data), meta_fields=meta)

    return decorate


def numbers(value: Any) -> np.ndarray | None:
    """Concrete numbers of a field, or ``None`` while JAX rebuilds the rule with tracers or placeholders in it."""
    if isinstance(value, int | float | np.number | np.ndarray):
        return np.asarray(value)
    if isinstance(value, tuple) and value and all(isinstance(v, int | float | np.number) for v in value):
        return np.asarray(value)
    return None


LOG_RANGE = 12.0
"""Logarithms of a network's positive outputs are cut here."""


def positive(raw: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``exp(raw)``, bounded: an early wild step must not overflow the special functions of a Beta or Dirichlet."""
    return jnp.exp(jnp.clip(raw, -LOG_RANGE, LOG_RANGE))


def check_positive(self: Any, *names: str) -> None:
    """Raise ``ValueError`` for a field that is not a positive finite number."""
    check(self, lambda v: bool(np.all((v > 0) & np.isfinite(v))), "positive", *names)


def check(self: Any, good: Callable[[np.ndarray], bool], what: str, *names: str) -> None:
    """Raise ``ValueError`` for a field whose numbers are not ``good``; ``what`` says what was expected."""
    for name in names:
        value = numbers(getattr(self, name))
        if value is not None and not good(value):
            raise ValueError(f"{type(self).__name__}: {name} must be {what}, got {getattr(self, name)!r}")
