"""Run folders to be set side by side: opened, found to hold the same data, their evidence on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.cli import runs, tables
from inference.cli.common import UsageError, is_run, read_run

if TYPE_CHECKING:
    import pandas as pd


OWN_N = 4096
"""Draws of a program's own data that baselines are fitted to."""


@dataclass(frozen=True)
class Entry:
    """A folder to compare: a run whose data can be loaded again, or no more than a table of evidence."""

    name: str
    folder: Path
    observation: str
    fit: Any = None
    card: Mapping[str, Any] | None = None
    table: pd.DataFrame | None = None


def entry_of(name: str, folder: Path, plugins: Sequence[Path]) -> Entry:
    """Open a run folder; of one without a model, or without a data set that can be loaded, take its evidence.csv."""
    alone = folder.is_dir() and not is_run(folder) and (folder / "evidence.csv").is_file()
    if not alone and _named(read_run(folder).get("card")):
        fitted, card = runs.open_run(folder, plugins)
        return Entry(name, folder, fitted.program.observation.line, fitted, card)
    table = tables.own_table(folder)
    if table is None:
        runs.run_card(folder, plugins)  # says what is missing
        raise UsageError(f"{str(folder)!r} holds no evidence that can be compared")
    return Entry(name, folder, table.attrs["observation"], table=table)


def _named(card: Any) -> bool:
    """Whether a data card names a data set that can be loaded again."""
    return isinstance(card, dict) and "name" in card and "held_out" in card


def check_same_data(entries: Sequence[Entry]) -> None:
    """Raise :class:`UsageError` unless all runs are evaluated on the same data set."""
    cards = [(entry.folder, entry.card) for entry in entries if entry.card is not None]
    for folder, card in cards:
        first, reference = cards[0]
        fields = ("name", "held_out", "shape", "levels", "seed", "sha256")
        if any(card.get(field) != reference.get(field) for field in fields):
            raise UsageError(
                f"{first} is a model of data {reference['name']!r}, {folder} of {card['name']!r}; densities of "
                "different data cannot be compared: fit both to the same data"
            )


def held_out(entries: Sequence[Entry], test_n: int | None) -> Any:
    """Load the held-out data of the runs; ``None`` where there are only tables."""
    sizes = [(e.card["test_n"] if e.card is not None else len(e.table), e) for e in entries]  # type: ignore[arg-type]
    least, entry = min(sizes, key=lambda pair: pair[0])
    tables = [(n, e) for n, e in sizes if e.table is not None]
    for n, short in tables:
        if test_n is not None and n < test_n:
            raise UsageError(f"--test-n {test_n} is more than the {n} data of the evidence in {short.folder}")
    for e in entries:
        if e.card is not None:
            return runs.test_of(e.fit.program, e.card, test_n=test_n or least)[0]
    return None


def check_same_draws(entries: Sequence[Entry], x: Any) -> None:
    """Raise :class:`UsageError` where runs were fitted to their programs' own draws and these are not all ``x``."""
    import jax
    import numpy as np

    from ppl_models.program import rows

    own = [e for e in entries if e.card is not None and e.card["name"] == runs.OWN]
    if x is None or not own:
        return
    for e in own[1:]:
        draws = held_out([e], rows(x))
        if draws is None or not jax.tree.all(jax.tree.map(np.array_equal, draws, x)):
            raise UsageError(
                f"{own[0].folder} and {e.folder} were each fitted to draws of its own program, and these programs draw "
                "different data; only models of the same data can be compared"
            )


def evidence_of(
    entries: Sequence[Entry],
    x: Any,
    particles: int | None,
    method: str = "importance",
    refine: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Return an evidence table for each entry, computed only where its folder holds none of these data made so."""
    own = [table for e in entries if e.fit is not None and (table := tables.own_table(e.folder, e.fit)) is not None]
    asked = [table.attrs["particles"] for table in own if table.attrs["estimator"] != "exact"]
    wanted = particles if method != "importance" else particles or max(asked, default=tables.PARTICLES)
    from ppl_models.program import rows

    n = rows(x) if x is not None else min(len(e.table) for e in entries if e.table is not None)
    return {
        e.name: tables.table_of(e.fit, x, particles=wanted, method=method, refine=refine)
        if e.table is None and x is not None
        else e.table.iloc[:n].__finalize__(e.table)  # type: ignore[union-attr]
        for e in entries
    }  # fmt: skip


def names(folders: Sequence[Path]) -> list[str]:
    """Name runs by their folders: the last part where it tells them apart, else the path."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]
