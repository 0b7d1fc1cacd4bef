"""Haar pyramids of fields in address order, on any domain.

A domain is the union of b copies of itself of equal measure, cut J times; a field (..., b^J) holds one value a cell,
the children of a cell side by side (``cells.py``).  On every domain pooling is a mean over groups of b, and a Haar step
an orthogonal b x b matrix H on each group, whose first row is constant:

    (s, d_1 .. d_{b-1}) = H (children),     s = sqrt(b) x their mean

An isometry: ``|field|^2 = |coarse|^2 + sum of |details|^2``, and white noise stays white noise in every band.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Pyramid(NamedTuple):
    """``coarse`` (..., b^(J-levels)), and ``details`` coarse to fine: (..., cells, b - 1) each."""

    coarse: Float[Array, "..."]
    details: tuple[Float[Array, "..."], ...]


def haar_matrix(b: int) -> np.ndarray:
    """The orthogonal b x b matrix of a Haar step, first row ``1 / sqrt(b)``.

    For b = 2 the Haar matrix, for b = 4 its Kronecker square (letters ``2 * row + column``: sum, columns, rows,
    diagonal), for another b Helmert's.
    """
    if b < 2:
        raise ValueError(f"a cell has at least 2 children, got {b}")
    if b & (b - 1) == 0:
        one = np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
        found: np.ndarray = one
        while len(found) < b:
            found = np.kron(found, one)
        return found
    helmert = np.tril(np.ones((b, b)), -1)
    for k in range(1, b):
        helmert[k, k] = -k
        helmert[k] /= math.sqrt(k * (k + 1))
    helmert[0] = 1 / math.sqrt(b)
    return helmert


def depth_of(cells: int, b: int) -> int:
    """J with ``b^J = cells``; raises ``ValueError`` if there is none."""
    depth = 0
    while b**depth < cells:
        depth += 1
    if b**depth != cells:
        raise ValueError(f"a field has {b}^J cells on its last axis (b = {b} children a cell), got {cells}")
    return depth


def _levels(cells: int, b: int, levels: int | None) -> int:
    depth = depth_of(cells, b)
    if levels is None:
        return depth
    if not 0 <= levels <= depth:
        raise ValueError(f"a field of {cells} cells has {depth} levels, got levels={levels}")
    return levels


def analyse(field: Float[Array, "..."], b: int, levels: int | None = None) -> Pyramid:
    """Haar coefficients of the ``levels`` finest levels (default: all) of a field (..., b^J)."""
    matrix, found = jnp.asarray(haar_matrix(b), field.dtype), []
    for _ in range(_levels(field.shape[-1], b, levels)):
        parts = jnp.einsum("...i,ji->...j", field.reshape(*field.shape[:-1], -1, b), matrix)
        found.append(parts[..., 1:])
        field = parts[..., 0]
    return Pyramid(field, tuple(reversed(found)))


def synthesise(pyramid: Pyramid, b: int) -> Float[Array, "..."]:
    """The field of a pyramid: the inverse, and transpose, of :func:`analyse`."""
    field = pyramid.coarse
    matrix = jnp.asarray(haar_matrix(b), field.dtype)
    for detail in pyramid.details:
        parts = jnp.concatenate([field[..., None], detail], axis=-1)
        field = jnp.einsum("...j,ji->...i", parts, matrix).reshape(*field.shape[:-1], -1)
    return field


def project(field: Float[Array, "..."], b: int, levels: int = 1) -> Float[Array, "..."]:
    """Average pooling: the mean over the descendants of each cell of ``levels`` levels up, (..., b^(J-levels)).

    As a function (``embed`` of it) the orthogonal projection to the coarser space.
    """
    n = _levels(field.shape[-1], b, levels)
    return field.reshape(*field.shape[:-1], -1, b**n).mean(-1)


def embed(field: Float[Array, "..."], b: int, levels: int = 1) -> Float[Array, "..."]:
    """The same function on the finer cells: each value for all descendants, (..., b^(J+levels))."""
    if levels < 0:
        raise ValueError(f"levels counts the cuts, at least 0, got {levels}")
    return jnp.repeat(field, b**levels, axis=-1)
