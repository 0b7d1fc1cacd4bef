"""Classical laws of counts given how much was read: what a program p(counts | library size) stands beside.

    independent      prod_d NB(x_d; e s_d, r_d): every column by itself, e the size (exposure) of the row
    count-mixture    sum_k pi_k prod_d NB(x_d; e s_kd, r_d), concentrations shared by the components

Rows are (n, D + 1), the size last.  EM with rates of Poisson form, ``s_kd = sum_i q_ik x_id / sum_i q_ik e_i`` with one
row of the overall rates added to each component; r_d is the likeliest of a grid at the assignments of the last round.
Masses in nats, exact in double precision; sizes need not be the sums of the rows.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln, logsumexp

from inference.checking.candidates import Candidates, Score, View, grid

CONCENTRATIONS = np.geomspace(0.05, 1000.0, 18)
ROUNDS, PASSES = 15, 2
"""Rounds of EM between two choices of the concentrations, and how often these are chosen."""


def exposure_view(
    train: Float[np.ndarray, "n d"], held: Float[np.ndarray, "m d"], both: Float[np.ndarray, "b d"],
    test: Float[np.ndarray, "t d"], *, seed: int, quick: bool,
) -> View:  # fmt: skip
    """The view of counts with their sizes in a last column."""
    most = max(1, len(train) // 10)
    components = sorted({min(k, most) for k in ((5,) if quick else (3, 5, 10, 20, 40))})
    found = [
        Candidates("independent", count_mixture, grid(components=[1], seed=[seed])),
        Candidates("count-mixture", count_mixture, grid(components=components, seed=[seed])),
    ]
    return View(train, held, both, test, found)


def count_mixture(x: Float[np.ndarray, "n d"], *, components: int, seed: int) -> Score:
    """Learn the mixture from rows (n, D + 1); of one component, independent columns."""
    counts, size = x[:, :-1], x[:, -1]
    q = _start(counts, size, components, seed)
    concentration = np.full(counts.shape[1], 10.0)
    for _ in range(PASSES if components > 1 else 1):
        weights, rates = _maximised(counts, size, q)
        concentration = _concentrations(counts, size[:, None] * rates[q.argmax(1)])
        for _ in range(ROUNDS if components > 1 else 0):
            joint = _joint(counts, size, weights, rates, concentration)
            q = np.exp(joint - logsumexp(joint, 1)[:, None])
            weights, rates = _maximised(counts, size, q)

    def score(rows: np.ndarray) -> np.ndarray:
        return logsumexp(_joint(rows[:, :-1], rows[:, -1], weights, rates, concentration), 1)

    return score


def _start(counts: np.ndarray, size: np.ndarray, components: int, seed: int) -> Float[np.ndarray, "n K"]:
    """Memberships of k-means on ``log1p`` of counts scaled to the median size."""
    if components == 1:
        return np.ones((len(counts), 1))
    from sklearn.cluster import KMeans

    found = KMeans(components, n_init=2, random_state=seed).fit_predict(
        np.log1p(counts * (np.median(size) / size)[:, None])
    )
    return np.eye(components)[found]


def _maximised(
    counts: np.ndarray, size: np.ndarray, q: Float[np.ndarray, "n K"]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "K D"]]:
    """Weights and rates of the components; a row of the overall rates, half a count in all at least, is added."""
    typical = size.mean()
    overall = (counts.sum(0) + 0.5) / (size.sum() + 0.5)
    rates = (q.T @ counts + typical * overall) / ((q.T @ size)[:, None] + typical)
    return (q.sum(0) + 0.5) / (len(q) + 0.5 * q.shape[1]), rates


def _concentrations(counts: np.ndarray, mean: np.ndarray) -> Float[np.ndarray, " D"]:
    """The likeliest of the grid for each column."""
    scores = np.stack([_log_mass(counts, mean, np.full(counts.shape[1], r)).sum(0) for r in CONCENTRATIONS])
    return CONCENTRATIONS[scores.argmax(0)]


def _log_mass(counts: np.ndarray, mean: np.ndarray, r: Float[np.ndarray, " D"]) -> Float[np.ndarray, "n D"]:
    return (
        gammaln(counts + r)
        - gammaln(r)
        - gammaln(counts + 1)
        - r * np.log1p(mean / r)
        + counts * np.log(mean / (r + mean))
    )


def _joint(
    counts: np.ndarray, size: np.ndarray, weights: np.ndarray, rates: np.ndarray, r: np.ndarray
) -> Float[np.ndarray, "n K"]:
    """``log pi_k + log p(x | e, k)``, nats."""
    common = (gammaln(counts + r) - gammaln(r) - gammaln(counts + 1) + r * np.log(r)).sum(1)
    parts = []
    for rate in rates:
        mean = size[:, None] * rate
        parts.append((counts * np.log(mean) - (counts + r) * np.log(r + mean)).sum(1))
    return np.log(weights) + common[:, None] + np.stack(parts, 1)
