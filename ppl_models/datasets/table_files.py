"""Read a table from a file: .csv, .tsv or .parquet, with an error for what would be lost in silence."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def read_table(
    path: str | os.PathLike[str],
    *,
    sep: str | None = None,
    decimal: str = ".",
    thousands: str | None = None,
    na_values: Sequence[str] = (),
    encoding: str = "utf-8-sig",
) -> pd.DataFrame:
    """Return the rows of a ``.csv``, ``.tsv`` or ``.parquet`` file, for :func:`ppl_models.datasets.table`.

    ``sep``        between fields; by default a tab in a .tsv, else a semicolon where the first line has one and no
                   comma, else a comma.
    ``decimal``    ``thousands``: the marks within a number, as in ``pandas.read_csv``.
    ``na_values``  texts that stand for a missing entry, besides the usual ones (empty, NA, NaN, n/a, null, ...).

    Raises ``ValueError`` for another kind of file, an empty one, column names that are not different from each other
    (pandas would rename them) or that are numbers (a first line that is no header), rows longer than the first, and
    bytes that are no text; ``FileNotFoundError`` for no file; ``ImportError`` for .parquet without the extra
    ``table``.  Nothing is inferred here: :func:`ppl_models.datasets.table` does that.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}; expected a table, .csv, .tsv or .parquet")
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return _parquet(path)
    if suffix not in (".csv", ".tsv", ".txt"):
        raise ValueError(f"{path.name!r} is no table that can be read; expected .csv, .tsv or .parquet")
    try:
        names, sep = _header(path, "\t" if sep is None and suffix == ".tsv" else sep, encoding)
        _check_names(path, names)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of a loss of fields
            return pd.read_csv(
                path,
                sep=sep,
                decimal=decimal,
                thousands=thousands,
                na_values=list(na_values),
                encoding=encoding,
                index_col=False,
                low_memory=False,
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name!r} is no {encoding} text ({error.reason}); try encoding='latin-1'") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(
            f"{path.name!r}: rows have more fields than its first line names ({error}); mend the file, or say sep="
        ) from error


def _header(path: Path, sep: str | None, encoding: str) -> tuple[list[str], str]:
    with path.open(encoding=encoding, newline="") as file:
        line = next((line for line in file if line.strip()), "")
        if not line:
            raise ValueError(f"{path.name!r} is empty; expected a first line of column names and rows below it")
        if sep is None:
            sep = ";" if ";" in line and "," not in line else ","
        file.seek(0)
        return next(row for row in csv.reader(file, delimiter=sep) if row), sep


def _check_names(path: Path, names: list[str]) -> None:
    named = [name for name in names if name.strip()]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(
            f"{path.name!r} names columns more than once: {', '.join(map(repr, twice))}; rename them in its first line"
        )
    if named and all(_is_number(name) for name in named):
        raise ValueError(
            f"{path.name!r} starts with numbers ({', '.join(named[:3])}, ...) where column names are expected; "
            "add a first line of names"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{path.name!r} needs pyarrow to be read: pip install 'ppl-models[table]', or save it as .csv"
        ) from error
    return pd.read_parquet(path, engine="pyarrow")
