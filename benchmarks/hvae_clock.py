"""Does a hierarchy with tied weights tell the time by the norm of its state, and do shorter steps change it less?

Scikit-learn's digits, black and white, a pyramid of 1x1, 4x4 and 8x8 whose plain cells share their weights.

norm       RMS of the state after each level, held-out digits: per resolution the share of steps at which it grows, and
           R^2 of the step on the norm.  Paper 2 says that the norm is the clock of cells that are not told the time.
clock      the same model whose cells read Z / RMS(Z), which hides the norm, or are told i / N: held-out ELBO.
refinement the model with explicit Euler steps, trained with N cells, scored with 2 N, 4 N and 8 N of shorter steps and
           the same weights.  Forward Euler is of first order: a change of the ELBO halves with the step in the limit.

Falck et al., A Multi-Resolution Framework for U-Nets with Applications to Hierarchical VAEs, NeurIPS 2022.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Claim
from inference import fit
from inference.fitting.objectives import per_datum_elbo, trace_posterior
from ppl_models import datasets
from ppl_models.hvae import HVAE, PRESETS, finer_steps
from ppl_models.hvae.training import vdvae_training

SEEDS = (0, 1, 2)
STEPS = 1_000
DRAWS = 16
CLOCKS: tuple[Literal["none", "step", "normalise"], ...] = ("none", "step", "normalise")
SPEC = HVAE(
    enc="8x2,8d2,4x1,4d4,1x1", dec="1x1,4m1,4x3,8m4,8x3", shape=(8, 8), levels=17, width=32, zdim=4,
    likelihood=PRESETS["digits8"].likelihood, share="resolution",
)  # fmt: skip


def trained(spec: HVAE, seed: int, x: np.ndarray, steps: int) -> Any:
    """A fit of ``spec``."""
    settings = vdvae_training(steps, learning_rate=2e-3, warmup=min(100, steps // 2), b2=0.999, average=0.99)
    return fit(
        spec.build(jax.random.key(seed)), x, steps=steps, batch_size=32, key=jax.random.key(100 + seed), progress=False,
        **settings,
    )  # fmt: skip


def elbo(program: Any, params: Any, x: np.ndarray, key: jax.Array, draws: int) -> np.ndarray:
    """ELBO of each held-out digit, nats, a mean over ``draws``."""
    prepared = program.observation.prepare(jnp.asarray(x), jax.random.key(0), False)
    one = jax.jit(lambda key: per_datum_elbo(program, params, key, prepared))
    return np.mean([np.asarray(one(k), float) for k in jax.random.split(key, draws)], axis=0)


def norms(fitted: Any, x: np.ndarray) -> dict[int, dict[str, float]]:
    """By resolution: share of steps whose norm grows, and R^2 of the step on the norm, within a digit on average."""
    program = fitted.program
    prepared = program.observation.prepare(jnp.asarray(x), jax.random.key(0), False)
    sites = jax.jit(lambda key: trace_posterior(program, fitted.params, key, prepared)["state_norm"]["value"])
    norm = np.asarray(sites(jax.random.key(1)), float)
    sides = np.array([cell.res for cell in program.spec.decoder_cells])
    found = {}
    for side in sorted({s for s in sides if (sides == s).sum() > 2}):
        here = norm[:, sides == side]
        step = np.tile(np.arange(here.shape[1]), (len(here), 1))
        found[int(side)] = {
            "increasing": float((np.diff(here, axis=1) > 0).mean()),
            "r2": float(np.corrcoef(here.ravel(), step.ravel())[0, 1] ** 2),
        }
    return found


def run(quick: bool) -> Iterator[Claim]:
    """Norms, clocks, refinement; quick: one seed, a dense hierarchy, few steps, the norm only."""
    train, _ = datasets.load("digits", "train")
    test, _ = datasets.load("digits", "test")
    seeds, steps, draws = (SEEDS[:1], 8, 2) if quick else (SEEDS, STEPS, DRAWS)
    spec = dataclasses.replace(SPEC, enc="1x1", dec="1x4", width=8) if quick else SPEC
    test = test[:16] if quick else test
    clocks = CLOCKS[:1] if quick else CLOCKS
    fits: dict[str, list[Any]] = {
        clock: [trained(dataclasses.replace(spec, clock=clock), seed, train, steps) for seed in seeds]
        for clock in clocks
    }
    told = [norms(fitted, test) for fitted in fits["none"]]
    sides = sorted(told[0])
    for side in sides:
        grow = [found[side]["increasing"] for found in told]
        yield Claim(
            f"norm_{side}", f"digits, tied cells at {side}x{side}: R^2 of the step on the norm of the state",
            float(np.mean([found[side]["r2"] for found in told])), "of 1", seeds=seeds,
            reference=f"the norm grows at {np.mean(grow):.2f} of the steps", detail={"by_seed": told, "steps": steps},
        )  # fmt: skip
    if quick:
        return
    scores = {
        clock: np.stack([
            elbo(fitted.program, fitted.params, test, jax.random.key(200 + seed), draws)
            for seed, fitted in zip(seeds, fits[clock], strict=True)
        ])
        for clock in clocks
    }  # fmt: skip
    print({clock: found.mean(1).round(2).tolist() for clock, found in scores.items()}, file=sys.stderr)
    for clock in clocks[1:]:
        gain = scores[clock] - scores["none"]
        yield Claim(
            f"clock_{clock}", f"the same, {TEXTS[clock]}: held-out ELBO less that of cells that are told nothing",
            float(gain.mean()), "nats", seeds=seeds,
            reference=f"by seed {' '.join(f'{g:+.2f}' for g in gain.mean(1))}; standard error over digits "
            f"{gain.mean(0).std(ddof=1) / np.sqrt(gain.shape[1]):.2f}; none: {scores['none'].mean():.2f}",
            detail={clock: found.mean(1).tolist() for clock, found in scores.items()},
        )  # fmt: skip
    euler = dataclasses.replace(spec, step="euler", dec="1x1,4m1,4x1,8m4,8x1")
    by_seed = []
    for seed in seeds:
        fitted = trained(euler, seed, train, steps)
        found = [
            elbo(finer_steps(euler, times).build(jax.random.key(0)), fitted.params, test, jax.random.key(300), draws)
            for times in range(4)
        ]
        by_seed.append([float(values.mean()) for values in found])
        print(f"hvae_clock: euler, seed {seed}: " + " ".join(f"{v:.3f}" for v in by_seed[-1]), file=sys.stderr)
    changes = np.abs(np.diff(np.mean(by_seed, axis=0)))
    yield Claim(
        "refinement", "the same, explicit steps: change of the ELBO from 4 N to 8 N cells over that from 2 N to 4 N",
        float(changes[2] / changes[1]), "ratio", target="< 1", seeds=seeds,
        reference="ELBO with N, 2 N, 4 N, 8 N cells: "
        + ", ".join(f"{value:.2f}" for value in np.mean(by_seed, axis=0))
        + "; first order: 0.5", detail={"elbo_by_seed": by_seed, "cells": [5, 10, 20, 40]},
        if_missed="trained with so few cells, its drifts are not small: the changes are not yet in the limit",
    )  # fmt: skip


TEXTS = {
    "step": "cells that are told i / N",
    "normalise": "cells that read Z / RMS(Z)",
}
