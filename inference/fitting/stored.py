"""Stored data of a program: validated, as NumPy arrays; one array, or a pytree as the program's ``shape`` says."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from inference.fitting.stored_rows import columns_of, is_hub
from ppl_models.program import Program, leaves, named_leaves

_AT_ONCE = 2**24
"""Numbers that are looked at together for one that is not finite."""


def stored(program: Program, x: Any, what: str = "data") -> Any:
    """Validate stored data of a program and return them as NumPy arrays: one, or a pytree as its ``shape`` says.

    Whatever the program can ``read`` (a DataFrame, where it is a model of a table) is read first, and the columns of a
    Hugging Face data set are taken as arrays.  Raises
    ``ValueError`` for other leaves than those of a datum, a wrong shape, leaves of different lengths, no data, a dtype
    that is neither integer, bool nor float, NaN or infinite values, and whatever the program's own ``check`` refuses.
    """
    x = program.observation.read(_records(program, x))
    wanted = leaves(program.shape)
    if list(wanted) == [""]:
        found = _array(x, wanted[""], what)
    else:
        given = named_leaves(x)
        if list(given) != list(wanted):
            expected = ", ".join(f"{name!r} ({', '.join(map(str, ('n', *shape)))})" for name, shape in wanted.items())
            got = f"leaves {list(given)}" if list(given) != [""] else f"one {type(x).__name__}"
            raise ValueError(f"{what} must hold the arrays {expected}, got {got}; pass them as one dict")
        arrays = [_array(leaf, wanted[name], f"{name!r} of {what}") for name, leaf in given.items()]
        lengths = {name: len(leaf) for name, leaf in zip(wanted, arrays, strict=True)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of {what} differ in length: {lengths}; row i of each is datum i")
        found = jax.tree.unflatten(jax.tree.structure(x), arrays)
    program.observation.check(found)
    return found


def _records(program: Program, x: Any) -> Any:
    """The columns of a Hugging Face data set as arrays, those that the program knows; anything else as it is."""
    if not is_hub(x):
        return x
    several, wanted = columns_of(program, x)
    found = x.with_format("numpy")[:]
    return {name: found[name] for name in wanted} if several else found[wanted[0]]


def _array(x: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """One array (n, *shape) of finite numbers."""
    array = np.asarray(x)
    if array.dtype == object or not (array.dtype == bool or np.issubdtype(array.dtype, np.number)):
        raise ValueError(f"{what} must be an array of numbers, got dtype {array.dtype}; convert it first")
    if np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{what} must be real, got dtype {array.dtype}; split real and imaginary parts")
    if array.ndim == 0 or array.shape[1:] != shape:
        raise ValueError(
            f"{what} has shape {array.shape}, this program expects ({', '.join(map(str, ('n', *shape)))}): "
            "one datum a row; reshape it, or set the spec's shape to that of one datum"
        )
    if array.shape[0] == 0:
        raise ValueError(f"{what} is empty: shape {array.shape}; expected at least one datum")
    if (bad := _not_finite(array)).size:
        raise ValueError(
            f"{what} has NaN or infinite values in {bad.size} of {len(array)} data, first at row {bad[0]}; "
            "drop or impute those rows"
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _not_finite(array: np.ndarray) -> np.ndarray:
    """Rows with NaN or infinite values; looks at a part at a time, for the array may be a memory map."""
    if not np.issubdtype(array.dtype, np.floating):
        return np.zeros(0, np.int64)
    each = max(1, _AT_ONCE // max(1, array[0].size))
    starts = range(0, len(array), each)
    parts = [_bad(array[start : start + each]) + start for start in starts]
    return np.concatenate(parts)


def _bad(array: np.ndarray) -> np.ndarray:
    finite = np.isfinite(array)
    return np.zeros(0, np.int64) if finite.all() else np.flatnonzero(~finite.reshape(len(array), -1).all(1))


def stacked(batches: list[Any]) -> Any:
    """Batches of one structure on a new leading axis, NumPy."""
    return jax.tree.map(lambda *leaf: np.stack([np.asarray(one) for one in leaf]), *batches)
