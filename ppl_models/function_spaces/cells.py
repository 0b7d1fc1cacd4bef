"""Domains that are unions of smaller copies of themselves: each is one table of integers.

A cell of depth J is a word of J letters in {0 .. b-1}, the first the coarsest; its address is that word read as a
number in base b.  A field (..., b^J) holds one value a cell in the order of addresses, so the children of a cell, and
all its descendants, lie side by side: pooling and Haar steps (``haar.py``) need no geometry.  The geometry is a rule
from a cell's coordinates to those of its children, and the pixel that shows a cell:

| tree     | b | coordinates            | children, in the order of letters                          | pixel  |
|----------|---|------------------------|------------------------------------------------------------|--------|
| INTERVAL | 2 | i                      | 2i, 2i+1                                                   | i      |
| SQUARE   | 4 | i, j                   | (2i,2j) (2i,2j+1) (2i+1,2j) (2i+1,2j+1): Morton order      | (i, j) |
| TRIANGLE | 4 | i, j, s; upright s = 0 | (2i,2j,0) (2i,2j+1,0) (2i+1,2j,0) (2i,2j,1)                | (i, j) |
|          |   | flipped s = 1          | (2i+1,2j+1,1) (2i+1,2j,1) (2i,2j+1,1) (2i+1,2j+1,0)        |        |

The triangle has the corners (0, 0), (1, 0), (0, 1); its cells lie in the half with row + column < n of an n x n image,
two cells a pixel save on the diagonal.  From image to triangle is one ``take``; back, each pixel shows its upright
cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from ppl_models.function_spaces.haar import depth_of

Cells = np.ndarray
"""Integers (n, k): k coordinates of n cells."""


@dataclass(frozen=True)
class CellTree:
    """A domain as a tree of cells of equal measure at each depth; a user's own needs ``root`` and ``children`` only.

    ``root``      coordinates of the whole domain.
    ``children``  cells (n, k) -> (n, b, k), the children in the order of their letters.
    ``pixel``     cells (n, k) -> pixels (n, axes) of a grid of ``2^J`` a side; default: the first ``axes`` coordinates.
    ``axes``      of that grid.
    ``shown``     cells (n, k) -> (n,), which cells a pixel shows when a field becomes an image; default: all.

    >>> SQUARE.cells(1).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """

    name: str
    root: tuple[int, ...]
    children: Callable[[Cells], np.ndarray]
    axes: int = 2
    pixel: Callable[[Cells], np.ndarray] | None = None
    shown: Callable[[Cells], np.ndarray] | None = None

    @property
    def b(self) -> int:
        """Children of a cell."""
        return np.asarray(self.children(np.array([self.root]))).shape[1]

    def cells(self, depth: int) -> Cells:
        """Coordinates of the b^depth cells in the order of addresses."""
        if depth < 0:
            raise ValueError(f"depth counts the cuts, at least 0, got {depth}")
        return _cells(self, depth)

    def grid(self, depth: int) -> tuple[int, ...]:
        """Shape of the image that shows a field of this depth."""
        return (2**depth,) * self.axes

    def table(self, depth: int) -> np.ndarray:
        """The pixel of each cell, counted in row-major order: (b^depth,)."""
        return _table(self, depth)

    def inverse(self, depth: int) -> np.ndarray:
        """The cell that each pixel shows, -1 where it shows none: (pixels,)."""
        return _inverse(self, depth)

    def to_field(self, image: Shaped[Array, "..."], *, channels: bool = False) -> Shaped[Array, "..."]:
        """(..., *grid) to (..., b^J), each cell its pixel's value; with ``channels`` the last axis stays."""
        axis, end = _axes(image.ndim, channels)
        size = image.shape[end - self.axes : end]
        depth = size[0].bit_length() - 1 if size else 0
        if size != self.grid(depth):
            wanted = " x ".join(["2^J"] * self.axes)
            raise ValueError(f"{self.name} fields come from images of {wanted} pixels, got shape {image.shape}")
        flat = image.reshape(*image.shape[: end - self.axes], -1, *image.shape[end:])
        return jnp.take(flat, jnp.asarray(self.table(depth)), axis=axis)

    def to_image(
        self, field: Shaped[Array, "..."], *, channels: bool = False, fill: float = 0.0
    ) -> Shaped[Array, "..."]:
        """(..., b^J) to (..., *grid), each pixel the cell that it shows, ``fill`` where there is none."""
        axis, end = _axes(field.ndim, channels)
        depth = depth_of(field.shape[axis], self.b)
        table = self.inverse(depth)
        flat = jnp.take(field, jnp.asarray(np.maximum(table, 0)), axis=axis)
        if (table < 0).any():
            hidden = jnp.asarray(table < 0).reshape(-1, *(1,) * (-1 - axis))
            flat = jnp.where(
                hidden.reshape((1,) * (flat.ndim - hidden.ndim) + hidden.shape), flat.dtype.type(fill), flat
            )
        return flat.reshape(*flat.shape[:axis], *self.grid(depth), *flat.shape[end:])


def to_square(tree: CellTree, image: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Images that show ``tree``, as images whose pixel is the cell of equal address: 2 x 2 pooling is the tree's.

    For convolutional networks on any domain of four copies; neighbours there need not be neighbours in the domain.
    """
    return SQUARE.to_image(tree.to_field(image))


def from_square(tree: CellTree, laid_out: Shaped[Array, "..."], fill: float = 0.0) -> Shaped[Array, "..."]:
    """The inverse of :func:`to_square` on the pixels that show a cell; ``fill`` elsewhere."""
    return tree.to_image(SQUARE.to_field(laid_out), fill=fill)


def _axes(ndim: int, channels: bool) -> tuple[int, int]:
    """The (negative) axis of cells of a field, and where the axes of cells or pixels end."""
    return (-2, ndim - 1) if channels else (-1, ndim)


@lru_cache(maxsize=64)
def _cells(tree: CellTree, depth: int) -> Cells:
    found = np.array([tree.root], dtype=np.int64)
    for _ in range(depth):
        made = np.asarray(tree.children(found))
        if made.ndim != 3 or made.shape[0] != len(found) or made.shape[2] != found.shape[1]:
            raise ValueError(
                f"children of {tree.name} must map cells (n, k) to (n, b, k), got {made.shape} of {found.shape}"
            )
        found = made.reshape(-1, found.shape[1])
    if len(np.unique(found, axis=0)) != len(found):
        raise ValueError(f"two cells of {tree.name} have the same coordinates at depth {depth}; children must differ")
    found.setflags(write=False)
    return found


@lru_cache(maxsize=64)
def _table(tree: CellTree, depth: int) -> np.ndarray:
    cells, grid = tree.cells(depth), tree.grid(depth)
    pixels = cells[:, : tree.axes] if tree.pixel is None else np.asarray(tree.pixel(cells))
    if pixels.shape != (len(cells), tree.axes) or (pixels < 0).any() or (pixels >= 2**depth).any():
        raise ValueError(f"pixels of {tree.name} must be (cells, {tree.axes}) in 0..{2**depth - 1} at depth {depth}")
    table = np.ravel_multi_index(tuple(pixels.T), grid).astype(np.int32)
    table.setflags(write=False)
    return table


@lru_cache(maxsize=64)
def _inverse(tree: CellTree, depth: int) -> np.ndarray:
    table, cells = tree.table(depth), tree.cells(depth)
    shown = np.ones(len(cells), bool) if tree.shown is None else np.asarray(tree.shown(cells), bool)
    if len(np.unique(table[shown])) != shown.sum():
        raise ValueError(f"a pixel of {tree.name} would show two cells at depth {depth}; say by `shown` which")
    inverse = np.full(int(np.prod(tree.grid(depth))), -1, np.int32)
    inverse[table[shown]] = np.flatnonzero(shown)
    inverse.setflags(write=False)
    return inverse


def _halves(cells: Cells) -> np.ndarray:
    return np.stack([2 * cells, 2 * cells + 1], axis=1)


def _quarters(cells: Cells) -> np.ndarray:
    return np.stack([2 * cells + np.array(step) for step in ((0, 0), (0, 1), (1, 0), (1, 1))], axis=1)


_UPRIGHT = np.array([(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)])
_FLIPPED = np.array([(1, 1, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)])


def _triangles(cells: Cells) -> np.ndarray:
    corner = np.concatenate([2 * cells[:, :2], np.zeros_like(cells[:, :1])], axis=1)
    return corner[:, None] + np.where(cells[:, 2, None, None] == 0, _UPRIGHT, _FLIPPED)


def _upright(cells: Cells) -> np.ndarray:
    return cells[:, 2] == 0


INTERVAL = CellTree("interval", (0,), _halves, axes=1)
SQUARE = CellTree("square", (0, 0), _quarters)
TRIANGLE = CellTree("triangle", (0, 0, 0), _triangles, shown=_upright)
