"""``ppl-models report``: write a run's page again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from inference.cli import conditional, refined, runs, tables
from inference.cli.arguments import Common, Run, check_at_least, opt
from inference.cli.refined import AsInRun


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
    refine: AsInRun = None
    """Held-out data whose posterior is optimised by itself: none, those with k-hat > 0.7, or all."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the page and print its path."""
        report(self)


def report(command: Report) -> None:
    """Write report.html and its figures again, or the page of a file of conditional draws, and print the path."""
    check_at_least(1, test_n=command.test_n)
    if conditional.is_draws(command.folder):
        conditional.report_draws(command.folder, test_n=command.test_n, refine=command.refine)
        return
    fitted, card = runs.open_run(command.folder, command.common.plugin)
    data = runs.data_of(fitted.program, card, test_n=command.test_n)
    x, factors = data.test, data.factors
    from inference.checking.diagnostics import diagnose as run_diagnose
    from inference.reporting.run_page import report as write_report

    which = tables.refine_of(fitted, command.refine)
    fitted = refined.with_posteriors(fitted, x, which)
    table, tree = tables.table_of(fitted, x, particles=None, refine=which), tables.tree_of(fitted, x, factors)
    train = None if callable(data.train) else data.train
    verdict = run_diagnose(
        fitted, x, key=runs.keys()["diagnose"], table=table, tree=tree, baselines=runs.beside(fitted, data), train=train
    )  # fmt: skip
    runs.write_table(verdict, fitted.folder / "diagnosis.csv")
    page = write_report(
        fitted, x, key=runs.keys()["report"], factors=factors, tree=tree, table=table, verdict=verdict,
        train=train, names=data.names,
    )  # fmt: skip
    print(page)
