"""What a sampler asks of a schedule and of a denoiser.

Notation: ``x_t = alpha(t) x_0 + sigma(t) eps``; ``D(x, t) = E[x_0 | x_t = x]`` for a batch ``x`` (n, *shape) at one
time ``t``; samplers walk down a grid ``t_0 > t_1 > ... > t_N`` from noise to data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Denoise = Callable[[Array, Array], Array]
Batch = Float[Array, " n *shape"]
Times = Float[Array, " nodes"]


@runtime_checkable
class Schedule(Protocol):
    """``alpha``, ``sigma`` and their derivatives in t, from ``start`` (near data) to ``T`` (noise).

    Where a schedule also has ``time(log_snr)``, the inverse of ``log(alpha^2 / sigma^2)``, Heun's sampler may churn,
    and ``time(inf)`` is where :func:`time_grid` ends; without it, that is 0.
    """

    @property
    def T(self) -> float: ...
    @property
    def start(self) -> float: ...
    def alpha(self, t: ArrayLike) -> Array: ...
    def sigma(self, t: ArrayLike) -> Array: ...
    def rates(self, t: ArrayLike) -> tuple[Array, Array]: ...


class Sampler(Protocol):
    """What every sampler is: ``x`` (n, *shape) at ``times[0]``, carried down ``times`` in one ``lax.scan``.

    ``key`` is needed by those that draw noise, and ignored by the others.  The last step never adds noise; where the
    grid ends in data (``sigma = 0``) it returns ``D``.
    """

    def __call__(
        self, denoise: Denoise, schedule: Schedule, x: Batch, times: Times, *, key: Any = None
    ) -> Float[Array, " n *shape"]: ...


def needs_key(name: str, key: Any) -> None:
    """Raise ``ValueError`` where a sampler that draws noise was given no key."""
    if key is None:
        raise ValueError(f"{name} draws noise: pass key=jax.random.key(0), or use heun, ddim or dpm_solver_2m")


def time_grid(schedule: Schedule, steps: int, *, warp: float = 1.5, to_data: bool = True) -> Times:
    """``steps + 1`` times from ``T`` down to data (to ``schedule.start`` if not ``to_data``), denser near the data.

    ``t_i = (T^(1/w) + (i/N) (end^(1/w) - T^(1/w)))^w``; with ``w = 7`` and ``end = start`` it is the grid of Karras et
    al. (2022).  With ``to_data``, the last time is the one without noise (0; ``-inf`` where noise only fades, as in the
    exploding schedule) and the one before it is at least ``start``.
    """
    if steps < 2:
        raise ValueError(f"a sampler takes at least 2 steps, got {steps}")
    if not 0 < warp < math.inf:
        raise ValueError(f"warp must be positive, got {warp!r}; usual: 1.5, and 7 where sigma = t up to 80")
    with jax.ensure_compile_time_eval():
        noise_left = schedule.start > 0 or float(schedule.sigma(0.0)) > 0
        data = float(schedule.time(math.inf)) if hasattr(schedule, "time") else 0.0
    nodes = steps if to_data and noise_left else steps + 1
    end = schedule.start ** (1 / warp) if not to_data or noise_left else 0.0
    grid = jnp.linspace(schedule.T ** (1 / warp), end, nodes) ** warp
    return jnp.append(grid, data) if nodes == steps else grid
