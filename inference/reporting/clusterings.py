"""The report's table of clusterings against known factors, beside classical clusterings with as many clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Key

from inference.checking.criticism import group
from inference.clustering import (
    PREFIX,
    clustering_baselines,
    cross_facets,
    labelled,
    scores,
    side_by_side,
)
from inference.fitting.folder import write_text
from inference.reporting import markup

if TYPE_CHECKING:
    import jax
    import pandas as pd

MOST, NUMBERS = 4000, 2**22
"""Training data, and numbers of them, that the classical clusterings of a report are fitted to at most."""
FACTORS_SHOWN = 4
COLUMNS = {
    "method": "method", "facet": "facet", "factor": "factor", "K": "K", "used": "used", "accuracy": "accuracy",
    "hungarian": "one-to-one", "ari": "ARI", "nmi": "NMI", "ece": "calibration error",
}  # fmt: skip


def clusterings(
    tree: Any,
    x: np.ndarray,
    factors: Mapping[str, Any],
    train: Any,
    folder: Path,
    *,
    key: Key[jax.Array, ""],
    what: str = "pixels",
) -> str:
    """HTML of the section, and ``clustering.csv`` in ``folder``; empty without clusterings or without labels.

    ``x``, ``train``  data as plain numbers (n, ...), see :func:`inference.clustering.plain_numbers`.
    ``what``          they are called: pixels, or columns.
    """
    import pandas as pd

    known = labelled(factors, len(x))
    if not known or not any(name.startswith(PREFIX) for name in group(tree, "posterior")):
        return ""
    own = scores(tree, known)
    source = np.asarray(x if train is None else train)
    most = max(1, min(MOST, NUMBERS // max(1, math.prod(x.shape[1:]))))
    said = f"fitted to {min(most, len(source)):,} {'of these' if train is None else 'training'} data"
    tables = [own]
    try:
        ks = {int(k) for k in own["K"] if k > 1}
        tables += [clustering_baselines(source, x, ks, known, key=key, most=most, what=what)] if ks else []
    except ValueError as error:
        said = f"left out: {error}"
    table = side_by_side(pd.concat(tables, ignore_index=True))
    write_text(folder / "clustering.csv", table.to_csv(index=False))
    shown = table[table["factor"].isin(list(known)[:FACTORS_SHOWN])]
    pairs = cross_facets(tree)
    copies = "; ".join(f"{r.facet} and {r.other} {r.nmi:.2f}" for r in pairs.itertuples())
    return (
        '<h2 id="clusterings">Clusterings against known factors</h2><p>No label was used in training. Accuracy calls '
        "a cluster by its most common label and grows with the number of clusters K by itself; one-to-one gives every "
        "label one cluster; ARI and NMI are 0 for unrelated partitions and 1 for equal ones. Good: for each factor a "
        "facet that beats k-means and the mixture of the same K, and a calibration error near 0 (mean distance of the "
        f"assignment probability from how often it is right). K-means and mixtures: {escape(said)}.</p>"
        + markup.table(tuple(COLUMNS.values()), _rows(shown))
        + (f"<p>Shared information of facets (NMI, good: near 0): {escape(copies)}.</p>" if copies else "")
    )


def _rows(table: pd.DataFrame) -> list[list[Any]]:
    """Cells of the table on the page: three decimals, empty where unknown."""
    found = [[row[c] for c in COLUMNS] for row in table.round(3).to_dict(orient="records")]
    return [["" if value != value else value for value in row] for row in found]
