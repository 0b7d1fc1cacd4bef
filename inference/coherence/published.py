"""The tests T1, T2, T3 of Falck, Wang and Holmes (ICML 2024, arXiv 2406.00793), as published.

    T_{1,g}  mean of g(X) over the first floor(N/2) columns minus the mean over the rest; g(z) = z, also z^2 if real
    T_{2,k}  A_{k+1} - A_1, k = 1..4;  A_i = mean_j t_j / (1e-5 + D_i),  t_j = mean_m X_{j,m+i} X_{j,m} inside its own
             1.5-IQR fences,  D_i = mean of X^2 over all paths and columns i..N-i-1 (from zero)
    T_3      interquartile range over paths of the path means

Each is compared with a 95 % band under a reference Bayes model: theta_j from its posterior, X_jk | theta_j i.i.d.
They follow the released plotting code and are kept with their defects, so that published figures can be re-read:
T_{2,4} is undefined for N <= 10, four lags share one per-lag band, T_1's band belongs to one Bayes model rather than
to the martingale property, and T_3 mixes the prior with non-Bayesian behaviour.  ``calibrated_tests`` repairs these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array, Key, Num

from inference.coherence.paths import Paths

T2_LAGS = (1, 2, 3, 4)
STABILISER = 1e-5


def keep_paths(X: Num[np.ndarray, "J N"]) -> np.ndarray:
    """Outlier rule: paths whose mean absolute value lies within 1.5 IQR of the quartiles (J,) bool."""
    return _fences(np.abs(X).mean(-1))


def _fences(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, [0.25, 0.75], axis=-1, keepdims=True)
    reach = 1.5 * (high - low)
    return (values >= low - reach) & (values <= high + reach)


def t1(X: Num[np.ndarray, "*rep J N"], power: int = 1) -> np.ndarray | np.floating:
    """``T_{1,g}`` with g(z) = z^power."""
    g, half = np.asarray(X, float) ** power, X.shape[-1] // 2
    return g[..., :half].mean((-1, -2)) - g[..., half:].mean((-1, -2))


def _ratio(X: np.ndarray, i: int) -> np.ndarray | np.floating:
    N = X.shape[-1]
    square = X[..., i : N - i] ** 2
    if square.shape[-1] == 0:
        return np.full(X.shape[:-2], np.nan)
    t = (X[..., i:] * X[..., : N - i]).mean(-1)
    kept = _fences(t)
    return np.where(kept, t, 0.0).sum(-1) / kept.sum(-1) / (STABILISER + square.mean((-1, -2)))


def t2(X: Num[np.ndarray, "*rep J N"], k: int) -> np.ndarray | np.floating:
    """``T_{2,k}``; NaN where a window is empty (k = 4 for N <= 10)."""
    X = np.asarray(X, float)
    return _ratio(X, k + 1) - _ratio(X, 1)


def t3(X: Num[np.ndarray, "*rep J N"]) -> np.ndarray | np.floating:
    """``T_3``: interquartile range of the path means."""
    low, high = np.quantile(np.asarray(X, float).mean(-1), [0.25, 0.75], axis=-1)
    return high - low


@dataclass(frozen=True)
class BernoulliReference:
    """``theta_j ~ Beta(n m + 1, n (1 - m) + 1)``, ``X_jk ~ Bernoulli(theta_j)``; m a mean, n the context's length."""

    powers: tuple[int, ...] = (1,)

    def draw(self, rng: np.random.Generator, m: float, n: int, size: tuple[int, int, int]) -> np.ndarray:
        """Replicates (B, J, N)."""
        theta = rng.beta(n * m + 1, n * (1 - m) + 1, size[:2])
        return (rng.random(size) < theta[..., None]).astype(np.float64)


@dataclass(frozen=True)
class GaussianReference:
    """``theta_j ~ N(n m / (n + .01), 1 / (n + .01))``, ``X_jk ~ N(theta_j, 1)`` truncated toward zero to one decimal.

    The truncation mimics tokenised numbers; it pulls means toward zero, where rounding would not.
    """

    powers: tuple[int, ...] = (1, 2)

    def draw(self, rng: np.random.Generator, m: float, n: int, size: tuple[int, int, int]) -> np.ndarray:
        """Replicates (B, J, N)."""
        theta = rng.normal(n * m / (n + 0.01), (n + 0.01) ** -0.5, size[:2])
        return np.trunc(rng.normal(theta[..., None], 1.0, size) * 10) / 10


def falck2024(
    paths: Paths,
    *,
    key: Key[Array, ""],
    replicates: int = 600,
    fraction: float = 1.0,
    reference: BernoulliReference | GaussianReference | None = None,
) -> pd.DataFrame:
    """T1, T2 and T3 of one context's paths with the published 95 % bands; one row a statistic.

    ``value`` [``lower``, ``upper``] and ``inside``; ``inside_tolerance`` for the band wider by 0.1/n on either side
    (T1 and T2 only).  T1's reference is matched to the mean of the paths, T2's and T3's to the mean of the context;
    one band, that of k = 1, serves every T2.  An undefined statistic has value NaN and is not inside.  ``fraction``
    is the publication's fractional Bayes: the reference counts int(fraction n) observations.  There are no p-values
    in the publication, and no correction for reading six statistics.

    ``reference`` defaults to the Bernoulli one for binary rules and the Gaussian one for real symbols; ``ValueError``
    for more than two symbols.
    """
    n = len(paths.context)
    if n == 0:
        raise ValueError("the published tests match a reference to the mean of the context, got an empty one")
    if not fraction > 0 or int(fraction * n) < 1:
        raise ValueError(f"fraction must leave at least one observation of {n}, got {fraction!r}")
    if reference is None:
        if len(paths.names) > 2:
            raise ValueError(f"T1-T3 are published for binary and real symbols, got {len(paths.names)} symbols")
        reference = BernoulliReference() if len(paths.names) == 1 else GaussianReference()
    if paths.z.shape[1] < 4:
        raise ValueError(f"T1-T3 need paths of at least 4 steps, got {paths.z.shape[1]}")
    kept = keep_paths(paths.z)
    X = np.asarray(paths.z, float)[kept]
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    size, n_ref = (replicates, *X.shape), int(fraction * n)
    matched = reference.draw(rng, float(X.mean()), n_ref, size)
    observed = reference.draw(rng, float(np.mean(paths.context)), n_ref, size)
    shared = t2(observed, 1)
    rows = {("T1" if g == 1 else "T1_square"): (t1(X, g), t1(matched, g)) for g in reference.powers}
    rows |= {f"T2_{k}": (t2(X, k), shared) for k in T2_LAGS}
    rows |= {"T3": (t3(X), t3(observed))}
    table = pd.DataFrame(
        [_row(name, float(value), band, 0.1 / n) for name, (value, band) in rows.items()],
        columns=["statistic", "value", "lower", "upper", "inside", "inside_tolerance"],
    ).set_index("statistic")
    table.attrs.update(method="falck2024", n=n, steps=X.shape[1], paths=len(paths.z), paths_kept=int(kept.sum()))
    return table


def _row(name: str, value: float, band: Any, slack: float) -> tuple[object, ...]:
    lower, upper = np.nan, np.nan
    if not np.isnan(band).any():
        lower, upper = np.quantile(band, [0.025, 0.975])
    wide = np.nan if name == "T3" else float(lower - slack <= value <= upper + slack)
    return name, value, lower, upper, bool(lower <= value <= upper), wide
