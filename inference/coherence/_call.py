"""Run a function of a predictor under ``jit``: its numbers are arguments, everything else of it is static."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from inference.coherence._symbols import Kind, kind
from ppl_models.program import Predictor


def _numeric(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.number | int | float) and not isinstance(leaf, bool)


def call(fn: Callable[..., Any], predictor: Predictor, *args: Any, **static: Any) -> Any:
    """``jit(fn)(predictor, *args, **static)``, compiled once for all predictors that differ in numbers only.

    A predictor that is no pytree is one static leaf, told apart by its own hash.
    """
    leaves, treedef = jax.tree.flatten(predictor)
    dynamic = [leaf for leaf in leaves if _numeric(leaf)]
    frozen = (treedef, tuple(None if _numeric(leaf) else (leaf,) for leaf in leaves))
    return _call(fn, frozen, tuple(sorted(static.items())), dynamic, args)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _call(fn: Callable[..., Any], frozen: Any, static: Any, dynamic: list[Any], args: tuple[Any, ...]) -> Any:
    treedef, kept = frozen
    numbers = iter(dynamic)
    predictor = jax.tree.unflatten(treedef, [next(numbers) if leaf is None else leaf[0] for leaf in kept])
    return fn(predictor, *args, **dict(static))


def kind_of(predictor: Predictor, n: int, dtype: str) -> Kind:
    """The kind of a rule's predictive distribution after n symbols, without computing anything; remembered."""
    leaves, treedef = jax.tree.flatten(predictor)
    frozen = tuple(None if _numeric(leaf) else (leaf,) for leaf in leaves)
    shapes = tuple((np.shape(leaf), str(jax.numpy.result_type(leaf))) for leaf in leaves if _numeric(leaf))
    return _kind_of(treedef, frozen, shapes, n, dtype)


@lru_cache(maxsize=256)
def _kind_of(treedef: Any, frozen: Any, shapes: Any, n: int, dtype: str) -> Kind:
    found = []

    def look(dynamic: list[Any], context: Any) -> None:
        numbers = iter(dynamic)
        predictor = jax.tree.unflatten(treedef, [next(numbers) if leaf is None else leaf[0] for leaf in frozen])
        found.append(kind(predictor.predict(predictor.init(context))))

    like = [jax.ShapeDtypeStruct(shape, kept) for shape, kept in shapes]
    jax.eval_shape(look, like, jax.ShapeDtypeStruct((n,), dtype))
    return found[0]


def double(predictor: Predictor) -> Predictor:
    """The predictor with its floating-point arrays in double precision; use inside ``jax.enable_x64(True)``."""

    def cast(leaf: Any) -> Any:
        is_float = isinstance(leaf, jax.Array | np.ndarray) and np.issubdtype(leaf.dtype, np.floating)
        return jax.numpy.asarray(leaf, "float64") if is_float else leaf

    return jax.tree.map(cast, predictor)
