"""Do the samplers of diffusion models converge at the orders they should, where the score is exact?

Nothing is trained: the denoiser is that of a Gaussian mixture, in float64.  Deterministic samplers carry 256 points
from T to ``start`` and are compared with the same flow by fourth-order Runge-Kutta with 2,560 steps (rms distance).
Samplers that draw noise are not run at all: in one dimension the law after each step, ``p(y) = integral p(x) N(y; m(x),
s^2) dx``, is computed on a grid from the sampler's own step, and compared with the exact law at ``start`` (total
variation), so there is no Monte Carlo error.  The order is the slope of log error against log steps, by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Claim
from inference.sampling import ancestral_kernel, ddim, dpm_solver_2m, heun, reverse_sde, time_grid
from ppl_models.distributions import (
    EDM,
    RK4,
    Cosine,
    Denoiser,
    FlowMatching,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
)
from ppl_models.distributions.analytic import IsotropicMixture, MixtureDenoiser
from ppl_models.distributions.ode import transport

FLOWS = {
    "vp": (VariancePreserving(start=1e-3), 1.5),
    "trigonometric": (Trigonometric(), 1.5),
    "cosine": (Cosine(), 1.5),
    "flow": (FlowMatching(), 1.5),
    "edm": (EDM(), 7.0),
    "ve": (VarianceExploding(), 1.0),
}
"""Schedule and warp of its grid."""

LAWS = {"vp": VariancePreserving(start=1e-2), "trigonometric": Trigonometric(T=1.5, start=0.05)}
"""Schedules of the stochastic samplers: alpha > 0 at T, and steps no finer than the grid that holds the law."""

ODE = {"heun": (heun, 2, "Heun"), "dpm_solver_2m": (dpm_solver_2m, 2, "DPM-Solver++(2M)"), "ddim": (ddim, 1, "DDIM")}
SDE = {
    "euler_maruyama": "Euler-Maruyama",
    "ancestral_large": "ancestral, variance of the forward kernel",
    "ancestral_small": "ancestral, posterior variance",
}


def mixture(d: int) -> IsotropicMixture:
    """Weights .5 .3 .2, standard deviations .3 .5 .7, means twice standard normal draws (generator 0)."""
    means = 2 * np.random.default_rng(0).normal(size=(3, d))
    return IsotropicMixture(jnp.log(jnp.asarray([0.5, 0.3, 0.2])), jnp.asarray(means), jnp.asarray([0.3, 0.5, 0.7]))


def slope(steps: tuple[int, ...], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log error against log steps."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def flow_errors(name: str, schedule: Any, warp: float, steps: tuple[int, ...], points: int) -> dict[str, list[float]]:
    """Rms distance to the exact endpoint of each deterministic sampler at each number of steps."""
    m, exact = mixture(2), MixtureDenoiser(schedule)
    x_T = m.noised(schedule, schedule.T).sample(jax.random.key(1), points)
    drift = Denoiser(exact).drift

    def follow(x: jax.Array) -> jax.Array:
        return transport(lambda x, t: drift(schedule, m, x, t), x, schedule, RK4(2560, warp), backward=True)

    end = jax.jit(jax.vmap(follow))(x_T)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: exact(m, x, t))(x)

    found = {}
    for sampler, (run, _, _) in ODE.items():
        compiled = jax.jit(lambda x, times, run=run: run(denoise, schedule, x, times))
        ends = [compiled(x_T, time_grid(schedule, n, warp=warp, to_data=False)) for n in steps]
        found[sampler] = [float(jnp.sqrt(((x - end) ** 2).sum(1).mean())) for x in ends]
    return found


def law_errors(schedule: Any, steps: tuple[int, ...], nodes: int) -> dict[str, list[float]]:
    """Total variation between the law of each stochastic sampler and the exact one, in one dimension."""
    m, exact = mixture(1), MixtureDenoiser(schedule)
    grid = jnp.linspace(-9.0, 9.0, nodes)
    x, dx = grid[:, None], float(grid[1] - grid[0])

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: exact(m, x, t))(x)

    def by_sde(t: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        drift, g = reverse_sde(denoise, schedule, x, t)
        return x + (u - t) * drift, g * jnp.sqrt(t - u)

    kernels: dict[str, Callable[..., Any]] = {"euler_maruyama": by_sde}
    for variance in ("large", "small"):
        kernels[f"ancestral_{variance}"] = lambda t, u, variance=variance: ancestral_kernel(
            denoise, schedule, x, t, u, variance=variance
        )
    start = jnp.exp(m.noised(schedule, schedule.T).log_prob(x))
    truth = jnp.exp(m.noised(schedule, schedule.start).log_prob(x))

    found = {}
    for sampler, kernel in kernels.items():

        @jax.jit
        def final(times: jax.Array, kernel: Callable[..., Any] = kernel) -> jax.Array:
            def step(law: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
                mean, sd = kernel(*ends)
                z = (grid[:, None] - mean[:, 0][None, :]) / sd
                return (jnp.exp(-0.5 * z**2) @ law) * (dx / (sd * np.sqrt(2 * np.pi))), None

            return jax.lax.scan(step, start, (times[:-1], times[1:]))[0]

        found[sampler] = [
            float(0.5 * dx * jnp.abs(final(time_grid(schedule, n, to_data=False)) - truth).sum()) for n in steps
        ]
    return found


def worst(slopes: dict[str, float], order: int) -> float:
    """The slope furthest from the order."""
    return max(slopes.values(), key=lambda value: abs(value - order))


def run(quick: bool) -> Iterator[Claim]:
    """A claim a sampler: its slope on the schedule where it is furthest from the order; quick: two schedules."""
    with jax.enable_x64(True):
        yield from _claims(quick)


def _claims(quick: bool) -> Iterator[Claim]:
    steps, points = ((20, 40, 80), 32) if quick else ((40, 80, 160, 320), 256)
    chosen = ("vp", "flow") if quick else tuple(FLOWS)
    errors = {name: flow_errors(name, *FLOWS[name], steps, points) for name in chosen}
    for sampler, (_, order, words) in ODE.items():
        slopes = {name: slope(steps, errors[name][sampler]) for name in chosen}
        yield Claim(
            name=f"{sampler}_order",
            claim=f"{words} on exact scores of a mixture, {len(chosen)} schedules: the order furthest from {order}",
            value=worst(slopes, order),
            unit="",
            target=f"{order - 0.3:.1f} to {order + 0.3:.1f}",
            seeds=(1,),
            detail={
                "steps": steps,
                "orders": slopes,
                "rms_error": {name: errors[name][sampler] for name in chosen},
                "note": "trigonometric, cosine and flow start from alpha = 0, an infinite step in log-SNR",
                "calls_a_step": 2 if sampler == "heun" else 1,
            },
        )
    steps, nodes = ((10, 20, 40), 300) if quick else ((25, 50, 100, 200), 1800)
    named = ("vp",) if quick else tuple(LAWS)
    laws = {name: law_errors(LAWS[name], steps, nodes) for name in named}
    for sampler, words in SDE.items():
        slopes = {name: slope(steps, laws[name][sampler]) for name in named}
        yield Claim(
            name=f"{sampler}_order",
            claim=f"{words}, law of the draws on exact scores: the order furthest from 1",
            value=worst(slopes, 1),
            unit="",
            target="0.7 to 1.3",
            detail={
                "steps": steps,
                "orders": slopes,
                "total_variation": {name: laws[name][sampler] for name in named},
            },
        )
