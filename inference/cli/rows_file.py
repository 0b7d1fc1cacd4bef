"""Arrays in .npy files as the data of a run, which may be larger than memory: the fit reads them batch by batch.

Rows are dealt as those of a table (:mod:`inference.cli.table_file`), by a seeded permutation.  A run keeps the path and
the number of rows, not their checksum, which would read all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.cli import table_file
from inference.cli.common import UsageError, say, start, usage

if TYPE_CHECKING:
    import pandas as pd

    from inference.fitting.stored_rows import Rows

KIND, NEXT, COLUMNS = "rows", "sample", False
SAMPLE = 20_000
"""Rows to fit that are held in memory besides, for the baselines of a diagnosis."""


def is_rows(name: str | None) -> bool:
    """Whether ``--data`` names a .npy file or a folder."""
    return name is not None and (Path(name).suffix.lower() == ".npy" or Path(name).expanduser().is_dir())


def make_card(
    path: str, *, labels: str | None, n: int | None, validation: int | None, test_n: int, seed: int,
    plugins: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the data card of a .npy file or a folder of shards.

    Raises :class:`UsageError` for what is neither, and sizes that leave no row.
    """
    if labels is not None:
        raise UsageError(f"--labels {labels} names a column of a table; {path!r} holds arrays, which have none")
    found = opened(path)
    first = found.head()
    size = len(found)
    say(f"{path}: {size:,} rows of {'x'.join(map(str, first.shape[1:]))} {first.dtype}, read from disk batch by batch")
    validation, held_out = table_file.dealt(size, n=n, validation=validation)
    return {
        "name": Path(path).name, "kind": KIND, "path": path, "absolute": str(Path(path).expanduser().resolve()),
        "split": "train", "n": n, "rows": size, "seed": seed, "validation": validation, "held_out": "test",
        "test_n": min(test_n, held_out), "shape": list(first.shape[1:]),
        "levels": 256 if first.dtype == np.uint8 else None, "licence": "as the file", "plugins": list(plugins),
    }  # fmt: skip


def opened(path: str) -> Rows:
    """The rows of a .npy file or a folder; a usage error where it holds none of them."""
    start()
    from inference.fitting.stored_rows import open_rows

    with usage():
        found = open_rows(path)
    if found.blocks is not None:
        raise UsageError(f"{path!r} is a folder of Parquet files; give one .parquet file, or a folder of .npy files")
    return found


def load(card: Mapping[str, Any], columns: Sequence[Any] = (), *, test_n: int | None = None) -> table_file.Split:
    """Deal the rows of a card; ``test_n`` replaces its number of held-out rows."""
    place = next((p for p in (card["path"], card["absolute"]) if Path(p).expanduser().exists()), card["path"])
    found = opened(place)
    if len(found) != card["rows"]:
        raise UsageError(f"{place!r} has {len(found):,} rows, the run was fitted to {card['rows']:,}; put them back")
    import jax

    from inference.fitting.order import Order
    from inference.fitting.stored_rows import ChosenRows

    size = len(found)
    order, held_out = Order(size, jax.random.key(card["seed"])), max(1, size // table_file.HELD_OUT)
    used = size - held_out if card["n"] is None else card["n"]
    fitted = used - card["validation"]

    def rows(first: int, count: int) -> np.ndarray:
        return found.read(order.at(0, np.arange(first, first + count)))

    test = order.at(0, np.arange(min(card["test_n"] if test_n is None else test_n, held_out)))
    validation = rows(held_out + fitted, card["validation"]) if card["validation"] else None
    stream = ChosenRows(found, fitted, lambda index: order.at(0, held_out + index))
    sample = rows(held_out, min(fitted, SAMPLE))
    return table_file.Split(sample, validation, found.read(test), {}, test.tolist(), stream)


def rows_for(path: str | None, card: Mapping[str, Any], columns: Sequence[Any]) -> tuple[Any, pd.DataFrame]:
    """All rows that a path names, by default those held out of the run, and a frame of their numbers alone."""
    import pandas as pd

    if path is None:
        found = load(card)
        say(f"{len(found.test):,} rows of {card['path']} that are held out (--data FILE.npy for others)")
        return found.test, pd.DataFrame(index=found.names)
    if not is_rows(path):
        raise UsageError(f"{path!r} is no .npy file and no folder of them")
    rows = opened(path)
    return rows.read(np.arange(len(rows))), pd.DataFrame(index=np.arange(len(rows)))
