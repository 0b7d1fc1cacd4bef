"""Four calls of a network for a digit: does a student of progressive distillation draw better than four plain steps?

Scikit-learn's digits, 8x8, (k + u) / 17; a small diffusion (MLP) trained on 1,500 of them is the teacher, its 32 steps
of DDIM are halved three times (Salimans & Ho 2022).  Squared MMD and sliced Wasserstein distance of 1,000 draws to 297
held-out digits, beside samplers with as many calls of the teacher (each on the better of two grids), and 1,000
ancestral steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.diffusion_inpaint import SPEC, dequantised, mmd
from benchmarks.diffusion_verdict import sliced_wasserstein
from benchmarks.harness import Claim
from inference import fit
from inference.sampling import draw
from ppl_models.datasets import load
from ppl_models.diffusion import MLP, distil, standard_prior

PLAIN = {
    "ddim 4 (4 calls)": ("ddim", 4), "dpm_solver_2m 4 (4 calls)": ("dpm_solver_2m", 4), "heun 3 (5 calls)": ("heun", 3),
    "ddim 32 (32 calls)": ("ddim", 32), "heun 18 (35 calls)": ("heun", 18),
}  # fmt: skip
FEW = list(PLAIN)[:3]
LONG = "ancestral 1000 (1,000 calls)"
STUDENT = "student 4 (4 calls)"


def one_seed(train: np.ndarray, test: np.ndarray, seed: int, quick: bool) -> dict[str, Any]:
    """MMD and sliced Wasserstein distance by sampler; CPU seconds of both trainings."""
    spec = dataclasses.replace(SPEC, network=MLP(width=64, depth=1)) if quick else SPEC
    keys, began = jax.random.split(jax.random.key(seed), 4), time.process_time()
    common: dict[str, Any] = {"batch_size": 128, "progress": False, "average": 0.995}
    fitted = fit(
        spec.build(keys[0]), train, steps=100 if quick else 6000, learning_rate=2e-3, key=keys[1], **common
    )  # fmt: skip
    middle = time.process_time()
    student = distil(
        fit, fitted, train, teacher_steps=8 if quick else 32, steps=4, updates=20 if quick else 1500,
        learning_rate=5e-4, key=keys[2], **common,
    )  # fmt: skip
    found: dict[str, Any] = {"cpu_seconds": {"teacher": middle - began, "student": time.process_time() - middle}}
    n = 64 if quick else 1000
    z = jax.random.normal(keys[3], (n, 8, 8))
    law = standard_prior(fitted.program, fitted.params)
    denoise = jax.vmap(lambda x, t: law.prediction.denoise(law.schedule, law.params, x, t), in_axes=(0, None))

    def measured(x: Any) -> dict[str, float]:
        x = np.asarray(x).reshape(n, -1)
        return {"mmd": mmd(x, test), "wasserstein": sliced_wasserstein(x, test.reshape(len(test), -1))}

    def plain(method: str, steps: int, **more: Any) -> dict[str, float]:
        x = draw(denoise, law.schedule, z, method=method, steps=steps, key=jax.random.key(7), **more)
        return measured(np.asarray(x) * spec.scale + spec.centre)

    found[STUDENT] = measured(jax.jit(student.from_noise)(z))
    for name, (method, steps) in PLAIN.items():
        tried = [plain(method, steps, to_data=to_data) for to_data in (True, False)]
        found[name] = {what: min(t[what] for t in tried) for what in ("mmd", "wasserstein")}
    found[LONG] = plain("ancestral", 50 if quick else 1000)
    return found


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: one seed, a small network, one halving."""
    train, test = dequantised(load("digits", "train")[0], 0), dequantised(load("digits", "test")[0], 1)
    seeds = (0,) if quick else (0, 1, 2)
    runs = [one_seed(train, test, seed, quick) for seed in seeds]
    halves = dequantised(load("digits", "train")[0], 2)[:1000]
    for what, unit in (("mmd", "squared MMD"), ("wasserstein", "sliced Wasserstein distance")):
        means = {name: float(np.mean([r[name][what] for r in runs])) for name in (STUDENT, *PLAIN, LONG)}
        data = (
            mmd(halves, test) if what == "mmd"
            else sliced_wasserstein(halves.reshape(len(halves), -1), test.reshape(len(test), -1))
        )  # fmt: skip
        told = ", ".join(f"{name} {value:.4f}" for name, value in means.items()) + f"; 1,000 training digits {data:.4f}"
        best = min(FEW, key=lambda name, means=means: means[name])
        spread = float(np.std([r[LONG][what] for r in runs], ddof=1)) if len(runs) > 1 else 0.0
        yield Claim(
            f"{what}_over_plain",
            f"digits: {unit} of a distilled student in 4 calls over that of the best plain sampler in 4 or 5",
            means[STUDENT] / means[best], "ratio", "< 1", seeds,
            if_missed="the student inherits the errors of its teacher, and adds its own",
            reference=f"{told}; best: {best}",
            detail={"means": means, "by_seed": runs},
        )  # fmt: skip
        yield Claim(
            f"{what}_kept",
            f"the same: {unit} of the student (4 calls) less that of 1,000 ancestral steps of the teacher",
            means[STUDENT] - means[LONG], "", f"<= {max(2 * spread, 1e-4):.4f}", seeds,
            if_missed="quality is not kept: fresh noise mends errors of an inexact score, a map of few steps cannot",
            reference="the target is twice the standard deviation of ancestral sampling over seeds",
        )  # fmt: skip
