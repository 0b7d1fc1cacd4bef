"""Do models of tables cluster as well, and predict better, than the classical models of the same table?

Scikit-learn's wine, breast cancer, diabetes (in its own units) and digits as 64 columns; every kind of column as
``datasets.table`` infers it, for the model and for the baselines alike.  ``mfcvae:table`` with K the number of classes
(5 for diabetes, which has none), labels never seen; two repeats of five folds, so ten fits, every row held out twice;
a seventh of the rows that are left chooses the step to keep, and the settings of the baselines, which are then refitted
with it.  Differences of log p are paired row by row, a row's two values averaged first.  ARI is of held-out rows.

Then a simulated mixed table with 15 % missing entries and two hidden partitions of its rows (``_mixed_table.py``), ten
seeds of data and model: ``mfcvae:table_two`` with four clusters a facet; and its missing entries, which are known.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd

from benchmarks._mixed_table import GROUPS, hidden_partitions
from benchmarks.harness import Claim
from inference import baselines, clustering_baselines, evidence, fit
from inference.clustering import adjusted_rand, plain_numbers
from ppl_models import datasets, mfcvae
from ppl_models.program import take

KEY = jax.random.key(0)
REPEATS, FOLDS = 2, 5
PARTICLES = 512
STEPS = {"wine": 600, "breast_cancer": 1500, "diabetes": 2000, "digits": 1000}
CLASSES = {"wine": 3, "breast_cancer": 2, "diabetes": 5, "digits": 10}
BEATEN = ("gaussian", "factor-analysis")


def frame_of(name: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The columns of a set as a frame, and its classes (of diabetes: the fifths of its target)."""
    from sklearn import datasets as packaged

    if name == "digits":
        x, y = packaged.load_digits(return_X_y=True)
        return pd.DataFrame(x.astype(int), columns=[f"pixel_{i}" for i in range(64)]), y
    more = {"scaled": False} if name == "diabetes" else {}
    found = getattr(packaged, f"load_{name}")(as_frame=True, **more)
    y = found.target.to_numpy()
    return found.data, np.digitize(y, np.quantile(y, (0.2, 0.4, 0.6, 0.8))) if name == "diabetes" else y


def spec_of(columns: Any, clusters: int, preset: str = "table") -> Any:
    """The preset of mfcvae for these columns, with so many clusters a facet."""
    spec = mfcvae.PRESETS[preset]
    facets = tuple(replace(facet, clusters=clusters) for facet in spec.facets)
    return for_columns(replace(spec, facets=facets), columns)


def for_columns(spec: Any, columns: Any) -> Any:
    """A spec of a table with these columns in place of its own."""
    likelihood = replace(spec.likelihood, columns=tuple(columns))
    return replace(spec, shape=(len(likelihood.columns),), likelihood=likelihood)


def trained(spec: Any, train: Any, validation: Any, steps: int, seed: int) -> Any:
    """A fit by the recipe of this benchmark: AdamW at 1e-3, batches of 64, the best of some thirty validations."""
    key = jax.random.key(seed)
    optimizer = optax.adamw(1e-3, b2=0.99, weight_decay=1e-2)
    n = len(train["x"])
    return fit(
        spec.build(key), train, steps=steps, batch_size=min(64, n), optimizer=optimizer, validation=validation,
        validate_every=max(1, steps // 30), key=key, progress=False,
    )  # fmt: skip


def parts(n: int, test: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit and to choose by: all that are not held out, a seventh of them for the latter."""
    rest = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(n), test))
    cut = len(rest) // 7
    return rest[cut:], rest[:cut]


def fold_scores(name: str, table: Any, y: np.ndarray, repeat: int, fold: int, quick: bool) -> dict[str, Any]:
    """Log p of each held-out row by every model, and ARI by every clustering, of one fold."""
    n, seed = len(y), 10 * repeat + fold
    test = np.array_split(np.random.default_rng(repeat).permutation(n), FOLDS)[fold]
    train, validation = (take(table.x, rows) for rows in parts(n, test, seed))
    spec = spec_of(table.columns, CLASSES[name])
    fitted = trained(spec, train, validation, 30 if quick else STEPS[name], seed)
    held_out, key = take(table.x, test), jax.random.fold_in(KEY, seed)
    scored = evidence(fitted, held_out, particles=32 if quick else PARTICLES, key=key, progress=False)
    log_p = {"mfcvae": scored["log_px"].to_numpy()}
    for other, found in baselines(
        fitted.program, train, held_out, validation=validation, key=key, progress=False
    ).items():
        log_p[other] = found["log_px"].to_numpy()
    labels = mfcvae.assign(fitted, held_out, key=key)["cluster"].labels
    both = jax.tree.map(lambda *leaf: np.concatenate(leaf), train, validation)
    seen, unseen = (plain_numbers(fitted.program, x) for x in (both, held_out))
    classical = clustering_baselines(seen, unseen, {CLASSES[name]}, {"class": y[test]}, key=key, restarts=10)
    ari = {"mfcvae": adjusted_rand(labels, y[test])} | dict(zip(classical["method"], classical["ari"], strict=True))
    full = _full_mixture(seen, unseen, CLASSES[name], seed)
    return {
        "test": test, "log_p": log_p, "ari": ari | {"mixture, full": adjusted_rand(full, y[test])},
        "khat": float((scored["khat"] > 0.7).mean()), "gap": float((scored["log_px"] - scored["elbo"]).mean()),
        "best_step": fitted.info["best_step"],
    }  # fmt: skip


def _full_mixture(train: np.ndarray, test: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ridge = 1e-3 * train.var(0).mean()
        return GaussianMixture(k, random_state=seed, n_init=5, reg_covar=ridge).fit(train).predict(test)


def by_row(folds: list[dict[str, Any]], model: str, n: int) -> np.ndarray:
    """Log p of every row, averaged over the folds that held it out."""
    total, count = np.zeros(n), np.zeros(n)
    for one in folds:
        np.add.at(total, one["test"], one["log_p"][model])
        np.add.at(count, one["test"], 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def real_tables(quick: bool) -> Iterator[Claim]:
    """Claims on the four tables, and their summary."""
    margins, at_least = {}, {}
    for name in ("wine",) if quick else tuple(STEPS):
        began = time.monotonic()
        frame, y = frame_of(name)
        table = datasets.table(frame)
        pairs = [(0, 0)] if quick else [(r, f) for r in range(REPEATS) for f in range(FOLDS)]
        folds = [fold_scores(name, table, y, r, f, quick) for r, f in pairs]
        models = list(folds[0]["log_p"])
        rows = {model: by_row(folds, model, len(y)) for model in models}
        lead = {}
        for other in models[1:]:
            difference = (rows["mfcvae"] - rows[other])[np.isfinite(rows["mfcvae"])]
            lead[other] = (float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference))))
        detail = {
            "log_p": {model: float(np.nanmean(values)) for model, values in rows.items()},
            "lead_and_se": lead,
            "khat_above_0.7": float(np.mean([one["khat"] for one in folds])),
            "gap": float(np.mean([one["gap"] for one in folds])),
            "best_steps": [one["best_step"] for one in folds],
            "kinds": pd.Series([column.kind for column in table.columns]).value_counts().to_dict(),
            "rows": len(y),
            "seconds": time.monotonic() - began,
        }
        for other in BEATEN:
            yield Claim(
                f"{name}_{other.replace('-', '_')}",
                f"{name}, {len(table.columns)} columns: held-out log p of a row ahead of {_words(other)}, less two "
                "paired s.e.",
                lead[other][0] - 2 * lead[other][1], "nats", target="> 0", seeds=tuple(range(len(pairs))),
                reference=f"{_words(other)}: {detail['log_p'][other]:.2f} nats a row", detail=detail,
            )  # fmt: skip
        mixture = next(model for model in models if "mixture" in model)
        at_least[name] = lead[mixture][0] + 2 * lead[mixture][1]
        if name == "diabetes":
            continue
        ari = pd.DataFrame([one["ari"] for one in folds])
        best = ari.drop(columns="mfcvae").mean().idxmax()
        margins[name] = float((ari["mfcvae"] - ari[best]).mean())
        yield Claim(
            f"{name}_ari",
            f"{name}, K = {CLASSES[name]}: ARI of held-out rows, less that of the best of k-means and mixtures of the "
            "same K",
            margins[name], "", target=">= -0.05", seeds=tuple(range(len(pairs))),
            reference=f"{best}: {ari[best].mean():.3f}", detail={"mean": ari.mean().to_dict(), "folds": ari.to_dict()},
        )  # fmt: skip
    if quick:
        return
    yield Claim(
        "ari_above", "tables on which mfcvae's mean ARI is above that of the best of k-means and mixtures, of three",
        float(sum(margin > 0 for margin in margins.values())), "tables", target=">= 1", seeds=tuple(range(10)),
        detail=margins,
    )  # fmt: skip
    yield Claim(
        "mixture", "tables of four on which held-out log p is not below the best mixture's by over two paired s.e.",
        float(sum(value >= 0 for value in at_least.values())), "tables", target=">= 2", seeds=tuple(range(10)),
        detail=at_least,
    )  # fmt: skip


def _words(baseline: str) -> str:
    return {"gaussian": "one Gaussian", "factor-analysis": "factor analysis"}.get(baseline, baseline)


# ------------------------------------------------------------------------------------------- simulated table
def partitions(seed: int, quick: bool) -> dict[str, Any]:
    """ARI of both hidden partitions and the quality of imputations, of one simulated table and fit."""
    n = 300 if quick else 2000
    frame, label = hidden_partitions(seed, n)
    whole, _ = hidden_partitions(seed, n, missing=0.0)
    table = datasets.table(frame)
    rest, validation = parts(n, np.zeros(0, int), seed)
    train, chosen = take(table.x, rest), take(table.x, validation)
    spec = spec_of(table.columns, 4, "table_two")
    fitted = trained(spec, train, chosen, 30 if quick else 1000, seed)
    key = jax.random.fold_in(KEY, seed)
    found = {name: one.labels for name, one in mfcvae.assign(fitted, table.x, key=key).items()}
    ari = {p: {facet: adjusted_rand(labels, label[p]) for facet, labels in found.items()} for p in GROUPS}
    first, second = ari.values()
    facets = list(found)
    pairing = max(((first[a], second[b]) for a in facets for b in facets if a != b), key=min)
    plain = plain_numbers(fitted.program, table.x)
    classical = clustering_baselines(plain, plain, {4}, label, key=key, restarts=10)
    beside = classical.groupby("method")["ari"].min().to_dict()
    return {"ari": pairing, "worst_of_both_classical": beside, **imputed(fitted, table, frame, whole, key, quick)}


def imputed(fitted: Any, table: Any, frame: pd.DataFrame, whole: pd.DataFrame, key: Any, quick: bool) -> dict[str, Any]:
    """Coverage of 90 % intervals and errors of imputed entries, beside column means and iterative imputation."""
    from inference import impute

    filled = impute(fitted, table.x, draws=20 if quick else 200, key=key, progress=False)
    lost = frame.isna()
    numeric = [c.name for c in table.columns if c.kind in ("real", "positive", "count")]
    classes = [c.name for c in table.columns if c.kind in ("binary", "categorical")]
    bounds = filled.frame(0.9).set_index(["index", "column"])
    inside, ours, mean, iterated = [], [], [], []
    other = iterative(frame, numeric)
    for name in numeric:
        rows = np.flatnonzero(lost[name].to_numpy())
        truth, scale = whole[name].to_numpy(float)[rows], float(whole[name].std())
        found = bounds.loc[[(row, name) for row in rows]]
        low, high = found["lower"].to_numpy(float), found["upper"].to_numpy(float)
        inside.append((low <= truth) & (truth <= high))
        ours.append((found["value"].to_numpy(float) - truth) / scale)
        mean.append((frame[name].mean() - truth) / scale)
        iterated.append((other[name].to_numpy()[rows] - truth) / scale)
    wrong, mode = [], []
    for name in classes:
        rows = np.flatnonzero(lost[name].to_numpy())
        truth = whole[name].to_numpy()[rows].astype(str)
        wrong.append(bounds.loc[[(row, name) for row in rows], "value"].astype(str).to_numpy() != truth)
        mode.append(str(frame[name].mode()[0]) != truth)
    rms = lambda values: float(np.sqrt(np.mean(np.concatenate(values) ** 2)))  # noqa: E731
    return {
        "coverage": float(np.concatenate(inside).mean()), "rmse": rms(ours), "rmse_mean": rms(mean),
        "rmse_iterative": rms(iterated), "class_error": float(np.concatenate(wrong).mean()),
        "class_error_mode": float(np.concatenate(mode).mean()),
    }  # fmt: skip


def iterative(frame: pd.DataFrame, numeric: list[str]) -> pd.DataFrame:
    """Scikit-learn's iterative imputation (Bayesian ridge on all other columns, classes as indicators)."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    classes = [name for name in frame if name not in numeric]
    wide = pd.concat([frame[numeric], pd.get_dummies(frame[classes], dtype=float)], axis=1)
    for name in classes:
        wide.loc[frame[name].isna(), [c for c in wide if str(c).startswith(f"{name}_")]] = np.nan
    scale = wide.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filled = IterativeImputer(max_iter=20, random_state=0).fit_transform(wide / scale)
    return pd.DataFrame(filled * scale.to_numpy(), columns=wide.columns)


def simulated(quick: bool) -> Iterator[Claim]:
    """Claims on the hidden partitions and the missing entries."""
    seeds = (0,) if quick else tuple(range(10))
    found = [partitions(seed, quick) for seed in seeds]
    both = [min(one["ari"]) >= 0.9 for one in found]
    beside: Mapping[str, float] = pd.DataFrame([one["worst_of_both_classical"] for one in found]).mean().to_dict()
    best = max(beside, key=lambda name: beside[name])
    yield Claim(
        "partitions", "seeds of 10 that find both partitions hidden in a mixed table, 15 % missing (ARI >= .9)",
        float(sum(both)), "seeds", target=">= 8", seeds=seeds,
        reference=f"one clustering for both, {best}: ARI of the worse {beside[best]:.2f}",
        detail={"ari": [one["ari"] for one in found], "classical_worse_of_both": beside},
    )  # fmt: skip
    frame = pd.DataFrame([{k: v for k, v in one.items() if isinstance(v, float)} for one in found])
    mean = frame.mean().to_dict()
    yield Claim(
        "impute_coverage", "share of missing numbers that their 90 % intervals hold", mean["coverage"], "share",
        target="0.85 to 0.95", seeds=seeds, detail=frame.to_dict(orient="list"),
    )  # fmt: skip
    yield Claim(
        "impute_error", "rms error of imputed numbers over that of the better of column means and iterative imputation",
        mean["rmse"] / min(mean["rmse_mean"], mean["rmse_iterative"]), "ratio", target="< 1", seeds=seeds,
        reference=f"means {mean['rmse_mean']:.3f}, iterative {mean['rmse_iterative']:.3f} sd; ours {mean['rmse']:.3f}",
        detail=mean,
    )  # fmt: skip
    yield Claim(
        "impute_classes", "share of imputed classes that are wrong over that of the most common class",
        mean["class_error"] / mean["class_error_mode"], "ratio", target="< 1", seeds=seeds,
        reference=f"most common class {mean['class_error_mode']:.3f}; ours {mean['class_error']:.3f}", detail=mean,
    )  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Yield the claims on real tables, then those on the simulated one."""
    yield from real_tables(quick)
    yield from simulated(quick)
