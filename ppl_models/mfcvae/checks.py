"""What can go wrong with a facet, read off the posterior draws: silence, dead clusters, copies.

``tree`` is the ArviZ DataTree of ``inference.posterior``; its ``posterior`` group holds ``z_<facet>`` (chain, draw,
datum, dim) and ``resp_<facet>`` (chain, draw, datum, cluster).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ppl_models.program import Check


def assignment_probabilities(tree: Any, facet: str) -> Float[np.ndarray, "datum cluster"]:
    """``E_{q(z|x)} p(c | z)``: the responsibilities of each datum, averaged over its draws."""
    resp = np.asarray(tree["posterior"][f"resp_{facet}"].values, float)
    return resp.reshape(-1, *resp.shape[-2:]).mean(0)


def contingency(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> Int[np.ndarray, "rows columns"]:
    """How many data fall in cluster i of ``a`` and cluster j of ``b``."""
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1), int)
    np.add.at(table, (a, b), 1)
    return table


def entropy(p: Float[np.ndarray, "*shape"]) -> float:
    """``-sum p log p`` in nats, zero entries counting nothing."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def normalised_mutual_information(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    """``I(a; b) / ((H(a) + H(b)) / 2)``: 0 for independent partitions, 1 for equal ones, 0 if both are trivial."""
    joint = contingency(a, b) / len(a)
    h_a, h_b = entropy(joint.sum(1)), entropy(joint.sum(0))
    if h_a + h_b == 0:
        return 0.0
    return max(0.0, (h_a + h_b - entropy(joint.ravel())) / ((h_a + h_b) / 2))


def checks(tree: Any, facets: tuple[str, ...]) -> list[Check]:
    """Lines of ``inference.diagnose`` for a multi-facet clustering VAE, facet by facet and pair by pair."""
    probabilities = {name: assignment_probabilities(tree, name) for name in facets}
    labels = {name: p.argmax(1) for name, p in probabilities.items()}
    found = []
    for name in facets:
        found += _facet(name, probabilities[name])
    for a, b in itertools.combinations(facets, 2):
        nmi = normalised_mutual_information(labels[a], labels[b])
        found.append(
            Check(
                check=f"facets {a} and {b}: shared information (NMI)",
                value=round(nmi, 3),
                threshold="<= 0.5, fail above 0.8",
                verdict="ok" if nmi <= 0.5 else "warn" if nmi <= 0.8 else "fail",
                meaning="how far the two partitions say the same thing: 0 independent, 1 copies of one another",
                remedy="give the facets unequal latent sizes, or drop one of them",
            )
        )
    return found


def _facet(name: str, p: Float[np.ndarray, "n K"]) -> list[Check]:
    n, K = p.shape
    used = len(np.unique(p.argmax(1)))
    effective = float(np.exp(entropy(p.mean(0))))
    confidence = float(p.max(1).mean())
    if K == 1:
        return []
    reachable = min(K, n)
    return [
        Check(
            check=f"facet {name}: clusters used",
            value=float(used),
            threshold=f">= 2 of {K}; warn below {-(-reachable // 2)}",
            verdict="fail" if used < 2 else "warn" if 2 * used < reachable else "ok",
            meaning=f"clusters that are the most probable one of some datum; the other {K - used} are dead",
            remedy="with one used cluster (a silent facet): warmup, unequal dim, merge by norm_add or concat; else "
            "fewer clusters, a larger prior_spread, or another key",
        ),
        Check(
            check=f"facet {name}: effective number of clusters",
            value=round(effective, 2),
            threshold=f">= 2 of {K}",
            verdict="ok" if effective >= 2 else "warn",
            meaning="exp of the entropy of the average responsibility: clusters counted by the share of data they hold",
            remedy="one cluster holds nearly all data: lower prior_scale, or fix the weights (learn_weights=False)",
        ),
        Check(
            check=f"facet {name}: mean confidence",
            value=round(confidence, 3),
            threshold=">= 0.5",
            verdict="ok" if confidence >= 0.5 else "warn",
            meaning="average largest responsibility of a datum: 1 = every datum clearly in one cluster",
            remedy="clusters overlap: fewer clusters, or read the facet as a continuous latent",
        ),
    ]
