"""A large table in Parquet as the data of a run: the fit reads it row group by row group (extra ``table``).

A file below :data:`LARGE` rows is a table like others, read whole (:mod:`inference.cli.table_file`); a larger one, and
a folder of files, is not held in memory.  What its columns are is found from a random choice of row groups; whole row
groups are held out, by a seeded permutation of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.cli import table_file
from inference.cli.common import UsageError, say, usage

if TYPE_CHECKING:
    import pandas as pd

    from inference.fitting.stored_rows import ParquetRows
    from ppl_models.datasets.tables import Table
    from ppl_models.program import Column

KIND, NEXT, COLUMNS = "parquet", "sample", True
SUFFIXES = (".parquet", ".pq")
LARGE = 5_000_000
"""Rows from which on a single file is not read whole."""
LOOKED_AT, HELD_OUT, SAMPLE = 1_000_000, 100_000, 20_000
"""Rows from which the columns are found; rows that are held out at least; rows in memory for the baselines."""


def is_parquet(name: str | None) -> bool:
    """Whether ``--data`` names a large Parquet file, or a folder of Parquet files."""
    if name is None:
        return False
    place = Path(name).expanduser()
    if place.is_dir():
        return any(file.suffix.lower() in SUFFIXES for file in place.iterdir())
    return place.suffix.lower() in SUFFIXES and place.is_file() and len(opened(name)) > LARGE


@functools.lru_cache(maxsize=2)
def opened(path: str) -> ParquetRows:
    """The row groups of a file or a folder; a usage error where they cannot be read."""
    from inference.fitting.stored_rows import ParquetRows

    try:
        with usage():
            return ParquetRows(Path(path).expanduser())
    except (ImportError, OSError) as error:
        raise UsageError(str(error)) from error


def make_card(
    path: str, *, labels: str | None, columns: str | None, index: str | None, n: int | None, validation: int | None,
    test_n: int, seed: int, plugins: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the data card of a large table; says what its columns are taken for.

    Raises :class:`UsageError` for a table of fewer than three row groups, options that need the whole table in memory,
    and columns that it has not.
    """
    for name, value in (("labels", labels), ("index", index), ("n", n)):
        if value is not None:
            raise UsageError(
                f"--{name} {value} needs the whole table in memory; {path!r} is read row group by row group: leave it "
                f"out (a column can be dropped: --columns {value if name != 'n' else 'NAME'}=drop)"
            )
    found = opened(path)
    if len(found.groups) < 3:
        raise UsageError(
            f"{path!r} has {len(found.groups)} row groups, expected at least 3: to fit, to choose the best step by, "
            "held out; write it with row_group_size=100_000"
        )
    card = {
        "name": Path(path).name, "kind": KIND, "path": path, "absolute": str(Path(path).expanduser().resolve()),
        "columns": table_file.overrides(columns), "seed": seed, "split": "train", "n": None, "rows": len(found),
        "held_out": "test", "test_n": test_n, "levels": None, "licence": "as the file", "plugins": list(plugins),
    }  # fmt: skip
    table = described(card)
    table_file.print_columns(table, f"{Path(path).name}, {len(table):,} of its {len(found):,} rows")
    test, chosen, rest = groups_of(card)
    validation = min(table_file.MOST if validation is None else validation, int(found.blocks[chosen].sum()))
    held_out, fit_to = found.blocks[test].sum(), found.blocks[rest].sum()
    say(
        f"{len(found):,} rows in {len(found.groups):,} row groups: {fit_to:,} to fit, {validation:,} to choose the "
        f"best step by, {held_out:,} held out, whole groups each; shuffle a table that is sorted before it is written"
    )
    return {
        **card, "validation": validation, "test_n": min(test_n, int(held_out)), "shape": [len(table.columns)],
    }  # fmt: skip


def groups_of(card: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """Row groups that are held out, for validation, and to fit to."""
    found = opened(card["path"])
    order = np.random.default_rng(card["seed"]).permutation(len(found.groups))
    sizes, least = found.blocks[order], min(HELD_OUT, max(1, len(found) // table_file.HELD_OUT))
    test = int(np.searchsorted(np.cumsum(sizes), least)) + 1
    test = min(test, len(order) - 2)
    return order[:test].tolist(), order[test : test + 1].tolist(), order[test + 1 :].tolist()


def described(card: Mapping[str, Any]) -> Table:
    """What the columns are, from row groups to fit to."""
    return _described(card["path"], tuple(sorted(card["columns"].items())), card["seed"])


@functools.lru_cache(maxsize=1)
def _described(path: str, named: tuple[tuple[str, str], ...], seed: int) -> Table:
    from ppl_models.datasets import table

    found, rest = opened(path), groups_of({"path": path, "seed": seed})[2]
    count = int(np.searchsorted(np.cumsum(found.blocks[rest]), LOOKED_AT)) + 1
    frame = found.read(np.asarray(rest[:count]))
    try:
        return table(frame.iloc[:LOOKED_AT], kinds=dict(named))
    except ValueError as error:
        raise UsageError(table_file.as_options(str(error))) from error


def load(card: Mapping[str, Any], columns: Sequence[Column] = (), *, test_n: int | None = None) -> table_file.Split:
    """Deal the row groups of a card; ``test_n`` replaces its number of held-out rows."""
    from ppl_models.program import encode_frame, take

    found = opened(card["path"])
    if len(found) != card["rows"]:
        raise UsageError(
            f"{card['path']!r} has {len(found):,} rows, the run was fitted to {card['rows']:,}; put them back"
        )
    columns = columns or described(card).columns
    test, chosen, rest = groups_of(card)

    def some(groups: Sequence[int], count: int) -> tuple[Any, np.ndarray]:
        with usage():
            x = encode_frame(columns, found.read(np.asarray(groups)))
        index = np.random.default_rng(card["seed"]).permutation(len(x["x"]))[:count]
        return take(x, index), index

    held_out, index = some(test, card["test_n"] if test_n is None else test_n)
    validation = some(chosen, card["validation"])[0] if card["validation"] else None
    stream = found.only(rest, [column.name for column in columns])
    return table_file.Split(some(rest[:1], SAMPLE)[0], validation, held_out, {}, index.tolist(), stream)


def rows_for(path: str | None, card: Mapping[str, Any], columns: Sequence[Column]) -> tuple[Any, pd.DataFrame]:
    """Stored rows of another file of the same columns, by default those held out of the run, and a frame of them."""
    from ppl_models.program import decode_frame

    if path is not None:
        return table_file.rows_of(path, card, columns)
    found = load(card, columns)
    say(f"{len(found.names):,} rows of {card['path']} that are held out (--data FILE for others)")
    return found.test, decode_frame(columns, found.test["x"], found.test["there"], index=found.names)


def fitted_to(spec: Any, card: Mapping[str, Any]) -> Any:
    """Return the spec of a table with the columns of the file; a usage error for a spec of other data."""
    table_file.check_scores_columns(spec, card)
    return table_file.with_columns(spec, described(card).columns)


def write_columns(card: Mapping[str, Any], folder: Path) -> None:
    """Write columns.csv: what each column of the file was taken for."""
    from inference.fitting.folder import write_text

    write_text(folder / "columns.csv", described(card).describe().to_csv(index=False))
