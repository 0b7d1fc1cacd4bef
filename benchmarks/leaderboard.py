"""How do all families and classical baselines rank on held-out digits, under one protocol?

Scikit-learn's digits, 8x8 of 17 grey levels, in the order of ``datasets.load("digits")``: 1,350 to fit, the last 150 of
the training split to stop early and to choose the baselines' settings (which are then refitted on all 1,500), 297 to
test.  Three groups: binarised pixels (grey > 7.5 of 16; probability mass); grey levels (probability mass); and grey
levels dequantised as (k + u)/17 (density; the same u for every model, from one key), where the diffusion is.  One seed
a model, one recipe: AdamW at 3e-3, warmed up and annealed, batches of 64, running average .995 of the weights, the best
of 20 validations kept.  Score: -log2 p(x) / 64, plus log2 17 where dequantised, which bounds the code length of a grey
pixel from above and so may stand beside the masses.  VAEs are scored by importance sampling with 512 draws, from a
posterior refined datum by datum where the amortised one has a k-hat above .7 (a lower bound on log p either way), the
diffusion by the density of its ODE, baselines exactly.

Then tables (``_leaderboard_tables.py``): wine, breast cancer, diabetes and a simulated mixed one, in nats a row.

The runs stay in ``benchmarks/work/leaderboard`` for ``ppl-models compare`` and ``ppl-models report``.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._leaderboard_tables import table_claims
from benchmarks.harness import HERE, Claim
from inference import baselines, bits_per_dim, compare, evidence, fit, save_evidence
from inference.checking.classical import evaluated
from ppl_models import datasets, diffusion, hvae, mfcvae
from ppl_models.distributions import Bernoulli, Normal

SEED, PARTICLES, BATCH, VALIDATION = 0, 512, 64, 150
BINARY = Bernoulli(threshold=7.5 / 16, noise=1.0)
GREY = Normal(sigma=0.2, learned=True, dequantise=True)
TITLES = {
    "binarised": "binarised digits",
    "grey": "grey digits as probability mass",
    "dequantised": "dequantised digits",
}
TARGETS = {"grey_mfcvae": "<= 2.05", "grey_hvae": "<= 2.00", "dequantised_diffusion": "<= 1.72"}
"""Bits a pixel to stay below, by claim."""
LIMIT = 1200
"""Seconds that the whole table may take on two cores."""


@dataclass(frozen=True)
class Entrant:
    """A model of the table: its spec, its budget, and further figures ``(fit, test data, key) -> {name: value}``."""

    spec: Any
    steps: int
    more: Callable[[Any, np.ndarray, jax.Array], Mapping[str, float]] = lambda fitted, x, key: {}


def denoising_bound(fitted: Any, x: np.ndarray, key: jax.Array) -> dict[str, float]:
    """Bits a pixel by the bound that a diffusion is trained on, beside the density of its ODE."""
    program = fitted.program
    prepared = jnp.asarray(evaluated(program, x, key).reshape(x.shape), "float32")
    nats = jax.jit(lambda: diffusion.bound(program, fitted.params, key, prepared, draws=64))()
    return {
        "bits_per_dim_of_the_bound": float(-nats.mean()) / (x[0].size * math.log(2)) + program.observation.bits_offset
    }


def entrants() -> dict[str, dict[str, Entrant]]:
    """Group -> name -> model; the first of a group says what its baselines score."""
    facets, hierarchy = mfcvae.PRESETS["digits"], hvae.PRESETS["digits"]
    return {
        "binarised": {
            "mfcvae": Entrant(replace(facets, likelihood=BINARY), 8000),
            "hvae": Entrant(replace(hierarchy, likelihood=BINARY), 8000),
        },
        "grey": {
            "mfcvae": Entrant(mfcvae.PRESETS["digits_grey"], 8000),
            "hvae": Entrant(hvae.PRESETS["digits_grey"], 8000),
        },
        "dequantised": {
            "mfcvae": Entrant(replace(facets, likelihood=GREY), 8000),
            "hvae": Entrant(replace(hierarchy, likelihood=GREY), 8000),
            "diffusion": Entrant(diffusion.PRESETS["digits"], 2400, denoising_bound),
        },
    }


def recipe(steps: int) -> optax.GradientTransformation:
    """AdamW at 3e-3, warmed up over the first steps and annealed to a hundredth by half a cosine."""
    rate = optax.warmup_cosine_decay_schedule(3e-5, 3e-3, min(200, max(1, steps // 5)), steps, 3e-5)
    return optax.chain(optax.clip_by_global_norm(50.0), optax.adamw(rate, b2=0.99, weight_decay=0.05))


def card(test_n: int) -> dict[str, Any]:
    """The data card that lets the command line load the same data for a run."""
    info = datasets.info("digits")
    return {
        "name": "digits", "split": "train", "n": None, "seed": 0, "validation": VALIDATION, "held_out": "test",
        "test_n": test_n, "shape": list(info.shape), "levels": info.levels, "licence": info.licence,
    }  # fmt: skip


def trained(entrant: Entrant, x: Mapping[str, np.ndarray], folder: Path, quick: bool) -> tuple[Any, dict[str, Any]]:
    """Fit one model into a run folder and score it; (evidence table, figures for the record)."""
    steps = max(20, entrant.steps // 100) if quick else entrant.steps
    spec = entrant.spec
    if quick and isinstance(spec, mfcvae.MFCVAE):
        spec = replace(spec, warmup=10, facets=tuple(replace(facet, refit=(10,)) for facet in spec.facets))
    key, began = jax.random.key(SEED), time.perf_counter()
    fitted = fit(
        spec.build(key), x["train"], steps=steps, batch_size=BATCH, key=key, optimizer=recipe(steps),
        average=0.995, validation=x["validation"], out=folder, card=card(len(x["test"])), progress=False,
    )  # fmt: skip
    fitted_in = time.perf_counter() - began
    # Refinement is compiled for every model by itself: a quick run goes without.
    table = evidence(
        fitted, x["test"], particles=32 if quick else PARTICLES, key=scoring_key(), progress=False,
        refine="none" if quick else "flagged",
    )  # fmt: skip
    save_evidence(table, folder)
    facts = {
        "steps": steps, "best_step": fitted.info["best_step"], "parameters": fitted.info["parameters"],
        "fit_seconds": fitted_in, "score_seconds": time.perf_counter() - began - fitted_in,
        "mean_elbo": float(table["elbo"].mean()), "khat_above_0.7": float((table["khat"] > 0.7).mean()),
        **entrant.more(fitted, x["test"], scoring_key()),
    }  # fmt: skip
    return table, facts


def scoring_key() -> jax.Array:
    """Key of all evaluation: one dequantisation of the test data for every model and baseline."""
    return jax.random.fold_in(jax.random.key(SEED), 1)


def run(quick: bool) -> Iterator[Claim]:
    """One claim a model, one lead a group, the time of all; quick: the first model of the first group and of one
    table, a hundredth of the steps, 24 test images."""
    began = time.perf_counter()
    work = HERE / "work" / ("leaderboard_quick" if quick else "leaderboard")
    shutil.rmtree(work, ignore_errors=True)
    train, _ = datasets.load("digits", "train")
    test, _ = datasets.load("digits", "test", n=24 if quick else None)
    x = {"train": train[:-VALIDATION], "validation": train[-VALIDATION:], "test": test}
    folders: list[Path] = []
    few = 1 if quick else None
    for group, every in list(entrants().items())[:few]:
        models = dict(list(every.items())[:few])
        tables, facts = {}, {}
        for name, entrant in models.items():
            folders.append(work / f"{name}-{group}")
            tables[name], facts[name] = trained(entrant, x, folders[-1], quick)
        likeness = next(iter(models.values())).spec.build(jax.random.key(SEED))
        classical = baselines(
            likeness, x["train"], test, key=scoring_key(), validation=x["validation"], progress=False,
            quick=quick,
        )  # fmt: skip
        for name, table in classical.items():
            folders.append(work / f"{name}-{group}")
            folders[-1].mkdir(parents=True)
            save_evidence(table, folders[-1])
            tables[name], facts[name] = table, {"chosen_by_validation": table.attrs["baseline"]}
        ranked = compare(tables)
        for name, row in ranked.iterrows():
            yield claim(group, str(name), row, tables[str(name)], facts[str(name)])
        yield lead(group, tables, list(models), list(classical))
        if group == "grey":
            for name in models:
                yield lead(group, tables, [name], list(classical), f"{group}_{name}_lead")
    _command_line(folders, work / "comparison")
    yield from table_claims(work, quick)
    yield Claim(
        "seconds", "the whole table: fits, scores, baselines, comparison", time.perf_counter() - began, "s",
        target=f"< {LIMIT}", seeds=(SEED,),
    )  # fmt: skip


def claim(group: str, name: str, row: Any, table: Any, facts: Mapping[str, Any]) -> Claim:
    """Held-out bits a pixel of one model, its standard error over data and its place in the group in the detail."""
    n, bits = len(table), math.log(2) * table.attrs["dims"]
    detail = {
        "rank": int(row["rank"]), "se_bits": float(table["log_px"].std(ddof=1)) / math.sqrt(n) / bits,
        "log_px_nats": float(row["elpd_mean"]), "behind_best_nats": -float(row["elpd_diff"]) / n,
        "se_of_that_nats": float(row["dse"]) / n, "stacking_weight": float(row["weight"]), "test_data": n,
        "observation": table.attrs["observation"], "estimator": table.attrs["estimator"], **facts,
    }  # fmt: skip
    called = f"{group}_{name.replace('-', '_')}"
    return Claim(
        called, f"{TITLES[group]}: {name}, held-out code length", bits_per_dim(table), "bits/dim",
        target=TARGETS.get(called, ""), seeds=(SEED,), detail=detail,
    )  # fmt: skip


def lead(group: str, tables: Mapping[str, Any], models: list[str], classical: list[str], name: str = "") -> Claim:
    """How far the best model is ahead of the best baseline, datum by datum, less two standard errors."""
    best, bar = (max(names, key=lambda name: tables[name]["log_px"].mean()) for names in (models, classical))
    difference = jnp.asarray(tables[best]["log_px"].to_numpy() - tables[bar]["log_px"].to_numpy())
    mean, se = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference))
    who = f"best family ({best})" if len(models) > 1 else best
    return Claim(
        name or f"{group}_lead", f"{TITLES[group]}: {who} over best baseline ({bar}), paired, less 2 s.e.",
        mean - 2 * se, "nats", target="> 0", seeds=(SEED,), detail={"difference": mean, "se": se},
    )  # fmt: skip


def _command_line(folders: list[Path], out: Path) -> None:
    """Print the same table by ``ppl-models compare``, and write its page."""
    from inference.cli.app import main

    if main(["compare", *map(str, folders), "--out", str(out)]) != 0:
        raise RuntimeError(f"ppl-models compare failed on the runs in {out.parent}; run it there to see why")
