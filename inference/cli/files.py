"""Data in a file of the user's own: which kind of file it is, and the module that reads, deals and describes its rows.

Such a module offers ``make_card``, ``load(card, columns, test_n=)`` and ``rows_for(path, card, columns)``; where it is
one of named ``COLUMNS``, which the spec of a run keeps, ``fitted_to(spec, card)`` and ``write_columns(card, folder)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inference.cli import count_file, parquet_file, rows_file, table_file


def of_name(name: str | None) -> Any:
    """The module of the file that ``--data`` names; ``None`` where it names a data set."""
    if parquet_file.is_parquet(name):
        return parquet_file
    if table_file.is_table(name):
        return table_file
    return count_file if count_file.is_counts(name) else rows_file if rows_file.is_rows(name) else None


def of_card(card: Mapping[str, Any]) -> Any:
    """The module of the file that a data card names; ``None`` where it names a data set."""
    modules = (table_file, count_file, rows_file, parquet_file)
    return next((module for module in modules if card.get("kind") == module.KIND), None)


def columns_of(program: Any) -> Sequence[Any]:
    """What a program knows of the columns of its file: those of a table, or the names of those of counts."""
    return program.observation.columns or tuple(getattr(getattr(program.spec, "likelihood", None), "names", ()))


def wanted_by(spec: Any) -> str | None:
    """The kind of file that a spec needs for its data, in words; ``None`` where it takes a data set."""
    if table_file.scores_columns(spec):
        return "the columns of a table; give a .csv"
    return "counts; give an .h5ad or a .npz" if count_file.scores_counts(spec) else None
