"""A table in a file as the data of a run: its card, its rows, and which of them are fitted to, validated on, held out.

Rows are dealt by a seeded permutation: a fifth is held out, the rest is fitted to, less its last rows for validation.
A run keeps the path and the checksum of the file, not the rows: later commands read it again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.cli.common import UsageError, say, table_text, usage

if TYPE_CHECKING:
    import pandas as pd

    from ppl_models.datasets.tables import Table
    from ppl_models.program import Column

KIND, NEXT, COLUMNS = "table", "impute", True
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
HELD_OUT, VALIDATION = 5, 7
"""One row in so many is held out; of the others one in so many is for validation unless the user says otherwise."""
MOST = 5_000
"""Rows for validation unless the user says otherwise: more of them only take longer."""


@dataclass(frozen=True)
class Split:
    """Stored rows of a table, and of those that are held out the labels, by column, and the names.

    ``stream``  rows on disk to fit to, where ``train`` are only some of them.
    """

    train: Any
    validation: Any
    test: Any
    factors: Mapping[str, np.ndarray]
    names: list[Any]
    stream: Any = None


def is_table(name: str | None) -> bool:
    """Whether ``--data`` names a file of a table, not a data set."""
    return name is not None and Path(name).suffix.lower() in SUFFIXES


def is_table_card(card: Mapping[str, Any]) -> bool:
    """Whether a data card is that of a table."""
    return card.get("kind") == KIND


def make_card(
    path: str, *, labels: str | None, columns: str | None, index: str | None, n: int | None, validation: int | None,
    test_n: int, seed: int, plugins: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the data card of a table; says what its columns are taken for.

    Raises :class:`UsageError` for a file that is no table, columns that it has not, and sizes that leave no row.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"no file {path!r}; --data names a data set (`ppl-models data list`) or a table in a file")
    card = {
        "name": file.name, "kind": KIND, "path": path, "absolute": str(file.resolve()), "sha256": checksum(file),
        "labels": labels, "columns": overrides(columns), "index": index,
    }  # fmt: skip
    table, _ = opened(card)
    print_columns(table, file.name)
    rows = len(table)
    validation, held_out = dealt(rows, n=n, validation=validation)
    return {
        **card, "split": "train", "n": n, "rows": rows, "seed": seed, "validation": validation, "held_out": "test",
        "test_n": min(test_n, held_out), "shape": [len(table.columns)], "levels": None,
        "licence": "as the file", "plugins": list(plugins),
    }  # fmt: skip


def dealt(rows: int, *, n: int | None, validation: int | None) -> tuple[int, int]:
    """Numbers of rows for validation and held out; a usage error where they leave none to fit."""
    held_out = max(1, rows // HELD_OUT)
    left = rows - held_out
    if n is not None and n > left:
        raise UsageError(f"--n {n} is more than the {left:,} rows that are not held out; give at most {left}")
    used = left if n is None else n
    if validation is None:
        validation = min(used // VALIDATION, MOST)
        say(
            f"{rows:,} rows: {used - validation:,} to fit, {validation:,} to choose the best step by, "
            f"{held_out:,} held out (--validation N for another number)"
        )
    if validation >= used:
        raise UsageError(f"--validation {validation} leaves nothing to fit of {used:,} rows; give at most {used - 1}")
    return validation, held_out


def overrides(text: str | None) -> dict[str, str]:
    """``"grade=categorical,id=drop"`` as column -> kind; a usage error for anything else."""
    found: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, kind = part.rpartition("=")
        if not equals or not name.strip() or not kind.strip():
            raise UsageError(f"--columns takes NAME=KIND[,NAME=KIND...], got {part.strip()!r}; e.g. grade=categorical")
        if name.strip() in found:
            raise UsageError(f"--columns names {name.strip()!r} twice, as {found[name.strip()]} and {kind.strip()}")
        found[name.strip()] = kind.strip()
    return found


def checksum(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as bytes_of:
        return hashlib.file_digest(bytes_of, "sha256").hexdigest()


def file_of(card: Mapping[str, Any]) -> Path:
    """The file of a run's table; a usage error where it is gone, a warning where it has changed."""
    for place in (card["path"], card.get("absolute", card["path"])):
        file = Path(place).expanduser()
        if file.is_file():
            if not _told(str(file), checksum(file) != card["sha256"]):
                say(f"warning: {file} has changed since the run was fitted; its rows are dealt anew")
            return file
    raise UsageError(
        f'the run was fitted to the table {card["path"]!r}, which is gone; put it back there, or mend "path" of its '
        "card in run.json"
    )


_SAID: set[str] = set()


def _told(file: str, changed: bool) -> bool:
    """Whether nothing is left to say of a file: it is as it was, or its change has been told."""
    known = not changed or file in _SAID
    _SAID.update([file] * changed)
    return known


def opened(card: Mapping[str, Any]) -> tuple[Table, pd.DataFrame]:
    """The table of a card and its rows as they stand in the file, under their index."""
    file = file_of(card) if "rows" in card else Path(card["path"]).expanduser()
    state = file.stat()
    named = tuple(sorted(card["columns"].items()))
    return _opened(file, (state.st_mtime_ns, state.st_size), card["labels"], named, card["index"])


@functools.lru_cache(maxsize=1)  # a fit asks for the card, then for the rows
def _opened(
    file: Path, state: tuple[int, int], labels: str | None, named: tuple[tuple[str, str], ...], index: str | None
) -> tuple[Table, pd.DataFrame]:
    from ppl_models.datasets import table

    del state
    frame = read(file)
    try:
        found = table(frame, kinds=dict(named), labels=labels, index=index)
    except ValueError as error:
        raise UsageError(as_options(str(error))) from error
    return found, frame if index is None else frame.set_index(index)


def read(file: Path) -> pd.DataFrame:
    """The rows of a file; a usage error where it is no table."""
    from ppl_models.datasets import read_table

    try:
        with usage():
            return read_table(file)
    except (FileNotFoundError, ImportError) as error:
        raise UsageError(str(error)) from error


def rows_of(path: str, card: Mapping[str, Any], columns: Sequence[Column]) -> tuple[Any, pd.DataFrame]:
    """Stored rows of another file of the same columns, and the rows as they stand in it, under the index of the run."""
    from ppl_models.program import encode_frame

    frame = read(Path(path).expanduser())
    index = card.get("index")
    if index is not None:
        if index not in frame.columns:
            raise UsageError(f"the run takes column {index!r} for the index, {path!r} has {list(map(str, frame))}")
        frame = frame.set_index(index)
    with usage():
        return encode_frame(columns, frame), frame


def all_rows(card: Mapping[str, Any], columns: Sequence[Column]) -> tuple[Any, pd.DataFrame]:
    """Stored rows of the whole file by the columns of a run, and the rows as they stand in it."""
    from ppl_models.program import encode_frame

    table, frame = opened(card)
    if tuple(columns) == table.columns:
        return table.x, frame
    with usage():
        return encode_frame(columns, frame), frame


def rows_for(path: str | None, card: Mapping[str, Any], columns: Sequence[Column]) -> tuple[Any, pd.DataFrame]:
    """Stored rows that a command names, by default all of the table of the run, and the rows as they stand there."""
    if path is None:
        x, frame = all_rows(card, columns)
        say(f"all {len(frame):,} rows of {card['path']}, those that the run was fitted to among them")
        return x, frame
    if not is_table(path):
        raise UsageError(f"{path!r} is no table: give a .csv, .tsv or .parquet file with the columns of the run")
    return rows_of(path, card, columns)


def load(card: Mapping[str, Any], columns: Sequence[Column] = (), *, test_n: int | None = None) -> Split:
    """Deal the rows of a card's table; ``test_n`` replaces its number of held-out rows.

    ``columns`` are those of the run; without, those that are found in the file.
    """
    table, frame = opened(card)
    x, _ = all_rows(card, columns or table.columns)
    return deal(x, frame.index, table.factors, card, test_n=test_n)


def deal(
    x: Any, index: pd.Index, codes: Mapping[str, np.ndarray], card: Mapping[str, Any], *, test_n: int | None = None
) -> Split:
    """Deal stored rows by the seed and the sizes of a card; ``codes`` are those of their labels."""
    from ppl_models.program import take

    order = np.random.default_rng(card["seed"]).permutation(len(index))
    held_out = max(1, len(index) // HELD_OUT)
    test = order[: min(card["test_n"] if test_n is None else test_n, held_out)]
    rest = order[held_out:][: card["n"]]
    cut = len(rest) - card["validation"]
    names = index.to_numpy()[test].tolist()
    factors = {name: mine[test] for name, mine in codes.items()}
    validation = take(x, rest[cut:]) if card["validation"] else None
    return Split(take(x, rest[:cut]), validation, take(x, test), factors, names)


def scores_columns(spec: Any) -> bool:
    """Whether a spec has a likelihood of the columns of a table."""
    return getattr(getattr(spec, "likelihood", None), "kind", None) == "columns"


def fitted_to(spec: Any, card: Mapping[str, Any]) -> Any:
    """Return the spec of a table with the columns of a file; a usage error for a spec of other data."""
    check_scores_columns(spec, card)
    return with_columns(spec, opened(card)[0].columns)


def check_scores_columns(spec: Any, card: Mapping[str, Any]) -> None:
    """Raise :class:`UsageError` for a spec that is not one of a table."""
    from ppl_models.program import families

    if not scores_columns(spec):
        able = [f"{n}:{p}" for n, f in families().items() for p, known in f.presets.items() if scores_columns(known)]
        raise UsageError(
            f"{card['name']!r} is a table, {type(spec).__name__} with these settings scores no columns; "
            f"fit one of {', '.join(able)}, or a spec with a likelihood of kind 'columns'"
        )


def with_columns(spec: Any, columns: Sequence[Column]) -> Any:
    """Return the spec of a table with these columns."""
    with usage():
        likelihood = dataclasses.replace(spec.likelihood, columns=tuple(columns))
        return dataclasses.replace(spec, likelihood=likelihood, shape=(len(columns),))


def as_options(text: str) -> str:
    """A text on columns in the words of the command line."""
    text = re.sub(r"kinds=\{'([^']*)': '?(\w+)'?\}", r"--columns \1=\2", text)
    return re.sub(r"^(kinds(?=\[| )|labels|index)", lambda m: "--columns" if m[0] == "kinds" else f"--{m[0]}", text)


def print_columns(table: Table, name: str) -> None:
    """Say what each column of a file is taken for."""
    found = table.describe()
    rows = [
        [str(r.column), str(r.kind), f"{r.missing:.0%}" if r.missing else "", str(r.range), as_options(str(r.why))]
        for r in found.itertuples()
    ]
    say(f"{name}: {len(table.columns)} of {len(found)} columns are modelled (--columns NAME=KIND,NAME=drop to change)")
    for label, codes in table.factors.items():
        if lost := int((codes < 0).sum()):
            say(f"label {label!r} is missing in {lost:,} rows: they count as a class of their own, code -1")
    say(table_text(rows, ["column", "kind", "missing", "range", "why"]))


def write_columns(card: Mapping[str, Any], folder: Path) -> None:
    """Write columns.csv: what each column of the file was taken for."""
    from inference.fitting.folder import write_text

    write_text(folder / "columns.csv", opened(card)[0].describe().to_csv(index=False))
