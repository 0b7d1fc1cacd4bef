"""What the clustering benchmarks share: one fit to one row of a table, and the same-K baselines beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from inference import choose, evidence, fit
from inference.clustering import Run, clustering_baselines, cross_facets, scores
from ppl_models.mfcvae import MFCVAE, assign

COLUMNS = ("accuracy", "hungarian", "ari", "nmi", "used", "confidence", "ece")


class Recipe(NamedTuple):
    """How a spec is trained: Adam at ``rate``, falling along a cosine to a tenth of it."""

    spec: MFCVAE
    steps: int
    rate: float = 2e-3
    batch: int = 128


class Outcome(NamedTuple):
    """One run: the fit, its assignments by facet, and its row of the table."""

    fit: Any
    assignments: dict[str, Any]
    row: dict[str, Any]


def run_of(
    recipe: Recipe, train: np.ndarray, test: np.ndarray, factors: Mapping[str, Any], seed: int, **more: Any
) -> Outcome:
    """Fit one seed (weights from key(seed), the rest from key(1000 + seed)) and score every facet on the test data.

    A datum belongs to the cluster of its largest responsibility, averaged over 16 draws of q(z | x).
    """
    rate = optax.cosine_decay_schedule(recipe.rate, recipe.steps, alpha=0.1)
    start = time.process_time(), time.perf_counter()
    fitted = fit(
        recipe.spec.build(jax.random.key(seed)), train, steps=recipe.steps, batch_size=recipe.batch,
        learning_rate=rate, key=jax.random.key(1000 + seed), progress=False, **more,
    )  # fmt: skip
    seconds = time.process_time() - start[0], time.perf_counter() - start[1]
    found = assign(fitted, test, key=jax.random.key(7))
    probabilities = {name: a.probabilities for name, a in found.items()}
    table = scores(probabilities, factors)
    facets = {
        str(facet): {str(r["factor"]): {c: _short(r[c]) for c in COLUMNS} for _, r in rows.iterrows()}
        for facet, rows in table.groupby("facet", sort=False)
    }
    between = cross_facets(probabilities)
    row = {
        "seed": seed, "facets": facets, "cross_nmi": [_short(v) for v in between["nmi"]],
        "elbo": _short(fitted.history["elbo"].tail(5).mean()), "cpu_seconds": _short(seconds[0]),
        "seconds": _short(seconds[1]), "skipped": fitted.info["skipped"],
    }  # fmt: skip
    return Outcome(fitted, found, row)


def best(row: Mapping[str, Any], factor: str, measure: str = "accuracy") -> tuple[str, float]:
    """The facet that agrees most with a factor, and how much (chosen by labels: an oracle's choice)."""
    by_facet = {name: facet[factor][measure] for name, facet in row["facets"].items()}
    name = max(by_facet, key=lambda facet: by_facet[facet])
    return name, by_facet[name]


def baselines(
    train: np.ndarray, test: np.ndarray, ks: Iterable[int], factors: Mapping[str, Any], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """k-means and Gaussian mixtures of the same K, means over seeds: one row a method, K and factor."""
    import pandas as pd

    tables = [clustering_baselines(train, test, ks, factors, key=jax.random.key(seed)) for seed in seeds]
    by, measures = ["method", "K", "factor"], ["accuracy", "hungarian", "ari", "nmi"]
    mean = pd.concat(tables).groupby(by, sort=False)[measures].mean().round(3).reset_index()
    return mean.to_dict("records")


def chosen(
    outcomes: Sequence[Outcome], x: np.ndarray, factors: Mapping[str, Any], facet: str, factor: str, particles: int
) -> dict[str, Any]:
    """The run that ``inference.choose`` takes without labels, against the best of them by the accuracy of a facet."""
    return chosen_configuration({"all": outcomes}, x, factors, facet, factor, particles, "accuracy")


def chosen_configuration(
    outcomes: Mapping[str, Sequence[Outcome]],
    x: np.ndarray,
    factors: Mapping[str, Any],
    facet: str,
    factor: str,
    particles: int,
    measure: str = "ari",
) -> dict[str, Any]:
    """The same over configurations: ``choose`` takes one, then a run of it; regret in a measure of a facet."""
    runs, values = {}, {}
    for name, group in outcomes.items():
        for o in group:
            table = evidence(o.fit, x, particles=particles, key=jax.random.key(3), progress=False)
            run = f"{name}, seed {o.row['seed']}"
            runs[run] = Run(name, table, {site: a.labels[: len(x)] for site, a in o.assignments.items()})
            values[run] = o.row["facets"][facet][factor][measure]
    found = choose(runs, factors)
    return {
        "chosen": found.run, "measure": measure, "values": values,
        "regret": round(max(values.values()) - values[found.run], 4),
        "configurations": [_plain(r) for r in found.configurations.reset_index().to_dict("records")],
        "runs": [_plain(r) for r in found.runs.reset_index().to_dict("records")],
        "check": [] if found.check is None else [_plain(r) for r in found.check.to_dict("records")],
        "stability": _short(found.stability.mean),
    }  # fmt: skip


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(k): _short(v) if isinstance(v, float | np.floating) else v for k, v in row.items()}


def _short(value: Any) -> float | None:
    value = float(value)
    return round(value, 4) if np.isfinite(value) else None


def mean_sd(values: Iterable[float]) -> dict[str, float]:
    """Mean, and standard deviation over seeds with n - 1."""
    array = np.asarray(list(values), float)
    return {"mean": round(float(array.mean()), 4), "sd": round(float(array.std(ddof=1)), 4) if len(array) > 1 else 0.0}
