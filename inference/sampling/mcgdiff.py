"""MCGdiff: sequential Monte Carlo for linear observations, whose noise is part of the diffusion's own.

Cardoso, Janati El Idrissi, Le Corff & Moulines, "Monte Carlo guided diffusion for Bayesian linear inverse problems",
ICLR 2024, arXiv 2308.07983.  With ``A = U S V'`` after whitening the noise, ``y'_i = (U'y)_i / s_i`` is coordinate
``z_i = (V'x)_i`` with noise of standard deviation ``1/s_i``, which the diffusion itself adds at the time tau_i where
``sigma / alpha = 1 / s_i``.  So (x_0, alpha y') has the law of (x_0, z(tau)), and the posterior is that of a diffusion
known to pass ``z_i(tau_i) = alpha(tau_i) y'_i``:

    g_t(x) = prod_{i: tau_i < t} N(z_i(t); alpha_t y'_i, c_i) / p_i(z_i(t)),    c_i = sigma_t^2 - alpha_t^2 / s_i^2

is the law of the forward process at t given y', over a normal law p_i with the moments of z_i(t) under the prior: for a
normal prior of one coordinate, p(y' | x_t) itself.  (The paper has the numerator alone, which is valid, too, but pulls
all particles towards y' while t is large, and log p(y) then needs many more of them.)  Particles target
p(x_t..x_T) g_t(x_t): the step t -> u draws from
``p(x_u | x_t) g_u(x_u)``, a normal law, and weighs by its mass over ``g_t(x_t)``.  At tau_i the coordinate is set, and
from there on it moves freely.  Exact as n grows, for the law of the discretised reverse process, without a gradient.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference.sampling.ancestral import ancestral_kernel
from inference.sampling.particles import Run, effective, log_mean, systematic, usable
from inference.sampling.protocols import Denoise, Schedule, time_grid
from inference.sampling.shown import tick

AFFINE = 1e-3
"""Largest deviation from an affine mean, relative, that rounding explains."""


class Linear(NamedTuple):
    """``U' L^-1 (y - loc) = s z + e``, e ~ N(0, I): ``whiten = U' L^-1`` (m, m), ``loc`` (m,), singular values ``s``
    (r,), their right vectors ``rows`` (r, d), times ``tau`` (r,), the log of all Jacobians from z(tau) to y, and mean
    and variance of z under the prior (r,).
    """

    whiten: Array
    loc: Array
    s: Array
    rows: Array
    tau: Array
    log_jacobian: Array
    centre: Array
    spread: Array


def linear(
    loc: Float[np.ndarray, " m"],
    noise: Float[np.ndarray, "m m"],
    jacobian: Float[np.ndarray, "m d"],
    draws: Float[np.ndarray, "k d"],
    schedule: Any,
) -> Linear:
    """The observation ``y ~ N(loc + J x_0, noise)``, noise = L L', in coordinates of its own; ``draws`` of the prior.

    Raises ``ValueError`` where the noise is less than what the diffusion starts with, or more than where it ends.
    """
    factor = np.linalg.cholesky(noise)
    left, s, right = np.linalg.svd(np.linalg.solve(factor, jacobian))
    r = int((s > 1e-5 * s[0]).sum())
    level = 1 / s[:r]
    # Solved once on a fine grid, by the ratio that grows with time.
    grid = np.linspace(schedule.start, schedule.T, 20001)
    with jax.ensure_compile_time_eval():
        ratio = np.asarray(schedule.sigma(grid), float) / np.maximum(np.asarray(schedule.alpha(grid), float), 1e-12)
        if not ((level > ratio[1]) & (level < ratio[-2])).all():
            raise ValueError(
                f"mcgdiff ties noise of standard deviation {level.min():.3g} to {level.max():.3g} (of the law, along "
                f"the singular vectors) to that of the noising process, {ratio[1]:.3g} to {ratio[-2]:.3g}; use "
                "method='tds'"
            )
        tau = np.interp(np.log(level), np.log(ratio[1:-1]), grid[1:-1])
        alpha = np.asarray(schedule.alpha(tau), float)
    # From the density of z(tau) to that of U'L^-1 y = s z(tau) / alpha, then to that of y.
    log_jacobian = np.log(alpha).sum() - np.log(s[:r]).sum() - np.log(np.diag(factor)).sum()
    found = left.T @ np.linalg.inv(factor), loc, s[:r], right[:r], tau, log_jacobian, *_moments(draws @ right[:r].T)
    return Linear(*(jnp.asarray(v, float) for v in found))


def _moments(z: Float[np.ndarray, "k r"]) -> tuple[np.ndarray, np.ndarray]:
    return z.mean(0), z.var(0)


def grid_of(schedule: Schedule, steps: int, warp: float, tau: np.ndarray) -> Array:
    """:func:`time_grid` with a node at every tau in the place of the one next to it, or beside it where two collide."""
    with jax.ensure_compile_time_eval():
        times = np.asarray(time_grid(schedule, steps, warp=warp), float)
    inner = np.union1d(times[1:-1], tau)
    near = np.array([np.abs(t - tau).min() < 1e-4 and t not in tau for t in inner])
    return jnp.asarray(np.concatenate([times[:1], inner[~near][::-1], times[-1:]]), float)


def mcgdiff(
    denoise: Denoise,
    schedule: Schedule,
    given: Linear,
    y: Float[Array, " m"],
    x: Float[Array, " n *shape"],
    times: Float[Array, " nodes"],
    *,
    key: Array,
    report: bool = False,
) -> Run:
    """One run from ``x`` at ``times[0]`` down ``times`` (:func:`grid_of`); ``denoise`` is of one datum.

    ``report``  say after every step how many are done (:func:`inference.sampling.shown.tick`).
    """
    n, shape = len(x), x.shape[1:]
    flat = lambda a: a.reshape(n, -1)  # noqa: E731
    rows, tau, r = given.rows, given.tau, len(given.s)
    rotated = given.whiten @ (y - given.loc)
    values, rest = rotated[:r] / given.s, rotated[r:]
    # The coordinates of y that only noise reaches.
    log_rest = given.log_jacobian - 0.5 * rest @ rest - 0.5 * len(rest) * math.log(2 * math.pi)
    close = 1e-5

    def left(t: Array) -> Array:
        """c_i: the forward kernel's variance from tau_i to t."""
        carried = schedule.alpha(t) / schedule.alpha(tau) * schedule.sigma(tau)
        return jnp.maximum(schedule.sigma(t) ** 2 - carried**2, 0.0)

    def goals(t: Array) -> tuple[Array, Array]:
        """Mean and variance of g_t as a normal law of z."""
        a, c = schedule.alpha(t), jnp.where(t <= tau + close, 0.0, left(t))
        whole = a**2 * given.spread + schedule.sigma(t) ** 2
        share = jnp.maximum(1 - c / whole, 1e-6)
        return (a * values - c / whole * a * given.centre) / share, c / share

    def log_normal(z: Array, mean: Array, var: Array, on: Array) -> Array:
        var = jnp.where(on, var, 1.0)
        each = -0.5 * (z - mean) ** 2 / var - 0.5 * jnp.log(2 * math.pi * var)
        return jnp.where(on, each, 0.0).sum(1)

    def step(carry: Any, at_step: Any) -> tuple[Any, Any]:
        x, log_weight, before, log_g = carry
        t, lower, own, done = at_step
        if report:
            tick(done)
        noise_key, resample_key, tie_key = jax.random.split(own, 3)
        denoised = jax.vmap(lambda x: denoise(x, t))(x)
        mean, sd = ancestral_kernel(lambda x, t: denoised, schedule, x, t, lower)
        sd = jnp.where(done == len(times) - 2, 0.0, sd)
        # Those not set yet are guided; at the node of tau_i itself c_i is nil and the coordinate is set.
        on = (lower >= tau - close)[None]
        z, v = flat(mean) @ rows.T, sd**2
        goal, c = goals(lower)
        goal = goal[None]
        gain = log_normal(goal, z, (v + c)[None], on) - log_g
        log_weight = usable(log_weight + gain)
        ess, found = effective(log_weight), log_mean(log_weight)
        due = ess < n / 2
        at = jnp.where(due, systematic(resample_key, log_weight), jnp.arange(n))
        mean, z, denoised = mean[at], z[at], denoised[at]
        increment = found - before
        log_weight, before = jnp.where(due, 0.0, log_weight), jnp.where(due, 0.0, found)
        x = mean + sd * jax.random.normal(noise_key, x.shape, x.dtype)
        both = jnp.where(v + c > 0, v + c, 1.0)[None]
        fused = (z * c[None] + goal * v) / both
        fused = fused + jnp.sqrt(v * c[None] / both) * jax.random.normal(tie_key, z.shape)
        moved = jnp.where(on, fused - flat(x) @ rows.T, 0.0)
        x = (flat(x) + moved @ rows).reshape(n, *shape)
        guided = (lower > tau + close)[None]
        log_g = log_normal(flat(x) @ rows.T, goal, c[None], guided)
        return (x, log_weight, before, log_g), (increment, ess, due, denoised[:8])

    keys = jax.random.split(key, len(times))
    steps = (times[:-1], times[1:], keys[:-1], jnp.arange(len(times) - 1))
    begin = (x, jnp.zeros(n), jnp.zeros(()), jnp.zeros(n))
    (x, log_weight, _, _), (increments, ess, due, path) = jax.lax.scan(step, begin, steps)
    chosen = systematic(keys[-1], log_weight)
    increments = increments.at[-1].add(log_rest)
    return Run(x[chosen], jnp.zeros((n, 0)), log_weight, increments, ess, due, path)
