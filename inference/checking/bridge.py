"""Bridge sampling: a normalising constant from draws of the law itself and of a normalised proposal."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp


def bridge(
    at_law: Float[np.ndarray, " n1"], at_proposal: Float[np.ndarray, " n2"], *, effective: float | int | None = None
) -> tuple[float, float]:
    """log Z of an unnormalised density p and its standard error, in nats.

    ``at_law``       log p - log q at draws from p / Z, ``at_proposal`` at draws from the normalised q.
    ``effective``    how many independent draws the first are worth; all of them unless it is given.

    Z = E_q[h p] / E_p[h q] with the optimal h = 1 / (s1 p + s2 Z q), by iteration (Meng & Wong 1996, eq. 4.1); the
    error is that of Frühwirth-Schnatter 2004.  Neither set of draws need cover the tails of the other, only overlap.
    nan where a log density ratio is nan or infinite above.
    """
    first, second = np.asarray(at_law, float), np.asarray(at_proposal, float)
    n1 = min(float(len(first)), float(effective or math.inf))
    n2 = float(len(second))
    if not np.isfinite(first).all() or np.isnan(second).any() or np.isposinf(second).any():
        return math.nan, math.nan
    log_s1, log_s2 = math.log(n1 / (n1 + n2)), math.log(n2 / (n1 + n2))
    log_z = float(np.median(first))
    for _ in range(1000):
        top = second - np.logaddexp(log_s1 + second, log_s2 + log_z)
        bottom = -np.logaddexp(log_s1 + first, log_s2 + log_z)
        new = float(logsumexp(top) - math.log(n2) - logsumexp(bottom) + math.log(len(first)))
        done, log_z = abs(new - log_z) < 1e-8, new
        if done:
            break

    def relative(log_f: np.ndarray, n: float) -> float:
        f = np.exp(log_f - log_f.max())
        return float(f.var(ddof=1) / f.mean() ** 2 / n)

    top = second - np.logaddexp(log_s1 + second, log_s2 + log_z)
    bottom = -np.logaddexp(log_s1 + first, log_s2 + log_z)
    return log_z, math.sqrt(relative(top, n2) + relative(bottom, n1))
