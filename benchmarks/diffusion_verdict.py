"""Does the verdict on a conditional sampler tell one that is wrong, and do TDS and NUTS agree where nothing is known?

The verdict (k-hat of the weights, ranks of simulated truths) is asked of 20 seeds of DPS and of two exact methods, on a
mixture prior under a linear sensor.  For |x| and quantised sensors two long runs of NUTS are the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from benchmarks.diffusion_condition import NAMES, NOISE, STEPS, linear, prior, problem
from benchmarks.harness import Claim
from inference import sampler_verdict
from inference.checking.sampling_checks import flagged, rank_p_value
from inference.sampling import calibration_ranks, condition

SEEDS = 20


# ------------------------------------------------------------------------------------------------ nonlinear
def absolute(x: jax.Array) -> Any:
    """|x_i| with noise: the signs are lost."""
    return dist.Normal(jnp.abs(x), NOISE).to_event(1)


def quantised(x: jax.Array) -> Any:
    """x_i + noise, known up to one of eight cells of width 1/2."""
    edges = jnp.linspace(-1.5, 1.5, 7)
    below = jax.scipy.stats.norm.logcdf((edges - x[:, None]) / NOISE)
    upper = jnp.concatenate([jnp.exp(below), jnp.ones((2, 1))], 1)
    return dist.Categorical(logits=jnp.log(jnp.diff(upper, axis=1, prepend=0.0) + 1e-7)).to_event(1)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 64) -> float:
    """Mean over directions of the 1-Wasserstein distance of projections, quantile against quantile."""
    w = np.random.default_rng(0).normal(size=(a.shape[1], directions))
    w /= np.linalg.norm(w, axis=0)
    levels = (np.arange(1000) + 0.5) / 1000
    return float(np.abs(np.quantile(a @ w, levels, axis=0) - np.quantile(b @ w, levels, axis=0)).mean())


def nonlinear(quick: bool) -> Iterator[Claim]:
    """TDS with the smoothed or gaussian twist against two runs of NUTS, four chains each."""
    size: dict[str, Any] = {"draws": 200, "warmup": 100} if quick else {"draws": 2000, "warmup": 500}
    for name, likelihood, y in (
        ("absolute", absolute, np.asarray([0.6, 0.4], "float32")),
        ("quantised", quantised, np.asarray([4, 3])),
    ):
        flat = [
            condition(prior(2), likelihood, y, method=method, key=jax.random.key(seed), runs=4, **options)["posterior"]
            .x.values.reshape(-1, 2)
            for method, seed, options in (
                ("noise_hmc", 1, size), ("noise_hmc", 2, size),
                ("tds", 3, {"draws": size["draws"], "steps": 100 if quick else STEPS}),
            )
        ]  # fmt: skip
        between = sliced_wasserstein(flat[0], flat[1])
        apart = [sliced_wasserstein(chain, flat[2]) for chain in flat[:2]]
        yield Claim(
            f"{name}_wasserstein",
            f"TDS, {name} observation, d = 2: sliced Wasserstein to NUTS over that between two runs of NUTS",
            float(np.mean(apart)) / between, "ratio", "<= 1.5", (1, 2, 3),
            detail={"nuts_to_nuts": between, "tds_to_nuts": apart, **size},
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------- verdict
def verdicts(quick: bool) -> Iterator[Claim]:
    """How many of 20 seeds are flagged: DPS should be, the exact methods should not."""
    law, likelihood = prior(2), linear(problem(2)[0])
    seeds = 2 if quick else SEEDS
    for method in ("dps",) if quick else ("dps", "tds", "mcgdiff"):
        khat, p, bad = [], [], 0
        for seed in range(seeds):
            first, second = jax.random.split(jax.random.key(300 + seed))
            tree = condition(law, likelihood, problem(2)[1], method=method, key=first, draws=500, steps=100)
            ranks = calibration_ranks(law, likelihood, method=method, key=second, simulations=40 if quick else 200)
            table = sampler_verdict(tree, ranks=ranks).set_index("check")
            bad += flagged(table.reset_index())
            khat.append(float(table.loc["k-hat of the weights (largest)", "value"]))
            p.append(rank_p_value(ranks)[0])
        yield Claim(
            f"{method}_flagged",
            f"{NAMES[method]}: seeds of {seeds} flagged (k-hat > .7 or p of the ranks < .01)",
            bad, "seeds", f"== {seeds}" if method == "dps" else "<= 1", tuple(range(seeds)),
            detail={"khat": khat, "p_value": p, "by_khat": int((np.asarray(khat) > 0.7).sum()),
                    "by_ranks": int((np.asarray(p) < 0.01).sum()), "simulations_a_seed": 40 if quick else 200},
        )  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: two seeds of DPS."""
    yield from verdicts(quick)
    if quick:
        return
    yield from nonlinear(quick)
