"""Is the density of a diffusion, by its ODE, the exact one where that is known, and does it integrate to one?

The score is that of a mixture of three isotropic Gaussians, exact at every noise level, so nothing is trained and every
error is the solver's or the base's.  Data are fresh draws of the mixture.  The same for random probes: does the
interval of a density whose divergence is estimated hold the value with the exact trace as often as it says?
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t

from benchmarks.harness import Claim
from ppl_models.distributions import (
    RK4,
    Denoiser,
    DiffusionPrior,
    Exact,
    Hutchinson,
    Trigonometric,
    VariancePreserving,
)
from ppl_models.distributions.analytic import IsotropicMixture, MixtureDenoiser, MixtureScore
from ppl_models.distributions.ode import Trace

VP, TRIG = VariancePreserving(), Trigonometric()
STEPS = {2: 40, 16: 80, 64: 80}
PROBES = (2, 4, 16)
_density = jax.jit(lambda prior, x: prior.log_prob(x))
_estimate = jax.jit(lambda prior, x, keys: prior.log_prob_and_se(x, keys=keys))


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
    return _trigonometric(d, Exact(), RK4(STEPS[d]))


def _trigonometric(d: int, trace: Trace, solver: Any) -> DiffusionPrior:
    return DiffusionPrior(Denoiser(MixtureDenoiser(TRIG)), TRIG, (d,), params=mixture(d), solver=solver, trace=trace)


def errors(prior: DiffusionPrior, d: int, n: int) -> dict[str, Any]:
    """Root mean square and largest error of log p over ``n`` draws of the mixture, nats."""
    m = mixture(d)
    x = m.sample(jax.random.key(1), n)
    error = np.asarray(_density(prior, x) - m.log_prob(x), float)
    return {"rms": float(np.sqrt((error**2).mean())), "largest": float(np.abs(error).max()), "draws": n}


@dataclass(frozen=True)
class OneSet:
    """The same steps as RK4, with one set of probes for the whole path (as an adaptive solver has to keep)."""

    n: int

    def solve(self, slope: Any, y: Any, schedule: Any, *, backward: bool = False) -> Any:
        """Value at the other end."""
        return RK4(self.n).solve(slope, y, schedule, backward=backward)


def coverage(d: int, probes: int, n: int, *, both: bool) -> dict[str, Any]:
    """Share of 95% intervals (Student, ``probes - 1`` degrees of freedom) that hold the density of the exact trace."""
    x, keys = mixture(d).sample(jax.random.key(2), n), jax.random.split(jax.random.key(3), n)
    exact = np.asarray(_density(_trigonometric(d, Exact(), RK4(STEPS[d])), x), float)

    def measured(solver: Any) -> dict[str, float]:
        found, se = (np.asarray(v, float) for v in _estimate(_trigonometric(d, Hutchinson(probes), solver), x, keys))
        error = found - exact
        return {
            "share": float((np.abs(error) <= t.ppf(0.975, probes - 1) * se).mean()),
            "share_of_1.96_se": float((np.abs(error) <= 1.96 * se).mean()),
            "rms_error": float(np.sqrt((error**2).mean())),
            "rms_se": float(np.sqrt((se**2).mean())),
            "mean_error": float(error.mean()),
        }

    found: dict[str, Any] = measured(RK4(STEPS[d]))
    spread = float(np.sqrt(found["share"] * (1 - found["share"]) / n))
    other = {"one_set_of_probes": measured(OneSet(STEPS[d]))} if both else {}
    return {**found, "share_se": spread, "draws": n, **other}


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
    d = 16
    for probes in PROBES[:1] if quick else PROBES:
        shares = coverage(d, probes, 200 if quick else 2000, both=not quick)
        yield Claim(
            name=f"coverage_probes{probes}",
            claim=f"density by {probes} random probes, d = {d}: 95% intervals that hold the exact trace's value",
            value=shares["share"],
            unit="share",
            target="0.93 to 0.97",
            seeds=(2, 3),
            detail=shares,
        )
    if quick:
        return
    ratio = shares["one_set_of_probes"]["rms_error"] / shares["rms_error"]
    yield Claim(
        name="fresh_probes",
        claim=f"rms error of the density, one set of {probes} probes for the whole path over new ones in each RK4 step",
        value=ratio,
        unit="times",
        target="> 1.5",
        seeds=(2, 3),
        detail=shares,
    )
