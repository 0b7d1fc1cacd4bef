"""Twisted diffusion sampling, and guidance with importance weights: sequential Monte Carlo down a time grid.

Wu, Trippe, Naesseth, Blei & Cunningham, "Practical and asymptotically exact conditional sampling in diffusion models",
NeurIPS 2023, arXiv 2306.17775, algorithm 1.  With the reverse kernel ``p(x_u | x_t) = N(m, v I)`` (ancestral, "large")
and a twist ``tw_t(x)`` that guesses p(y | x_t):

    x_T ~ base,  log w = log tw_T
    x_u ~ q = N(m + v grad log tw_t(x_t), v I)
    log w += log p(x_u | x_t) + log tw_u(x_u) - log tw_t(x_t) - log q(x_u | x_t)
    where the effective number of particles is below n/2: log Z += log mean w, resample, w = 1
    x_0 = D(x) at the last level above the data, with the likelihood itself as the last twist

As n grows this is exact for the law of the discretised reverse process, for every twist.  Nuisances are part of a
particle; after every resampling they make Metropolis moves that leave p(nuisances) tw_t(x_t, nuisances) as it is, which
need no call of the denoiser.

Without resampling it is guidance (DPS, PiGDM, TMPD): their draws are the particles, unweighted, and the weights say
what is wrong with them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from inference.sampling.ancestral import ancestral_kernel
from inference.sampling.particles import Run, effective, log_mean, systematic, usable
from inference.sampling.protocols import Denoise, Schedule
from inference.sampling.shown import tick
from inference.sampling.twists import Twist, Twister

MOVES = 2
"""Metropolis moves of the nuisances after a resampling; ten times as many at the end."""
SHOWN = 8
"""Particles whose denoising path is kept."""


def twisted(
    denoise: Denoise,
    schedule: Schedule,
    twister: Twister,
    x: Float[Array, " n *shape"],
    times: Float[Array, " nodes"],
    *,
    key: Array,
    resample: bool = True,
    report: bool = False,
) -> Run:
    """One run from ``x`` at ``times[0]`` down ``times``, whose last entry is the data.

    ``denoise``   ``(x, t) -> E[x_0 | x_t = x]`` of one datum.
    ``resample``  False is guidance: particles stay as they are and the weights are those of whole paths.
    ``report``    say after every step how many are done (:func:`inference.sampling.shown.tick`).
    """
    observed, n = twister.observed, len(x)
    start_key, key = jax.random.split(key)
    u = jax.vmap(lambda k: observed.draw(twister.to_data(x[0]), k))(jax.random.split(start_key, n))

    def twist(x: Array, t: Array, u: Array) -> Twist:
        return jax.vmap(lambda x, u: twister(lambda x: denoise(x, t), x, t, u))(x, u)

    def settle(state: Any, key: Array, log_weight: Array, before: Array) -> Any:
        """Effective number, increment of log Z, and resampling where it is due."""
        ess = effective(log_weight)
        due = (ess < n / 2) & jnp.asarray(resample)
        found = log_mean(log_weight)
        at = jnp.where(due, systematic(key, log_weight), jnp.arange(n))
        state = jax.tree.map(lambda a: a[at], state)
        kept = jnp.where(due, 0.0, log_weight)
        return state, kept, jnp.where(due, 0.0, found), (found - before, ess, due)

    def step(carry: Any, at_step: Any) -> tuple[Any, Any]:
        (x, u, at), log_weight, before = carry
        t, lower, own, done = at_step
        if report:
            tick(done)
        noise_key, resample_key, move_key = jax.random.split(own, 3)
        mean, sd = ancestral_kernel(lambda x, t: at.denoised, schedule, x, t, lower)
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        pushed = sd * at.grad
        x = mean + sd * (pushed + noise)
        flat = lambda a: a.reshape(n, -1)  # noqa: E731
        ratio = -0.5 * (flat(pushed) ** 2).sum(1) - (flat(pushed) * flat(noise)).sum(1)  # log p - log q
        after = twist(x, lower, u)
        log_weight = usable(log_weight + after.log - at.log + ratio)
        (x, u, at), log_weight, before, record = settle((x, u, after), resample_key, log_weight, before)
        if observed.size:
            given = lambda u: jax.vmap(lambda d, u: twister.at(d, lower, u))(at.guess, u)  # noqa: E731
            moved, log = _move(move_key, u, given, twister, at.guess, log_weight, MOVES)
            # Only where particles were resampled: at.grad, which steers the next step, is that of the old nuisances.
            u, at = jnp.where(record[2], moved, u), at._replace(log=jnp.where(record[2], log, at.log))
        return ((x, u, at), log_weight, before), (*record, at.denoised[:SHOWN])

    first = twist(x, times[0], u)
    log_weight = usable(first.log)
    keys = jax.random.split(key, len(times) + 1)
    start = settle((x, u, first), keys[-1], log_weight, jnp.zeros(()))
    walked = jax.lax.scan(
        step, start[:3], (times[:-2], times[1:-1], keys[: len(times) - 2], jnp.arange(len(times) - 2))
    )
    ((x, u, at), log_weight, before), (inc, ess, resampled, path) = walked

    def exact(u: Array) -> Array:
        return jax.vmap(lambda d, u: observed.log_prob(twister.to_data(d), u))(at.denoised, u)

    log_weight = usable(log_weight + exact(u) - at.log)
    x, last = at.denoised, log_mean(log_weight) - before
    ends = (start[3][0][None], inc, last[None]), (start[3][1][None], ess, effective(log_weight)[None])
    if resample:
        chosen = systematic(keys[-2], log_weight)
        x, u = x[chosen], u[chosen]
        at = at._replace(denoised=x)
        if observed.size:
            u, _ = _move(keys[-3], u, exact, twister, x, jnp.zeros(n), 10 * MOVES)
    return Run(
        x, u, log_weight, jnp.concatenate(ends[0]), jnp.concatenate(ends[1]),
        jnp.concatenate([start[3][2][None], resampled, jnp.asarray([resample])]), path,
    )  # fmt: skip


def _move(
    key: Array, u: Array, log_twist: Any, twister: Twister, denoised: Array, log_weight: Array, moves: int
) -> tuple[Array, Array]:
    """Random-walk Metropolis of the nuisances, every particle by itself, with the spread of all as its scale."""
    observed = twister.observed
    prior = jax.vmap(lambda d, u: observed.log_prior(twister.to_data(d), u))
    weight = jax.nn.softmax(log_weight)[:, None]
    centre = (weight * u).sum(0)
    sd = jnp.sqrt((weight * (u - centre[None]) ** 2).sum(0)) + 1e-6
    reach = 2.38 / jnp.sqrt(1.0 * u.shape[1])

    def one(state: Any, key: Array) -> tuple[Any, None]:
        u, log, log_p = state
        step_key, accept_key = jax.random.split(key)
        new = u + reach * sd[None] * jax.random.normal(step_key, u.shape)
        new_log, new_p = log_twist(new), prior(denoised, new)
        taken = jnp.log(jax.random.uniform(accept_key, log.shape)) < new_log + new_p - log - log_p
        return (jnp.where(taken[:, None], new, u), jnp.where(taken, new_log, log), jnp.where(taken, new_p, log_p)), None

    start = (u, log_twist(u), prior(denoised, u))
    (u, log, _), _ = jax.lax.scan(one, start, jax.random.split(key, moves))
    return u, log
