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
Dirichlet updating.

For real symbols the tests are of steps on the rule's own scale, known before each draw: with mean m and standard
deviation s of the predictive, z is replaced by u = (z - m) / s and z^2 by u^2, so that a wide predictive does not
outvote the others; weights of the lag test are cut at 2.  The steps after the symbol drawn and after a few ``others``
from the same predictive each have an independent two-point multiplier of mean zero that keeps the mean square and mean
cube of these steps (a wild bootstrap; Mammen 1993 for one step).  With unknown variance, 10 paths of 6 steps after 5
symbols, the steps seen alone gave a level of .11.  Effects and their errors stay in units of z and z^2.

Sums of very many steps are Gaussian: those are drawn from their covariance.  The largest |T| over features, and lags,
is the statistic.

``drift_from_draws`` is the first with g(Z) in place of p, by Student's t, where a rule shows its draws only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
CUT = 2.0
"""Largest weight of one standardised innovation in the lag test of real symbols."""


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


def _innovations(key: Key[Array, ""], before: Float[Array, "J N feature"]) -> Float[Array, "J N feature"]:
    """``g(Z*) - p`` of symbols drawn anew."""
    J, N, F = before.shape
    u = jax.random.uniform(key, (J, N, 1))
    if F == 1:
        return (u < before) - before
    edge = jnp.cumsum(before, -1)
    return ((u < edge) & (u >= edge - before)) - before


def _signs(key: Key[Array, ""], shape: tuple[int, int, int]) -> Float[Array, "J N move"]:
    """Two-point variables of mean 0, variance 1 / R and third moment 1 / R, R moves a step; Mammen's for R = 1."""
    R = shape[2]
    skew = math.sqrt(R)  # (2 low - 1) / sqrt(low (1 - low)), solved for low and put on the grid of a random byte
    low = round(128 * (1 + skew / math.sqrt(skew**2 + 4))) / 256
    down, up = -math.sqrt((1 - low) / low / R), math.sqrt(low / (1 - low) / R)
    return jnp.where(jax.random.bits(key, shape, "uint8") < round(256 * low), down, up)


def _gaussian(key: Key[Array, ""], covariance: Float[Array, "stat feature stat feature"]) -> Array:
    """Draws (FLIPS, stat, feature) of the sum of very many steps."""
    S, F = covariance.shape[:2]
    values, vectors = jnp.linalg.eigh(covariance.reshape(S * F, S * F))
    noise = jax.random.normal(key, (FLIPS, S * F)) * jnp.sqrt(jnp.maximum(values, 0.0))
    return (noise @ vectors.T).reshape(FLIPS, S, F)


def _finite_covariance(step: Float[Array, "J N stat feature"], before: Float[Array, "J N feature"]) -> Array:
    """Covariance of the sum of ``step`` times innovations."""
    F = before.shape[-1]
    if F == 1:
        scaled = step * jnp.sqrt(before * (1 - before))[:, :, None]
        return jnp.einsum("jnsf,jnth->sfth", scaled, scaled)
    # Symbols of one draw exclude each other: Cov(e_f, e_h) = [f = h] p_f - p_f p_h.
    root = step * jnp.sqrt(before)[:, :, None]
    whole = step * before[:, :, None]
    apart = jnp.einsum("jnsf,jntf->sft", root, root)
    return jnp.einsum("sft,fh->sfth", apart, jnp.eye(F)) - jnp.einsum("jnsf,jnth->sfth", whole, whole)


class _Sums(NamedTuple):
    """Statistics summed over paths and steps, their variances, draws of the reference (FLIPS, stat, feature)."""

    total: Float[Array, "stat feature"]
    variance: Float[Array, "stat feature"]
    null: Float[Array, "draw stat feature"]
    broken: Any


def _each(draw: Callable[[Key[Array, ""]], Array], key: Key[Array, ""]) -> Array:
    return jax.lax.map(draw, jax.random.split(key, FLIPS))


def _finite_sums(w: Array, e: Array, moved: Array, before: Array, key: Key[Array, ""]) -> _Sums:
    sure = e == 0  # a symbol of probability 0 or 1: a mean that moves after it is no martingale's
    step = w * jnp.where(sure, 0.0, moved / jnp.where(sure, 1.0, e))[:, :, None]
    variance = jnp.sum(step**2 * (before * (1 - before))[:, :, None], (0, 1))
    if before.shape[0] * before.shape[1] > GAUSSIAN:
        null = _gaussian(key, _finite_covariance(step, before))
    else:
        null = _each(lambda key: jnp.einsum("jnsf,jnf->sf", step, _innovations(key, before)), key)
    broken = (sure & (jnp.abs(moved) > 1e-6)).any()
    return _Sums(jnp.einsum("jnsf,jnf->sf", w, moved), variance, null, broken)


def _real_sums(w: Array, moves: Float[Array, "J N move feature"], key: Key[Array, ""]) -> _Sums:
    J, N, R, _ = moves.shape
    variance = jnp.einsum("jnsf,jnrf->sf", w**2, moves**2) / R
    if J * N > GAUSSIAN:
        null = _gaussian(key, jnp.einsum("jnsf,jnth,jnrf,jnrh->sfth", w, w, moves, moves, optimize=True) / R)
    else:

        def drawn(key: Key[Array, ""]) -> Array:
            return jnp.einsum("jnsf,jnf->sf", w, jnp.einsum("jnr,jnrf->jnf", _signs(key, (J, N, R)), moves))

        null = _each(drawn, key)
    return _Sums(jnp.einsum("jnsf,jnf->sf", w, moves[:, :, 0]), variance, null, False)


def _on_own_scale(before: Array, e: Array, moves: Array) -> tuple[Array, Array]:
    """Innovations and moves of u = (z - m) / s and of u^2, from those of z and z^2."""
    m = before[..., 0]
    square = jnp.maximum(before[..., 1] - m**2, 1e-30)
    s = jnp.sqrt(square)
    u = e[..., 0] / s
    first = moves[..., 0] / s[..., None]
    second = (moves[..., 1] - 2 * m[..., None] * moves[..., 0]) / square[..., None]
    return jnp.stack([u, u**2 - 1], -1), jnp.stack([first, second], -1)


def _silent(variance: Array, J: int) -> Array:
    # Rounding of equal probabilities leaves steps of 1e-8, which are none.
    return jnp.sqrt(variance / J) <= 1e-7


def martingale_tests(
    g: Float[Array, "J N feature"],
    p: Float[Array, "J step_1 feature"],
    key: Key[Array, ""],
    *,
    finite: bool,
    others: Float[Array, "J N other feature"] | None = None,
) -> tuple[Outcome, Outcome]:
    """The drift and the lag test; ``finite`` symbols, with p their probabilities, or real ones with g = (z, z^2).

    ``others`` is :attr:`Paths.others`; without it the reference of real symbols has the steps seen alone, and is at
    its level from about 300 steps in all.
    ``se`` is sqrt(V) / J; p = (1 + #{reference draws with as large a statistic}) / (1 + draws).
    """
    J = g.shape[0]
    before = p[:, :-1]
    e, moved = g - before, jnp.diff(p, axis=1)
    w = _weights(e)
    if finite:
        sums = shown = _finite_sums(w, e, moved, before, key)
    else:
        moves = moved[:, :, None]
        if others is not None:
            moves = jnp.concatenate([moves, others - before[:, :, None]], 2)
        plain = jnp.einsum("jnsf,jnrf->sf", w**2, moves**2) / moves.shape[2]
        shown = _Sums(jnp.einsum("jnsf,jnf->sf", w, moved), plain, plain[None], False)
        e, moves = _on_own_scale(before, e, moves)
        sums = _real_sums(_weights(jnp.clip(e, -CUT, CUT)), moves, key)

    silent = _silent(sums.variance, J)
    scale = jnp.where(silent, jnp.inf, jnp.sqrt(jnp.where(silent, 1.0, sums.variance)))
    t, null = sums.total / scale, sums.null / scale

    def outcome(part: slice) -> Outcome:
        statistic = jnp.abs(t[part]).max()
        larger = jnp.abs(null[:, part]).max((1, 2)) >= statistic * (1 - 1e-5)  # ties are no evidence
        chance = jnp.where(statistic > 0, (1 + larger.sum()) / (1 + FLIPS), 1.0)
        se = jnp.where(_silent(shown.variance, J), 0.0, jnp.sqrt(shown.variance))[part] / J
        return Outcome(shown.total[part].ravel() / J, se.ravel(), statistic, jnp.where(sums.broken, 0.0, chance))

    return outcome(slice(0, 1)), outcome(slice(1, None))


def is_finite(names: tuple[str, ...]) -> bool:
    """Whether features of these names are probabilities of symbols."""
    return names != ("z", "z^2")


def check_moments(p: Float[np.ndarray, "*path feature"], names: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for predictive means that are not finite, or too large beside their spread to be tested."""
    if not np.isfinite(p).all():
        raise ValueError(
            "a predictive mean or second moment is not finite; the tests follow E z and E z^2, which a Student's t of "
            "two or fewer degrees of freedom does not have: give a longer context or a prior of more shape"
        )
    if not is_finite(names) and (p[..., 1] - p[..., 0] ** 2 < 1e-4 * p[..., 1]).any():
        raise ValueError(
            "the predictive standard deviation is below 1 % of the distance from zero, too little for single "
            "precision; subtract a constant from the symbols"
        )


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
def _tests(
    g: Array, p: Array, key: Key[Array, ""], others: Array | None, *, finite: bool
) -> tuple[Outcome, Outcome, Outcome]:
    tests_key, draws_key = jax.random.split(key)
    contrast = halves(g)
    draws = t_test(contrast[:, 0]) if contrast.shape[1] == 1 else sign_flip_test(contrast, draws_key)
    return *martingale_tests(g, p, tests_key, finite=finite, others=others), draws


def calibrated_tests(paths: Paths, *, key: Key[Array, ""]) -> pd.DataFrame:
    """Drift and lag tests of one context's paths: the effect in units of g first, its s.e., then the p-values.

    ``effect`` is the component of largest |t| (``of`` says which); ``p_holm`` adjusts over drift and lag.
    The row ``drift_from_draws`` uses no probabilities; it is there for comparison and stays outside the adjustment.
    """
    check_length(paths.z.shape[1], paths.z.shape[0])
    check_moments(paths.p, paths.names)
    others = None if paths.others is None else jnp.asarray(paths.others)
    drift, lag, draws = _tests(jnp.asarray(paths.g), jnp.asarray(paths.p), key, others, finite=is_finite(paths.names))
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


def drift_test(paths: Paths) -> pd.Series:
    """``drift_from_draws`` alone, for paths without probabilities: Student's t of the contrast of halves of g(Z).

    Of the feature of smallest p-value, Bonferroni-adjusted over features.
    """
    check_length(paths.z.shape[1], paths.z.shape[0])
    found = [t_test(column) for column in halves(jnp.asarray(paths.g)).T]
    p = np.array([float(test.p_value) for test in found])
    best = found[int(p.argmin())]
    return pd.Series(
        {
            "effect": float(best.effect[0]), "se": float(best.se[0]), "of": paths.names[int(p.argmin())],
            "statistic": float(best.statistic), "p_value": min(1.0, float(p.min()) * len(p)),
        }, name="drift_from_draws",
    )  # fmt: skip


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
