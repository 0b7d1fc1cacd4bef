"""What two clustering models of labelled data have learnt, in two sentences made of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def learnt(
    comparison: pd.DataFrame, model: str, tree: Any, factors: Mapping[str, Any], what: str, bars: pd.DataFrame
) -> list[str]:
    """Two sentences: which model predicts new data better and by how much, and what the facets of one have found.

    ``comparison``  what :func:`inference.compare` returns.
    ``tree``        posterior DataTree of ``model``, of the same data as the known ``factors``: its facets are held
                    against ``what``, a factor that no model has seen.
    ``bars``        what :func:`inference.clustering_baselines` returns: the best of it stands beside the first facet.
    """
    from inference.clustering import scores

    table = scores(tree, {what: factors[what]})
    rows = table[table["factor"] == what].sort_values("nmi", ascending=False, kind="stable").to_dict("records")
    bar = bars[bars["factor"] == what].sort_values("accuracy").iloc[-1]
    beside = f"{bar['method'].partition(',')[0]} with {int(bar['K'])}: {bar['accuracy']:.0%}"
    return [ahead(comparison), carries(rows, what, model, beside)]


def ahead(comparison: pd.DataFrame) -> str:
    """Which of the first two models predicts a new datum better: difference of means and its paired standard error."""
    best, other = map(str, comparison.index[:2])
    row = comparison.iloc[1]
    n = int(row["n"])
    mean, se = -row["elpd_diff"] / n, row["dse"] / n
    if not math.isfinite(mean):
        return f"{other} gives some unseen data no probability, {best} gives it to all."
    sized = f"{mean:.2f} ± {se:.2f} nats a datum ({n:,} unseen data)"
    if mean > 2 * se:
        return f"{best} predicts unseen data better than {other}, by {sized}."
    return f"{best} and {other} predict unseen data about equally well: they differ by {sized}."


def carries(rows: list[dict[Any, Any]], what: str, model: str, bar: str) -> str:
    """What each facet of a model has to do with a known factor; ``rows`` of ``scores``, the closest facet first.

    ``bar`` says how well a classical clustering with as many clusters does.
    """
    first, *others = rows
    text = (
        f"Without having seen a label, facet {first['facet']} of {model} sorts them into {int(first['used'])} "
        f"clusters: to call each by its most common {what} is right for {first['accuracy']:.0%} of them "
        f"({bar})"
    )
    if not others:
        return text + "."
    said = ", ".join(
        f"facet {row['facet']} ({int(row['used'])} clusters) knows "
        + ("next to nothing" if row["nmi"] < 0.05 else "little" if row["nmi"] < 0.5 * first["nmi"] else "much")
        + f" of the {what} (shared information {row['nmi']:.2f} against {first['nmi']:.2f})"
        for row in others
    )
    return f"{text}; {said}."
