"""All samplers by name, and one call that makes draws with any of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inference.sampling.ancestral import ancestral
from inference.sampling.deterministic import ddim, dpm_solver_2m, heun
from inference.sampling.euler_maruyama import euler_maruyama
from inference.sampling.protocols import Batch, Denoise, Sampler, Schedule, time_grid
from ppl_models.program import did_you_mean

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "heun": heun,
        "dpm_solver_2m": dpm_solver_2m,
        "ddim": ddim,
        "ancestral": ancestral,
        "euler_maruyama": euler_maruyama,
    }
)
"""Samplers by name; the first three are deterministic unless asked to add noise."""


def draw(
    denoise: Denoise,
    schedule: Schedule,
    x_T: Batch,
    *,
    method: str = "heun",
    steps: int = 18,
    warp: float = 1.5,
    to_data: bool = True,
    key: Any = None,
    **options: Any,
) -> Float[Array, " n *shape"]:
    """Data from noise ``x_T`` (n, *shape) at T, by the sampler ``method`` (:data:`SAMPLERS`) in ``steps`` steps.

    ``denoise``  ``(x, t) -> E[x_0 | x_t = x]`` for a batch at one time.  Compiled once for each function, schedule,
                 method and number of steps: pass the same function again, not a new lambda.
    ``warp``     of :func:`time_grid`: 1.5, or 7 where sigma = t up to 80.
    ``key``      for the samplers that draw noise; ``options`` are the sampler's own (``churn``, ``eta``, ``variance``).

    Raises ``ValueError`` for an unknown method, with the known ones, and for a missing key.

    >>> import jax, jax.numpy as jnp
    >>> from ppl_models.distributions import FlowMatching
    >>> straight = lambda x, t: jnp.zeros_like(x) + 2.0          # every datum is 2
    >>> [float(v) for v in draw(straight, FlowMatching(), jnp.ones((3, 1)), steps=2)[:, 0]]
    [2.0, 2.0, 2.0]
    """
    if method not in SAMPLERS:
        raise ValueError(f"unknown method {method!r}{did_you_mean(method, SAMPLERS)}; known: {', '.join(SAMPLERS)}")
    given = tuple(sorted(options.items()))
    return _run(denoise, schedule, jnp.asarray(x_T, jnp.result_type(float)), key, method, steps, warp, to_data, given)


@partial(jax.jit, static_argnums=(0, 1, 4, 5, 6, 7, 8))
def _run(
    denoise: Denoise,
    schedule: Schedule,
    x: Array,
    key: Any,
    method: str,
    steps: int,
    warp: float,
    to_data: bool,
    options: tuple[tuple[str, Any], ...],
) -> Array:
    times = time_grid(schedule, steps, warp=warp, to_data=to_data).astype(x.dtype)
    return SAMPLERS[method](denoise, schedule, x, times, key=key, **dict(options))
