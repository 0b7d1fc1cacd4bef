"""The command ``python -m benchmarks``: list, run, table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from benchmarks import _headlines, _table, harness

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
app = tyro.extras.SubcommandApp()


@app.command(name="list")
def list_() -> int:
    """Print every benchmark and the question it answers."""
    found = harness.benchmarks()
    width = max(map(len, found), default=0)
    for name, question in found.items():
        print(f"{name:{width}}  {question}")
    if not found:
        print("no benchmarks yet")
    return 0


def _shard(names: tuple[str, ...], shard: str) -> tuple[str, ...]:
    i, _, n = shard.partition("/")
    if not (i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise harness.UsageError(f"--shard is i/n with 1 <= i <= n, got {shard!r}; 1/2 and 2/2 make two halves")
    return names[int(i) - 1 :: int(n)]


@app.command
def run(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    all: Flag = False,
    quick: Flag = False,
    shard: str = "1/1",
) -> int:
    """Run benchmarks and write their records.

    Args:
        names: Names of benchmarks (see list).
        all: Run every benchmark.
        quick: A small run that shows that the benchmark works; its records are kept apart from the real ones.
        shard: Every n-th of them, from the i-th on, as i/n: quick runs of all in several processes.
    """
    chosen = tuple(harness.benchmarks()) if all else names
    chosen = _shard(chosen, shard)
    if not chosen and not all:
        raise harness.UsageError("give the name of a benchmark, or --all; python -m benchmarks list shows them")
    questions = harness.benchmarks()
    loaded = {name: harness.load(name) for name in chosen}  # every name is checked before the first one runs

    from inference.fitting.runtime import tune_runtime

    tune_runtime()
    missed = 0
    for name, function in loaded.items():
        print(f"{name}: {questions[name]}", flush=True)
        for record in harness.execute(name, function, quick=quick):
            verdict = "" if not record.target else f" (target {record.target}: {'holds' if record.holds else 'MISSED'})"
            print(f"  {record.claim}: {record.value:.4g} {record.unit}{verdict}, {record.seconds:.0f} s", flush=True)
            missed += not record.holds
    if missed and quick:
        print(f"{missed} of the targets were missed; a quick run is too small to judge by")
    return 0


@app.command
def table(
    readme: Flag = False,
    check: Flag = False,
    quick: Flag = False,
) -> int:
    """Print the table of all records.

    Args:
        readme: Write it into benchmarks/README.md, and the headlines into the README, instead.
        check: Print nothing; fail if these tables are not what the records say.
        quick: The records of quick runs instead.
    """
    if quick and (readme or check):
        raise harness.UsageError("quick records never go into the README; leave out --quick, or --readme and --check")
    found = harness.records(harness.QUICK if quick else harness.RESULTS)
    text = _table.render(found)
    if not (check or readme):
        print(text, end="")
        return 0
    stale = 0
    for page, block, content in (
        (_table.PAGE, _table.RESULTS, text),
        (_table.README, _table.HEADLINES, _headlines.render(found)),
    ):
        name = page.relative_to(_table.README.parent)
        if readme:
            print(f"{name} written" if _table.update(content, page, block) else f"{name} is up to date")
        elif not _table.is_current(content, page, block):
            stale = 1
            print(f"{name} is not what the records say; run: python -m benchmarks table --readme", file=sys.stderr)
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 the README's table is stale, 2 the command line or a file is wrong."""
    try:
        return app.cli(args=arguments, prog="python -m benchmarks")
    except harness.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
