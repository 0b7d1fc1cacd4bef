"""The lower half of a handwritten digit, given its upper half: do the samplers agree, and do intervals hold the truth?

Scikit-learn's digits, 8x8, (k + u) / 17; a small diffusion (MLP) trained on 1,200 of them, as long as the bound on 300
others improves: trained on, it learns its digits by heart, its posterior falls into many modes, and its ODE and SDE are
two laws.  The upper 32 pixels of held-out digits are read with noise of standard deviation .1, and the lower 32 are
inferred by TDS and by NUTS.  Also: 18 steps of Heun against 1,000 ancestral steps, by maximum mean discrepancy (MMD) to
held-out digits; grid and churn of Heun are chosen by the MMD to the 300.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import optax

from benchmarks.diffusion_verdict import sliced_wasserstein
from benchmarks.harness import Claim
from inference import fit, sampler_verdict
from inference.sampling import condition, draw
from ppl_models.datasets import load
from ppl_models.diffusion import MLP, RK4, Diffusion, prior, standard_prior

NOISE = 0.1
SPEC = Diffusion((8, 8), network=MLP(width=256, depth=2), centre=0.32, scale=0.36, solver=RK4(12, 1.75))
STEPS = 100
TRAINING, VALIDATION = 3000, 300
CHURN, WARPS = (0.0, 10.0, 40.0), (1.5, 3.0, 7.0)


def dequantised(x: Any, seed: int) -> np.ndarray:
    """Grey levels 0..16 as numbers in [0, 1]."""
    return ((np.asarray(x) + np.random.default_rng(seed).random(np.shape(x))) / 17).astype("float32")


def upper(x: jax.Array) -> Any:
    """The upper half of the image with noise."""
    return dist.Normal(x[:4], NOISE).to_event(2)


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD with a Gaussian kernel whose width is the median distance within ``b``."""
    a, b = a.reshape(len(a), -1).astype(float), b.reshape(len(b), -1).astype(float)

    def squares(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.maximum((u**2).sum(1)[:, None] + (v**2).sum(1)[None] - 2 * u @ v.T, 0.0)

    within = squares(b, b)
    width = np.median(within[np.triu_indices(len(b), 1)])
    kaa, kbb, kab = (np.exp(-d / width) for d in (squares(a, a), within, squares(a, b)))
    n, m = len(a), len(b)
    return float((kaa.sum() - n) / (n * (n - 1)) + (kbb.sum() - m) / (m * (m - 1)) - 2 * kab.mean())


def samplers(fitted: Any, held: np.ndarray, test: np.ndarray, quick: bool) -> Iterator[Claim]:
    """Samples of Heun in 18 steps beside those of 1,000 ancestral steps; ``held`` are for choosing."""
    law = standard_prior(fitted.program, fitted.params)
    denoise = jax.vmap(lambda x, t: law.prediction.denoise(law.schedule, law.params, x, t), in_axes=(0, None))
    n, long = (64, 100) if quick else (1000, 1000)

    def made(method: str, steps: int, seed: int, **options: Any) -> np.ndarray:
        noise_key, own = jax.random.split(jax.random.key(seed))
        z = jax.random.normal(noise_key, (n, 8, 8))
        x = draw(denoise, law.schedule, z, method=method, steps=steps, key=own, **options)
        return np.asarray(x) * SPEC.scale + SPEC.centre

    settings = [(warp, churn) for warp in WARPS for churn in CHURN][: 2 if quick else None]
    tried = {at: mmd(made("heun", 18, 5, warp=at[0], churn=at[1]), held) for at in settings}
    warp, churn = min(tried, key=lambda at: tried[at])
    few = [mmd(made("heun", 18, seed, warp=warp, churn=churn), test) for seed in (1, 2)]
    many = [mmd(made("ancestral", long, seed), test) for seed in (3, 4)]
    spread = float(np.mean([abs(few[0] - few[1]), abs(many[0] - many[1])]))
    apart = float(np.mean(few) - np.mean(many))
    yield Claim(
        "heun_mmd",
        f"digits: squared MMD of 18-step Heun (35 calls) less that of {long:,} ancestral steps ({long:,} calls)",
        apart, "", f"<= {max(spread, 1e-4):.4f}", (1, 2, 3, 4),
        if_missed="the inexact score of a small network: fresh noise of many steps mends errors, an ODE keeps them",
        reference="the target is the mean difference of two samples of one sampler",
        detail={
            "heun": few, "ancestral": many, "samples": n, "warp": warp, "churn": churn,
            "validation_mmd": {f"warp {at[0]:g}, churn {at[1]:g}": value for at, value in tried.items()},
        },
    )  # fmt: skip
    equal = apart <= max(spread, 1e-4)
    yield Claim(
        "calls_at_equal_mmd", "the same: calls of the network, ancestral over Heun, if the MMDs are equal, else 0",
        long / 35 if equal else 0.0, "times", ">= 25", (1, 2, 3, 4), if_missed="the MMDs are not equal",
        detail={"calls": {"ancestral": long, "heun": 35}},
    )  # fmt: skip


def coverage(law: Any, test: np.ndarray, quick: bool) -> Iterator[Claim]:
    """90 % intervals of the hidden pixels of held-out digits."""
    count, particles = (4, 64) if quick else (200, 200)
    held, ess, began = [], [], time.perf_counter()
    for i, x in enumerate(test[:count]):
        tree = condition(
            law, upper, _read(x, i), key=jax.random.key(i), runs=1, draws=particles, steps=30 if quick else STEPS,
            progress=False,
        )  # fmt: skip
        below = (tree["posterior"]["x"].values[0][:, 4:] < x[None, 4:]).mean(0)
        held.append(np.abs(below - 0.5) <= 0.45)
        ess.append(float(tree["sample_stats"]["ess"].min()) / particles)
    yield Claim(
        "coverage",
        f"lower half of {count} held-out digits by TDS: share of hidden pixels inside their 90 % interval",
        float(np.mean(held)), "share", "0.85 to 0.95", tuple(range(count)),
        detail={
            "by_row": np.mean(held, axis=(0, 2)), "particles": particles, "steps": STEPS,
            "least_share_of_particles_median": float(np.median(ess)), "seconds": time.perf_counter() - began,
        },
    )  # fmt: skip


def agreement(law: Any, test: np.ndarray) -> Iterator[Claim]:
    """Four runs of TDS and four chains of NUTS on each of two digits."""
    digits, particles = 2, 8000
    size: dict[str, Any] = {"warmup": 150, "draws": 400, "max_tree_depth": 6}
    found = [_both(law, _read(test[i], i), i, particles, size) for i in range(digits)]
    listed = {name: [each[name] for each in found] for name in found[0]}
    yield Claim(
        "rhat",
        f"lower half of {digits} digits, four runs of TDS ({particles:,} particles) and four chains of NUTS: R-hat "
        "over all eight, largest of 64 pixels",
        max(listed["r_hat_of_both"]), "", "< 1.01", tuple(range(digits)), detail={**listed, **size},
        if_missed="particles that share ancestors count once, and the two methods have two laws: TDS that of the SDE "
        f"in {STEPS} steps, NUTS that of the ODE, which are the same for an exact score only",
    )  # fmt: skip
    yield Claim(
        "nuts_wasserstein",
        f"the same {digits} digits: sliced Wasserstein of TDS to NUTS over that between two halves of its four chains",
        float(np.mean(listed["tds_to_nuts"]) / np.mean(listed["nuts_to_nuts"])), "ratio", "<= 1.5",
        tuple(range(digits)), detail=listed,
        if_missed="as for the R-hat",
    )  # fmt: skip


def _both(law: Any, y: np.ndarray, seed: int, particles: int, size: dict[str, Any]) -> dict[str, float]:
    """TDS and NUTS on one digit: R-hat of each and of both, how far their means lie apart, distances."""
    began = time.process_time()
    tds = condition(law, upper, y, key=jax.random.key(500 + seed), draws=particles, steps=STEPS)
    between_them = time.process_time()
    nuts = condition(law, upper, y, key=jax.random.key(600 + seed), method="noise_hmc", runs=4, **size)
    ended = time.process_time()
    a, b = (tree["posterior"]["x"].values for tree in (tds, nuts))
    flat = [v.reshape(-1, 64) for v in (b[:2], b[2:], a)]
    apart = np.abs(flat[2].mean(0) - b.reshape(-1, 64).mean(0)) / flat[2].std(0)
    tables = [sampler_verdict(tree).set_index("check")["value"] for tree in (tds, nuts)]
    return {
        "r_hat_of_both": _rhat(a, b),
        **{f"r_hat_of_{name}": float(table["R-hat over runs (largest)"])
           for name, table in zip(("tds", "nuts"), tables, strict=True)},
        **{f"effective_draws_a_run_{name}": float(table["effective draws a run (least)"])
           for name, table in zip(("tds", "nuts"), tables, strict=True)},
        "means_apart_in_sds": float(apart.max()),
        "tds_to_nuts": float(np.mean([sliced_wasserstein(flat[2], half) for half in flat[:2]])),
        "nuts_to_nuts": sliced_wasserstein(flat[0], flat[1]),
        "cpu_seconds_tds": between_them - began, "cpu_seconds_nuts": ended - between_them,
    }  # fmt: skip


def _rhat(a: np.ndarray, b: np.ndarray) -> float:
    """Largest R-hat of a pixel over the runs of two methods, thinned to as many draws each."""
    from arviz_stats.base import array_stats

    n = min(a.shape[1], b.shape[1])
    both = np.concatenate([v[:, np.linspace(0, v.shape[1] - 1, n).astype(int)] for v in (a, b)])
    return float(max(array_stats.rhat(both[..., i, j].astype(float), method="rank") for i, j in np.ndindex(8, 8)))


def _read(x: np.ndarray, seed: int) -> np.ndarray:
    return (x[:4] + NOISE * np.random.default_rng(1000 + seed).normal(size=(4, 8))).astype("float32")


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: 100 steps of training, four digits."""
    data, test = dequantised(load("digits", "train")[0], 0), dequantised(load("digits", "test")[0], 1)
    train, held = data[:-VALIDATION], data[-VALIDATION:]
    spec = dataclasses.replace(SPEC, network=MLP(width=64, depth=1)) if quick else SPEC
    fitted = fit(
        spec.build(jax.random.key(0)), train, validation=held, steps=100 if quick else TRAINING, batch_size=128,
        validate_every=50 if quick else 100, optimizer=optax.adamw(2e-3, weight_decay=0.05), average=0.995,
        key=jax.random.key(1), progress=False,
    )  # fmt: skip
    law = prior(fitted.program, fitted.params)
    yield from coverage(law, test, quick)
    yield from samplers(fitted, held, test, quick)
    if not quick:
        yield from agreement(law, test)
