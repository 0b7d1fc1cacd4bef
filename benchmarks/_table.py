"""Records as a Markdown table, and the block of the README that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.harness import HERE, Record, UsageError

README = HERE.parent / "README.md"
START, END = "<!-- results -->", "<!-- /results -->"


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


def with_table(text: str, table: str) -> str:
    """Return the README's text with its results block replaced; raises ``UsageError`` if it has none."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise UsageError(
            f"the README must hold one line {START} and after it one line {END}; add them where the table goes"
        )
    before, rest = text.split(START)
    return f"{before}{START}\n{table}{END}{rest.split(END)[1]}"


def update(table: str, readme: Path = README) -> bool:
    """Write the table into the README; return whether that changed it."""
    old = readme.read_text()
    new = with_table(old, table)
    if new != old:
        readme.write_text(new)
    return new != old


def is_current(table: str, readme: Path = README) -> bool:
    """Whether the README's block is what the records render to."""
    text = readme.read_text()
    return with_table(text, table) == text
