"""Deterministic samplers: the probability-flow ODE in steps of a grid.

dx/dt = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D(x, t)
"""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from inference.sampling.protocols import Batch, Denoise, Schedule, Times


def _drift(denoise: Denoise, schedule: Schedule, x: Batch, t: Float[Array, ""]) -> Batch:
    a_rate, s_rate = schedule.rates(t)
    ratio = s_rate / schedule.sigma(t)
    return ratio * x + (a_rate - schedule.alpha(t) * ratio) * denoise(x, t)


def ddim_step(
    denoise: Denoise, schedule: Schedule, x: Batch, t: Float[Array, ""], u: Float[Array, ""]
) -> Float[Array, " n *shape"]:
    """``alpha_u D + sigma_u (x - alpha_t D) / sigma_t`` (Song et al. 2021, arXiv 2010.02502); at u = 0, ``D``.

    Euler's step of the ODE for ``x / alpha`` in the variable ``sigma / alpha``: first order.
    """
    mean = denoise(x, t)
    return schedule.alpha(u) * mean + schedule.sigma(u) / schedule.sigma(t) * (x - schedule.alpha(t) * mean)


def heun(denoise: Denoise, schedule: Schedule, x: Batch, times: Times) -> Float[Array, " n *shape"]:
    """Heun's second-order steps down ``times`` from ``x`` at ``times[0]``, the last one by :func:`ddim_step`.

    ``2 N - 1`` calls of ``denoise`` for N steps (Karras et al. 2022, arXiv 2206.00364, algorithm 1).  The last step
    may end at t = 0, where the drift itself is not defined.  Error of order h^2 on a refined grid.
    """

    def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        t, u = ends
        h = u - t
        first = _drift(denoise, schedule, x, t)
        second = _drift(denoise, schedule, x + h * first, u)
        return x + 0.5 * h * (first + second), None

    x = jax.lax.scan(step, x, (times[:-2], times[1:-1]))[0]
    return ddim_step(denoise, schedule, x, times[-2], times[-1])
