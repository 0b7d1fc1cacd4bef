"""Clusterings of a posterior and their scores: responsibilities read from a DataTree, facet by facet."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from inference.checking.criticism import ACTIVE, draws_first, group, unit_variance
from inference.clustering.metrics import (
    accuracy,
    adjusted_rand,
    calibration_error,
    clusters_used,
    effective_clusters,
    hungarian_accuracy,
    labelled,
    majority,
    normalised_mutual_information,
    weighted_accuracy,
)

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "resp_"
NO_FACET = "-"


# -------------------------------------------------------------------------------------------------- reading
def responsibilities(source: Any) -> dict[str, Float[np.ndarray, "n K"]]:
    """``E_{q(z|x)} p(c | z)`` of each facet: the responsibilities of each datum, averaged over its draws.

    ``source``  the DataTree of :func:`inference.posterior` (its ``resp_<facet>``), or by facet: probabilities
                (..., n, K), whose leading axes are averaged, or cluster numbers (n,), which become zeros and ones.

    Raises ``ValueError`` where there are none, or rows that are no probabilities.
    """
    given = _given(source)
    found = {}
    for name, values in given.items():
        values = np.asarray(values)
        if values.ndim == 1 and values.dtype.kind in "iu" and len(values) and values.min() >= 0:
            values = np.eye(int(values.max()) + 1)[values]
        elif values.ndim < 2:
            raise ValueError(
                f"facet {name!r} has shape {values.shape} and dtype {values.dtype}; expected probabilities (..., n, K) "
                "or cluster numbers from 0 (n,)"
            )
        p = values.reshape(-1, *values.shape[-2:]).mean(0, dtype=np.float64)
        if not (p.min(initial=0.0) >= 0 and np.allclose(p.sum(1), 1, atol=1e-3)):
            raise ValueError(f"the rows of facet {name!r} are no probabilities: they must be >= 0 and sum to 1")
        found[name] = p
    sizes = {name: len(p) for name, p in found.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the facets cluster different numbers of data, {sizes}; pass those of one pass over x")
    return found


def _given(source: Any) -> dict[str, Any]:
    if not _is_tree(source):
        found = {str(name): values for name, values in source.items()}
    else:
        sites = group(source, "posterior")
        found = {name.removeprefix(PREFIX): v for name, v in sites.items() if name.startswith(PREFIX) and v.ndim == 4}
    if not found:
        raise ValueError("there is no clustering here: the posterior group has no site resp_<facet> with K clusters")
    return found


def _is_tree(source: Any) -> bool:
    """Whether this is a DataTree (which is a Mapping, too) and not responsibilities by facet."""
    return hasattr(source, "children")


def active_units(source: Any) -> dict[str, tuple[int, int]]:
    """Facet -> (active units, units) of ``z_<facet>``: those with ``Var_x E_q[z_d | x] > 0.01``.

    Bias of the mean over draws removed; facets whose latent the source does not hold are left out.
    """
    found, sites = {}, group(source, "posterior") if _is_tree(source) else {}
    for name in (site.removeprefix(PREFIX) for site in sites if site.startswith(PREFIX)):
        if f"z_{name}" in sites:
            variance = unit_variance(draws_first(sites[f"z_{name}"]))
            found[name] = (int((variance > ACTIVE).sum()), len(variance))
    return found


# --------------------------------------------------------------------------------------------------- scores
def scores(
    source: Any,
    factors: Mapping[str, Any] | None = None,
    *,
    train: tuple[Any, Mapping[str, Any]] | None = None,
    method: str = "model",
) -> pd.DataFrame:
    """Every facet against every factor, one row each; facets without factors get one row with ``factor`` "-".

    ==============================================  ==================================================================
    column                                          meaning
    ==============================================  ==================================================================
    ``method``, ``facet``, ``factor``               what clusters, which clustering, against which labels
    ``K``, ``used``, ``effective``                  clusters offered; that hold a datum; exp(entropy of the mean p)
    ``active``, ``units``                           units of ``z_<facet>`` with Var_x E_q[z] > 0.01, of how many
    ``n``                                           data
    ``accuracy``, ``hungarian``, ``weighted``       shares of data; see :mod:`inference.clustering.metrics`
    ``ari``, ``nmi``                                agreement of the partitions
    ``confidence``, ``ece``                         mean of the largest p; its expected calibration error
    ``named_by``                                    data whose labels name the clusters: "the same data" or "training"
    ==============================================  ==================================================================

    What cannot be known is nan.  Choosing the best facet for a factor uses labels; the table leaves that to you.

    ``source``   as in :func:`responsibilities`; ``factors`` known values by name, (n,) each, default those in the
                 tree's ``constant_data``; continuous ones (see :func:`labelled`) are left out.
    ``train``    (source, factors) of a training split: its majority labels name the clusters in ``accuracy``,
                 ``weighted`` and ``ece``, so that no label of these data is used.

    Raises ``ValueError`` where there is no clustering, and for factors of other data.

    >>> scores(inference.posterior(fit, x_test, key=key), labels)
    """
    import pandas as pd

    if factors is None:
        factors = group(source, "constant_data") if _is_tree(source) else {}
    p, active = responsibilities(source), active_units(source)
    hard = set() if _is_tree(source) else {name for name, values in source.items() if np.ndim(values) == 1}
    n = len(next(iter(p.values())))
    known: dict[str, Any] = {**labelled(factors, n)} or {NO_FACET: None}
    names = None if train is None else _names(train, p)
    rows = []
    for facet, factor in itertools.product(p, known):
        q, y = p[facet], known[factor]
        row = {"method": method, "facet": facet, "factor": factor, "K": q.shape[1]}
        row |= {"used": clusters_used(q.argmax(1)), "effective": effective_clusters(q)}
        row |= dict(zip(("active", "units"), map(float, active.get(facet, (np.nan, np.nan))), strict=True))
        row["n"] = n
        mapping = None if names is None else names[facet].get(factor)
        if names is not None and mapping is None and y is not None:
            raise ValueError(f"the training factors have no {factor!r}; give the same factors for both splits")
        row |= dict.fromkeys(_LABELLED, np.nan) if y is None else _against(q.argmax(1), y, mapping)
        row["confidence"] = np.nan if facet in hard else float(q.max(1).mean())
        row["ece"] = np.nan if facet in hard or y is None else calibration_error(q, y, mapping=mapping)
        rows.append({**row, "named_by": "the same data" if names is None else "training"})
    return pd.DataFrame(rows)


_LABELLED = ("accuracy", "hungarian", "weighted", "ari", "nmi")


def _against(clusters: np.ndarray, y: np.ndarray, mapping: Mapping[Any, Any] | None) -> dict[str, float]:
    found = (
        accuracy(clusters, y, mapping=mapping),
        hungarian_accuracy(clusters, y),
        weighted_accuracy(clusters, y, mapping=mapping),
        adjusted_rand(clusters, y),
        normalised_mutual_information(clusters, y),
    )
    return dict(zip(_LABELLED, found, strict=True))


def _names(train: tuple[Any, Mapping[str, Any]], p: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Majority label of each cluster of each facet, by factor, on a training split."""
    source, factors = train
    q = responsibilities(source)
    missing = sorted(set(p) - set(q))
    if missing:
        raise ValueError(f"the training split has no facet {missing[0]!r}, only {sorted(q)}; take both from one fit")
    known = labelled(factors, len(next(iter(q.values()))))
    return {facet: {name: majority(q[facet].argmax(1), y) for name, y in known.items()} for facet in p}


def cross_facets(source: Any) -> pd.DataFrame:
    """How far two facets say the same thing: one row a pair, ``facet, other, nmi, ari``; 0 independent, 1 copies."""
    import pandas as pd

    labels = {name: p.argmax(1) for name, p in responsibilities(source).items()}
    rows = [
        (a, b, normalised_mutual_information(labels[a], labels[b]), adjusted_rand(labels[a], labels[b]))
        for a, b in itertools.combinations(labels, 2)
    ]
    return pd.DataFrame(rows, columns=["facet", "other", "nmi", "ari"])


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of :func:`inference.scores` ordered so that what has the same factor and K stands together, models first."""
    order = {name: i for i, name in enumerate(table["factor"].unique())}
    ranked = table.assign(_factor=table["factor"].map(order), _facet=table["facet"] == NO_FACET)
    ranked = ranked.sort_values(["_factor", "K", "_facet"], kind="stable")
    return ranked.drop(columns=["_factor", "_facet"]).reset_index(drop=True)
