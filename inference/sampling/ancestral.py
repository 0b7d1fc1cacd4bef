"""Ancestral sampling: each step draws ``x_u`` from a Gaussian approximation of ``p(x_u | x_t)``, u < t.

With ``r = alpha_t / alpha_u`` and ``v = sigma_t^2 - r^2 sigma_u^2`` (the forward kernel is ``N(r x_u, v)``):

    mean = (r sigma_u^2 / sigma_t^2) x_t + (alpha_u v / sigma_t^2) D(x_t, t)
    variance = v ("large") or v sigma_u^2 / sigma_t^2 ("small")
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inference.sampling.protocols import Batch, Denoise, Schedule, Times, needs_key

Variance = Literal["large", "small"]


def ancestral_kernel(
    denoise: Denoise,
    schedule: Schedule,
    x: Batch,
    t: Float[Array, ""],
    u: Float[Array, ""],
    *,
    variance: Variance = "large",
) -> tuple[Float[Array, " n *shape"], Float[Array, ""]]:
    """Mean and standard deviation of the step from ``t`` to ``u``.

    ``"large"`` is the forward kernel's own variance ``v``, ``"small"`` the posterior variance given ``x_0`` (Ho et al.
    2020, arXiv 2006.11239).  Both are first order; "small" is the narrower by far at the same number of steps, so use
    "large" wherever an exact law matters, inside sequential Monte Carlo above all.
    """
    if variance not in ("large", "small"):
        raise ValueError(f"variance must be 'large' or 'small', got {variance!r}")
    a_t, a_u, s_t, s_u = schedule.alpha(t), schedule.alpha(u), schedule.sigma(t), schedule.sigma(u)
    r = a_t / a_u
    v = s_t**2 - (r * s_u) ** 2
    mean = (r * s_u**2 / s_t**2) * x + (a_u * v / s_t**2) * denoise(x, t)
    spread = v if variance == "large" else v * s_u**2 / s_t**2
    return mean, jnp.sqrt(jnp.maximum(spread, 0.0))


def ancestral(
    denoise: Denoise,
    schedule: Schedule,
    x: Batch,
    times: Times,
    *,
    key: Any = None,
    variance: Variance = "large",
) -> Float[Array, " n *shape"]:
    """Draw down ``times`` from ``x`` at ``times[0]``; no noise in the last step; error of order h in law."""
    needs_key("ancestral", key)

    def step(x: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, u, step_key = given
        mean, spread = ancestral_kernel(denoise, schedule, x, t, u, variance=variance)
        return mean + spread * jax.random.normal(step_key, x.shape, x.dtype), None

    keys = jax.random.split(key, len(times) - 2)
    x = jax.lax.scan(step, x, (times[:-2], times[1:-1], keys))[0]
    return ancestral_kernel(denoise, schedule, x, times[-2], times[-1], variance=variance)[0]
