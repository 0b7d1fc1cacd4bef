"""Samplers by the probability-flow ODE, in steps of a grid; two of them can add noise on the way.

dx/dt = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D(x, t)

With ``lambda = log(alpha / sigma)``, one step of this ODE is exactly (Lu et al. 2022, arXiv 2211.01095, eq. 8)

x_u = (sigma_u / sigma_t) x_t + sigma_u integral_{lambda_t}^{lambda_u} e^lambda D d lambda

DDIM keeps D constant in it, DPM-Solver++ makes it a straight line in lambda.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inference.sampling.protocols import Batch, Denoise, Schedule, Times, needs_key


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


def ddim(
    denoise: Denoise, schedule: Schedule, x: Batch, times: Times, *, key: Any = None, eta: float = 0.0
) -> Float[Array, " n *shape"]:
    """DDIM down ``times`` from ``x`` at ``times[0]``: error of order h, one call of ``denoise`` a step.

    With ``eta`` a part of the noise is drawn anew in each step but the last (Song et al. 2021, arXiv 2010.02502, eq.
    16), of standard deviation ``z = eta (sigma_u / sigma_t) sqrt(sigma_t^2 - (alpha_t / alpha_u)^2 sigma_u^2)``:

        x_u = alpha_u D + sqrt(sigma_u^2 - z^2) (x_t - alpha_t D) / sigma_t + z eps

    0 is the ODE, 1 is ancestral sampling with the "small" variance.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is the share of fresh noise, expected 0 to 1, got {eta!r}")
    if eta == 0:

        def plain(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
            return ddim_step(denoise, schedule, x, *ends), None

        return jax.lax.scan(plain, x, (times[:-1], times[1:]))[0]
    needs_key("ddim with eta > 0", key)

    def step(x: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, u, step_key = given
        s_t, s_u, r = schedule.sigma(t), schedule.sigma(u), schedule.alpha(t) / schedule.alpha(u)
        mean = denoise(x, t)
        z = eta * s_u / s_t * jnp.sqrt(jnp.maximum(s_t**2 - (r * s_u) ** 2, 0.0))
        kept = jnp.sqrt(jnp.maximum(s_u**2 - z**2, 0.0)) / s_t
        moved = schedule.alpha(u) * mean + kept * (x - schedule.alpha(t) * mean)
        return moved + z * jax.random.normal(step_key, x.shape, x.dtype), None

    keys = jax.random.split(key, len(times) - 2)
    x = jax.lax.scan(step, x, (times[:-2], times[1:-1], keys))[0]
    return ddim_step(denoise, schedule, x, times[-2], times[-1])


def heun(
    denoise: Denoise,
    schedule: Schedule,
    x: Batch,
    times: Times,
    *,
    key: Any = None,
    churn: float = 0.0,
    churn_between: tuple[float, float] = (0.0, math.inf),
    churn_scale: float = 1.0,
) -> Float[Array, " n *shape"]:
    """Heun's second-order steps down ``times`` from ``x`` at ``times[0]``, the last one by :func:`ddim_step`.

    ``2 N - 1`` calls of ``denoise`` for N steps (Karras et al. 2022, arXiv 2206.00364, algorithm 1).  The last step
    may end at t = 0, where the drift itself is not defined.  Error of order h^2 on a refined grid.

    ``churn`` > 0 is their algorithm 2, for any schedule: where ``tau = sigma / alpha`` lies in ``churn_between``, a
    step first raises tau by the factor ``1 + min(churn / N, sqrt(2) - 1)``, at most to T, with fresh noise of standard
    deviation ``churn_scale`` times what belongs there, which heals errors of earlier steps.  It needs ``key``, and a
    schedule with ``time``.
    """
    if not churn >= 0:
        raise ValueError(f"churn adds noise, expected 0 or more, got {churn!r}; Karras et al. use up to 80")

    def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        t, u = ends
        h = u - t
        first = _drift(denoise, schedule, x, t)
        second = _drift(denoise, schedule, x + h * first, u)
        return x + 0.5 * h * (first + second), None

    if churn == 0:
        x = jax.lax.scan(step, x, (times[:-2], times[1:-1]))[0]
        return ddim_step(denoise, schedule, x, times[-2], times[-1])
    needs_key("heun with churn", key)
    if not hasattr(schedule, "time"):
        raise ValueError("churn moves back in time by the noise level: the schedule needs a method time(log_snr)")
    factor = 1 + min(churn / (len(times) - 1), math.sqrt(2) - 1)

    def noised(x: Array, t: Array, key: Array) -> tuple[Array, Array]:
        a, s = schedule.alpha(t), schedule.sigma(t)
        tau = s / jnp.maximum(a, 1e-6)
        inside = (tau >= churn_between[0]) & (tau <= churn_between[1]) & (a > 1e-6)
        back = jnp.clip(schedule.time(-2 * jnp.log(jnp.where(inside, factor, 1.0) * tau)), t, schedule.T)
        back = jnp.where(inside, back, t)
        r = schedule.alpha(back) / jnp.where(a > 1e-6, a, 1.0)
        spread = jnp.sqrt(jnp.maximum(schedule.sigma(back) ** 2 - (r * s) ** 2, 0.0))
        fresh = r * x + churn_scale * spread * jax.random.normal(key, x.shape, x.dtype)
        return jnp.where(inside, fresh, x), back

    def churned(x: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, u, step_key = given
        x, back = noised(x, t, step_key)
        return step(x, (back, u))

    keys = jax.random.split(key, len(times) - 2)
    x = jax.lax.scan(churned, x, (times[:-2], times[1:-1], keys))[0]
    return ddim_step(denoise, schedule, x, times[-2], times[-1])


def dpm_solver_2m(
    denoise: Denoise, schedule: Schedule, x: Batch, times: Times, *, key: Any = None
) -> Float[Array, " n *shape"]:
    """DPM-Solver++(2M) down ``times``: error of order h^2 with ONE call of ``denoise`` a step.

    Lu et al. (2022, arXiv 2211.01095, algorithm 2): with ``h = lambda_u - lambda_t``, ``r = h_before / h``,

        D' = (1 + 1/(2r)) D_t - 1/(2r) D_before,    x_u = (sigma_u / sigma_t) x_t - alpha_u (e^-h - 1) D'

    The first step, and one that ends in data, are DDIM's.  ``alpha = 0`` at the start is allowed.
    """

    def half_log_snr(t: Array) -> Array:
        tiny = jnp.finfo(x.dtype).tiny
        # At alpha = 0 it is very low instead of -inf: the step before then has no say in the next, as it should.
        return jnp.log(jnp.maximum(schedule.alpha(t), tiny)) - jnp.log(jnp.maximum(schedule.sigma(t), tiny))

    def step(carry: tuple[Array, Array, Array], ends: tuple[Array, Array]) -> tuple[tuple[Array, Array, Array], None]:
        x, before, h_before = carry
        t, u = ends
        D = denoise(x, t)
        h = half_log_snr(u) - half_log_snr(t)
        # 1/(2r); the first step has no step before it (h_before is inf), the last into data takes none.
        share = jnp.where(schedule.sigma(u) > 0, 0.5 * h / h_before, 0.0)
        line = (1 + share) * D - share * before
        a_t, a_u, s_t, s_u = schedule.alpha(t), schedule.alpha(u), schedule.sigma(t), schedule.sigma(u)
        # alpha_u (e^-h - 1) = alpha_t sigma_u / sigma_t - alpha_u, finite also where h is not.
        moved = (s_u / s_t) * x + (a_u - a_t * s_u / s_t) * line
        return (moved, D, h), None

    start = (x, jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype))
    return jax.lax.scan(step, start, (times[:-1], times[1:]))[0][0]
