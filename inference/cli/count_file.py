"""A matrix of counts in a file as the data of a run: its card, its rows, and how they are dealt.

Rows are dealt as those of a table (:mod:`inference.cli.table_file`).  A run keeps the path and the checksum of the
file, and in its spec the names of its columns, not the counts: later commands read the file again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.cli import table_file
from inference.cli.common import UsageError, say, usage

if TYPE_CHECKING:
    import pandas as pd

    from ppl_models.datasets import CountMatrix

KIND, NEXT, COLUMNS = "counts", "clusters", True
SUFFIXES = (".h5ad", ".npz")
SHOWN = 5
"""Names of what is left out that are said."""


def is_counts(name: str | None) -> bool:
    """Whether ``--data`` names a file of counts, not a data set."""
    return name is not None and Path(name).suffix.lower() in SUFFIXES


def is_counts_card(card: Mapping[str, Any]) -> bool:
    """Whether a data card is that of a matrix of counts."""
    return card.get("kind") == KIND


def make_card(
    path: str, *, labels: str | None, top: int | None, n: int | None, validation: int | None, test_n: int, seed: int,
    plugins: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the data card of a matrix of counts; says what is left out of it.

    Raises :class:`UsageError` for a file that holds no counts, and sizes that leave no row.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"no file {path!r}; --data names a data set (`ppl-models data list`) or counts in a file")
    card = {
        "name": file.name, "kind": KIND, "path": path, "absolute": str(file.resolve()),
        "sha256": table_file.checksum(file), "labels": labels, "top": top,
    }  # fmt: skip
    found = opened(card)
    print_matrix(found, file.name)
    validation, held_out = table_file.dealt(len(found), n=n, validation=validation)
    return {
        **card, "split": "train", "n": n, "rows": len(found), "seed": seed, "validation": validation,
        "held_out": "test", "test_n": min(test_n, held_out), "shape": list(found.shape), "levels": None,
        "licence": "as the file", "plugins": list(plugins),
    }  # fmt: skip


def opened(card: Mapping[str, Any], names: Sequence[str] = ()) -> CountMatrix:
    """The counts of a card: of the columns of a run by ``names``, or of those that the card chooses."""
    file = table_file.file_of(card) if "rows" in card else Path(card["path"]).expanduser()
    state = file.stat()
    found = _opened(file, (state.st_mtime_ns, state.st_size), card["labels"], card["top"])
    if not names or found.names == tuple(names):
        return found
    return read(file, labels=card["labels"], columns=tuple(names))


@functools.lru_cache(maxsize=1)  # a fit asks for the card, then for the rows
def _opened(file: Path, state: tuple[int, int], labels: str | None, top: int | None) -> CountMatrix:
    del state
    return read(file, labels=labels, top=top)


def read(file: Path, **chosen: Any) -> CountMatrix:
    """The counts of a file; a usage error where it holds none."""
    from ppl_models.datasets import read_counts

    try:
        with usage():
            return read_counts(file, **chosen)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    except UsageError as error:
        raise UsageError(str(error).replace("top=2000", "--top 2000")) from error


def rows_for(path: str | None, card: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, pd.DataFrame]:
    """Stored rows that a command names, by default all of the file of the run, and a frame of their index alone."""
    import pandas as pd

    if path is None:
        found = opened(card, names)
        say(f"all {len(found):,} rows of {card['path']}, those that the run was fitted to among them")
    elif is_counts(path):
        found = read(Path(path).expanduser(), columns=tuple(names))
    else:
        raise UsageError(f"{path!r} holds no counts: give a .h5ad or .npz file with the columns of the run")
    if found.empty:
        say(f"{len(found.empty):,} rows without a count are left out: {_some(found.empty)}")
    return found.x, pd.DataFrame(index=found.index)


def load(card: Mapping[str, Any], names: Sequence[str] = (), *, test_n: int | None = None) -> table_file.Split:
    """Deal the rows of a card's file; ``names`` are the columns of the run, ``test_n`` replaces the number held out."""
    found = opened(card, names)
    return table_file.deal(found.x, found.index, found.factors, card, test_n=test_n)


def fitted_to(spec: Any, card: Mapping[str, Any]) -> Any:
    """Return the spec with the columns of a file; a usage error for a spec of other data."""
    from ppl_models.program import families

    if not scores_counts(spec):
        able = [f"{n}:{p}" for n, f in families().items() for p, known in f.presets.items() if scores_counts(known)]
        raise UsageError(
            f"{card['name']!r} is a matrix of counts, {type(spec).__name__} with these settings scores none; "
            f"fit one of {', '.join(able)}, or a spec with a likelihood of kind 'counts'"
        )
    found = opened(card)
    with usage():
        likelihood = dataclasses.replace(spec.likelihood, names=found.names, library=found.library)
        return dataclasses.replace(spec, likelihood=likelihood, shape=found.shape)


def scores_counts(spec: Any) -> bool:
    """Whether a spec has a likelihood of counts given their library size."""
    return getattr(getattr(spec, "likelihood", None), "kind", None) == KIND


def print_matrix(found: CountMatrix, name: str) -> None:
    """Say what of a file is modelled and what is left out."""
    share = float((found.x["x"] > 0).mean())
    say(
        f"{name}: {len(found):,} rows, {len(found.names):,} columns, {share:.1%} of the counts above 0, median library "
        f"size {found.library:,.0f} (--top N chooses the most variable columns)"
    )
    reasons: dict[str, list[str]] = {}
    for column, why in found.left_out.items():
        reasons.setdefault(why, []).append(column)
    for why, columns in reasons.items():
        say(f"{len(columns):,} columns are left out, {why}: {_some(columns)}")
    if found.empty:
        say(f"{len(found.empty):,} rows without a count are left out: {_some(found.empty)}")
    for label, codes in found.factors.items():
        if lost := int((codes < 0).sum()):
            say(f"label {label!r} is missing in {lost:,} rows: they count as a class of their own, code -1")


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def write_columns(card: Mapping[str, Any], folder: Path) -> None:
    """Write columns.csv: the columns of the file, the share of rows in which each has a count, why one is left out."""
    import pandas as pd

    from inference.fitting.folder import write_text

    found = opened(card)
    kept = pd.DataFrame({"column": found.names, "rows": np.round((found.x["x"] > 0).mean(0), 4), "why": "modelled"})
    rest = pd.DataFrame({"column": list(found.left_out), "rows": np.nan, "why": list(found.left_out.values())})
    frame = pd.concat([kept, rest]) if len(rest) else kept
    write_text(folder / "columns.csv", frame.to_csv(index=False))
