"""Is this predictor Bayesian?  One call: exact tree, drift and lag over several contexts, and the published tests.

The unit of a claim about a predictor is the context: paths after one context say nothing of the next.  Effect sizes
come first; with enough paths every trained network is rejected, and how far it is off is what matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key

from inference.coherence._call import call
from inference.coherence._symbols import check_context, expected, feature_names, features, symbols_of
from inference.coherence.calibrated import check_length, check_moments, holm, is_finite, martingale_tests
from inference.coherence.gap import one_step_gap, paths_within_budget
from inference.coherence.host import host_contexts
from inference.coherence.paths import OTHERS, Paths, draw_paths, fitting_context, predictive_paths
from inference.coherence.published import falck2024
from inference.coherence.tree import tree_table
from ppl_models.program import HostPredictor, Predictor

EXACT = 1e-9
"""Below this a defect of a tree in double precision is rounding."""
NEARLY = 0.01
"""A typical change of a probability below this is called nearly coherent: a matter of words, not a test."""

SPREAD = "predictive sd"
"""Unit of the one-step gap of real symbols."""


@dataclass(frozen=True)
class Coherence:
    """What was found.

    ``summary``   one row a quantity: the mean and the largest over contexts, its unit, and for tests the share of
                  contexts rejected at 5 % and the p-value over contexts.
    ``contexts``  one row a context: effect sizes of the exact tree, then effects, standard errors and p-values.
    """

    summary: pd.DataFrame
    contexts: pd.DataFrame

    @property
    def verdict(self) -> str:
        """The finding in one or two sentences, by effect sizes first."""
        tested = self.summary.loc[["drift", "lag"], "p_holm"]
        small = [f"{name} p < 1e-12" if p < 1e-12 else f"{name} p = {p:.2g}" for name, p in tested.items()]
        told_p = f" ({', '.join(small)}, Holm-adjusted over {len(self.contexts)} contexts)"
        rejected = bool((tested < 0.05).any())
        if "node_rms" not in self.summary.index:
            told = "The drift and lag tests " + ("reject" if rejected else "do not reject")
            if "one_step_gap" not in self.summary.index:
                return f"{told} the martingale property{told_p}; the exact tree was left out."
            gap = self.summary.loc["one_step_gap"]
            return (
                told
                + f" the martingale property{told_p}; by one query of itself it changes its mind by "
                + f"{gap['largest']:.2g} ({gap['unit']}, worst context); "
                + ("real symbols have no exact tree." if gap["unit"] == SPREAD else "the exact tree was left out.")
            )
        change = float(self.summary.loc["node_rms", "largest"])
        order = float(self.summary.loc["kl_per_symbol", "largest"])
        seen = f"the tests on sampled paths {'reject it' if rejected else 'do not notice'}{told_p}"
        if change < EXACT and order < EXACT:
            return f"Coherent: a martingale and exchangeable to depth {self.summary.attrs['depth']}, up to rounding."
        if change < EXACT:
            return (
                f"A martingale, but not exchangeable: the order of symbols carries up to {order:.2g} nats a symbol. "
                "Tests of the martingale property cannot see this."
            )
        size = "nearly coherent" if change < NEARLY else "not Bayesian"
        return (
            f"Not a martingale, {size}: by querying itself it changes its mind by {change:.2g} (typical change of a "
            f"probability, worst context), and order carries up to {order:.2g} nats a symbol; {seen}."
        )


def _tests(
    predictor: Predictor, context: Array, key: Key[Array, ""], steps: int, paths: int, followed: int
) -> dict[str, Array]:
    fn = predictor.predict(predictor.init(context))
    draw_key, test_key = jax.random.split(key)
    drawn = draw_paths(predictor, context, draw_key, steps=steps, paths=paths, others=OTHERS)
    names = feature_names(fn)
    drift, lag = martingale_tests(
        features(drawn.z, names), drawn.p, test_key, finite=is_finite(names), others=drawn.others
    )
    found = {"drift": _largest(drift.effect), "drift_se": drift.se.max(), "drift_p": drift.p_value}
    move = _largest((drawn.p[:, -1] - drawn.p[:, 0]).mean(0))
    found |= {"lag": _largest(lag.effect), "lag_se": lag.se.max(), "lag_p": lag.p_value}
    shown = drawn.p if drawn.others is not None else drawn.p[:1, :1]  # moments, to be checked
    return {"move": move} | found | {"z": drawn.z[:followed], "shown": shown}


def _largest(effect: Array) -> Array:
    return effect[jnp.abs(effect).argmax()]


def _every(
    predictor: Predictor, contexts: Array, keys: Array, *, steps: int, paths: int, followed: int
) -> dict[str, Array]:
    return jax.lax.map(
        lambda item: _tests(predictor, item[0], item[1], steps, paths, followed),
        (contexts, keys),
        batch_size=min(32, contexts.shape[0]),
    )


def _depth(K: int | None) -> int:
    return 0 if K is None else int(min(8, np.log(4096) / np.log(K)))


def coherence(
    predictor: Predictor | HostPredictor,
    contexts: Any,
    *,
    key: Key[Array, ""],
    steps: int = 40,
    paths: int = 100,
    depth: int | None = None,
) -> Coherence:
    """Measure and test the coherence of a predictor after each of several contexts (contexts, n) of one length.

    Effect sizes: for finite symbols the exact tree to ``depth`` (8, or as deep as 4,096 sequences allow; 0 leaves it
    out): ``root_gap``, ``node_rms``, ``kl_per_symbol``; for all ``one_step_gap``, the mean along the paths, or as many
    of them as cost no more than drawing all, and ``one_step_gap_max``, without Monte Carlo error at each place of a
    path (:func:`one_step_gap`); ``move`` = E p_{n+N+1} - p_{n+1}.  Tests: ``drift`` and ``lag`` of
    ``calibrated_tests``.  Over contexts: ``rejected``, the share below 5 %, and ``p_value`` by Fisher's combination
    (null: a martingale after every one of the contexts; signed effects would cancel between contexts),
    Holm-adjusted over the two tests.  Take 20 contexts or more for a claim about the predictor.

    A :class:`ppl_models.program.HostPredictor` has no one-step gap, and its tree is left out unless ``depth`` is given:
    each node is a request.

    >>> found = coherence(BetaBernoulli(), np.array([[1, 0, 1, 1]] * 4), key=jax.random.key(0))
    >>> found.summary.loc["node_rms", "largest"] < 1e-12
    True
    """
    check_length(steps, paths)
    if len(np.asarray(contexts)) == 0:
        raise ValueError("contexts is empty, expected at least one row")
    if isinstance(predictor, HostPredictor):
        depth = depth or 0
        table = host_contexts(predictor, contexts, key=key, steps=steps, paths=paths, depth=depth)
        return _found(table, symbols_of(tuple(predictor.names)), np.shape(contexts)[1], steps, paths, depth)
    contexts, fn = fitting_context(predictor, contexts, ndim=2, ahead=steps)
    keys = jax.random.split(key, len(contexts))
    followed = paths_within_budget(fn.K, paths)
    found = call(_every, predictor, contexts, keys, steps=steps, paths=paths, followed=followed)
    check_moments(np.asarray(found.pop("shown")), fn.names)
    gap = one_step_gap(predictor, contexts, np.asarray(found.pop("z"))).reshape(len(contexts), -1)
    found = {"one_step_gap": gap.mean(1), "one_step_gap_max": gap.max(1)} | found
    table = pd.DataFrame({name: np.asarray(value, float) for name, value in found.items()})
    table.index.name = "context"
    table.insert(0, "p_next", _next(predictor, contexts))
    depth = _depth(fn.K) if depth is None else depth
    if depth:
        tree = tree_table(predictor, contexts, depth=depth)
        table = pd.concat([tree.drop(columns="root_gap_symbol"), table], axis=1)
    return _found(table, fn.K, contexts.shape[1], steps, paths, depth)


def _found(table: pd.DataFrame, K: int | None, n: int, steps: int, paths: int, depth: int) -> Coherence:
    summary = _summary(table, finite=K is not None)
    for made in (table, summary):
        made.attrs.update(method="calibrated", contexts=len(table), n=n, steps=steps, paths=paths, depth=depth)
    return Coherence(summary, table)


def _first(predictor: Predictor, contexts: Array) -> Array:
    return jax.vmap(lambda z: expected(predictor.predict(predictor.init(z))))(contexts)


def _next(predictor: Predictor, contexts: np.ndarray) -> np.ndarray:
    value = np.asarray(call(_first, predictor, contexts))
    return value[:, 0] if value.shape[1] < 3 else value.max(1)


_UNITS: dict[str, tuple[str | None, str]] = {
    "root_gap": ("probability", "largest change of the expected probability of a symbol, 2 to depth + 1 steps on"),
    "node_rms": ("probability", "change of mind by querying itself, typical over nodes"),
    "node_max": ("probability", "change of mind by querying itself, worst node"),
    "kl_per_symbol": ("nats", "dependence on the order of symbols"),
    "order_ratio": ("ratio", "probability of the likeliest over the least likely order of the same symbols"),
    "one_step_gap": (None, "change of mind by one query of itself, mean along the paths"),
    "one_step_gap_max": (None, "the same, at the worst place of the paths"),
    "move": ("mean of g", "E p after the last step - p before the first"),
    "drift": ("mean of g", "first half minus second half of the predictive means"),
    "lag": ("mean of g", "what a symbol does to the next probability and not to later ones"),
}


def _summary(table: pd.DataFrame, *, finite: bool) -> pd.DataFrame:
    rows = []
    for name, (unit, meaning) in _UNITS.items():
        if name not in table:
            continue
        unit = unit or ("probability" if finite else SPREAD)
        values = table[name].to_numpy()
        worst = values[np.abs(values).argmax()]
        row = {"quantity": name, "mean": values.mean(), "largest": worst, "unit": unit}
        if f"{name}_p" in table:
            row["rejected"] = float((table[f"{name}_p"] < 0.05).mean())
            row["p_value"] = fisher(table[f"{name}_p"].to_numpy())
        rows.append({**row, "meaning": meaning})
    summary = pd.DataFrame(rows).set_index("quantity")
    tested = summary["p_value"].notna().to_numpy()
    summary["p_holm"] = np.nan
    summary.loc[tested, "p_holm"] = holm(summary.loc[tested, "p_value"].to_numpy())
    return summary[["mean", "largest", "unit", "rejected", "p_value", "p_holm", "meaning"]]


def fisher(p: Float[np.ndarray, " contexts"]) -> float:
    """Fisher's combination of independent p-values: -2 sum log p against chi-square with 2C degrees of freedom."""
    statistic = -np.log(np.clip(p, 1e-12, 1.0)).sum()  # a p-value in single precision can underflow to zero
    return float(jax.scipy.special.gammaincc(float(len(p)), statistic))


def published(
    predictor: Predictor | HostPredictor,
    contexts: Any,
    *,
    key: Key[Array, ""],
    steps: int = 40,
    paths: int = 100,
    **options: Any,
) -> pd.DataFrame:
    """The published T1-T3 (:func:`falck2024`) after each context: one row a context and statistic."""
    if isinstance(predictor, HostPredictor):
        contexts = check_context(contexts, "contexts", ndim=2)
    else:
        contexts, _ = fitting_context(predictor, contexts, ndim=2)
    tables = []
    for context, k in zip(contexts, jax.random.split(key, len(contexts)), strict=True):
        path_key, reference_key = jax.random.split(k)
        drawn: Paths = predictive_paths(predictor, context, steps=steps, paths=paths, key=path_key, others=0)
        tables.append(falck2024(drawn, key=reference_key, **options))
    return pd.concat(tables, keys=range(len(tables)), names=["context"])
