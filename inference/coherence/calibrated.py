"""Calibrated tests of the martingale property from the rule's own probabilities.

Under the martingale property E[g(Z_{n+k}) | z_{1:n}] does not depend on k.  Let p_jk be the rule's mean of g before
draw k of path j.  Two tests, no reference model:

    drift   e_j  = mean_{k <= N/2} p_jk - mean_{k > N/2} p_jk,           H0: E e_j = 0, Student t over the J paths
    lag     C_jk = mean_{m <= N-5} g(Z_jm) (p_{j,m+k} - p_{j,m+1}),      H0: E C_jk = 0 for k = 2..5 together,
            max_k |t_k| against sign flips of the centred C_j (one sign a path)

and ``drift_from_draws``, the first with g(Z) in place of p, where a rule shows its draws only.
"""

from __future__ import annotations

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


def lag_moments(g: Float[Array, "J N feature"], p: Float[Array, "J step_1 feature"]) -> Float[Array, "J lag_feature"]:
    """``C_jk`` for k = 2..5 and every feature."""
    M = g.shape[1] - LAGS[-1]
    # p[:, m] is the mean before draw m + 1: after Z_m comes p[:, m] with m counted from one, so index 1 goes with Z_1.
    columns = [jnp.mean(g[:, :M] * (p[:, k : k + M] - p[:, 1 : M + 1]), 1) for k in LAGS]
    return jnp.concatenate(columns, 1)


def drift_test(p: Float[Array, "J step_1 feature"], key: Key[Array, ""]) -> Outcome:
    """Drift of the probabilities between the two halves of the N draws; several features are tested together."""
    return _contrast_test(halves(p[:, :-1]), key)


def _contrast_test(contrast: Float[Array, "J feature"], key: Key[Array, ""]) -> Outcome:
    return t_test(contrast[:, 0]) if contrast.shape[1] == 1 else sign_flip_test(contrast, key)


def lag_test(g: Float[Array, "J N feature"], p: Float[Array, "J step_1 feature"], key: Key[Array, ""]) -> Outcome:
    """Whether what a symbol does to the next probability also lasts for the following four."""
    return sign_flip_test(lag_moments(g, p), key)


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


@jax.jit
def _tests(g: Array, p: Array, key: Key[Array, ""]) -> tuple[Outcome, Outcome, Outcome]:
    drift_key, lag_key, draws_key = jax.random.split(key, 3)
    return drift_test(p, drift_key), lag_test(g, p, lag_key), _contrast_test(halves(g), draws_key)


def calibrated_tests(paths: Paths, *, key: Key[Array, ""]) -> pd.DataFrame:
    """Drift and lag tests of one context's paths: the effect in units of g first, its s.e., then the p-values.

    ``effect`` is the component of largest |t| (``of`` says which); ``p_holm`` adjusts over drift and lag.
    The row ``drift_from_draws`` uses no probabilities; it is there for comparison and stays outside the adjustment.
    """
    check_length(paths.z.shape[1], paths.z.shape[0])
    drift, lag, draws = _tests(jnp.asarray(paths.g), jnp.asarray(paths.p), key)
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
