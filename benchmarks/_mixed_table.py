"""A mixed table with two independent partitions of its rows, and missing entries, from a seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

GROUPS = {"site": 4, "kind": 4}
"""Partition -> its number of groups."""


def hidden_partitions(seed: int, n: int = 2000, missing: float = 0.15) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """``n`` rows of 18 columns, and the group of each row in two independent partitions.

    Each partition shows in nine columns of its own: four real ones (group means 0, 2, 4, 6 in an order of the column's
    own, noise of unit variance with correlation .4), three categorical ones of four classes (one class of probability
    .7 for each group, in an order of the column's own), two counts (negative binomial, group means 2, 6, 18, 54 in an
    order of the column's own, r = 8).  A share ``missing`` of the entries is removed at random.
    """
    rng = np.random.default_rng(seed)
    cells: dict[str, np.ndarray] = {}
    label = {name: rng.integers(0, k, n) for name, k in GROUPS.items()}
    for name, k in GROUPS.items():
        group = label[name]
        noise = rng.normal(size=(n, 4)) * np.sqrt(0.6) + rng.normal(size=(n, 1)) * np.sqrt(0.4)
        for i in range(4):
            value = 2.0 * rng.permutation(k)[group] + noise[:, i]
            cells[f"{name}_real_{i}"] = (value * 10.0 ** (i - 1)).round(3 - i)
        for i in range(3):
            likely = rng.random(n) < 0.6  # and a quarter of the rest
            cells[f"{name}_class_{i}"] = np.array(list("abcd"))[
                np.where(likely, rng.permutation(4)[group], rng.integers(0, 4, n))
            ]
        for i in range(2):
            mean = 2.0 * 3.0 ** rng.permutation(k)[group]
            cells[f"{name}_count_{i}"] = rng.negative_binomial(8, 8 / (8 + mean))
    frame = pd.DataFrame(cells)[rng.permutation(list(cells))]
    return frame.mask(rng.random(frame.shape) < missing), label
