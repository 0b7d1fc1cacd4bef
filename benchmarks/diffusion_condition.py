"""Is the posterior of `inference.sampling.condition` right where it is known, and noise and blur with it?

The prior is a mixture of three Gaussians with its exact score, so under linear sensors the posterior and log p(y) are
known.  Coverage is over simulated problems with an unknown noise level and blur.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.diffusion_logprob import TRIG, mixture
from benchmarks.diffusion_posterior import summary
from benchmarks.harness import Claim
from inference.checking.sampling_checks import rank_p_value
from inference.sampling import calibration_ranks, condition
from ppl_models.distributions import RK4, Denoiser, DiffusionPrior
from ppl_models.distributions.analytic import MixtureDenoiser, linear_posterior

NOISE = 0.3
RUNS = 8
SIZES = {"tds": {2: 2000, 16: 1000, 64: 1000}, "mcgdiff": {2: 4000, 16: 16000, 64: 4000}}
STEPS = 200
LONG = {"warmup": 500, "draws": 1000}
"""Of NUTS in 16 dimensions."""
WITHIN = {2: 0.02, 16: 0.02, 64: 0.1}
TAILS = (
    "the potentials take the prior along a sensor for normal; here y lies where a component of the mixture is far "
    "likelier than that normal law, and a few particles carry the weights of a run"
)
SHORT = (
    "the Monte Carlo errors that are the unit here are estimates from the same chains; it is not the ODE, whose "
    "density in 24 steps moves the exact means by at most 0.002 sds"
)
CHANCE = "chance if the root mean square in the record is near 1, as for right ones; else an error of the method"
NAMES = {"tds": "TDS", "mcgdiff": "MCGdiff", "nuts": "NUTS", "dps": "DPS"}


def prior(d: int) -> DiffusionPrior:
    """The mixture as a diffusion: trigonometric schedule, exact denoiser."""
    return DiffusionPrior(Denoiser(MixtureDenoiser(TRIG)), TRIG, (d,), params=mixture(d), solver=RK4(24))


def problem(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Sensors A and what they read, y: the known problem in the plane; else two random sensors, y simulated."""
    if d == 2:
        return np.asarray([[1.0, 0.5]], "float32"), np.asarray([0.5], "float32")
    rng = np.random.default_rng(1)
    A = rng.normal(size=(2, d)) / np.sqrt(d)
    x = np.asarray(mixture(d).sample(jax.random.key(5), 1)[0])
    return A.astype("float32"), (A @ x + NOISE * rng.normal(size=2)).astype("float32")


def linear(A: np.ndarray) -> Callable[[jax.Array], Any]:
    """Sensors with normal noise."""
    return lambda x: dist.Normal(jnp.asarray(A) @ x, NOISE).to_event(1)


def errors(tree: Any, d: int, A: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Largest errors of means and sds, in Monte Carlo errors and in posterior sds; R-hat; log p(y)."""
    exact = linear_posterior(mixture(d), jnp.asarray(A), jnp.asarray(y), NOISE)
    mean, sd = (np.asarray(v, float) for v in (exact.moments().mean, jnp.sqrt(jnp.diagonal(exact.moments().cov))))
    draws = tree["posterior"]["x"].values
    rows = [summary(draws[..., i]) for i in range(d)]
    off = [(r["mean"] - m) / r["mcse_mean"] for r, m in zip(rows, mean, strict=True)]
    off_sd = [(r["sd"] - s) / r["mcse_sd"] for r, s in zip(rows, sd, strict=True)]
    return {
        "largest": float(np.abs(off + off_sd).max()),
        "root_mean_square": float(np.sqrt(np.mean(np.square(off + off_sd)))),
        "numbers": 2 * d,
        "mean_error_in_sds": float(np.abs([(r["mean"] - m) / s for r, m, s in zip(rows, mean, sd, strict=True)]).max()),
        "sd_ratios": [float(min(r["sd"] / s for r, s in zip(rows, sd, strict=True))),
                      float(max(r["sd"] / s for r, s in zip(rows, sd, strict=True)))],
        "r_hat": float(max(r["r_hat"] for r in rows)),
        "component_weights": np.exp(np.asarray(exact.log_weights, float)),
        "exact_log_evidence": float(exact.log_evidence),
        **{name: value for name, value in tree.attrs.items()},
    }  # fmt: skip


def exact_posteriors(quick: bool, methods: tuple[str, ...], dimensions: tuple[int, ...]) -> Iterator[Claim]:
    """Methods against the exact posterior."""
    for d in dimensions:
        A, y = problem(d)
        for method in methods:
            began = time.perf_counter()
            options: dict[str, Any] = (
                {"warmup": 100, "draws": 100} if quick else {"warmup": 200, "draws": 500} if d == 2 else LONG
            )
            if method != "nuts":
                options = {"draws": 500 if quick else SIZES[method][d], "steps": 50 if quick else STEPS}
            runs = 4 if quick or method == "nuts" else RUNS
            tree = condition(prior(d), linear(A), y, method=method, key=jax.random.key(0), runs=runs, **options)
            found = errors(tree, d, A, y) | {"seconds": time.perf_counter() - began, "runs": runs, **options}
            name = NAMES[method]
            yield Claim(
                f"{method}_error_d{d}",
                f"{name}, linear sensors, d = {d}, exact posterior: largest error of {2 * d} means and sds",
                found["largest"], "Monte Carlo errors", "<= 3", (0,),
                if_missed={"mcgdiff": TAILS, "nuts": SHORT}.get(method, CHANCE),
                reference=f"of {2 * d} right ones the largest is at most 3 with probability {0.9973 ** (2 * d):.2f}",
                detail=found,
            )  # fmt: skip
            if "log_evidence" in tree.attrs:
                yield Claim(
                    f"{method}_evidence_d{d}", f"the same: error of log p(y), {runs} runs of {options['draws']:,}",
                    abs(tree.attrs["log_evidence"] - found["exact_log_evidence"]), "nats", f"<= {WITHIN[d]:g}", (0,),
                    if_missed=TAILS if method == "mcgdiff" else "",
                    detail=found,
                )  # fmt: skip


# ------------------------------------------------------------------------------------------------ nuisances
def blurred(x: jax.Array) -> Any:
    """Ten readings of blurred coordinates; noise level and blur unknown."""
    noise = numpyro.sample("noise", dist.LogNormal(float(np.log(NOISE)), 0.5))
    blur = numpyro.sample("blur", dist.Uniform(0.0, 1.0))
    mixed = jnp.stack([x[0], x[1], x[0] + blur * x[1], x[1] + blur * x[0], x[0] - x[1]])
    return dist.Normal(jnp.tile(mixed, 2), noise).to_event(1)


def nuisances(quick: bool) -> Iterator[Claim]:
    """Coverage of 90 % intervals of the noise level and the blur, inferred jointly with x by TDS."""
    count = 20 if quick else 200
    ranks = calibration_ranks(
        prior(2),
        blurred,
        key=jax.random.key(7),
        simulations=count,
        draws=100 if quick else 300,
        steps=50 if quick else 100,
    )
    for name in ("noise", "blur"):
        yield Claim(
            f"{name}_interval",
            f"TDS, noise level and blur unknown: 90 % interval of the {name} covers the truth in {count} simulations",
            float((np.abs(ranks[name] - 0.5) <= 0.45).mean()), "share", "0.85 to 0.95", (7,),
            detail={"p_value_of_all_ranks": rank_p_value(ranks)[0], "particles": 300,
                    "x": (np.abs(ranks["x"] - 0.5) <= 0.45).mean(0)},
        )  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: coverage in twenty simulations, with few particles."""
    yield from nuisances(quick)
    if quick:
        return
    yield from exact_posteriors(quick, ("tds", "mcgdiff"), (2, 16, 64))
