"""``ppl-models report``: write a run's page again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from inference.cli import runs, tables
from inference.cli.arguments import Common, Run, check_at_least, opt


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a run's report again: one self-contained page, report.html, and its figures as PNG.

    Examples:
      ppl-models report runs/digits
    """

    folder: Run
    """Run folder."""
    test_n: Annotated[int | None, opt("N", "as in the run")] = None
    """Use the first N of the held-out data [data]."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the page and print its path."""
        report(self)


def report(command: Report) -> None:
    """Write report.html and its figures again and print the path."""
    check_at_least(1, test_n=command.test_n)
    fitted, card = runs.open_run(command.folder, command.common.plugin)
    data = runs.data_of(fitted.program, card, test_n=command.test_n)
    x, factors = data.test, data.factors
    from inference.checking.diagnostics import diagnose as run_diagnose
    from inference.reporting.run_page import report as write_report

    table, tree = tables.table_of(fitted, x, particles=None), tables.tree_of(fitted, x, factors)
    verdict = run_diagnose(
        fitted, x, key=runs.keys()["diagnose"], table=table, tree=tree, baselines=runs.beside(fitted, data)
    )  # fmt: skip
    runs.write_table(verdict, fitted.folder / "diagnosis.csv")
    page = write_report(
        fitted, x, key=runs.keys()["report"], factors=factors, tree=tree, table=table, verdict=verdict,
        train=None if callable(data.train) else data.train, names=data.names,
    )  # fmt: skip
    print(page)
