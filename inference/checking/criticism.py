"""The small arithmetic behind a diagnosis: rates, active units, trends, posterior predictive checks.

Pure numpy on arrays that already exist (a DataTree, a history), except :func:`site_rates`, which asks the program
for the densities of each latent site.  Rates and losses are in nats per datum; ``N`` is data, ``S`` draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, Shaped

from inference.checking.per_datum import compiled, draw_one, locals_of, prepare_one, sweep
from inference.fitting.objectives import joint_draw
from inference.fitting.sources import stored
from ppl_models.program import Column, rows as rows_of, take

if TYPE_CHECKING:
    import pandas as pd

COLUMNS_CHECKED = 12
"""Predictive checks of a table's columns at most."""
ACTIVE = 0.01
"""Variance over data of E_q[z] above which a unit is active (Burda, Grosse and Salakhutdinov 2016, section 5.2)."""
EFFECT = (0.2, 0.8)
"""Shift in standard deviations over data that counts as small, large (Cohen 1988, section 2.2)."""
TAIL = 0.05
"""Two-sided posterior predictive tail probability below which a statistic is called misfitted."""


# ------------------------------------------------------------------------------------------ latent sites
def site_rates(
    fit: Any, x: Any, *, key: Key[jax.Array, ""], draws: int = 16, chunk: int = 256
) -> dict[str, Float[np.ndarray, " N"]]:
    """Return the rate of every latent site for each datum, in nats: E_q[log q(z | x, ctx) - log p(z | ctx)].

    The mean over ``draws`` joint draws from the posterior, ancestors sampled, so the sites of a hierarchy add up to
    the total rate.  Stored data ``x`` (N, *shape) are prepared by the fit; empty for a program without latents.
    """
    if not fit.program.latents:
        return {}

    @jax.jit
    def one(params: Any, mutable: Any, batch: Any, key: Any) -> dict[str, Any]:
        draw = joint_draw(fit.program, params, key, batch, mutable=mutable)
        return {name: draw.log_q[name] - draw.log_prior[name] for name in draw.log_q}

    x = stored(fit.program, x)
    if (local := locals_of(fit, x)) is not None:
        return _refined_rates(fit, x, local, key, draws, chunk)
    n = rows_of(x)
    chunk = min(chunk, n)
    parts: list[dict[str, np.ndarray]] = []
    for index, start in enumerate(range(0, n, chunk)):
        rows = np.minimum(np.arange(start, start + chunk), n - 1)  # a full last chunk: one compilation
        prepare_key, draw_key = jax.random.split(jax.random.fold_in(key, index))
        batch = fit.program.observation.prepare(jax.tree.map(jnp.asarray, take(x, rows)), prepare_key, False)
        # A Python loop, not lax.scan: convolutions inside a scan are tens of times slower on a CPU.
        total: dict[str, Any] = {}
        for one_key in jax.random.split(draw_key, draws):
            rates = one(fit.params, fit.mutable, batch, one_key)
            total = rates if not total else {name: total[name] + rates[name] for name in total}
        parts.append({name: np.asarray(value, np.float64)[: n - start] / draws for name, value in total.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in fit.program.latents if name in parts[0]}


def _refined_rates(fit: Any, x: Any, local: Any, key: Any, draws: int, chunk: int) -> dict[str, np.ndarray]:
    """:func:`site_rates` of posteriors that were refined for the data, each drawn from by itself."""

    def one(params: Any, mutable: Any, key: Any, x: Any, datum: Any, local: Any, index: Any) -> dict[str, jax.Array]:
        x = prepare_one(fit.program, key, x, datum, local)

        def rates(i: jax.Array) -> dict[str, jax.Array]:
            draw = draw_one(fit.program, params, mutable, key, x, datum, i, local)
            return {name: (draw.log_q[name] - draw.log_prior[name])[0] for name in draw.log_q}

        return jax.vmap(rates)(index)

    kernel = compiled(jax.vmap(one, in_axes=(None, None, None, 0, 0, 0, None)))
    total = {name: np.zeros(rows_of(x)) for name in fit.program.latents}
    blocks = sweep(
        lambda datum, index: kernel(fit.params, fit.mutable, key, take(x, datum), datum, take(local, datum), index),
        rows_of(x), draws, chunk * draws, what="rates", progress=False,
    )  # fmt: skip
    for found, _, values in blocks:
        for name, rate in values.items():
            total[name][found] += rate.sum(axis=1, dtype=np.float64) / draws
    return total


def unit_variance(draws: Shaped[np.ndarray, "S N ..."]) -> Float[np.ndarray, " units"]:
    """Return Var_x(E_q[z_d | x]) of every unit d from posterior draws.

    The mean of S draws carries the posterior's variance / S, which alone would make a silent unit look active at
    S = 100; it is subtracted, so the estimate is unbiased and may be slightly negative.  With one draw the
    correction is unknown and the plain variance is returned.
    """
    draws = np.asarray(draws, np.float64)
    draws = draws.reshape(*draws.shape[:2], -1)
    if draws.shape[1] < 2:
        return np.full(draws.shape[2], math.nan)
    spread = draws.mean(0).var(0, ddof=1)
    return spread - draws.var(0, ddof=1).mean(0) / len(draws) if len(draws) > 1 else spread


# ------------------------------------------------------------------------------------------------ trend
@dataclass(frozen=True)
class Trend:
    """Fall of a loss over a window: ``gain`` nats (positive = still falling), its standard error, the last level."""

    gain: float
    se: float
    level: float


def trend(step: Shaped[np.ndarray, " n"], loss: Shaped[np.ndarray, " n"]) -> Trend | None:
    """Return the fall of ``loss`` over its window by least squares, or ``None`` with fewer than five finite values.

    The standard error is widened by sqrt((1 + r) / (1 - r)), r the lag-one correlation of the residuals, because
    successive values of a training loss are not independent.
    """
    step, loss = np.asarray(step, np.float64), np.asarray(loss, np.float64)
    keep = np.isfinite(loss) & np.isfinite(step)
    step, loss = step[keep], loss[keep]
    if len(loss) < 5 or step[-1] == step[0]:
        return None
    t = (step - step.mean()) / (step[-1] - step[0])
    slope = (t @ loss) / (t @ t)
    residual = loss - loss.mean() - slope * t
    power = residual @ residual
    r = np.clip(residual[:-1] @ residual[1:] / power, 0.0, 0.95) if power > 0 else 0.0
    se = math.sqrt(power / (len(loss) - 2) / (t @ t) * (1 + r) / (1 - r))
    return Trend(float(-slope), se, float(loss[-max(1, len(loss) // 4) :].mean()))


def last_fifth(history: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (step, value) of the rows of ``column`` in the last fifth of the run."""
    frame = history[["step", column]].dropna()
    if frame.empty:
        return np.empty(0), np.empty(0)
    step = frame["step"].to_numpy(float)
    first = min(float(history["step"].min()), step[0])
    keep = step >= step[-1] - 0.2 * (step[-1] - first)
    return step[keep], frame[column].to_numpy(float)[keep]


# --------------------------------------------------------------------------- posterior predictive checks
@dataclass(frozen=True)
class Predictive:
    """One posterior predictive check of one statistic T.

    ``replicated`` (S,) is T averaged over the data of each replicated data set, ``observed`` the same of the real
    data, ``tail`` the two-sided tail probability 2 min(P(T_rep <= T), P(T_rep >= T)), ``shift`` the difference
    mean(T_rep) - T in standard deviations of T over data.
    """

    statistic: str
    observed: float
    replicated: Float[np.ndarray, " S"]
    tail: float
    shift: float


def two_sided(observed: float, replicated: Float[np.ndarray, " S"]) -> float:
    """Return the two-sided tail probability of ``observed`` among the replicates, between 0 and 1.

    With 40 replicates or more by rank, 2 min(P(T_rep <= T), P(T_rep >= T)) with the observed value counted as one of
    them: never 0, and exact for exchangeable data.  Fewer cannot show a probability below 0.05; then by Student's t
    for a further value of a normal sample, which an average over many data nearly is.
    """
    replicated = np.asarray(replicated)
    n = len(replicated)
    if n >= 40:
        below, above = (replicated <= observed).sum() + 1, (replicated >= observed).sum() + 1
        return float(min(1.0, 2 * min(below, above) / (n + 1)))
    return student_tail(observed, replicated)


def student_tail(observed: float, replicated: Float[np.ndarray, " S"]) -> float:
    """Return the two-sided tail probability of a further value of a normal sample (Student's t), of two or more."""
    replicated = np.asarray(replicated)
    n = len(replicated)
    if n < 2:
        return math.nan
    from scipy.stats import t

    distance, scale = abs(observed - replicated.mean()), replicated.std(ddof=1) * math.sqrt(1 + 1 / n)
    return float(2 * t.sf(distance / scale, n - 1)) if scale > 0 else float(distance == 0)


def statistics(x: Shaped[np.ndarray, "N ..."]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the statistics that suit data of this shape, name -> (array of data of any leading shape -> values).

    ``mean``: mean over the entries of a datum.  ``share of low values``: share of entries in the lowest tenth of the
    observed range (for images, the background).  ``contrast``: mean absolute difference between neighbouring
    pixels, for images; ``spread``: standard deviation over the entries, for vectors of two or more.
    """
    x = np.asarray(x)
    shape = x.shape[1:]
    low, high = float(np.nanmin(x)), float(np.nanmax(x))
    cut = low + 0.1 * (high - low)
    event = tuple(range(-len(shape), 0)) if shape else ()

    def mean(a: np.ndarray) -> np.ndarray:
        return a.mean(event, dtype=np.float64)

    def sparsity(a: np.ndarray) -> np.ndarray:
        return (a <= cut).mean(event, dtype=np.float64)

    def contrast(a: np.ndarray) -> np.ndarray:
        # (..., H, W) or (..., H, W, C): differences along the two axes of space, averaged together.
        rows, columns = -len(shape), 1 - len(shape)
        down, across = np.abs(np.diff(a, axis=rows)), np.abs(np.diff(a, axis=columns))
        count = math.prod(down.shape[-len(shape) :]) + math.prod(across.shape[-len(shape) :])
        return (down.sum(event, dtype=np.float64) + across.sum(event, dtype=np.float64)) / count

    def spread(a: np.ndarray) -> np.ndarray:
        return a.std(event, dtype=np.float64)

    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mean": mean, "share of low values": sparsity}
    if len(shape) in (2, 3) and shape[0] > 1 and shape[1] > 1:
        found["contrast"] = contrast
    elif math.prod(shape) > 1:
        found["spread"] = spread
    return found


def predictive_checks(
    observed: Shaped[np.ndarray, "N ..."], replicated: Shaped[np.ndarray, "S M ..."]
) -> list[Predictive]:
    """Return one check a statistic: is the average of T over the real data like that of replicated data sets?

    Gelman, Meng and Stern (1996), "Posterior predictive assessment of model fitness via realized discrepancies".
    """
    observed, replicated = np.asarray(observed), np.asarray(replicated)
    if replicated.shape[1:] != observed.shape:
        raise ValueError(
            f"replicated data have shape {replicated.shape}, expected (draws, {', '.join(map(str, observed.shape))}) "
            "for the observed data; draw the posterior predictive at the same data"
        )
    checks = []
    for name, statistic in statistics(observed).items():
        each = statistic(observed)
        # Draw by draw: the replicates of images may be large.
        averages = np.array([statistic(draw).mean() for draw in replicated])
        sd = float(each.std(ddof=1)) if len(each) > 1 else math.nan
        difference = float(averages.mean() - each.mean())
        shift = difference / sd if sd > 0 else math.copysign(math.inf, difference) if difference else 0.0
        checks.append(Predictive(name, float(each.mean()), averages, two_sided(each.mean(), averages), shift))
    return checks


# ------------------------------------------------------------------------------------- reading a DataTree
def draws_first(variable: Any) -> np.ndarray:
    """Return a DataTree variable of dims (chain, draw, ...) as an array (S, ...)."""
    values = np.asarray(variable)
    return values.reshape(-1, *values.shape[2:])


def group(tree: Any, name: str) -> Mapping[str, Any]:
    """Return the variables of a group of a DataTree, empty where the tree has no such group."""
    if tree is None or name not in tree.children:
        return {}
    return {str(key): value for key, value in tree[name].data_vars.items()}


def column_checks(
    columns: Sequence[Column],
    observed: Shaped[np.ndarray, "N D"],
    replicated: Shaped[np.ndarray, "S N D"],
    there: Shaped[np.ndarray, "N D"],
) -> list[Predictive]:
    """One check a column of a table: is its mean over the rows like that of replicated tables?

    The mean of a number, of the log of a positive one, of being in the most frequent class; entries that are missing
    are left out of both.  Of more than ``COLUMNS_CHECKED`` columns those are kept that differ most.
    """
    checks = []
    for d, column in enumerate(columns):
        known = np.asarray(there)[:, d].astype(bool)
        if known.sum() < 2:
            continue
        real, drawn = observed[known, d].astype(float), replicated[:, known, d].astype(float)
        if column.values:
            most = int(np.bincount(real.astype(int)).argmax())
            name, real, drawn = f"share of {column.name} = {column.values[most]}", real == most, drawn == most
        else:
            name = f"mean {'log ' * (column.kind == 'positive')}{column.name}"
            loc, scale = (0.0, 1.0) if column.kind == "count" else (column.loc, column.scale)
            real, drawn = loc + scale * real, loc + scale * drawn
        sd, averages = float(real.std(ddof=1)), drawn.mean(1)
        difference = float(averages.mean() - real.mean())
        shift = difference / sd if sd > 0 else math.copysign(math.inf, difference) if difference else 0.0
        checks.append(Predictive(name, float(real.mean()), averages, two_sided(real.mean(), averages), shift))
    if len(checks) > COLUMNS_CHECKED:
        kept = sorted(np.argsort([-abs(check.shift) for check in checks], kind="stable")[:COLUMNS_CHECKED])
        checks = [checks[i] for i in kept]
    return checks


def predictive_by_site(tree: Any, columns: Sequence[Column] = ()) -> dict[str, list[Predictive]]:
    """Return the posterior predictive checks of each observed site that the tree holds replicates of.

    ``columns``  those of a table, whose rows the sites of as many numbers hold: a check a column then.
    """
    real, found = group(tree, "observed_data"), {}
    for name, variable in group(tree, "posterior_predictive").items():
        if name not in real:
            continue
        replicated = draws_first(variable)
        observed = np.asarray(real[name])[: replicated.shape[1]]  # where draws are dear, of the first data only
        if columns and replicated.shape[1:] == observed.shape and observed.shape[1:] == (len(columns),):
            there = np.asarray(real["there"]) if "there" in real else np.ones(observed.shape, bool)
            found[name] = column_checks(columns, observed, replicated, there)
        elif replicated.shape[1:] == observed.shape and np.isfinite(observed).all():
            found[name] = predictive_checks(observed, replicated)
    return found


def nonfinite(values: Any) -> int:
    """Count numbers that are not finite in a nested structure of arrays, a frame of numbers or a DataTree group."""
    leaves = jax.tree.leaves(values)
    arrays = [np.asarray(leaf) for leaf in leaves]
    return int(sum((~np.isfinite(a)).sum() for a in arrays if np.issubdtype(a.dtype, np.inexact)))
