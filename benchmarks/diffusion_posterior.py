"""Does a diffusion prior give the right posterior: by NUTS through its ODE, and with the noise level unknown?

The prior is a mixture of three Gaussians in the plane with its exact score, seen through linear sensors, so the
posterior is known: a mixture for x given the noise, and an integral on a grid for the noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from benchmarks.diffusion_logprob import TRIG, mixture
from benchmarks.harness import Claim
from ppl_models.distributions import RK4, Denoiser, DiffusionPrior
from ppl_models.distributions.analytic import MixtureDenoiser, linear_posterior

A = np.asarray([[1.0, 0.5]])
Y = np.asarray([0.5])
NOISE = 0.3
PRIOR_OF_NOISE = (math.log(NOISE), 0.5)  # log-normal
SENSORS = 5
SIMULATIONS = 100


def prior(steps: int = 24) -> DiffusionPrior:
    """The mixture as a diffusion: trigonometric schedule, exact denoiser."""
    return DiffusionPrior(Denoiser(MixtureDenoiser(TRIG)), TRIG, (2,), params=mixture(2), solver=RK4(steps))


def sample(model: Callable[..., Any], y: np.ndarray, warmup: int, draws: int) -> tuple[dict[str, np.ndarray], float]:
    """Four chains of NUTS, (chain, draw, ...) a site, and wall seconds with compilation."""
    began = time.perf_counter()
    mcmc = MCMC(
        NUTS(model), num_warmup=warmup, num_samples=draws, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), jnp.asarray(y))
    found = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    return found, time.perf_counter() - began


def summary(values: np.ndarray) -> Any:
    """Mean, sd, their Monte Carlo errors, rank R-hat and effective sample size of (chain, draw) values."""
    import arviz as az
    import xarray as xr

    tree = xr.DataTree.from_dict({"/posterior": xr.Dataset({"v": (("chain", "draw"), values)})})
    return az.summary(tree, round_to="none").iloc[0]


def known_noise(quick: bool) -> Iterator[Claim]:
    """x given one observation with known noise, against the exact mixture."""
    law = prior()

    def model(y: jax.Array) -> None:
        x = numpyro.sample("x", law)
        numpyro.sample("y", dist.Normal(jnp.asarray(A) @ x, NOISE).to_event(1), obs=y)

    found, seconds = sample(model, Y, *((100, 100) if quick else (500, 1000)))
    exact = linear_posterior(mixture(2), jnp.asarray(A), jnp.asarray(Y), NOISE).moments()
    detail, distances, rhat = {}, [], []
    for i in range(2):
        row = summary(found["x"][..., i])
        sd = float(np.sqrt(exact.cov[i, i]))
        distances += [(row["mean"] - float(exact.mean[i])) / row["mcse_mean"], (row["sd"] - sd) / row["mcse_sd"]]
        rhat.append(row["r_hat"])
        detail[f"x{i}"] = {"exact_mean": float(exact.mean[i]), "exact_sd": sd, **{k: float(v) for k, v in row.items()}}
    yield Claim(
        name="nuts_error",
        claim="NUTS through the ODE, d = 2, against the exact posterior: largest error of a mean or standard deviation",
        value=float(np.abs(distances).max()),
        unit="Monte Carlo errors",
        target="<= 3",
        seeds=(0,),
        detail=detail,
    )
    yield Claim("nuts_rhat", "the same: rank R-hat of four chains", max(rhat), "", "< 1.01", (0,))
    yield Claim("nuts_seconds", "the same: wall time with compilation", seconds, "s", "<= 60", (0,))


# ------------------------------------------------------------------------------------------- unknown noise
def simulate(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Sensors, observations and the noise that made them."""
    sensors = rng.normal(size=(SENSORS, 2))
    noise = float(np.exp(PRIOR_OF_NOISE[0] + PRIOR_OF_NOISE[1] * rng.normal()))
    key = jax.random.key(int(rng.integers(2**31)))
    x = np.asarray(mixture(2).sample(key, 1)[0])
    return sensors, sensors @ x + noise * rng.normal(size=SENSORS), noise


def grid() -> np.ndarray:
    """Noise levels over four standard deviations of their prior's logarithm."""
    return np.exp(PRIOR_OF_NOISE[0] + PRIOR_OF_NOISE[1] * np.linspace(-4, 4, 321))


def posterior_of_noise(draws: np.ndarray, sensors: np.ndarray, y: np.ndarray) -> np.ndarray:
    """p(noise | y) on the grid, x integrated over draws of the prior: importance sampling, no gradient."""
    squares = ((y - draws @ sensors.T) ** 2).sum(1)
    levels = grid()
    log_like = -0.5 * squares[:, None] / levels**2 - len(y) * np.log(levels)
    top = log_like.max(0)
    log_evidence = top + np.log(np.exp(log_like - top).mean(0))
    return _normalised(log_evidence)


def exact_posterior_of_noise(sensors: np.ndarray, y: np.ndarray) -> np.ndarray:
    """p(noise | y) on the grid from the mixture's closed form."""
    return _normalised(np.asarray(_evidence(jnp.asarray(sensors), jnp.asarray(y), jnp.asarray(grid())), float))


@jax.jit
def _evidence(sensors: jax.Array, y: jax.Array, levels: jax.Array) -> jax.Array:
    return jax.vmap(lambda noise: linear_posterior(mixture(2), sensors, y, noise).log_evidence)(levels)


def _normalised(log_evidence: np.ndarray) -> np.ndarray:
    # The grid is even in log(noise), in which the prior is normal.
    standard = (np.log(grid()) - PRIOR_OF_NOISE[0]) / PRIOR_OF_NOISE[1]
    log_p = log_evidence - 0.5 * standard**2
    p = np.exp(log_p - log_p.max())
    return p / p.sum()


def interval(p: np.ndarray, mass: float = 0.9) -> tuple[float, float]:
    """Central interval of a distribution on the grid."""
    total = np.cumsum(p)
    low, high = np.interp([0.5 - mass / 2, 0.5 + mass / 2], total, np.log(grid()))
    return float(np.exp(low)), float(np.exp(high))


def unknown_noise(quick: bool) -> Iterator[Claim]:
    """Noise and x jointly by NUTS on one data set; coverage over many by importance sampling from the prior."""
    law, rng = prior(), np.random.default_rng(0)
    sensors, y, _ = simulate(rng)

    def model(y: jax.Array) -> None:
        x = numpyro.sample("x", law)
        noise = numpyro.sample("noise", dist.LogNormal(*PRIOR_OF_NOISE))
        numpyro.sample("y", dist.Normal(jnp.asarray(sensors) @ x, noise).to_event(1), obs=y)

    found, seconds = sample(model, y, *((100, 100) if quick else (500, 1000)))
    row = summary(np.log(found["noise"]))
    exact = float(exact_posterior_of_noise(sensors, y) @ np.log(grid()))
    yield Claim(
        name="noise_error",
        claim="unknown noise level with x, NUTS through the ODE: posterior mean of log noise against the exact one",
        value=abs(row["mean"] - exact) / row["mcse_mean"],
        unit="Monte Carlo errors",
        target="<= 3",
        seeds=(0,),
        detail={"exact": exact, "seconds": seconds, **{k: float(v) for k, v in row.items()}},
    )
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (2000 if quick else 20000,)))(jax.random.key(1)))
    count, covered, distance = (10 if quick else SIMULATIONS), 0, []
    for _ in range(count):
        sensors, y, noise = simulate(rng)
        p = posterior_of_noise(draws, sensors, y)
        low, high = interval(p)
        covered += low <= noise <= high
        distance.append(0.5 * np.abs(p - exact_posterior_of_noise(sensors, y)).sum())
    yield Claim(
        name="noise_coverage",
        claim=f"unknown noise level: 90 % interval covers the truth in {count} simulations",
        value=covered / count,
        unit="share",
        target="0.85 to 0.95",
        seeds=(0,),
        reference="0.9 in expectation, with a standard error of 0.03 over 100 simulations",
        detail={"mean_total_variation_to_exact": float(np.mean(distance)), "prior_draws": len(draws)},
    )


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: short chains and ten simulations."""
    yield from known_noise(quick)
    yield from unknown_noise(quick)
