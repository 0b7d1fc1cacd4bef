"""Calibrated tests of the martingale property from the rule's own probabilities.

Under the martingale property E[g(Z_{n+k}) | z_{1:n}] does not depend on k.  Let p_jk be the rule's mean of g before
draw k of path j, e_jk = g(Z_jk) - p_jk its innovation and M_jk = p_{j,k+1} - p_jk.  Two tests, no reference model:

    drift   S_j  = mean_{k <= N/2} p_jk - mean_{k > N/2} p_jk,           H0: E S_j = 0
    lag     S_jl = mean_{m <= N-5} e_jm (p_{j,m+l} - p_{j,m+1}),         H0: E S_jl = 0 for l = 2..5 together

Both are sums S_j = sum_k w_jk M_jk whose weights are known before draw k, so that under H0 they are martingales and

    T = sum_j S_j / sqrt(V),   V = sum_jk w_jk^2 Var(M_jk | past)

is referred to what the rule itself would have drawn.  With two outcomes the martingale property fixes how far the mean
moves after either of them, M_jk = c_jk e_jk with c_jk known before the draw, so the reference draws each Z*_jk from
p_jk anew and puts e*_jk in place of e_jk: skewed steps and rare symbols, seen or not, have the weight they have (a
bootstrap of martingale differences, after Wu 1986).  With more outcomes c_jk is that of the symbol seen, exact for
Dirichlet updating.  For real symbols each step w_jk M_jk is multiplied by an independent two-point variable of mean
zero and unit variance and third moment (Mammen 1993).  Sums of very many steps are Gaussian: those are drawn from their
covariance.  The largest |T| over features, and lags, is the statistic.

``drift_from_draws`` is the first with g(Z) in place of p, by Student's t, where a rule shows its draws only.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.scipy.special import betainc
from jaxtyping import Array, Float, Key

from inference.coherence.paths import Paths

LAGS = (2, 3, 4, 5)
FLIPS = 400
GAUSSIAN = 8192
"""Steps of all paths together from which their sums are drawn as Gaussian."""


class Outcome(NamedTuple):
    """One test: the effects it looked at, their standard errors, and its p-value."""

    effect: Float[Array, " k"]
    se: Float[Array, " k"]
    statistic: Float[Array, ""]
    p_value: Float[Array, ""]


def student_p(t: Float[Array, "..."], df: int) -> Float[Array, "..."]:
    """Two-sided p-value of Student's t with ``df`` degrees of freedom."""
    return betainc(df / 2, 0.5, df / (df + t**2))


def _studentise(values: Float[Array, "..."]) -> tuple[Array, Array, Array]:
    J = values.shape[0]
    effect = values.mean(0)
    spread = jnp.sqrt(jnp.sum((values - effect) ** 2, 0) / (J - 1))
    # A contrast of equal numbers leaves rounding, not zero: below 1e-6 of the values' size it is no effect.
    silent = spread <= 1e-7 * (1 + jnp.abs(effect))
    se = jnp.where(silent, 0.0, spread / jnp.sqrt(J))
    fixed = silent & (jnp.abs(effect) > 1e-6)
    t = jnp.where(silent, jnp.where(fixed, jnp.inf, 0.0), effect / jnp.where(silent, 1.0, se))
    return effect, se, t


def t_test(values: Float[Array, " J"]) -> Outcome:
    """Whether i.i.d. values have mean zero; a constant zero has p-value 1."""
    effect, se, t = _studentise(values)
    return Outcome(effect[None], se[None], t, student_p(t, values.shape[0] - 1))


def sign_flip_test(values: Float[Array, "J k"], key: Key[Array, ""], flips: int = FLIPS) -> Outcome:
    """Whether the rows, i.i.d. vectors, have mean zero: max |t| against random signs on the centred rows.

    One Rademacher sign a row keeps the dependence between columns and the heavy tails of the values;
    p = (1 + #{flips with a larger max |t|}) / (1 + flips).
    """
    J = values.shape[0]
    effect, se, t = _studentise(values)
    centred = values - effect
    signs = jax.random.rademacher(key, (flips, J), centred.dtype)
    mean = signs @ centred / J
    square = jnp.sum(centred**2, 0)
    variance = jnp.maximum(square - J * mean**2, 0.0) / (J - 1)
    null = jnp.where(se > 0, jnp.abs(mean) / jnp.sqrt(jnp.where(se > 0, variance, 1.0) / J), 0.0).max(1)
    statistic = jnp.abs(t).max()
    # A set of columns without any spread has no null to be compared with: its verdict is the exact one.
    p = jnp.where((se > 0).any(), (1 + jnp.sum(null >= statistic)) / (1 + flips), jnp.where(statistic > 0, 0.0, 1.0))
    return Outcome(effect, se, statistic, p)


def halves(values: Float[Array, "path step *k"]) -> Array:
    """Mean over the first floor(N/2) steps minus the mean over the rest, (path, *k)."""
    half = values.shape[1] // 2
    return values[:, :half].mean(1) - values[:, half:].mean(1)


def _weights(e: Float[Array, "J N feature"]) -> Float[Array, "J N stat feature"]:
    """``w``: of the drift first, then of each lag; the sum over steps of ``w`` times ``M`` is the statistic."""
    J, N, F = e.shape
    half, M = N // 2, N - LAGS[-1]
    k, t = np.arange(N)[:, None], np.arange(N)[None]
    # p_k = p_0 + M_0 + ... + M_{k-1}: how often step t is in the means over either half.
    drift = ((k < half) & (k > t)).sum(0) / half - ((k >= half) & (k > t)).sum(0) / (N - half)
    found = [jnp.broadcast_to(jnp.asarray(drift, e.dtype)[None, :, None], e.shape)]
    seen = jnp.pad(e[:, :M], ((0, 0), (0, N - M), (0, 0))) / M
    total = jnp.zeros_like(e)
    for back in range(1, LAGS[-1]):
        total = total + jnp.pad(seen[:, : N - back], ((0, 0), (back, 0), (0, 0)))
        if back + 1 in LAGS:
            found.append(total)
    return jnp.stack(found, 2)


def contrasts(g: Float[Array, "J N feature"], p: Float[Array, "J step_1 feature"]) -> Float[Array, "J stat feature"]:
    """``S`` of every path: of the drift first, then of lags 2..5."""
    return jnp.einsum("jnsf,jnf->jsf", _weights(g - p[:, :-1]), jnp.diff(p, axis=1))


def _multipliers(key: Key[Array, ""], before: Float[Array, "J N feature"], finite: bool) -> Array:
    """What stands in place of the innovations (finite symbols) or multiplies the steps (real ones)."""
    J, N, F = before.shape
    u = jax.random.uniform(key, (J, N, 1))
    if not finite:
        five = math.sqrt(5)
        return jnp.where(u < (five + 1) / (2 * five), (1 - five) / 2, (1 + five) / 2) * jnp.ones(F)
    if F == 1:
        return (u < before) - before
    edge = jnp.cumsum(before, -1)
    return ((u < edge) & (u >= edge - before)) - before


def _gaussian(key: Key[Array, ""], step: Float[Array, "J N stat feature"], before: Array, finite: bool) -> Array:
    """Draws (FLIPS, stat, feature) of the sum of very many steps, from its covariance."""
    J, N, S, F = step.shape
    if finite and F > 1:  # symbols of one draw exclude each other: Cov(e_f, e_h) = [f = h] p_f - p_f p_h
        root = step * jnp.sqrt(before)[:, :, None]
        whole = step * before[:, :, None]
        apart = jnp.einsum("jnsf,jntf->sft", root, root)
        covariance = jnp.einsum("sft,fh->sfth", apart, jnp.eye(F)) - jnp.einsum("jnsf,jnth->sfth", whole, whole)
    else:
        scaled = step * jnp.sqrt(before * (1 - before))[:, :, None] if finite else step
        covariance = jnp.einsum("jnsf,jnth->sfth", scaled, scaled)
    values, vectors = jnp.linalg.eigh(covariance.reshape(S * F, S * F))
    noise = jax.random.normal(key, (FLIPS, S * F)) * jnp.sqrt(jnp.maximum(values, 0.0))
    return (noise @ vectors.T).reshape(FLIPS, S, F)


def martingale_tests(
    g: Float[Array, "J N feature"], p: Float[Array, "J step_1 feature"], key: Key[Array, ""], *, finite: bool
) -> tuple[Outcome, Outcome]:
    """The drift and the lag test; ``finite`` symbols, with p their probabilities, or real ones.

    ``se`` is sqrt(V) / J; p = (1 + #{reference draws with as large a statistic}) / (1 + draws).
    """
    J, N, F = g.shape
    before = p[:, :-1]
    e, moved = g - before, jnp.diff(p, axis=1)
    w = _weights(e)
    if finite:
        sure = e == 0  # a symbol of probability 0 or 1: a mean that moves after it is no martingale's
        step = w * jnp.where(sure, 0.0, moved / jnp.where(sure, 1.0, e))[:, :, None]
        variance = jnp.sum(step**2 * (before * (1 - before))[:, :, None], (0, 1))
        broken = (sure & (jnp.abs(moved) > 1e-6)).any()
    else:
        step, broken = w * moved[:, :, None], jnp.asarray(False)
        variance = jnp.sum(step**2, (0, 1))

    # Rounding of equal probabilities leaves steps of 1e-8, which are none.
    silent = jnp.sqrt(variance / J) <= 1e-7
    scale = jnp.where(silent, jnp.inf, jnp.sqrt(jnp.where(silent, 1.0, variance)))
    effect = jnp.einsum("jnsf,jnf->sf", w, moved)
    t = effect / scale
    if J * N > GAUSSIAN:
        null = _gaussian(key, step / scale, before, finite)
    else:

        def drawn(key: Key[Array, ""]) -> Float[Array, "stat feature"]:
            return jnp.einsum("jnsf,jnf->sf", step, _multipliers(key, before, finite)) / scale

        null = jax.lax.map(drawn, jax.random.split(key, FLIPS))

    def outcome(part: slice) -> Outcome:
        statistic = jnp.abs(t[part]).max()
        larger = jnp.abs(null[:, part]).max((1, 2)) >= statistic * (1 - 1e-5)  # ties are no evidence
        chance = jnp.where(statistic > 0, (1 + larger.sum()) / (1 + FLIPS), 1.0)
        se = jnp.where(silent, 0.0, jnp.sqrt(variance))[part] / J
        return Outcome(effect[part].ravel() / J, se.ravel(), statistic, jnp.where(broken, 0.0, chance))

    return outcome(slice(0, 1)), outcome(slice(1, None))


def is_finite(names: tuple[str, ...]) -> bool:
    """Whether features of these names are probabilities of symbols."""
    return names != ("z", "z^2")


def check_length(N: int, J: int) -> None:
    """Raise ``ValueError`` for paths too short or too few for the tests."""
    if N <= LAGS[-1]:
        raise ValueError(f"the lag test needs paths of at least {LAGS[-1] + 1} steps, got {N}")
    if J < 3:
        raise ValueError(f"a test over paths needs at least 3 paths, got {J}; 100 is usual")


def holm(p: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Holm's adjusted p-values: reject all below alpha and the chance of any false rejection is at most alpha."""
    order = np.argsort(p)
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(scaled, 1.0)
    return adjusted


@partial(jax.jit, static_argnames="finite")
def _tests(g: Array, p: Array, key: Key[Array, ""], *, finite: bool) -> tuple[Outcome, Outcome, Outcome]:
    tests_key, draws_key = jax.random.split(key)
    contrast = halves(g)
    draws = t_test(contrast[:, 0]) if contrast.shape[1] == 1 else sign_flip_test(contrast, draws_key)
    return *martingale_tests(g, p, tests_key, finite=finite), draws


def calibrated_tests(paths: Paths, *, key: Key[Array, ""]) -> pd.DataFrame:
    """Drift and lag tests of one context's paths: the effect in units of g first, its s.e., then the p-values.

    ``effect`` is the component of largest |t| (``of`` says which); ``p_holm`` adjusts over drift and lag.
    The row ``drift_from_draws`` uses no probabilities; it is there for comparison and stays outside the adjustment.
    """
    check_length(paths.z.shape[1], paths.z.shape[0])
    drift, lag, draws = _tests(jnp.asarray(paths.g), jnp.asarray(paths.p), key, finite=is_finite(paths.names))
    found = {
        "drift": (drift, list(paths.names)),
        "lag": (lag, [f"{name}, lag {k}" for k in LAGS for name in paths.names]),
        "drift_from_draws": (draws, list(paths.names)),
    }
    rows = []
    for name, (test, parts) in found.items():
        effect, se = np.asarray(test.effect), np.asarray(test.se)
        i = int(np.abs(np.divide(effect, se, out=np.zeros_like(effect), where=se > 0)).argmax())
        rows.append((name, effect[i], se[i], parts[i], float(test.statistic), float(test.p_value)))
    table = pd.DataFrame(rows, columns=["test", "effect", "se", "of", "statistic", "p_value"]).set_index("test")
    table["p_holm"] = np.append(holm(table["p_value"].to_numpy()[:2]), np.nan)
    table.attrs.update(method="calibrated", paths=paths.z.shape[0], steps=paths.z.shape[1], n=len(paths.context))
    return table


def drift_curve(paths: Paths, *, key: Key[Array, ""], level: float = 0.95) -> pd.DataFrame:
    """``E p_k - p_1`` against k = 1..N+1 with simultaneous bands: one line of zero should stay inside throughout.

    The half-width is the sign-flip quantile of max_k |t_k| times the standard error at k.
    """
    J, steps, M = paths.p.shape
    rows = []
    for f, (name, k) in enumerate(zip(paths.names, jax.random.split(key, M), strict=True)):
        moved = paths.p[..., f].astype(float) - paths.p[:, :1, f]
        drift, se = moved.mean(0), moved.std(0, ddof=1) / np.sqrt(J)
        signs = np.asarray(jax.random.rademacher(k, (FLIPS, J), float))
        null = np.abs(signs @ (moved - drift) / J)
        t = np.divide(null, se, out=np.zeros_like(null), where=se > 0).max(1)
        width = np.quantile(t, level) * se
        bands = {"drift": drift, "se": se, "lower": drift - width, "upper": drift + width}
        rows.append(pd.DataFrame({"feature": name, "k": np.arange(1, steps + 1), **bands}))
    return pd.concat(rows, ignore_index=True)
