"""``ppl-models diagnose``: check a fitted run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from inference.cli import refined, runs, tables, words
from inference.cli.arguments import Common, Run, check_at_least, opt
from inference.cli.common import (
    table_text,
    to_json,
)
from inference.cli.refined import AsInRun


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Check a fitted run on held-out data: one line a check, with its threshold, verdict and remedy.

    Writes diagnosis.csv. The exit code is 0 whatever the verdicts are.

    Examples:
      ppl-models diagnose runs/digits
      ppl-models diagnose runs/digits --json | jq '.[] | select(.verdict == "fail")'
    """

    folder: Run
    """Run folder."""
    test_n: Annotated[int | None, opt("N", "as in the run")] = None
    """Check on the first N of the held-out data [data]."""
    particles: Annotated[int | None, opt("K", "as in evidence.csv, or 512")] = None
    """Draws a datum; another number than that of evidence.csv has it recomputed [draws]."""
    refine: AsInRun = None
    """Held-out data whose posterior is optimised by itself: none, those with k-hat > 0.7, or all."""
    json: bool = False
    """Print JSON: a list of objects with check, value, threshold, verdict, meaning, remedy."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the table."""
        diagnose(self)


def diagnose(command: Diagnose) -> None:
    """Print one line a check and write diagnosis.csv."""
    check_at_least(1, test_n=command.test_n)
    check_at_least(2, particles=command.particles)
    fitted, card = runs.open_run(command.folder, command.common.plugin)
    data = runs.data_of(fitted.program, card, test_n=command.test_n)
    x, factors = data.test, data.factors
    from inference.checking.diagnostics import diagnose as run_diagnose

    which = tables.refine_of(fitted, command.refine)
    fitted = refined.with_posteriors(fitted, x, which, particles=command.particles or tables.PARTICLES)
    table = tables.table_of(fitted, x, particles=command.particles, refine=which)
    tree = tables.tree_of(fitted, x, factors)
    verdict = run_diagnose(
        fitted, x, key=runs.keys()["diagnose"], table=table, tree=tree, baselines=runs.beside(fitted, data),
        train=None if callable(data.train) else data.train,
    )  # fmt: skip
    runs.write_table(verdict, fitted.folder / "diagnosis.csv")
    if command.json:
        print(to_json(verdict.to_dict(orient="records")))
        return
    print(words.fit_line(fitted))
    print(words.evidence_line(table))
    print()
    rows = [[row.verdict, row.check, f"{row.value:.4g}", row.threshold] for row in verdict.itertuples()]
    print(table_text(rows, ["verdict", "check", "value", "wanted"]))
    print()
    print(words.verdict_lines(verdict, full=True))
    print(f"table: {fitted.folder / 'diagnosis.csv'}")
