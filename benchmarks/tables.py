"""Do models of tables cluster as well, and predict better, than the classical models of the same table?

Scikit-learn's wine, breast cancer and diabetes (in its own units; ``tables_digits`` is digits as 64 columns, and
``tables_mixed`` a simulated table); every kind of column as ``datasets.table`` infers it, for the model and for the
baselines alike.  ``mfcvae:table`` with K the number of classes (5 for diabetes, which has none), labels never seen; two
repeats of five folds, so ten fits, every row held out twice; a seventh of the rows that are left chooses the step to
keep, and the settings of the baselines, which are then refitted with it.
Differences of log p are paired row by row, a row's two values averaged first.  ARI is of held-out rows.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd

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
SETS = ("wine", "breast_cancer", "diabetes")


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


def claims_of(names: tuple[str, ...], quick: bool) -> Iterator[Claim]:
    """Claims on these tables, and where there are several their summary."""
    margins, at_least = {}, {}
    for name in names:
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
        # A table without real columns has no Gaussian: independent columns are then its simplest model.
        for other in [model for model in BEATEN if model in lead] or ["independent"]:
            yield Claim(
                f"{name}_{other.replace('-', '_')}",
                f"{name}, {len(table.columns)} columns: held-out log p of a row ahead of {_words(other)}, less two "
                "paired s.e.",
                lead[other][0] - 2 * lead[other][1], "nats", target="> 0", seeds=tuple(range(len(pairs))),
                reference=f"{_words(other)}: {detail['log_p'][other]:.2f} nats a row", detail=detail,
            )  # fmt: skip
        mixture = next(model for model in models if model in ("gaussian-mixture", "latent-class"))
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
    if len(names) == 1:
        return
    yield Claim(
        "ari_above", "tables of two on which mfcvae's mean ARI is above that of the best of k-means and mixtures",
        float(sum(margin > 0 for margin in margins.values())), "tables", target=">= 1", seeds=tuple(range(10)),
        detail=margins,
    )  # fmt: skip
    yield Claim(
        "mixture", "tables of three on which held-out log p is not below the best mixture's by over two paired s.e.",
        float(sum(value >= 0 for value in at_least.values())), "tables", target=">= 2", seeds=tuple(range(10)),
        detail=at_least,
    )  # fmt: skip


def _words(baseline: str) -> str:
    known = {"gaussian": "one Gaussian", "factor-analysis": "factor analysis", "independent": "independent columns"}
    return known.get(baseline, baseline)


def run(quick: bool) -> Iterator[Claim]:
    """Yield the claims; quick: wine alone, one fold, few updates."""
    yield from claims_of(("wine",) if quick else SETS, quick)
