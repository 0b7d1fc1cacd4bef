"""Rows of a table: a DataFrame as stored data of known columns, and stored numbers as a DataFrame."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_models._column import Column
from ppl_models._registry import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

Stored = dict[str, np.ndarray]


def encode_frame(columns: Sequence[Column], frame: pd.DataFrame) -> Stored:
    """Stored data of the rows of a frame, by columns that are known; other columns of the frame are not looked at.

    Raises ``ValueError`` naming columns that the frame lacks, and cells that a column cannot hold.
    """
    frame = checked(frame)
    lacking = [column.name for column in columns if column.name not in frame.columns]
    if lacking:
        have = [str(name) for name in frame.columns]
        raise ValueError(f"columns {lacking} are not in the frame{did_you_mean(lacking[0], have)}, which has {have}")
    x, there = np.zeros((len(frame), len(columns)), "float32"), np.zeros((len(frame), len(columns)), bool)
    for i, column in enumerate(columns):
        x[:, i], there[:, i] = column.encode(frame[column.name])
    return {"x": x, "there": there}


def decode_frame(columns: Sequence[Column], x: Any, there: Any = None, index: Any = None) -> pd.DataFrame:
    """Stored numbers (n, D) as a frame in the units of the file; missing where ``there`` (n, D) is False."""
    import pandas as pd

    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != len(columns) or (there is not None and np.shape(there) != x.shape):
        raise ValueError(f"x and there must have shape (n, {len(columns)}), got {x.shape} and {np.shape(there)}")
    cells: dict[Hashable, pd.Series] = {}
    for i, column in enumerate(columns):
        series = pd.Series(column.decode(x[:, i]), index=index)
        if there is not None and not np.asarray(there)[:, i].all():
            series = series.where(np.asarray(there)[:, i].astype(bool))
        cells[column.name] = series
    return pd.DataFrame(cells, index=index)


def checked(frame: Any) -> pd.DataFrame:
    """The frame with texts as names of its columns, all different."""
    import pandas as pd

    if isinstance(frame, str | os.PathLike):
        raise ValueError(f"a table is a DataFrame, got the path {str(frame)!r}; say table(read_table(PATH))")
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"a table is a pandas DataFrame, got {type(frame).__name__}; say table(pandas.DataFrame(x))")
    if frame.columns.nlevels > 1:
        raise ValueError(
            "column names must be single texts, got several levels; join them: frame.columns.map('_'.join)"
        )
    names = pd.Index([str(name) for name in frame.columns])
    if not names.is_unique:
        twice = sorted(set(names[names.duplicated()]))
        raise ValueError(f"columns must have different names, got {twice} more than once; rename them")
    return frame.set_axis(names, axis=1)
