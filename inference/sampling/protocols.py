"""What a sampler asks of a schedule and of a denoiser.

Notation: ``x_t = alpha(t) x_0 + sigma(t) eps``; ``D(x, t) = E[x_0 | x_t = x]`` for a batch ``x`` (n, *shape) at one
time ``t``; samplers walk down a grid ``t_0 > t_1 > ... > t_N`` from noise to data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Denoise = Callable[[Array, Array], Array]
Batch = Float[Array, " n *shape"]
Times = Float[Array, " nodes"]


@runtime_checkable
class Schedule(Protocol):
    """``alpha``, ``sigma`` and their derivatives in t, from ``start`` (near data) to ``T`` (noise)."""

    @property
    def T(self) -> float: ...
    @property
    def start(self) -> float: ...
    def alpha(self, t: ArrayLike) -> Array: ...
    def sigma(self, t: ArrayLike) -> Array: ...
    def rates(self, t: ArrayLike) -> tuple[Array, Array]: ...


def time_grid(schedule: Schedule, steps: int, *, warp: float = 1.5, to_data: bool = True) -> Times:
    """``steps + 1`` times from ``T`` down to 0 (to ``schedule.start`` if not ``to_data``), denser near the data.

    ``t_i = (T^(1/w) + (i/N) (end^(1/w) - T^(1/w)))^w``; with ``w = 7`` and ``end = start`` it is the grid of Karras et
    al. (2022).  With ``to_data``, the last time is 0 and the one before it is at least ``start``.
    """
    if steps < 2:
        raise ValueError(f"a sampler takes at least 2 steps, got {steps}")
    if not 0 < warp < math.inf:
        raise ValueError(f"warp must be positive, got {warp!r}; usual: 1.5, and 7 where sigma = t up to 80")
    nodes = steps if to_data and schedule.start > 0 else steps + 1
    end = schedule.start ** (1 / warp) if not to_data or schedule.start > 0 else 0.0
    grid = jnp.linspace(schedule.T ** (1 / warp), end, nodes) ** warp
    return jnp.append(grid, 0.0) if nodes == steps else grid
