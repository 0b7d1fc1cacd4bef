"""Confidence sequences: intervals that hold at all times together, so that a stream may be watched as it comes.

For x_1, x_2, ... with conditional means mu_i = E[x_i | past], which may change, the running target is
``m_t = (mu_1 + ... + mu_t) / t``, and P(m_t in (lower_t, upper_t) for all t >= 1) >= level.

- x in [0, 1], empirical Bernstein, exact at every t (Howard, Ramdas, McAuliffe, Sekhon, Ann. Statist. 49, 2021,
  theorem 4, with the gamma-exponential mixture of their proposition 9).  With S_t = sum (x_i - mu_i) and
  V_t = sum (x_i - mean of those before i)^2, the mixture over lambda of
  ``exp(lambda S - (-log(1 - lambda) - lambda) V)`` is a supermartingale, in closed form with the lower incomplete
  gamma function,

      m(s, v) = rho^rho e^(s+v) / gamma(rho, rho)  x^-a gamma(a, x),    a = v + rho, x = s + v + rho,

  and |S_t| stays below the s at which m(s, V_t) = 2 / alpha, on either side.
- any x with a variance, asymptotically in t (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Ann. Statist. 52, 2024,
  theorem 2.2, Robbins' normal mixture): ``mean +- sd sqrt(2 (t r^2 + 1) / (t^2 r^2) log(sqrt(t r^2 + 1) / alpha))``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import gammainc, gammaln

FEWEST = 10
"""Values before an asymptotic interval is finite."""


def log_mixture(s: Any, v: Any, rho: float) -> Float[np.ndarray, "..."]:
    """``log m(s, v)`` of the gamma-exponential mixture, for s > -v - rho."""
    a, x = np.asarray(v, np.float64) + rho, np.asarray(s, np.float64) + v + rho
    log_lower = gammaln(a) + np.log(np.maximum(gammainc(a, x), 1e-300))
    at_rho = gammaln(rho) + np.log(gammainc(rho, rho))
    return np.asarray(rho * np.log(rho) - at_rho + x - rho - a * np.log(x) + log_lower)


def boundary(v: Float[np.ndarray, " step"], alpha: float, rho: float) -> Float[np.ndarray, " step"]:
    """The s with ``m(s, v) = 1 / alpha``: one side's bound of a sum whose intrinsic time is v; by bisection."""
    v = np.asarray(v, np.float64)
    low, high = np.zeros_like(v), np.full_like(v, 8.0 + 4 * np.log(1 / alpha)) + 4 * np.sqrt(v * np.log(1 / alpha)) + v
    for _ in range(60):
        middle = (low + high) / 2
        above = log_mixture(middle, v, rho) > -np.log(alpha)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return high


def intrinsic_time(x: Float[np.ndarray, "*stream step"]) -> Float[np.ndarray, "*stream step"]:
    """``V_t = sum_i (x_i - xhat_i)^2``, xhat_i the mean of 1/2 and the values before i; x in [0, 1]."""
    count = np.arange(1, x.shape[-1] + 1)
    before = (0.5 + x.cumsum(-1) - x) / count
    return ((x - before) ** 2).cumsum(-1)


def _rho(best_at: float, alpha: float) -> float:
    # Howard et al. 2021, eq. 25: the mixture is tightest about this intrinsic time.
    spread = 2 * np.log(1 / alpha)
    return float(best_at / (spread + np.log1p(spread)))


def confidence_sequence(
    values: Any, *, bounds: tuple[float | int, float | int] | None = None, level: float = 0.95, best_at: int = 200
) -> pd.DataFrame:
    """Running mean of a stream with an interval that holds for the running conditional mean at all times together.

    ``bounds``   (least, largest) possible value: the interval is exact from the first value on.  ``None``: asymptotic,
                 infinite before the tenth value.
    ``best_at``  number of values about which the interval is tightest; it costs little elsewhere.

    For the question which of two forecasts is better, give the differences of their scores (Choe and Ramdas, Operations
    Research 72, 2024).  Columns ``mean``, ``lower``, ``upper``, index ``t``.  Raises ``ValueError`` for values that are
    not finite or not within the bounds.

    >>> confidence_sequence(np.tile([0.0, 1.0], 500), bounds=(0, 1)).loc[1000, "lower"].round(2)
    0.44
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"values must be one or more finite numbers, one axis, got shape {x.shape}; drop missing ones")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}; .95 is usual")
    if best_at < 1:
        raise ValueError(f"best_at must be at least 1, got {best_at}")
    alpha, t = 1 - level, np.arange(1, len(x) + 1)
    mean = x.cumsum() / t
    if bounds is None:
        spread = -2 * np.log(alpha)
        r2 = (spread + np.log1p(spread)) / best_at
        radius = _running_sd(x) * np.sqrt(2 * (t * r2 + 1) / (t**2 * r2) * np.log(np.sqrt(t * r2 + 1) / alpha))
        radius = np.where(t < FEWEST, np.inf, radius)
        low, high = -np.inf, np.inf
    else:
        low, high = bounds
        if not low < high or x.min() < low or x.max() > high:
            raise ValueError(f"bounds must enclose the values, got {bounds} for {x.min():g} to {x.max():g}")
        v = intrinsic_time((x - low) / (high - low))
        radius = (high - low) * boundary(v, alpha / 2, _rho(best_at / 12, alpha / 2)) / t
    made = {"mean": mean, "lower": np.maximum(mean - radius, low), "upper": np.minimum(mean + radius, high)}
    table = pd.DataFrame(made, index=pd.RangeIndex(1, len(x) + 1, name="t"))
    table.attrs.update(level=level, kind="asymptotic" if bounds is None else "empirical Bernstein")
    return table


def _running_sd(x: Float[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
    """Standard deviation of the first t values, centred first so that a large mean costs no digits."""
    centred = x - x[0]
    t = np.arange(1, len(x) + 1)
    mean = centred.cumsum() / t
    return np.sqrt(np.maximum((centred**2).cumsum() / t - mean**2, 0.0))
