"""The data card of a run, as run.json keeps it: what is in it, checked before anything is loaded by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.cli import files
from inference.cli.common import UsageError, read_run

ENTRIES: Mapping[str, tuple[type, ...]] = {
    "name": (str,), "held_out": (str,), "split": (str, type(None)), "n": (int, type(None)), "seed": (int,),
    "validation": (int,), "test_n": (int,),
}  # fmt: skip
"""What every data card says, and of which type."""


def card_of(folder: Path) -> dict[str, Any]:
    """Return the data card of a run.

    Raises :class:`UsageError` for a run without one, or whose entries are not those from which data are loaded again.
    """
    card = read_run(folder)["card"]
    if "name" not in card or "held_out" not in card:
        raise UsageError(
            f"{str(folder)!r} was fitted from Python and names no data set that can be loaded again; "
            "use inference.load(folder) and the functions of the package inference there"
        )
    wanted = {**ENTRIES, **({"path": (str,), "rows": (int,)} if files.of_card(card) is not None else {})}
    for name, kinds in wanted.items():
        value = card.get(name)
        if type(value) not in kinds or name not in card or (type(value) is int and value < 0):
            given = f"{value!r:.60}" if name in card else "nothing"
            words = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise UsageError(
                f"{folder / 'run.json'}: the {name!r} of its card is {given}, expected {words}; restore the file "
                "from a copy, or fit the run again"
            )
    return card
