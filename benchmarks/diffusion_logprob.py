"""Is the density of a diffusion, by its ODE, the exact one where that is known, and does it integrate to one?

The score is that of a mixture of three isotropic Gaussians, exact at every noise level, so nothing is trained and every
error is the solver's or the base's.  Data are fresh draws of the mixture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Claim
from ppl_models.distributions import RK4, Denoiser, DiffusionPrior, Trigonometric, VariancePreserving
from ppl_models.distributions.analytic import IsotropicMixture, MixtureDenoiser, MixtureScore

VP, TRIG = VariancePreserving(), Trigonometric()
STEPS = {2: 40, 16: 80, 64: 80}
_density = jax.jit(lambda prior, x: prior.log_prob(x))


def mixture(d: int) -> IsotropicMixture:
    """Weights .5 .3 .2, standard deviations .3 .5 .7, means twice standard normal draws (generator 0)."""
    means = 2 * np.random.default_rng(0).normal(size=(3, d))
    return IsotropicMixture(
        jnp.log(jnp.asarray([0.5, 0.3, 0.2])), jnp.asarray(means, "float32"), jnp.asarray([0.3, 0.5, 0.7])
    )


def preserving(d: int, *, fitted: bool = True) -> DiffusionPrior:
    """The usual schedule at T = 1, with a Gaussian base fitted to the data or with N(0, sigma^2 I)."""
    m = mixture(d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the bias that it warns of is what is measured
        return DiffusionPrior(
            MixtureScore(VP), VP, (d,), params=m, base=m.moments() if fitted else None, solver=RK4(STEPS[d])
        )


def trigonometric(d: int) -> DiffusionPrior:
    """The schedule whose base is exact."""
    return DiffusionPrior(Denoiser(MixtureDenoiser(TRIG)), TRIG, (d,), params=mixture(d), solver=RK4(STEPS[d]))


def errors(prior: DiffusionPrior, d: int, n: int) -> dict[str, Any]:
    """Root mean square and largest error of log p over ``n`` draws of the mixture, nats."""
    m = mixture(d)
    x = m.sample(jax.random.key(1), n)
    error = np.asarray(_density(prior, x) - m.log_prob(x), float)
    return {"rms": float(np.sqrt((error**2).mean())), "largest": float(np.abs(error).max()), "draws": n}


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: fewer draws and a coarser grid."""
    n = 32 if quick else 1000
    for d, steps in STEPS.items():
        found = errors(preserving(d), d, n)
        other = errors(trigonometric(d), d, n)
        yield Claim(
            name=f"rms_d{d}",
            claim=f"diffusion log_prob against the exact mixture, d = {d}, base fitted to the data, RK4-{steps}: rms",
            value=found["rms"],
            unit="nats",
            target="<= 1e-3",
            seeds=(1,),
            detail={"variance_preserving": found, "trigonometric": other},
        )
    axis = jnp.linspace(-5, 5, 61 if quick else 201)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1)
    mass = float(jnp.exp(_density(trigonometric(2), grid)).sum()) * float(axis[1] - axis[0]) ** 2
    yield Claim(
        name="mass",
        claim=f"integral of exp(log_prob) over a {len(axis)} x {len(axis)} grid, d = 2",
        value=mass,
        unit="",
        target="0.999 to 1.001",
    )
    biased = errors(preserving(16, fitted=False), 16, n)
    yield Claim(
        name="unfitted_base",
        claim="the usual N(0, I) base at T = 1 is biased, d = 16: rms error of log p",
        value=biased["rms"],
        unit="nats",
        target="> 2e-2",
        seeds=(1,),
        detail=biased,
    )
