"""Records as a Markdown table, and the block of a page that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.harness import HERE, Record, UsageError

PAGE, README = HERE / "README.md", HERE.parent / "README.md"
"""The page of all records, and the README with its headlines."""
RESULTS, HEADLINES = "results", "headlines"
"""Names of the blocks: a page holds one between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""


def render(records: Sequence[Record]) -> str:
    """Return the table: one line a claim, a missed target said to be missed and explained."""
    if not records:
        return "No records yet: `python -m benchmarks run --all` makes them.\n"
    lines = ["| claim | measured | target | holds | command |", "|---|---|---|---|---|"]
    for _, group in groupby(records, key=lambda record: record.benchmark):
        lines += [_line(record) for record in group]
    ran_on = sorted({f"{record.device}; {_libraries(record)}" for record in records})
    lines += ["", *(f"Measured on {where}." for where in ran_on)]
    if any(record.quick for record in records):
        lines.append("These are quick runs: they show that the benchmarks work, not the claims.")
    return "\n".join(lines) + "\n"


def _line(record: Record) -> str:
    if record.holds:
        verdict = "yes" if record.target else "-"
    else:
        verdict = "**missed**" + (f": {record.if_missed}" if record.if_missed else "")
    reference = f" ({record.reference})" if record.reference else ""
    cells = (
        record.claim + reference,
        f"{record.value:.4g} {record.unit}".rstrip(),
        record.target or "-",
        verdict,
        f"`{record.command.removeprefix('python -m benchmarks ')}`, {_duration(record.seconds)}",
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _libraries(record: Record) -> str:
    return ", ".join(
        f"{name} {record.versions[name]}" for name in ("jax", "numpyro", "flax") if name in record.versions
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def with_table(text: str, table: str, block: str = RESULTS) -> str:
    """Return a page's text with one block replaced; raises ``UsageError`` if it has none."""
    start, end = f"<!-- {block} -->", f"<!-- /{block} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise UsageError(f"the page must hold one line {start} and after it one line {end}; add them for the table")
    before, rest = text.split(start)
    return f"{before}{start}\n{table}{end}{rest.split(end)[1]}"


def update(table: str, page: Path = PAGE, block: str = RESULTS) -> bool:
    """Write the table into a page; return whether that changed it."""
    old = page.read_text()
    new = with_table(old, table, block)
    if new != old:
        page.write_text(new)
    return new != old


def is_current(table: str, page: Path = PAGE, block: str = RESULTS) -> bool:
    """Whether a page's block is what the records render to."""
    text = page.read_text()
    return with_table(text, table, block) == text
