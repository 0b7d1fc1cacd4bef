"""A table as data: the kinds of its columns, its stored numbers, and the way back to the units of the file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pandas as pd

from ppl_models._column import Column, as_text, distinct, missing
from ppl_models._rows import Stored, checked, decode_frame as decode_frame, encode_frame as encode_frame
from ppl_models.datasets import catalogue
from ppl_models.datasets.kinds import CHOICES, find
from ppl_models.program import did_you_mean


@dataclass(frozen=True, eq=False)
class Table:
    """A table as stored data, with all that is needed to say results in its own words and units.

    ``columns``       the D columns that are modelled, in the order of the file.
    ``x``             stored data ``{"x": (n, D) float32, "there": (n, D) bool}``, 0 where an entry is missing.
    ``index``         of the file's rows.
    ``left_out``      column -> why it is not modelled.
    ``factors``       label column -> its codes (n,), -1 where missing; ``label_values``: the values of the codes.
    ``summary``       what :meth:`describe` returns.
    """

    columns: tuple[Column, ...]
    x: Stored
    index: pd.Index
    left_out: Mapping[str, str]
    factors: Mapping[str, np.ndarray]
    label_values: Mapping[str, tuple[str, ...]]
    summary: pd.DataFrame

    def __len__(self) -> int:
        return len(self.index)

    def describe(self) -> pd.DataFrame:
        """One row a column of the file: column, kind, missing (share), distinct, range, why."""
        return self.summary.copy()

    def encode(self, frame: pd.DataFrame) -> Stored:
        """Further rows (one is enough) by the same columns; labels and columns that were left out may be absent.

        Raises ``ValueError`` for columns that are absent or that the table did not have, and for cells that a column
        cannot hold (:meth:`ppl_models.program.Column.encode`).
        """
        known = {*self.summary["column"], str(self.index.name)}
        extra = sorted(str(name) for name in frame.columns if str(name) not in known)
        if extra:
            raise ValueError(
                f"columns {extra} are not in the table, which has {sorted(self.summary['column'])}; "
                f"leave them out: frame.drop(columns={extra})"
            )
        return encode_frame(self.columns, frame)

    def decode(self, x: Any, index: Any = None) -> pd.DataFrame:
        """Stored rows in the units of the file, missing where they are not there."""
        return decode_frame(self.columns, x["x"], x["there"], index)


@overload
def table(
    frame: pd.DataFrame,
    *,
    kinds: Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    index: str | None = None,
) -> Table: ...


@overload
def table(*, root: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]: ...


def table(
    frame: Any = None,
    *,
    kinds: Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    index: str | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Any:
    """Return a DataFrame as stored data: a :class:`Table` with the kind of every column, inferred and shown.

    ``kinds``   overrides, column -> ``"real"``, ``"positive"``, ``"count"``, ``"binary"``, ``"categorical"`` or
                ``"drop"``; ``"real"`` takes a column of dates as days.
    ``labels``  columns kept out of the model, against which its clusters may be scored.
    ``index``   the column that names the rows; by default the frame's own index.

    NaN, None, NaT and the usual texts (NA, n/a, null, ...) are missing entries.  The rules of inference stand in
    ``ppl_models/datasets/kinds.py``; ``describe()`` says for each column which one it met.

        found = table(read_table("patients.csv"), kinds={"grade": "categorical"}, labels="diagnosis")
        found.describe()

    Without a frame: the catalogue of named sets, one row a set, as a list of dicts (``root`` as in :func:`load`).

    Raises ``ValueError``, naming the column, for names that are not different, fewer than two rows, text among numbers,
    decimal commas, infinite numbers, a kind that its entries cannot be, and a table of which no column is left.
    """
    if frame is None:
        return catalogue.table(root=root)
    frame = checked(frame)
    names = list(frame.columns)
    kinds = {str(name): kind for name, kind in (kinds or {}).items()}
    aside = [str(name) for name in ([labels] if isinstance(labels, str) else labels or ())]
    for what, asked in (("kinds", [*kinds]), ("labels", aside), ("index", [] if index is None else [str(index)])):
        for name in asked:
            if name not in names:
                raise ValueError(f"{what} names column {name!r}{did_you_mean(name, names)}, the table has {names}")
    for name, kind in kinds.items():
        if kind not in CHOICES:
            raise ValueError(f"kinds[{name!r}] must be one of {', '.join(CHOICES)}, got {kind!r}")
    if index is not None:
        frame = frame.set_index(str(index))
        aside = [name for name in aside if name != str(index)]
    if len(frame) < 2:
        raise ValueError(
            f"a table needs at least 2 rows to tell the kinds of its columns and to fit, got {len(frame)}; "
            "use the encode of a table with more rows for one row"
        )
    columns, left_out, rows = [], {}, []
    factors, label_values = {}, {}
    for name in frame.columns:
        if name in aside:
            factors[name], label_values[name] = _codes(frame[name], name)
            row = ("label", float((factors[name] < 0).mean()), len(label_values[name]))
            rows.append((name, *row, ", ".join(label_values[name][:4]), "kept out of the model"))
            continue
        found = find(frame[name], name, kinds.get(name))
        if found.column is None:
            left_out[name] = found.why
        else:
            columns.append(found.column)
        kind = found.column.kind if found.column else "left out"
        rows.append((name, kind, found.missing, found.distinct, found.range, found.why))
    if not columns:
        raise ValueError(f"no column is left to model: {left_out}; override with kinds={{NAME: KIND}}")
    summary = pd.DataFrame(rows, columns=["column", "kind", "missing", "distinct", "range", "why"])
    x = encode_frame(columns, frame)
    return Table(tuple(columns), x, frame.index, left_out, factors, label_values, summary)


def _codes(series: pd.Series, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes (n,) int32 of a column of labels, -1 where missing, and the labels, sorted (numbers by their size)."""
    entry, cells = distinct(series, name)
    kept = np.flatnonzero(~missing(cells))
    text = not all(isinstance(cells[i], int | float | np.number | np.bool_) for i in kept)
    order = sorted(kept, key=lambda i: as_text(cells[i]) if text else cells[i])
    words = list(dict.fromkeys(as_text(cells[i]) for i in order))
    code = np.full(len(cells) + 1, -1, "int32")
    for i in order:
        code[i] = words.index(as_text(cells[i]))
    return code[entry], tuple(words)
