"""Euler-Maruyama: the reverse-time SDE in steps of a grid.

    dx = [f x - g^2 score(x, t)] dt + g dw,    f = alpha'/alpha,  g^2 = 2 sigma (sigma' - f sigma)

run from ``T`` down (Anderson 1982; Song et al. 2021, arXiv 2011.13456, eq. 6); ``score = (alpha D - x) / sigma^2``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inference.sampling.deterministic import ddim_step
from inference.sampling.protocols import Batch, Denoise, Schedule, Times, needs_key


def reverse_sde(
    denoise: Denoise, schedule: Schedule, x: Batch, t: Float[Array, ""]
) -> tuple[Float[Array, " n *shape"], Float[Array, ""]]:
    """Drift and diffusion ``(f x - g^2 score, g)`` of the SDE at ``x``, ``t``."""
    (a_rate, s_rate), a, s = schedule.rates(t), schedule.alpha(t), schedule.sigma(t)
    f = a_rate / a
    g2 = jnp.maximum(2 * s * (s_rate - f * s), 0.0)
    return f * x - g2 / s**2 * (a * denoise(x, t) - x), jnp.sqrt(g2)


def euler_maruyama(
    denoise: Denoise, schedule: Schedule, x: Batch, times: Times, *, key: Any = None
) -> Float[Array, " n *shape"]:
    """Euler-Maruyama down ``times`` from ``x`` at ``times[0]``; error of order h in law.

    The last step is :func:`ddim_step`, without noise.  Raises ``ValueError`` for a schedule with ``alpha = 0`` at T,
    where f and g are infinite.
    """
    needs_key("euler_maruyama", key)
    with jax.ensure_compile_time_eval():
        left = float(schedule.alpha(schedule.T))
    if left < 1e-6:
        raise ValueError(
            f"the reverse SDE has no finite drift at T={schedule.T:g}, where alpha = 0; give the schedule a smaller T, "
            "or use ancestral, which integrates that end exactly"
        )

    def step(x: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, u, step_key = given
        drift, g = reverse_sde(denoise, schedule, x, t)
        noise = jax.random.normal(step_key, x.shape, x.dtype)
        return x + (u - t) * drift + g * jnp.sqrt(t - u) * noise, None

    keys = jax.random.split(key, len(times) - 2)
    x = jax.lax.scan(step, x, (times[:-2], times[1:-1], keys))[0]
    return ddim_step(denoise, schedule, x, times[-2], times[-1])
