"""What one datum looks like: an array, or a pytree of arrays that share their leading axis once there are several.

A shape is a tuple of whole numbers, or a dict (tuple, dataclass) of such tuples: ``(8, 8)``, ``{"x": (13,), "there":
(13,)}``.  In a dict the leaf that has the name of an observed site is what that site scores; the others are masks,
labels or inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Shape = Any
"""A tuple of whole numbers, or a pytree of them."""


def is_shape(node: Any) -> bool:
    """Whether a node of a pytree is the shape of one array."""
    return isinstance(node, tuple) and all(isinstance(size, int | np.integer) for size in node)


def leaves(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a datum by its name, in the order of ``jax.tree.leaves``; one array is named ``""``."""
    found, _ = jax.tree_util.tree_flatten_with_path(shape, is_leaf=is_shape)
    return {name_of(path): tuple(leaf) for path, leaf in found}


def name_of(path: Any) -> str:
    """Name of a leaf: its keys, indices or fields, joined by dots."""
    return ".".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)


def named_leaves(x: Any) -> dict[str, Any]:
    """The arrays of a datum or a batch by the names of :func:`leaves`."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(x)}


def numbers(shape: Shape) -> int:
    """How many numbers one datum holds."""
    return sum(math.prod(size) for size in leaves(shape).values())


def zeros(shape: Shape, n: int = 1) -> Any:
    """``n`` data of zeros (uint8), NumPy: to learn shapes and dtypes from."""
    return jax.tree.map(lambda size: np.zeros((n, *size), "uint8"), shape, is_leaf=is_shape)


def rows(x: Any) -> int:
    """Number of data: the length of the leading axis that all arrays of ``x`` share."""
    return jax.tree.leaves(x)[0].shape[0]


def take(x: Any, index: Any) -> Any:
    """The data of ``x`` at ``index``, which may be a slice or whole numbers; of every array alike."""
    return jax.tree.map(lambda leaf: leaf[index], x)


def part(x: Any, name: str) -> Any:
    """What the site ``name`` scores of a batch: its leaf in a dict, ``None`` if there is none; an array as it is."""
    return x.get(name) if isinstance(x, Mapping) else x
