"""One column of a table: its kind, how a cell becomes the number that is stored, and the way back.

    kind         stored number of a cell v             log |d stored / d v|
    real         (v - loc) / scale                     -log scale
    positive     (log v - loc) / scale, v > 0          -log scale - log v
    count        v itself: 0, 1, 2, ...                0
    binary       its code, 0 or 1                      0
    categorical  its code, 0..k-1                      0

The arithmetic is float64 on the host; what is stored is float32.  Pure Python, NumPy and pandas: no JAX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

Kind = Literal["real", "positive", "count", "binary", "categorical"]
KINDS: tuple[str, ...] = get_args(Kind)
NUMERIC = ("real", "positive", "count")
MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>")
    + ("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "NaT")
)
"""Texts that stand for a missing entry: those that ``pandas.read_csv`` takes for one."""
MOST = 2**24
"""Counts below this are exact in float32."""
_EPOCH, _DAY = np.datetime64("1970-01-01", "ns"), np.timedelta64(1, "D")


@dataclass(frozen=True)
class Column:
    """A column of a table, as a likelihood and a run need it.

    ``name``        as in the file.
    ``kind``        see the table above.
    ``loc``         ``scale``: standardise the stored number of a real or positive column; of a count they standardise
                    ``log1p v`` for an encoder's input and a decoder's output, not what is stored.
    ``values``      classes in the order of their codes; two for a binary column, in any other empty.
    ``resolution``  real and positive: the step in which the file records the column (0.1, say), 0 where it has none.
                    A scale is kept above ``resolution / sqrt(2 pi)``, so that no density exceeds one a step: a number
                    that is known to a tenth cannot be predicted better than that.
    ``date``        a real column of dates, scored in days since 1970-01-01.
    """

    name: str
    kind: Kind
    loc: float = 0.0
    scale: float = 1.0
    values: tuple[bool | int | float | str, ...] = ()
    resolution: float = 0.0
    date: bool = False
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if self.kind not in KINDS:
            raise ValueError(f"column {self.name!r}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not (math.isfinite(self.loc) and 0 < self.scale < math.inf and 0 <= self.resolution < math.inf):
            raise ValueError(
                f"column {self.name!r}: expected a finite loc, scale > 0 and resolution >= 0, "
                f"got {self.loc}, {self.scale} and {self.resolution}"
            )
        known = len(set(self.values))
        if known != len(self.values):
            raise ValueError(f"column {self.name!r}: values must differ from each other, got {self.values}")
        wanted = {"binary": known == 2, "categorical": known >= 2}.get(self.kind, known == 0)
        if not wanted:
            needs = {"binary": "two values", "categorical": "two values or more"}.get(self.kind, "no values")
            raise ValueError(f"column {self.name!r}: a {self.kind} column has {needs}, got {self.values}")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise ValueError(f"column {self.name!r}: values must be finite, got {self.values}; leave missing ones out")
        if self.date and self.kind != "real":
            raise ValueError(f"column {self.name!r}: dates are scored as real numbers of days, got kind {self.kind!r}")

    def encode(self, series: Any) -> tuple[np.ndarray, np.ndarray]:
        """Stored numbers (n,) float32 of a pandas Series, 0 where missing, and where they are there (n,) bool.

        Raises ``ValueError`` naming the column, the first wrong row and its value, and the remedy: text among
        numbers, an infinite number, one that is not above 0 in a positive column or no whole number >= 0 in a count,
        a class that the column does not know.
        """
        if self.kind in ("binary", "categorical"):
            code = self._codes(series)
            there = code >= 0
            return np.where(there, code, 0).astype("float32"), there
        v = days(series, self.name) if self.date else numbers(series, self.name)
        there = ~np.isnan(v)
        v = np.where(there, v, 1.0)
        if self.kind == "positive":
            if (v <= 0).any():
                wrong(series, v <= 0, self.name, "must be above 0", f"kinds={{{self.name!r}: 'real'}}")
            v = np.log(v)
        if self.kind == "count":
            bad = (v < 0) | (v != np.floor(v)) | (v >= MOST)
            if bad.any():
                wrong(series, bad, self.name, f"must be whole, 0..{MOST - 1}", f"kinds={{{self.name!r}: 'real'}}")
            return np.where(there, v, 0.0).astype("float32"), there
        return np.where(there, (v - self.loc) / self.scale, 0.0).astype("float32"), there

    def decode(self, stored: Any) -> Any:
        """Cells of the file for stored numbers (of any shape): floats, whole numbers, classes or dates, NumPy.

        Numbers come to a millionth of ``scale`` (of a positive column, of their logs): what float32 keeps of them.
        """
        stored = np.asarray(stored, "float64")
        if self.values:
            values = np.empty(len(self.values), object)
            values[:] = self.values
            if len({type(value) for value in self.values}) == 1:
                values = np.asarray(self.values, object if isinstance(self.values[0], str) else None)
            return values[np.clip(np.rint(stored), 0, len(self.values) - 1).astype(int)]
        if self.kind == "count":
            return np.rint(stored).astype("int64")
        v = self.loc + self.scale * stored
        v = self._tidy(np.exp(v) if self.kind == "positive" else v)
        if self.date:
            return _EPOCH + (v * 86_400e6).astype("int64") * np.timedelta64(1, "us")
        return v

    def least_scale(self, floor: float = 1e-3) -> float:
        """Least standard deviation that a density of the stored number may have: at least ``floor``, and for a column
        with a ``resolution`` the standardised step over sqrt(2 pi); at most 1/2."""
        step = self.resolution / self.scale
        if self.kind == "positive":
            step *= math.exp(-min(max(self.loc, -80.0), 80.0))
        return min(max(floor, step / math.sqrt(2 * math.pi)), 0.5)

    def log_jacobian(self, stored: Any) -> np.ndarray:
        """``log |d stored / d v|`` (nats) at stored numbers: added to the log density of the stored number, it gives
        that of the cell ``v`` in the units of the file."""
        stored = np.asarray(stored, "float64")
        if self.kind == "real":
            return np.full(stored.shape, -math.log(self.scale))
        if self.kind == "positive":
            return np.asarray(-math.log(self.scale) - (self.loc + self.scale * stored))
        return np.zeros(stored.shape)

    def _tidy(self, v: np.ndarray) -> np.ndarray:
        """``v`` without the last digits that float32 made up: those of the file where it is within .001 of its step."""
        digits = 6 - math.floor(math.log10(self.scale))
        if self.kind == "real":
            v = np.round(v, digits)
        else:
            step = 10.0 ** (np.floor(np.log10(v, where=v > 0, out=np.zeros_like(v))) - digits)
            v = np.where(np.isfinite(v), np.rint(v / step) * step, v)
        places = next(
            (p for p in range(7) if abs(self.resolution * 10**p - round(self.resolution * 10**p)) < 1e-6), None
        )
        if self.resolution and places is not None:
            near = np.round(v, places)
            v = np.where(np.abs(v - near) < 1e-3 * 10.0**-places, near, v)
        return v + 0.0  # no -0

    def _codes(self, series: Any) -> np.ndarray:
        """Position of every cell in ``values``, -1 where missing."""
        import pandas as pd

        entry, cells = distinct(series, self.name)
        lost = missing(cells)
        if any(isinstance(value, str) for value in self.values):
            known = pd.Index([as_text(value) for value in self.values], dtype=object)
            code = known.get_indexer(pd.Index([as_text(cell) for cell in cells], dtype=object))
        else:
            known = pd.Index([float(value) for value in self.values], dtype="float64")
            code = known.get_indexer(pd.Index([_as_number(cell) for cell in cells], dtype="float64"))
        unknown = np.append((code < 0) & ~lost, False)[entry]
        if unknown.any():
            listed = ", ".join(map(repr, self.values[:8])) + (", ..." if len(self.values) > 8 else "")
            wrong(series, unknown, self.name, f"must be one of {listed}", "a table made of all rows, or empty the cell")
        return np.append(np.where(lost, -1, code), -1)[entry]


def distinct(series: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each cell (n,) its position among the distinct cells, -1 where missing, and those, an object array."""
    import pandas as pd

    if isinstance(series.dtype, pd.CategoricalDtype):
        return np.asarray(series.cat.codes, "int64"), np.asarray(series.cat.categories, object)
    try:
        entry, cells = pd.factorize(series)
    except TypeError as error:
        raise ValueError(
            f"column {name!r} holds entries that are no single numbers or texts ({error}); "
            f"leave it out with kinds={{{name!r}: 'drop'}}, or make a column of each part"
        ) from error
    return entry, np.asarray(cells, object)


def missing(cells: np.ndarray) -> np.ndarray:
    """Which distinct cells (k,) stand for a missing entry: NaN, None, and the texts of ``MISSING``."""
    import pandas as pd

    marked = [isinstance(cell, str) and cell.strip() in MISSING for cell in cells]
    return np.asarray(marked, bool) | np.asarray(pd.isna(cells), bool)


def numbers(series: Any, name: str) -> np.ndarray:
    """Cells as float64 (n,), NaN where missing; ``ValueError`` for text that is no number, for dates and infinity."""
    import pandas as pd

    if series.dtype.kind == "c":
        raise ValueError(
            f"column {name!r} holds complex numbers; make two columns of it, or kinds={{{name!r}: 'drop'}}"
        )
    if pd.api.types.is_bool_dtype(series.dtype) or pd.api.types.is_numeric_dtype(series.dtype):
        v = series.to_numpy("float64", na_value=np.nan)
    elif is_time(series):
        raise ValueError(
            f"column {name!r} holds times ({series.dtype}), expected numbers; "
            f"kinds={{{name!r}: 'drop'}} leaves it out, kinds={{{name!r}: 'real'}} takes dates as days"
        )
    else:
        entry, cells = distinct(series, name)
        found = parsed(cells)
        bad = np.append(np.isnan(found) & ~missing(cells), False)[entry]
        if bad.any():
            remedy = (
                f"kinds={{{name!r}: 'categorical'}} or 'drop'; read_table(..., na_values=[...]) for a mark of missing"
            )
            first = series.iloc[int(np.argmax(bad))]
            if isinstance(first, str) and "," in first:
                remedy = "read_table(..., decimal=',') or read_table(..., thousands=','), and one form throughout"
            wrong(series, bad, name, "must be a number", remedy)
        v = np.append(found, np.nan)[entry]
    if np.isinf(v).any():
        wrong(series, np.isinf(v), name, "must be finite", "an empty cell where it is not known")
    return v


def parsed(cells: np.ndarray) -> np.ndarray:
    """Distinct cells (k,) as numbers, NaN for those that are none."""
    import pandas as pd

    stripped = [cell.strip() if isinstance(cell, str) else cell for cell in cells]
    return np.asarray(pd.to_numeric(pd.Series(stripped, dtype=object), errors="coerce"), "float64")


def days(series: Any, name: str) -> np.ndarray:
    """Dates as days since 1970-01-01 (n,) float64, NaN where missing; text must be ISO 8601 (2024-05-31)."""
    import pandas as pd

    if not pd.api.types.is_datetime64_any_dtype(series.dtype):
        entry, cells = distinct(series, name)
        text = pd.Series(
            [None if lost else cell for cell, lost in zip(cells, missing(cells), strict=True)], dtype=object
        )
        found = pd.to_datetime(text, errors="coerce", format="ISO8601", utc=True)
        bad = np.append(np.asarray(found.isna()) & ~missing(cells), False)[entry]
        if bad.any():
            remedy = f"frame[{name!r}] = pandas.to_datetime(frame[{name!r}], dayfirst=...)"
            wrong(series, bad, name, "must be a date such as 2024-05-31", remedy)
        every = pd.concat([found, pd.Series([pd.NaT], dtype=found.dtype)], ignore_index=True)
        series = every.iloc[np.where(entry < 0, len(cells), entry)]
    if series.dt.tz is not None:
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    at = series.to_numpy("datetime64[ns]")
    return np.where(np.isnat(at), np.nan, (at - _EPOCH) / _DAY)


def is_time(series: Any) -> bool:
    """Whether the dtype is one of dates, spans or periods."""
    import pandas as pd

    return series.dtype.kind in "mM" or isinstance(series.dtype, pd.DatetimeTZDtype | pd.PeriodDtype)


def as_text(cell: Any) -> str:
    """A class as text: ``3.0`` and ``3`` are both ``"3"``, for a missing entry turns whole numbers into floats."""
    if isinstance(cell, float | np.floating) and cell == np.floor(cell):
        return str(int(cell))
    return str(cell).strip()


def _as_number(cell: Any) -> float:
    if isinstance(cell, str):
        word = cell.strip().lower()
        if word in ("true", "false"):
            return float(word == "true")
    return float(parsed(np.asarray([cell], object))[0])


def wrong(series: Any, bad: np.ndarray, name: str, expected: str, remedy: str) -> None:
    """Raise the ``ValueError`` of a column whose cells are wrong where ``bad`` (n,)."""
    first = int(np.argmax(bad))
    more = int(bad.sum()) - 1
    row, cell = (
        value.item() if isinstance(value, np.generic) else value for value in (series.index[first], series.iloc[first])
    )
    raise ValueError(
        f"column {name!r}, row {row!r}: {expected}, got {cell!r}"
        + (f" (and {more} more)" if more else "")
        + f"; try {remedy}"
    )
