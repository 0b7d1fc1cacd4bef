"""What kind a column of a table is: a rule for each case, in words that a user is shown.

In this order, over the entries that are not missing (m of them, d different):

    all missing; constant; dates and times; free text or ids   left out, named, with the remedy
    d = 2                                                      binary
    category dtype; text of d <= 50 and d <= m / 2             categorical
    d <= 12, d <= m / 2 (and m >= 50 where not whole)          categorical over these values: a density on few values
                                                               can be raised at will, a mass cannot
    whole, 0 or more                                           the best by itself of a negative binomial (count), a
                                                               Normal (real), a log-Normal (positive) and, of d <= 32
                                                               values in m >= 20 d, a mass on each (categorical), in
                                                               nats less log(m) / 2m a parameter
    above 0, log-Normal ahead of Normal by .05 nats + 3 / m    positive
    else                                                       real

Negative binomials cannot vary less than a Poisson law: whole numbers far from 0 (years, heights in cm) become real.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import gammaln

from ppl_models._column import MOST, Column, as_text, days, distinct, is_time, missing, numbers, parsed

CHOICES = ("real", "positive", "count", "binary", "categorical", "drop")
FEW, SEVERAL, CLASSES, MOST_CLASSES, SAMPLE = 12, 32, 50, 1000, 10_000
_EXACT = 2**53
_ID = re.compile(r"(^|[\W_])(id|ids|uuid|guid)$|[a-z]I[dD]$", re.IGNORECASE)
_DATE = re.compile(r"^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?$|^\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?$")
_COMMA = re.compile(r"^[+-]?\d+([.,]\d+)*,\d+([.,]\d+)*$")


@dataclass(frozen=True)
class Found:
    """What was found of a column: ``column`` is ``None`` where it is left out, ``why`` says the reason."""

    column: Column | None
    why: str
    missing: float
    distinct: int
    range: str


class LeftOut(Exception):
    """A column that cannot be modelled; the text says why and what to do."""


def find(series: pd.Series, name: str, kind: str | None = None) -> Found:
    """The kind of a column, inferred or as asked for, with what its transform needs.

    Raises ``ValueError`` naming the column for what is neither: numbers among text, decimal commas, infinite numbers,
    or entries that the kind asked for cannot be.
    """
    lost, different, shown = 1.0, 0, ""
    try:
        cells = _Cells(series, name, dates=kind == "real")
        lost, different, shown = cells.lost, cells.different, cells.range()
        if kind == "drop":
            return Found(None, "asked for", lost, different, shown)
        if not cells.m:
            raise LeftOut("every entry is missing")
        column, why = _as_asked(cells, kind) if kind else _inferred(cells)
    except LeftOut as reason:
        return Found(None, str(reason), lost, different, shown)
    except ValueError:
        if kind == "drop":
            return Found(None, "asked for", float(series.isna().mean()), different, "")
        raise
    return Found(column, why, lost, different, shown)


class _Cells:
    """A column read once: as numbers ``v`` where all its entries are, else as distinct cells with their counts."""

    def __init__(self, series: pd.Series, name: str, dates: bool) -> None:
        self.series, self.name, self.date = series, name, False
        self.declared = isinstance(series.dtype, pd.CategoricalDtype)
        self.bool = pd.api.types.is_bool_dtype(series.dtype) and not self.declared
        self.v: np.ndarray | None = None
        self.text = False
        self.cells, self.counts = np.empty(0, object), np.empty(0, int)
        if is_time(series):
            self._time(dates)
        elif not self.declared and (self.bool or pd.api.types.is_numeric_dtype(series.dtype)):
            self._numbers(numbers(series, name))
        else:
            self._distinct(dates)
        self.lost = 1 - self.m / max(len(series), 1)

    def _time(self, dates: bool) -> None:
        if dates and self.series.dtype.kind != "m" and not isinstance(self.series.dtype, pd.PeriodDtype):
            self.date = True
            self._numbers(days(self.series, self.name))
            return
        self.m, self.different = int(self.series.notna().sum()), int(self.series.nunique())

    def _numbers(self, v: np.ndarray) -> None:
        self.v = v[~np.isnan(v)]
        self.m = len(self.v)
        self.unique = pd.unique(self.v)
        self.different = len(self.unique)

    def _distinct(self, dates: bool) -> None:
        entry, cells = distinct(self.series, self.name)
        counts = np.bincount(entry[entry >= 0], minlength=len(cells))
        keep = ~missing(cells) & ((counts > 0) | self.declared)
        self.cells, self.counts = cells[keep], counts[keep]
        self.m, self.different = int(self.counts.sum()), int((self.counts > 0).sum())
        if self.declared or not self.m:
            return
        if all(isinstance(cell, bool | np.bool_) for cell in self.cells):
            self.bool = True
            self._numbers(np.repeat(self.cells.astype("float64"), self.counts))
            return
        number = parsed(self.cells)
        self.share = float(self.counts[~np.isnan(number)].sum() / self.m)
        if self.share == 1:
            self.text = any(isinstance(cell, str) for cell in self.cells)
            self._numbers(numbers(self.series, self.name))
        elif dates and self.share < 1 and self.like(_DATE) > 0.5:
            self.date = True
            self._numbers(days(self.series, self.name))

    def like(self, pattern: re.Pattern[str]) -> float:
        """Share of the entries whose text has the pattern; read from at most a sample of the distinct ones."""
        step = max(len(self.cells) // SAMPLE, 1)
        hit = np.asarray([bool(pattern.match(as_text(cell))) for cell in self.cells[::step]], bool)
        counts = self.counts[::step]
        return float(counts[hit].sum() / max(counts.sum(), 1))

    def range(self) -> str:
        if not self.m:
            return ""
        if self.date and self.v is not None:
            low, high = (
                np.datetime64("1970-01-01") + np.timedelta64(int(d), "D") for d in (self.v.min(), self.v.max())
            )
            return f"{low} to {high}"
        if self.bool:
            return ", ".join(str(bool(u)) for u in sorted(self.unique))
        if self.v is not None:
            return f"{self.v.min():g} to {self.v.max():g}"
        listed = [as_text(cell) for cell in self.cells[:4]]
        return ", ".join(word if len(word) <= 20 else word[:17] + "..." for word in listed) + (
            ", ..." if len(self.cells) > 4 else ""
        )

    def values(self) -> tuple[Any, ...]:
        """Classes in the order of their codes: that of a category dtype, else sorted."""
        if self.v is not None:
            if self.bool:
                return tuple(bool(u) for u in sorted(self.unique))
            return tuple(int(u) if u == np.floor(u) and abs(u) < _EXACT else float(u) for u in sorted(self.unique))
        if self.declared and all(isinstance(cell, int | float | np.number | np.bool_) for cell in self.cells):
            return tuple(cell.item() if isinstance(cell, np.generic) else cell for cell in self.cells)
        words = dict.fromkeys(as_text(cell) for cell in self.cells)
        return tuple(words) if self.declared else tuple(sorted(words))


def _remedy(cells: _Cells, kind: str) -> str:
    return f"kinds={{{cells.name!r}: {kind!r}}}"


def _inferred(cells: _Cells) -> tuple[Column, str]:
    d, m, name = cells.different, cells.m, cells.name
    if is_time(cells.series) and cells.v is None:
        if cells.series.dtype.kind == "m" or isinstance(cells.series.dtype, pd.PeriodDtype):
            raise LeftOut(f"{cells.series.dtype}; make it numbers, such as spans / pandas.Timedelta('1D')")
        raise LeftOut(f"{cells.series.dtype}; {_remedy(cells, 'real')} takes dates as days since 1970-01-01")
    if cells.v is not None and pd.api.types.is_integer_dtype(cells.series.dtype) and np.abs(cells.v).max() > _EXACT:
        raise LeftOut("an id: whole numbers beyond 2^53, which no float tells apart; make them text, or smaller")
    if d == 1:
        raise LeftOut("constant")
    if cells.v is None:
        return _inferred_text(cells)
    stored = "numbers stored as text; " if cells.text else ""
    v, whole = cells.v, bool((cells.v == np.floor(cells.v)).all())
    if d == 2:
        return Column(name, "binary", values=cells.values()), stored + "two different values"
    if whole and (reason := _is_id(cells)):
        raise LeftOut(f"an id: {reason}; {_remedy(cells, 'count')} or 'real' keeps it")
    if d <= FEW and 2 * d <= m and (whole or m >= 50):
        return Column(name, "categorical", values=cells.values()), f"{stored}{d} different numbers: a mass on each"
    if whole and v.min() >= 0 and v.max() < MOST:
        kind, why = _best_of_whole(v)
        if kind == "categorical":
            return Column(name, "categorical", values=cells.values()), stored + why
    else:
        kind, why = ("positive", "above 0, skewed") if _log_helps(v) else ("real", "numbers")
    return _column(cells, kind), stored + why + _ties(v)


def _inferred_text(cells: _Cells) -> tuple[Column, str]:
    d, m, name = cells.different, cells.m, cells.name
    values = cells.values()
    if cells.declared:
        if len(values) > MOST_CLASSES:
            raise LeftOut(f"a category of {len(values)} classes, more than {MOST_CLASSES}")
        return _classes(name, values), "category dtype"
    if 0 < cells.share + cells.like(_COMMA) and cells.like(_COMMA) > 0 and cells.share + cells.like(_COMMA) > 0.5:
        first = next(as_text(cell) for cell in cells.cells if _COMMA.match(as_text(cell)))
        raise ValueError(
            f"column {name!r} holds numbers with commas, such as {first!r}"
            + (" among others with points" if cells.share else "")
            + "; read the file with read_table(..., decimal=',') or thousands=',', and in one form throughout"
            f" ({_remedy(cells, 'categorical')} takes them as classes, 'drop' leaves the column out)"
        )
    if cells.like(_DATE) > 0.5:
        raise LeftOut(f"dates or times as text; {_remedy(cells, 'real')} takes dates such as 2024-05-31 as days")
    few = d <= FEW and 2 * d <= m
    if cells.share >= 0.5 and not few:
        numbers(cells.series, name)  # raises, naming the first entry that is no number
    if d > 2 and (d > CLASSES or 2 * d > m):
        raise LeftOut(f"free text or an id: {d} different texts in {m}; {_remedy(cells, 'categorical')} keeps it")
    among = f"; {cells.share:.0%} of the entries are numbers, taken as classes like the rest" if cells.share else ""
    return _classes(name, values), f"text, {len(values)} classes{among}"


def _classes(name: str, values: tuple[Any, ...]) -> Column:
    return Column(name, "binary" if len(values) == 2 else "categorical", values=values)


def _as_asked(cells: _Cells, kind: str) -> tuple[Column, str]:
    if kind in ("binary", "categorical"):
        values = cells.values()
        if len(values) < 2 or (kind == "binary" and len(values) != 2) or len(values) > MOST_CLASSES:
            raise ValueError(
                f"column {cells.name!r}: a {kind} column has {'two' if kind == 'binary' else f'2 to {MOST_CLASSES}'} "
                f"different values, got {len(values)}; try kinds={{{cells.name!r}: 'drop'}} or another kind"
            )
        return Column(cells.name, kind, values=values), "asked for"  # type: ignore[arg-type]
    if cells.v is None:
        Column(cells.name, kind).encode(cells.series)  # type: ignore[arg-type]
        cells._numbers(numbers(cells.series, cells.name))
    column = _column(cells, kind)
    column.encode(cells.series)
    return column, "asked for" + (", days since 1970-01-01" if cells.date else "")


def _column(cells: _Cells, kind: str) -> Column:
    """The column with the transform that standardises it; float64."""
    v = cells.v
    assert v is not None
    if kind == "positive":
        u = np.log(v, where=v > 0, out=np.zeros_like(v))
    else:
        u = np.log1p(np.maximum(v, 0)) if kind == "count" else v
    loc, scale = float(u.mean()), float(u.std())
    scale = scale if scale > 1e-12 * max(abs(loc), 1e-290) else 1.0
    step = 0.0 if kind == "count" else resolution(v, cells.unique)
    return Column(cells.name, kind, loc=loc, scale=scale, resolution=step, date=cells.date)  # type: ignore[arg-type]


def _is_id(cells: _Cells) -> str:
    v, m, d = cells.v, cells.m, cells.different
    assert v is not None
    if _ID.search(cells.name) and (d == m or d > FEW):
        return "its name says so"
    if d < m or m < 3:
        return ""
    gaps = np.diff(v)
    if (gaps == 1).all() or (m >= 20 and v.max() - v.min() == m - 1):
        return "consecutive whole numbers, all different"
    return "whole numbers in order, all different" if m >= 20 and ((gaps > 0).all() or (gaps < 0).all()) else ""


def _normal(v: np.ndarray) -> float:
    """Highest mean log density of a Normal, nats."""
    return -0.5 * math.log(2 * math.pi * math.e * max(float(v.var()), 1e-300))


def _log_helps(v: np.ndarray) -> bool:
    if v.min() <= 0:
        return False
    u = np.log(v)
    return _normal(u) - float(u.mean()) - _normal(v) > 0.05 + 3 / len(v)


def _best_of_whole(v: np.ndarray) -> tuple[str, str]:
    sample = v[:: max(len(v) // SAMPLE, 1)]
    m, mean, var = len(sample), float(sample.mean()), float(sample.var())
    score: dict[str, float] = {}
    parameters = {"real": 2, "count": 2, "positive": 2}
    counted = var > mean > 0  # whole numbers that vary less than a Poisson law are measurements, not counts
    if counted:
        r = mean**2 / (var - mean)
        choose = gammaln(sample + r) - gammaln(sample + 1) - gammaln(r)
        score["count"] = float((choose + r * math.log(r / (r + mean)) + sample * math.log(mean / (r + mean))).mean())
    score["real"] = _normal(sample)
    if counted and sample.min() > 0 and v.min() > 0:
        u = np.log(sample)
        score["positive"] = _normal(u) - float(u.mean())
    counts = np.unique(sample, return_counts=True)[1]
    if len(counts) <= SEVERAL and m >= 20 * len(counts):
        share = counts / m
        score["categorical"], parameters["categorical"] = float((share * np.log(share)).sum()), len(counts) - 1
    kind = max(score, key=lambda name: score[name] - parameters[name] * math.log(m) / (2 * m))
    listed = ", ".join(f"{name} {value:.2f}" for name, value in score.items())
    return kind, f"whole numbers; log p by itself: {listed}"


def resolution(v: np.ndarray, unique: np.ndarray) -> float:
    """The step in which numbers are recorded: 99 % differ by multiples of it.  0 where there is none.

    Decimal fractions of up to six places; and any other lattice (a standardised column has one) without exception on
    which every number comes twice on average.
    """
    largest = float(np.abs(v).max())
    for places in range(7):
        if largest * 10**places > 1e8:
            break
        if (np.abs(v * 10**places - np.rint(v * 10**places)) < 1e-6).mean() >= 0.99:
            steps = unique * 10**places
            steps = np.rint(steps[np.abs(steps - np.rint(steps)) < 1e-6]).astype("int64")
            return float(np.gcd.reduce(steps - steps.min()) / 10**places)
    if 2 * len(unique) > len(v) or len(unique) < 3:
        return 0.0
    gaps = np.diff(np.sort(unique))
    gaps = gaps[gaps > 1e-9 * (unique.max() - unique.min())]
    ratio = gaps / gaps.min()
    return float(gaps.min()) if (np.abs(ratio - np.rint(ratio)) < 0.01).all() else 0.0


def _ties(v: np.ndarray) -> str:
    values, counts = np.unique(v[:: max(len(v) // SAMPLE, 1)], return_counts=True)
    share = counts.max() / counts.sum()
    return f"; {share:.0%} of the entries are {values[counts.argmax()]:g}" if share > 0.2 else ""
