"""Does the estimated log p(x) agree with its closed form, and do its intervals cover as often as they say?

Three programs with a known log p(x): factor analysis (linear, Gaussian), a mixture prior under a linear Gaussian
likelihood, and - conditional, log p(y | t) - Bayesian linear regression with coefficients of its own for every datum.
Their posteriors are spoilt on purpose (means off, too wide), since an exact one has no error at all.  The 95% interval
of a datum is log_px +- 1.96 se.  Each seed makes another model, other data and other noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np

from benchmarks.harness import Claim
from inference.checking.log_evidence import evidence
from tests.closed_forms import ClosedForm, linear_gaussian_program, mixture_program, random_coefficients

PARTICLES = 512
SPOIL = 0.1
PROGRAMS: dict[str, tuple[str, Callable[..., ClosedForm]]] = {
    "linear_gaussian": ("factor analysis", linear_gaussian_program),
    "mixture": ("mixture prior", mixture_program),
    "regression": ("Bayesian linear regression, y given its inputs", random_coefficients),
}


def measure(build: Callable[..., ClosedForm], spoil: float, data: int, seed: int) -> dict[str, float]:
    """Errors against the closed form over ``data`` fresh data of one model."""
    form = build(spoil=spoil, seed=seed)
    data_key, key = jax.random.split(jax.random.key(seed))
    x = form.sample(data_key, data)
    table = evidence(form.fit, x, particles=PARTICLES, key=key, refine="none", progress=False)
    error = table["log_px"].to_numpy() - form.log_px(x)
    return {
        "mean_abs_error": np.abs(error).mean(),
        "mean_error": error.mean(),
        "max_abs_error": np.abs(error).max(),
        "coverage": (np.abs(error) <= 1.96 * table["se"]).mean(),
        "mean_se": table["se"].mean(),
        "elbo_gap": (table["log_px"] - table["elbo"]).mean(),
        "khat_above_0.7": (table["khat"] > 0.7).mean(),
    }


def run(quick: bool) -> Iterator[Claim]:
    """Two claims a program: the mean error, and the coverage of the intervals."""
    data, seeds = (500, (0,)) if quick else (4000, (0, 1, 2, 3, 4))
    for name, (words, build) in PROGRAMS.items():
        rows = [measure(build, SPOIL, data, seed) for seed in seeds]
        mean = {field: float(np.mean([row[field] for row in rows])) for field in rows[0]}
        detail = {
            "particles": PARTICLES,
            "data_per_seed": data,
            "posterior_spoilt_by": SPOIL,
            "coverage_se": float(np.sqrt(mean["coverage"] * (1 - mean["coverage"]) / (data * len(seeds)))),
            **mean,
            "per_seed": rows,
        }
        if not quick:
            detail["posterior_spoilt_by_0.3"] = measure(build, 0.3, data, seeds[0])
        yield Claim(
            f"{name}_error", f"log p(x) of {words}: mean absolute error with {PARTICLES} particles",
            mean["mean_abs_error"], "nats", target="<= 0.02", seeds=seeds, detail=detail,
        )  # fmt: skip
        yield Claim(
            f"{name}_coverage", f"log p(x) of {words}: share of 95% intervals that hold the exact value",
            mean["coverage"], "share", target="0.93 to 0.97", seeds=seeds, detail=detail,
        )  # fmt: skip
