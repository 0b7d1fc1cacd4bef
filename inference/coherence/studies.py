"""The four studies of Falck, Wang and Holmes (ICML 2024, arXiv 2406.00793) on any predictor, ours beside theirs.

    bernoulli  martingale property, coins of frequency .3, .5, .7; n = 20, 50; N = n/2, 2n          (figures 3, 7)
    gaussian   the same for real symbols of mean -1, 0 and variance 1                               (figures 9, 10)
    language   records (x, y), n = 80: the symptoms y of each attribute x                           (figures 5, 13)
    scaling    uncertainty at n = 20, 50, 100, 200, 400                                             (figures 6, 12)

The first three hold in each setting the drift and lag tests (Fisher over contexts, Holm over all settings and tests)
and, on the same paths, the published T1-T3.  For a traced rule of two symbols the exact tree says how large a fault is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array, Key, Num

from inference.coherence._symbols import symbols_of
from inference.coherence.calibrated import LAGS, calibrated_tests, drift_test, holm
from inference.coherence.host import predictor_names
from inference.coherence.paths import Paths, paths_tree, predictive_paths
from inference.coherence.published import T2_LAGS, falck2024
from inference.coherence.report import fisher
from inference.coherence.scaling import SIZES, STEPS, Scaling, uncertainty_scaling
from inference.coherence.tree import exact_tree
from ppl_models.program import HostPredictor, Predictor

STUDIES = ("bernoulli", "gaussian", "language", "scaling")
FREQUENCIES, MEANS, RECORD_FREQUENCIES = (0.3, 0.5, 0.7), (-1.0, 0.0), (0.3, 0.7)
DEPTH = 6
T3 = {"T3": "value", "T3_lower": "lower", "T3_upper": "upper", "T3_inside": "inside"}
LONGEST = 20
"""Symptoms of one attribute that are tested at most."""
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Cell:
    """One setting: what its contexts are drawn from, their length n and the length N of paths."""

    label: str
    n: int
    N: int
    draw: Callable[[np.random.Generator, int], np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Study:
    """What was found.

    ``table``     one row a setting: effects, p-values over contexts, ``verdict``; published: shares of contexts inside.
    ``contexts``  one row a context and setting.
    ``tree``      the paths of the first context of each setting as an ArviZ DataTree, a branch each.
    ``scaling``   of the fourth study.
    """

    name: str
    table: pd.DataFrame
    contexts: pd.DataFrame
    tree: Any
    verdict: str
    scaling: Scaling | None = None


def coins(sizes: tuple[int, ...] = (20, 50)) -> list[Cell]:
    """Settings of the study ``bernoulli``."""

    def of(theta: float, n: int) -> Callable[[np.random.Generator, int], np.ndarray]:
        return lambda rng, count: (rng.random((count, n)) < theta).astype(np.int32)

    return [Cell(f"theta={t:g}", n, N, of(t, n)) for n in sizes for N in (n // 2, 2 * n) for t in FREQUENCIES]


def normals(sizes: tuple[int, ...] = (20, 50)) -> list[Cell]:
    """Settings of the study ``gaussian``."""

    def of(mean: float, n: int) -> Callable[[np.random.Generator, int], np.ndarray]:
        return lambda rng, count: rng.normal(mean, 1.0, (count, n)).astype(np.float32)

    return [Cell(f"mean={m:g}", n, N, of(m, n)) for n in sizes for N in (n // 2, 2 * n) for m in MEANS]


def records(sizes: tuple[int, ...] = (80,)) -> list[Cell]:
    """Settings of the study ``language``: x of frequency .5, y of frequency .3 without and .7 with the attribute."""

    def of(n: int) -> Callable[[np.random.Generator, int], np.ndarray]:
        def draw(rng: np.random.Generator, count: int) -> np.ndarray:
            x = rng.random((count, n)) < 0.5
            y = rng.random((count, n)) < np.where(x, RECORD_FREQUENCIES[1], RECORD_FREQUENCIES[0])
            return (2 * x + y).astype(np.int32)

        return draw

    return [Cell("records", n, 3 * LONGEST, of(n)) for n in sizes]


CELLS: Mapping[str, Callable[..., list[Cell]]] = {"bernoulli": coins, "gaussian": normals, "language": records}


def symptoms(paths: Paths, x: int) -> Paths | None:
    """The symptoms y of one attribute in paths of records 2 x + y, as binary paths; ``None`` if fewer than 6 a path.

    As published: paths of at least the first percentile of lengths, cut to it and to 20; one more record of x is
    needed for the probability after the last.  The first 90 % of them, so that one compilation serves all contexts.
    """
    which = paths.z // 2 == x
    count = which.sum(1)
    L = min(LONGEST, int(np.percentile(count, 1)) - 1)
    if L <= LAGS[-1]:
        return None
    kept = np.flatnonzero(count > L)[: max(3, int(0.9 * len(count)))]
    places = np.stack([np.flatnonzero(row)[: L + 1] for row in which[kept]])
    at = paths.p[kept[:, None], places]
    p = at[..., 2 * x + 1] / (at[..., 2 * x] + at[..., 2 * x + 1])
    z = (paths.z[kept[:, None], places] % 2)[:, :L]
    log_p = np.log(np.where(z == 1, p[:, :L], 1 - p[:, :L]))
    context = paths.context[paths.context // 2 == x] % 2
    return Paths(context, z, p[..., None], log_p, ("z=1",))


def check_study(
    name: str, predictor: Predictor | HostPredictor, *, contexts: int = 5, sizes: tuple[int, ...] | None = None
) -> None:
    """Raise ``ValueError`` for a study that is none, or a predictor, number of contexts or sizes that do not fit it."""
    if name not in STUDIES:
        raise ValueError(f"the studies are {', '.join(STUDIES)}, got {name!r}")
    K = symbols_of(predictor_names(predictor))
    fits = {"bernoulli": (2,), "gaussian": (None,), "language": (4,), "scaling": (2, None)}[name]
    if K not in fits:
        words = {2: "two symbols", None: "real symbols", 4: "the four records 2 x + y"}
        own = "real symbols" if K is None else f"{K} symbols"
        raise ValueError(
            f"the study {name} is of {' or '.join(words[k] for k in fits)}, this predictor speaks of {own}; choose "
            "another study or predictor"
        )
    fewest, least = (3, 4) if name == "scaling" else (1, 2 * LAGS[-1] + 2)
    if contexts < fewest:
        raise ValueError(f"the study {name} needs {fewest} contexts of each setting or more, got {contexts}")
    if sizes is not None and (min(sizes) < least or (name == "scaling" and len(set(sizes)) < 3)):
        several = "three or more different lengths of" if name == "scaling" else "lengths of"
        raise ValueError(f"the study {name} needs {several} at least {least} symbols, got {sizes}")


def martingale_study(
    name: str,
    predictor: Predictor | HostPredictor,
    *,
    key: Key[Array, ""],
    contexts: int = 5,
    paths: int = 100,
    sizes: tuple[int, ...] | None = None,
    replicates: int = 300,
    told: Told | None = None,
) -> Study:
    """The study ``bernoulli``, ``gaussian`` or ``language`` of a predictor.

    ``contexts``    of each setting; the publication has one.
    ``sizes``       lengths n, those of the publication by default.
    ``replicates``  of the published reference.

    ``ValueError`` for a predictor of other symbols than the study's: 2, real, or 4 (records 2 x + y).

    >>> found = martingale_study("bernoulli", BetaBernoulli(), key=jax.random.key(0))
    >>> set(found.table["verdict"])
    {'kept'}
    """
    if name not in CELLS:
        raise ValueError(f"the martingale studies are {', '.join(CELLS)}, got {name!r}")
    check_study(name, predictor, contexts=contexts, sizes=sizes)
    K = symbols_of(predictor_names(predictor))
    cells = CELLS[name]() if sizes is None else CELLS[name](sizes)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    rows, trees, done = [], {}, 0
    for i, cell in enumerate(cells):
        given = cell.draw(rng, contexts)
        for c, context in enumerate(given):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), c), 3)
            drawn = predictive_paths(predictor, context, steps=cell.N, paths=paths, key=keys[0])
            if c == 0:
                trees[f"{cell.label},n={cell.n},N={cell.N}"] = paths_tree(drawn)
            parts: dict[str, Paths | None] = {cell.label: drawn}
            if name == "language":
                parts = {f"x={x}": symptoms(drawn, x) for x in (0, 1)}
            for label, part in parts.items():
                row = {"setting": label, "n": cell.n, "N": cell.N, "context": c}
                rows.append(row | (_tested(part, keys[1], keys[2], replicates) if part is not None else {}))
                if K == 2 and not isinstance(predictor, HostPredictor):
                    tree = exact_tree(predictor, context, depth=DEPTH).row()
                    rows[-1] |= {"node_rms": tree["node_rms"], "kl_per_symbol": tree["kl_per_symbol"]}
            done += 1
            if told is not None:
                told(done, len(cells) * contexts)
    table = pd.DataFrame(rows)
    summary = _summary(table)
    import xarray as xr

    return Study(name, summary, table, xr.DataTree.from_dict({f"/{k}": v for k, v in _flat(trees)}), _verdict(summary))


def _flat(trees: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (f"{name}{part.path}", part.to_dataset())
        for name, tree in trees.items()
        for part in tree.subtree
        if part.path != "/"
    ]


def _tested(paths: Paths, key: Key[Array, ""], reference: Key[Array, ""], replicates: int) -> dict[str, Any]:
    if paths.samples_only:
        ours = drift_test(paths)
        row: dict[str, Any] = {"drift": ours["effect"], "drift_se": ours["se"], "drift_p": ours["p_value"]}
    else:
        tests = calibrated_tests(paths, key=key)
        row = {}
        for name in ("drift", "lag"):
            row |= {name: tests.loc[name, "effect"], f"{name}_se": tests.loc[name, "se"]}
            row[f"{name}_p"] = tests.loc[name, "p_value"]
    theirs = falck2024(paths, key=reference, replicates=replicates)
    for statistic, line in theirs.iterrows():
        row |= {f"{statistic}": line["value"], f"{statistic}_lower": line["lower"], f"{statistic}_upper": line["upper"]}
        row[f"{statistic}_inside"] = line["inside"]
    defined = [k for k in T2_LAGS if np.isfinite(theirs.loc[f"T2_{k}", "value"])]
    row["T2_inside"] = all(bool(theirs.loc[f"T2_{k}", "inside"]) for k in defined)
    return row


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (setting, n, N), part in table.groupby(["setting", "n", "N"], sort=False):
        row: dict[str, Any] = {"setting": setting, "n": n, "N": N, "contexts": len(part)}
        for name in ("drift", "lag"):
            if name in part and part[f"{name}_p"].notna().any():
                row |= {name: part[name].mean(), f"{name}_p": fisher(part[f"{name}_p"].dropna().to_numpy(float))}
            else:
                row |= {name: np.nan, f"{name}_p": np.nan}
        for name in ("node_rms", "kl_per_symbol"):
            if name in part:
                row[name] = part[name].mean()
        for name in ("T1", "T1_square", "T2", "T3"):
            if f"{name}_inside" in part:
                row[f"published_{name}_inside"] = part[f"{name}_inside"].astype(float).mean()
        rows.append(row)
    found = pd.DataFrame(rows)
    p = found[["drift_p", "lag_p"]].to_numpy(float).ravel()
    adjusted = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    adjusted[known] = holm(p[known])
    least = np.where(known, adjusted, np.inf).reshape(-1, 2).min(1)
    found["p_holm"] = np.where(np.isfinite(least), least, np.nan)
    found["verdict"] = np.where(np.isnan(found["p_holm"]), "not tested", np.where(least < 0.05, "rejected", "kept"))
    return found.set_index(["setting", "n", "N"])


def _verdict(table: pd.DataFrame) -> str:
    tested = table[table["verdict"] != "not tested"]
    if tested.empty:
        return "No setting could be tested: too few symptoms of an attribute in every path."
    lost = int((tested["verdict"] == "rejected").sum())
    text = "keeps the martingale property" if not lost else f"rejected in {lost}"
    said = (
        f"Martingale property: {text} of {len(tested)} settings"
        if lost
        else f"The rule {text} in {len(tested)} settings"
    )
    said += " (drift and lag, Holm over settings and tests)"
    if "node_rms" in tested:
        said += f"; typical change of a probability by querying itself {tested['node_rms'].max():.2g}, worst setting"
    shares = [
        f"{name} {tested[f'published_{name}_inside'].mean():.0%}"
        for name in ("T1", "T2", "T3") if f"published_{name}_inside" in tested
    ]  # fmt: skip
    return f"{said}. Published tests, share of contexts inside the band: {', '.join(shares)}."


# ----------------------------------------------------------------------------------------------- scaling
def scaling_study(
    predictor: Predictor | HostPredictor,
    *,
    key: Key[Array, ""],
    contexts: int = 20,
    paths: int = 200,
    sizes: tuple[int, ...] = SIZES,
    replicates: int = 200,
    told: Told | None = None,
) -> Study:
    """The study ``scaling`` of a predictor: coins of frequency .5, or real symbols of mean 0.

    Ours by :func:`uncertainty_scaling`; beside it, from the first three contexts of each length, the published T_3 of
    paths of n/2 steps with its band.
    """
    check_study("scaling", predictor, contexts=contexts, sizes=sizes)
    K = symbols_of(predictor_names(predictor))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    given: dict[int, Num[np.ndarray, "contexts n"]] = {}
    for n in sizes:
        given[n] = (
            rng.normal(0, 1, (contexts, n)).astype(np.float32) if K is None else rng.integers(0, 2, (contexts, n))
        )
    total = 2 * len(sizes)
    ours, theirs = jax.random.split(key)
    found = uncertainty_scaling(
        predictor, given, key=ours, paths=paths, steps=STEPS, told=None if told is None else lambda i, _: told(i, total)
    )
    rows, trees = [], {}
    for done, n in enumerate(sorted(given)):
        for c, context in enumerate(given[n][:3]):
            draw, reference = jax.random.split(jax.random.fold_in(jax.random.fold_in(theirs, n), c))
            drawn = predictive_paths(predictor, context, steps=max(4, n // 2), paths=paths, key=draw, others=0)
            line = falck2024(drawn, key=reference, replicates=replicates).loc["T3"]
            held = {name: line[of] for name, of in T3.items()}
            rows.append({"n": n, "context": c} | held)
            if c == 0:
                trees[f"n={n}"] = paths_tree(drawn)
        if told is not None:
            told(len(sizes) + done + 1, total)
    every = pd.DataFrame(rows)
    table = found.table.copy()
    by_n = every.groupby("n")
    table["published_T3"] = by_n["T3"].median()
    table["published_T3_inside"] = by_n["T3_inside"].agg(lambda v: v.astype(float).mean())
    table["verdict"] = found.kind
    inside = float(every["T3_inside"].astype(float).mean())
    import xarray as xr

    verdict = f"{found.verdict} Published T3 inside its band in {inside:.0%} of {len(every)} contexts."
    return Study("scaling", table, every, xr.DataTree.from_dict({f"/{k}": v for k, v in _flat(trees)}), verdict, found)


def run_study(name: str, predictor: Predictor | HostPredictor, *, key: Key[Array, ""], **options: Any) -> Study:
    """The study of that name: ``bernoulli``, ``gaussian``, ``language`` or ``scaling``."""
    if name == "scaling":
        return scaling_study(predictor, key=key, **options)
    return martingale_study(name, predictor, key=key, **options)
