"""Is the evidence of a hierarchy right, and does k-hat tell an exact posterior from a wrong one?

A linear Gaussian hierarchy of four levels has a closed-form log p(x), and the exact posterior of each level given the
one above is Gaussian.  Three posteriors: exact; slightly spoilt (means .1 standard deviations off, 10 % too wide),
which is what the error of the estimate is measured with; and wrong (means .6 off, 2.5 times too narrow).

Then annealed importance sampling from both sides, :func:`inference.sandwich` at its defaults, on 20 draws of each of
two hierarchies: this one with the wrong posterior, against the closed form, and a small trained one of digits, against
the importance-weighted estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Claim
from inference import fit, sandwich
from inference.checking.log_evidence import evidence
from ppl_models import datasets
from ppl_models.hvae import PRESETS
from ppl_models.hvae.training import vdvae_training
from tests.closed_forms import linear_gaussian_hierarchy

PARTICLES, LEVELS, LATENT = 4096, 4, 3
EXACT, SPOILT, WRONG = 0.0, 0.1, -0.6
DRAWS, STEPS = 20, 3_000
_MISSED = "a bound misses by b nats with a probability of at most e^-b, and stuck chains say less of their error"


def measure(spoil: float, data: int, seed: int) -> dict[str, np.ndarray]:
    """Error against the closed form in nats, and k-hat, of ``data`` fresh data of one model."""
    form = linear_gaussian_hierarchy(latent=LATENT, levels=LEVELS, spoil=spoil, seed=seed)
    data_key, key = jax.random.split(jax.random.key(seed))
    x = form.sample(data_key, data)
    table = evidence(form.fit, x, particles=PARTICLES, key=key, refine="none", progress=False)
    return {
        "error": table["log_px"].to_numpy() - form.log_px(x),
        "khat": table["khat"].to_numpy(),
        "ess": table["ess"].to_numpy(),
        "gap": (table["log_px"] - table["elbo"]).to_numpy(),
    }


def small(steps: int) -> Any:
    """The preset ``hvae:tiny``, two levels of two numbers, fitted to binary digits."""
    x, _ = datasets.load("digits", "train")
    rules = vdvae_training(steps, learning_rate=3e-3, warmup=min(100, steps // 2), b2=0.999, average=0.99)
    program = PRESETS["tiny"].build(jax.random.key(0))
    return fit(program, x, steps=steps, batch_size=64, key=jax.random.key(1), progress=False, **rules)


def held(fitted: Any, draws: int, exact: Any = None) -> tuple[int, dict[str, float]]:
    """How many of the draws of a program its two-sided bounds hold, and how far apart they are."""
    found = sandwich(fitted, draws, key=jax.random.key(11), exact=exact, progress=False).table
    detail = {"gap_mean": found["gap"].mean(), "gap_max": found["gap"].max(), "reference": found.attrs["reference"]}
    return int(found["within"].sum()), {**detail, "log_px": found["reference"].mean()}


def run(quick: bool) -> Iterator[Claim]:
    """Yield the error of the estimate, k-hat of the exact and the wrong posterior, and the draws that bounds hold."""
    data, seeds = (50, (0,)) if quick else (300, (0, 1, 2))
    found = {spoil: [measure(spoil, data, seed) for seed in seeds] for spoil in (SPOILT, EXACT, WRONG)}
    joined = {
        spoil: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for spoil, parts in found.items()
    }
    detail: dict[str, Any] = {
        str(spoil): {
            "mean_error": values["error"].mean(), "mean_abs_error": np.abs(values["error"]).mean(),
            "max_abs_error": np.abs(values["error"]).max(), "khat_median": np.median(values["khat"]),
            "khat_max": values["khat"].max(), "khat_min": values["khat"].min(), "ess_median": np.median(values["ess"]),
            "elbo_gap": values["gap"].mean(),
        }
        for spoil, values in joined.items()
    }  # fmt: skip
    detail |= {"data_per_seed": data, "levels": LEVELS, "latent_dimensions": LEVELS * LATENT}
    words = f"hierarchy of {LEVELS} levels, {LEVELS * LATENT} latent dimensions"
    yield Claim(
        "error", f"log p(x) of a linear Gaussian {words}: mean absolute error with {PARTICLES} particles",
        np.abs(joined[SPOILT]["error"]).mean(), "nats", target="<= 0.02", seeds=seeds, detail=detail,
    )  # fmt: skip
    yield Claim(
        "khat_exact", "largest k-hat over data with the exact posterior (-1: no tail at all)",
        max(-1.0, joined[EXACT]["khat"].max()), "k-hat", target="< 0.5", seeds=seeds,
    )  # fmt: skip
    yield Claim(
        "khat_wrong", "smallest k-hat over data with a posterior 2.5 times too narrow",
        joined[WRONG]["khat"].min(), "k-hat", target="> 0.7", seeds=seeds,
    )  # fmt: skip
    draws = 4 if quick else DRAWS
    form = linear_gaussian_hierarchy(latent=LATENT, levels=LEVELS, spoil=WRONG, seed=0)
    count, detail = held(form.fit, draws, form.log_px)
    yield Claim(
        "sandwich", f"the same, wrong posterior: of {draws} draws, those whose exact log p(x) lies between AIS bounds",
        count, f"of {draws}", target=f"== {draws}", seeds=(0,), detail=detail, if_missed=_MISSED,
    )  # fmt: skip
    if quick:
        return
    count, detail = held(small(STEPS), draws)
    yield Claim(
        "sandwich_small", f"hvae:tiny on binary digits: of {draws} draws, those whose estimate lies between bounds",
        count, f"of {draws}", target=f"== {draws}", seeds=(0,), detail=detail, if_missed=_MISSED,
    )  # fmt: skip
