"""What can go wrong with a facet, read off the posterior draws: silence, dead clusters, copies, over-confidence.

``tree`` is the ArviZ DataTree of ``inference.posterior``; its ``posterior`` group holds ``z_<facet>`` (chain, draw,
datum, dim) and ``resp_<facet>`` (chain, draw, datum, cluster).

A facet can be silent in two ways, each with a line of its own: its latent says nothing about a datum (``nats in its
latent``, that is, the rate has collapsed), or the latent speaks but all data fall in one cluster (``clusters used``).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ppl_models.program import Check

SILENT = (math.log(2), 0.1)
"""Nats in a facet's latent below which the line warns (too few to tell two equally likely clusters apart), fails."""
ACTIVE = 0.01
"""Variance over data of a unit's posterior mean above which the unit is active (Burda et al. 2016, section 5)."""
COPIES = (0.5, 0.8)
"""NMI of two facets above which the line warns, fails (ours)."""
OVERCONFIDENT = (0.05, 0.2)
"""Stated minus held probability of the assignments above which the line warns, fails (ours)."""


def assignment_probabilities(tree: Any, facet: str) -> Float[np.ndarray, "datum cluster"]:
    """``E_{q(z|x)} p(c | z)``: the responsibilities of each datum, averaged over its draws."""
    resp = np.asarray(tree["posterior"][f"resp_{facet}"].values, float)
    return resp.reshape(-1, *resp.shape[-2:]).mean(0)


def normalised_mutual_information(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    """scikit-learn's NMI, ``I(a; b) / ((H(a) + H(b)) / 2)``, but 0 where a partition has one part: it says nothing."""
    from sklearn.metrics import normalized_mutual_info_score

    if min(len(np.unique(a)), len(np.unique(b))) < 2:
        return 0.0
    return float(normalized_mutual_info_score(a, b))


def signal(tree: Any, facet: str) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]:
    """``Var_x m_d(x)`` and ``E_x s_d(x)^2`` of every unit, m and s the mean and sd of its posterior.

    The mean of S draws carries the posterior's variance / S, which is subtracted: the first is unbiased and may be
    slightly negative.  Needs two draws or more.
    """
    z = np.asarray(tree["posterior"][f"z_{facet}"].values, float)
    z = z.reshape(-1, *z.shape[-2:])  # (draws, data, dim)
    within = z.var(0, ddof=1).mean(0)
    return z.mean(0).var(0, ddof=min(1, z.shape[1] - 1)) - within / len(z), within


def information(between: Float[np.ndarray, " dim"], within: Float[np.ndarray, " dim"]) -> float:
    """``1/2 sum_d log(1 + between_d / within_d)`` in nats: what Gaussian channels of these variances carry.

    The rate ``E_x KL(q(z|x) || p(z))`` also counts how badly the prior fits the posteriors, which says nothing about
    the datum; this does not.
    """
    return float(0.5 * np.log1p(np.maximum(between, 0.0) / np.maximum(within, 1e-12)).sum())


def overconfidence(tree: Any, facet: str) -> tuple[float, float]:
    """``(stated, held)``: the confidence that one draw of z states, and how far other draws of the same datum agree.

    With ``c*(z) = argmax_c p(c | z)`` and z, z' two independent draws from q(z | x),

        stated = E p(c*(z) | z),     held = E p(c*(z) | z'),

    averages over data.  ``stated - held`` is the calibration error of assignments made at one z, when the truth is a
    label drawn from q's own ``E_{q(z|x)} p(c | z)``: no known labels are needed.  It is 0 where all draws give the same
    probabilities, certain or not, and positive otherwise, for ``held <= max_c E p(c | z) <= stated``.  If every draw is
    sure of its label but two draws agree 8 times in 10, it is 0.2.  Mean confidence alone would not show that, and the
    agreement of labels alone would count data between two clusters, honestly at 1/2 each, as over-confident.  Whether
    q itself is too narrow is told by the importance weights, not by this.
    """
    resp = np.asarray(tree["posterior"][f"resp_{facet}"].values, np.float32)
    resp = resp.reshape(-1, *resp.shape[-2:])  # (draws, data, clusters)
    best, total = resp.argmax(-1)[..., None], resp.sum(0)
    own = np.take_along_axis(resp, best, -1)
    others = (np.take_along_axis(np.broadcast_to(total, resp.shape), best, -1) - own) / (len(resp) - 1)
    return float(own.mean(dtype=float)), float(others.mean(dtype=float))


def checks(tree: Any, facets: tuple[str, ...]) -> list[Check]:
    """Lines of ``inference.diagnose`` for a multi-facet clustering VAE, facet by facet and pair by pair.

    A tree of a single draw has no lines on the spread of draws.
    """
    probabilities = {name: assignment_probabilities(tree, name) for name in facets}
    labels = {name: p.argmax(1) for name, p in probabilities.items()}
    group = tree["posterior"]
    several = all(math.prod(group[f"z_{name}"].shape[:-2]) > 1 for name in facets)
    found = []
    for name, p in probabilities.items():
        clustered = p.shape[1] > 1
        found += [_latent(name, *signal(tree, name))] if several else []
        found += _clusters(name, p) if clustered else []
        found += [_overconfident(name, *overconfidence(tree, name))] if several and clustered else []
    for a, b in itertools.combinations(facets, 2):
        nmi = normalised_mutual_information(labels[a], labels[b])
        found.append(
            Check(
                check=f"facets {a} and {b}: shared information (NMI)",
                value=round(nmi, 3),
                threshold=f"<= {COPIES[0]:g}, fail above {COPIES[1]:g}",
                verdict=_verdict(nmi, *COPIES),
                meaning="how far the two partitions say the same thing: 0 independent, 1 copies of one another",
                remedy="give the facets unequal latent sizes, or drop one of them",
            )
        )
    return found


def _verdict(value: float, warn: float, fail: float) -> str:
    """Verdict of a value that should stay at or below ``warn`` (not a number fails)."""
    if not value <= fail:
        return "fail"
    return "ok" if value <= warn else "warn"


def _latent(name: str, between: Float[np.ndarray, " dim"], within: Float[np.ndarray, " dim"]) -> Check:
    nats, active = information(between, within), int((between > ACTIVE).sum())
    return Check(
        check=f"facet {name}: nats in its latent",
        value=round(nats, 3),
        threshold=f">= {SILENT[0]:.2g} (two clusters), fail below {SILENT[1]:g}",
        verdict=_verdict(-nats, -SILENT[0], -SILENT[1]),
        meaning=f"about what z_{name} tells of a datum; {active} of {len(between)} units are active (variance of the "
        f"posterior mean above {ACTIVE:g}); near 0 the facet is silent, whatever its clusters say",
        remedy="a silent latent: warmup, unequal dim, merge by norm_add or concat, a smaller sigma, or leave it out",
    )


def _clusters(name: str, p: Float[np.ndarray, "n K"]) -> list[Check]:
    from scipy import stats

    n, K = p.shape
    used = len(np.unique(p.argmax(1)))
    effective = float(np.exp(stats.entropy(p.mean(0))))
    confidence = float(p.max(1).mean())
    reachable = min(K, n)
    return [
        Check(
            check=f"facet {name}: clusters used",
            value=float(used),
            threshold=f">= 2 of {K}",
            verdict="fail" if used < 2 else "ok",
            meaning="clusters that are the most probable one of some datum; with one the facet is no partition, "
            "whatever its latent carries",
            remedy="one used cluster: see the line on its latent; if that speaks, fit the mixture after a warm-up "
            "(Facet(refit=...)), or a larger prior_spread",
        ),
        Check(
            check=f"facet {name}: dead clusters",
            value=float(K - used),
            threshold=f"<= {K - -(-reachable // 2)} of {K}",
            verdict="warn" if 2 * used < reachable else "ok",
            meaning=f"clusters that are the most probable one of no datum: {used} of {K} hold all {n} data",
            remedy="fit the mixture after a warm-up (Facet(refit=...)), or fewer clusters; a few dead ones do no harm",
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
            meaning="average largest responsibility of a datum, over draws of z: 1 = every datum clearly in one "
            "cluster",
            remedy="clusters overlap: fewer clusters, or read the facet as a continuous latent",
        ),
    ]


def _overconfident(name: str, stated: float, held: float) -> Check:
    gap = max(0.0, stated - held)
    return Check(
        check=f"facet {name}: over-confidence of an assignment",
        value=round(gap, 3),
        threshold=f"<= {OVERCONFIDENT[0]:g}, fail above {OVERCONFIDENT[1]:g}",
        verdict=_verdict(gap, *OVERCONFIDENT),
        meaning=f"one draw of z gives its label probability {stated:.2f}, other draws of the same datum give that "
        f"label {held:.2f}: the difference is what the uncertainty of z takes from it",
        remedy="read assign(rule='average'), which averages over z, never p(c | z) at one z or at the mean; fewer "
        "clusters, or a larger prior_scale",
    )
