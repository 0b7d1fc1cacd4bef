"""Hat functions: a hierarchical basis whose every sum vanishes on the boundary, whatever the coefficients.

``L_{j,k}`` is the integral of an orthonormal Haar wavelet: a hat with support ``[k 2^-j, (k+1) 2^-j]`` and peak
``2^(-j/2-1)`` in its middle; orthonormal in ``<u, v> = int_0^1 u' v'``.  Levels 0..J-1 are 2^J - 1 functions, as many
as the grid ``2^-J`` has inner nodes.  Coefficients stand level after level, ``(0,0), (1,0), (1,1), (2,0), ..``.

    analysis    c_{j,k} peak_j = u(middle) - (u(left) + u(right)) / 2
    synthesis   the middle of a piecewise linear function plus c_{j,k} peak_j, level after level

For ``-u'' = f`` with u = 0 at both ends the stiffness matrix is the identity: ``c_{j,k} = int f L_{j,k}``.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _depth(n: int, what: str) -> int:
    depth = n.bit_length() - 1
    if n < 2 or 2**depth != n:
        raise ValueError(f"{what}, got {n} intervals, which is no power of two from 2 on")
    return depth


def _peak(j: int) -> float:
    return 2.0 ** (-j / 2 - 1)


def hat_analysis(u: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Coefficients (2^J - 1 along ``axis``) of values at the 2^J + 1 nodes, after the line through the end values."""
    u = jnp.moveaxis(u, axis, -1)
    n = u.shape[-1] - 1
    depth = _depth(n, "hats need values at 2^J + 1 nodes")
    found = []
    for j in range(depth):
        step = n >> j
        ends = u[..., ::step]
        middle = u[..., step // 2 :: step]
        found.append((middle - 0.5 * (ends[..., :-1] + ends[..., 1:])) / _peak(j))
    return jnp.moveaxis(jnp.concatenate(found, axis=-1), -1, axis)


def hat_synthesis(c: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Values at the 2^J + 1 nodes (along ``axis``) of ``sum c_{j,k} L_{j,k}``; both end values are exactly zero.

    In two dimensions, along one axis and then the other: zero on all four edges.
    """
    c = jnp.moveaxis(c, axis, -1)
    depth = _depth(c.shape[-1] + 1, "there are 2^J - 1 hats")
    u = jnp.zeros((*c.shape[:-1], 2), c.dtype)
    for j in range(depth):
        middle = 0.5 * (u[..., :-1] + u[..., 1:]) + _peak(j) * c[..., 2**j - 1 : 2 ** (j + 1) - 1]
        woven = jnp.stack([u[..., :-1], middle], axis=-1).reshape(*u.shape[:-1], -1)
        u = jnp.concatenate([woven, u[..., -1:]], axis=-1)
    return jnp.moveaxis(u, -1, axis)


def hats(depth: int, points: Float[np.ndarray, " n"]) -> Float[np.ndarray, "hats n"]:
    """Every ``L_{j,k}`` of levels below ``depth`` at ``points`` in [0, 1], in the order of coefficients."""
    found = []
    for j in range(depth):
        for k in range(2**j):
            found.append(_peak(j) * np.maximum(0.0, 1 - np.abs(2.0 ** (j + 1) * points - 2 * k - 1)))
    return np.stack(found)


def line(left: Float[Array, "..."], right: Float[Array, "..."], nodes: int) -> Float[Array, "... nodes"]:
    """The straight line between two boundary values at ``nodes`` nodes: a lift to add to a sum of hats."""
    x = jnp.linspace(0.0, 1.0, nodes, dtype=left.dtype)
    values = left[..., None] + (right - left)[..., None] * x.reshape((1,) * left.ndim + (-1,))
    return values.at[..., -1].set(right)


def coons(edges: Float[Array, "... nodes other_nodes"]) -> Float[Array, "... nodes other_nodes"]:
    """Boundary values of a square carried inside by blending opposite edges (a Coons patch); edges exactly as given.

    Reads the four edges of ``edges`` only.
    """
    n, m = edges.shape[-2:]
    lead = (1,) * (edges.ndim - 2)
    x = jnp.linspace(0.0, 1.0, n, dtype=edges.dtype).reshape(*lead, n, 1)
    y = jnp.linspace(0.0, 1.0, m, dtype=edges.dtype).reshape(*lead, 1, m)
    top, bottom, left, right = edges[..., :1, :], edges[..., -1:, :], edges[..., :, :1], edges[..., :, -1:]
    down, across = (1 - x) * top + x * bottom, (1 - y) * left + y * right
    first, last = (1 - y) * top[..., :1] + y * top[..., -1:], (1 - y) * bottom[..., :1] + y * bottom[..., -1:]
    inside = down + across - ((1 - x) * first + x * last)
    return edges.at[..., 1:-1, 1:-1].set(inside[..., 1:-1, 1:-1])
