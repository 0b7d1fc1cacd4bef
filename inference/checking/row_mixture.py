"""Mixtures for the rows of a table, by EM with missing entries integrated out.

    p(x) = sum_k pi_k N(x_G; m_k, S_k) prod_d Cat(x_d; p_kd) prod_c NB(x_c; m_kc, r_kc)

over the entries of a row that are there: a location mixture (Lawrence & Krzanowski 1996, "Mixture separation for
mixed-mode data", with independent discrete columns); without real and positive columns it is the latent class model,
with one component a Gaussian beside independent columns.  Log densities are in the units of the file, nats.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from inference.checking.candidates import Score
from inference.checking.gaps import Gaps, at_least, log_normal, solve
from inference.checking.row_blocks import Blocks, Layout, count_laws, log_counts, log_shares
from ppl_models.program import Column

Shape = Literal["full", "tied", "diag"]
SHORT, LONG, TOLERANCE = 10, 200, 2e-4
"""Updates of each start and of the best of them at most; gain of mean log p, nats, below which EM has converged."""


@dataclass(frozen=True)
class Mixture:
    """Parameters: ``log_pi`` (K,), ``mean`` (K, G), ``covariance`` (K, G, G) standardised; shares and counts."""

    log_pi: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    log_share: np.ndarray
    count_mean: np.ndarray
    concentration: np.ndarray

    def discrete(self, blocks: Blocks) -> Float[np.ndarray, "n K"]:
        """Log mass of the discrete entries that are there under each component."""
        found = blocks.one_hot @ self.log_share.T
        return found + log_counts(blocks.counts, self.count_mean, self.concentration) if blocks.counts.size else found

    def score(self, blocks: Blocks) -> Float[np.ndarray, " n"]:
        """Log density (nats) of each row in the units of the file."""
        joint = self.log_pi + self.discrete(blocks) + log_normal(blocks.gaps, self.mean, self.covariance)
        return _log_sum(joint) + blocks.jacobian


def row_mixture(
    columns: Sequence[Column],
    x: Float[np.ndarray, "n D"],
    *,
    components: int,
    covariance: Shape = "full",
    ridge: float = 1e-3,
    pseudo: float = 0.5,
    starts: int = 1,
    seed: int = 0,
) -> Score:
    """The mixture of highest penalised likelihood for stored rows, NaN where an entry is missing.

    ``covariance``  of the components: ``full``, one for all (``tied``), or diagonal.
    ``ridge``       added to their diagonals, as a share of each column's variance.
    ``pseudo``      rows a class (and of the overall mean of a count) added to the discrete laws of each component.
    ``starts``      from k-means with other seeds; the best after ten updates goes on.

    Covariances stay above the floors of the columns (:func:`inference.checking.gaps.at_least`).  scikit-learn's EM does
    the work where all columns are real and nothing is missing.
    """
    layout = Layout.of(columns, x)
    blocks = Blocks(layout, x)
    em = EM(blocks, covariance, ridge, pseudo)
    if components == 1:
        fitted = em.run(em.start(np.ones((blocks.n, 1)), blocks.gaps.x), LONG)[0]
    elif blocks.gaps.complete and len(layout.gaussian) == len(columns):
        fitted = _by_sklearn(em, components, starts, seed)
    else:
        one = EM(blocks, "full", max(ridge, 1e-3), pseudo)
        whole = one.run(one.start(np.ones((blocks.n, 1)), blocks.gaps.x), SHORT)[0]
        filled = fill(blocks.gaps, whole)
        tried = [em.run(em.start(w, filled), SHORT) for w in _k_means(blocks, filled, components, starts, seed)]
        fitted = em.run(max(tried, key=lambda pair: pair[1])[0], LONG)[0]
    return lambda fresh: fitted.score(Blocks(layout, fresh))


@dataclass(frozen=True)
class EM:
    """Updates of a mixture for given rows."""

    blocks: Blocks
    shape: Shape
    ridge: float
    pseudo: float

    def start(self, weight: Float[np.ndarray, "n K"], filled: Float[np.ndarray, "n G"]) -> Mixture:
        """The mixture of weights, missing entries filled."""
        total = np.maximum(weight.sum(0), 1e-9)
        mean = weight.T @ filled / total[:, None]
        spread = np.stack([(w[:, None] * (filled - m)).T @ (filled - m) for w, m in zip(weight.T, mean, strict=True)])
        return self._discrete(weight, mean, self._covariance(spread, total))

    def run(self, mixture: Mixture, most: int) -> tuple[Mixture, float]:
        """At most ``most`` updates; the mixture and its mean log p before the last of them."""
        last, value = -math.inf, -math.inf
        for _ in range(most):
            new, value = self.update(mixture)
            if value - last < TOLERANCE:
                break
            mixture, last = new, value
        return mixture, value

    def update(self, mixture: Mixture) -> tuple[Mixture, float]:
        """One update, and the mean log p of the mixture that was given (standardised, nats)."""
        blocks, gaps = self.blocks, self.blocks.gaps
        K, G = mixture.mean.shape
        joint = mixture.log_pi + mixture.discrete(blocks)
        first, second, used = np.zeros((K, G)), np.zeros((K, G, G)), np.zeros((K, G, G))
        if not G:
            weight, value = _weights(joint)
            return self._discrete(weight, mixture.mean, mixture.covariance), value
        weight, values = np.empty_like(joint), np.empty(blocks.n)
        for part in gaps.parts(K):
            found = solve(gaps, part, mixture.mean, mixture.covariance)
            here = joint[part.rows] + found.log_p
            top = _log_sum(here)
            values[part.rows] = top
            w = np.exp(here - top[:, None])
            weight[part.rows] = w
            by_pattern = np.zeros((len(part.patterns), K))
            np.add.at(by_pattern, part.which, w)
            used += np.einsum("pk,pkgh->kgh", by_pattern, found.precision)
            for k in range(K):
                filled = found.white[:, k] @ mixture.covariance[k]  # the expectation less the mean
                first[k] += w[:, k] @ filled
                second[k] += (w[:, [k]] * filled).T @ filled
        total = np.maximum(weight.sum(0), 1e-9)
        shift = first / total[:, None]
        # Cov[x | x_o] = S - S Q S is 0 between entries that are there.
        hidden = total[:, None, None] * mixture.covariance - mixture.covariance @ used @ mixture.covariance
        spread = second + hidden - total[:, None, None] * shift[:, :, None] * shift[:, None, :]
        return self._discrete(weight, mixture.mean + shift, self._covariance(spread, total)), float(values.mean())

    def _covariance(self, spread: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Covariances (K, G, G) of weighted sums of squares, with ridge, above the floors."""
        G = spread.shape[-1]
        if self.shape == "tied":
            found = np.broadcast_to(spread.sum(0) / total.sum(), spread.shape)
        else:
            found = spread / total[:, None, None]
        found = 0.5 * (found + np.swapaxes(found, -1, -2)) + self.ridge * np.eye(G)
        floor = self.blocks.layout.floor
        if self.shape == "diag":
            return np.maximum(found, np.diag(floor**2)) * np.eye(G)
        return at_least(found, floor)

    def _discrete(self, weight: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> Mixture:
        share = log_shares(self.blocks, weight, self.pseudo)
        counts = count_laws(self.blocks, weight, self.pseudo)
        pi = (weight.sum(0) + 1e-6) / (weight.sum() + 1e-6 * weight.shape[1])
        return Mixture(np.log(pi), mean, covariance, share, *counts)


def fill(gaps: Gaps, mixture: Mixture) -> Float[np.ndarray, "n G"]:
    """The real and positive columns, missing entries replaced by their expectation under the first component."""
    filled = gaps.x.copy()
    if gaps.x.shape[1] and not gaps.complete:
        mean, covariance = mixture.mean[:1], mixture.covariance[:1]
        for part in gaps.parts(1):
            filled[part.rows] = mean + solve(gaps, part, mean, covariance).white[:, 0] @ covariance[0]
    return filled


def _log_sum(joint: np.ndarray) -> np.ndarray:
    top = joint.max(1)
    return top + np.log(np.exp(joint - top[:, None]).sum(1))


def _weights(joint: np.ndarray) -> tuple[np.ndarray, float]:
    total = _log_sum(joint)
    return np.exp(joint - total[:, None]), float(total.mean())


def _k_means(blocks: Blocks, filled: np.ndarray, components: int, starts: int, seed: int) -> list[np.ndarray]:
    """Weights (n, K) of each start; every other one is stopped after one step, for other starts than the best."""
    from sklearn.cluster import KMeans

    features, found = blocks.features(filled), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct rows than components; stopped early
        for i in range(starts):
            means = KMeans(components, n_init=1, max_iter=1 if i % 2 else 100, random_state=(seed + i) % 2**31)
            found.append(np.eye(components)[means.fit_predict(features)])
    return found


def _by_sklearn(em: EM, components: int, starts: int, seed: int) -> Mixture:
    """scikit-learn's mixture of the standardised rows; where the floors bind, EM goes on under them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    found = GaussianMixture(
        components, covariance_type=em.shape, reg_covar=em.ridge, n_init=starts, tol=TOLERANCE, max_iter=LONG,
        random_state=seed % 2**31,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last thousandths of a nat are not the point
        found.fit(em.blocks.gaps.x)
    G = em.blocks.gaps.x.shape[1]
    raw = found.covariances_
    covariance = raw if em.shape == "full" else raw[:, None] * np.eye(G) if em.shape == "diag" else np.stack(
        [raw] * components)  # fmt: skip
    start = em.start(np.full((em.blocks.n, components), 1 / components), em.blocks.gaps.x)
    mixture = replace(start, log_pi=np.log(found.weights_ + 1e-12), mean=found.means_, covariance=covariance)
    floored = at_least(covariance, em.blocks.layout.floor)
    bound = not np.allclose(floored, covariance, rtol=1e-9, atol=0)
    return em.run(replace(mixture, covariance=floored), LONG)[0] if bound else mixture
