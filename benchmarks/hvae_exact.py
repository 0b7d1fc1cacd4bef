"""Is the evidence of a hierarchy right, and does k-hat tell an exact posterior from a wrong one?

A linear Gaussian hierarchy of four levels has a closed-form log p(x), and the exact posterior of each level given the
one above is Gaussian.  Three posteriors: exact; slightly spoilt (means .1 standard deviations off, 10 % too wide),
which is what the error of the estimate is measured with; and wrong (means .6 off, 2.5 times too narrow).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Claim
from inference.checking.log_evidence import evidence
from tests.closed_forms import linear_gaussian_hierarchy

PARTICLES, LEVELS, LATENT = 4096, 4, 3
EXACT, SPOILT, WRONG = 0.0, 0.1, -0.6


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


def run(quick: bool) -> Iterator[Claim]:
    """Yield the error of the estimate, and k-hat of the exact and of the wrong posterior."""
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
