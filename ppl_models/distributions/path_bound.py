"""The denoising bound (ELBO) of a diffusion prior under any schedule, on the same datum as its ODE density.

Divide by ``alpha``: ``y = x_t / alpha``, noise-to-signal ratio ``tau = sigma / alpha``.  Data stand at ``start``, where
``tau = tau_0``; from there ``y = y_0 + eta eps``, ``eta^2 = tau^2 - tau_0^2``.  With the model's score of y,
``s = (D - y) / tau^2``, the bound of Song et al. (2021, arXiv 2101.09258, theorem 3) is

    log p(y_0) >= E log base(y_T) + integral d(eta^2) E[ -s . eps / eta - |s|^2 / 2 ]

and an equality for the score ``r = -y / (1 + eta^2)`` of N(0, 1 + eta^2), started from N(0, I).  Their difference

    log p(y_0) >= log N(y_0; 0, I) + E[log base(y_T) - log N(y_T; 0, (1 + eta_T^2) I)]
                  + integral 2 eta^2 d(log eta) E[ (r - s) . eps / eta - (|s|^2 - |r|^2) / 2 ]

has nothing that diverges at either end.  It holds for the SDE's density; in expectation over data from a law p both
the bound and the ODE's density are at most -H(p), and for an exact score all three agree.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ppl_models.distributions.diffusion_prior import DiffusionPrior

LOW, HIGH = math.log(1e-3), 6.0
"""Ends of log eta: the integrand falls like eta^2 below, and like 1 / eta^2 above."""


def path_bound(
    prior: DiffusionPrior, x: Float[Array, " n *shape"], *, key: Key[Array, ""], draws: int = 64
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The bound on log p(x) of each datum, and its standard error over the draws: nats.

    ``draws`` noise levels a datum, evenly spread over log eta (so the standard error is somewhat too large).  For data
    of a scale near one; far from it the bound stays a bound, and scatters more.  Raises ``ValueError`` for fewer than
    two draws.
    """
    if draws < 2:
        raise ValueError(f"path_bound takes at least 2 draws, got {draws}; usual: 64")
    schedule, shape = prior.schedule, prior.event_shape
    with jax.ensure_compile_time_eval():
        ends = jnp.asarray([schedule.start, schedule.T])
        (a_0, a_T), (s_0, s_T) = map(lambda v: [float(e) for e in v], (schedule.alpha(ends), schedule.sigma(ends)))
    tau_0 = s_0 / a_0
    eta_T = math.sqrt((s_T / a_T) ** 2 - tau_0**2) if a_T > 1e-6 else math.inf
    ends_in_base = eta_T <= math.exp(HIGH)
    high = math.log(eta_T) if ends_in_base else HIGH
    size = math.prod(shape)

    def one(x: Array, key: Array) -> tuple[Array, Array]:
        y_0 = x / a_0
        level_key, noise_key, end_key = jax.random.split(key, 3)
        u = (jnp.arange(draws) + jax.random.uniform(level_key, (draws,))) / draws
        noise = jax.random.normal(noise_key, (draws, *shape), x.dtype)

        def term(u: Array, eps: Array) -> Array:
            eta = jnp.exp(LOW + (high - LOW) * u)
            tau = jnp.hypot(eta, tau_0)
            y, t = y_0 + eta * eps, jnp.clip(schedule.time(-2 * jnp.log(tau)), schedule.start, schedule.T)
            s = (prior.prediction.denoise(schedule, prior.params, schedule.alpha(t) * y, t) - y) / tau**2
            r = -y / (1 + eta**2)
            return 2 * eta * ((r - s) * eps).sum() - eta**2 * (s**2 - r**2).sum()

        gains = (high - LOW) * jax.vmap(term)(u, noise)
        gains = gains - 0.5 * (y_0**2).sum() - size * (0.5 * math.log(2 * math.pi) + math.log(a_0))
        if ends_in_base:

            def end(eps: Array) -> Array:
                y = y_0 + eta_T * eps
                total = 1 + eta_T**2
                reference = -0.5 * (y**2).sum() / total - 0.5 * size * math.log(2 * math.pi * total)
                return prior.base_log_prob(a_T * y) + size * math.log(a_T) - reference

            gains = gains + jax.vmap(end)(jax.random.normal(end_key, (draws, *shape), x.dtype))
        return gains.mean(), gains.std(ddof=1) / math.sqrt(draws)

    x = jnp.asarray(x, jnp.result_type(float))
    if x.shape[1:] != shape:
        raise ValueError(f"expected data of shape (n, {str(shape)[1:]}, got {x.shape}")
    return jax.vmap(one)(x, jax.random.split(key, len(x)))
