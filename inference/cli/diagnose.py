"""``ppl-models diagnose``: check a fitted run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from inference.cli import conditional, refined, runs, tables, words
from inference.cli.arguments import Common, Run, check_at_least, opt
from inference.cli.common import UsageError, table_text, to_json
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
    ranks: Annotated[Path | None, opt("FILE.npz", "not judged")] = None
    """Of a file of conditional draws (FILE.nc, a saved tree of inference.sampling.condition, in the place of DIR):
    ranks of inference.sampling.calibration_ranks, written by numpy.savez(FILE, **ranks)."""
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
    if conditional.is_draws(command.folder):
        given = {"test_n": command.test_n, "particles": command.particles, "refine": command.refine}
        conditional.diagnose_draws(command.folder, command.ranks, as_json=command.json, **given)
        return
    if command.ranks is not None:
        raise UsageError("--ranks belong to a file of conditional draws, FILE.nc; of a run: fit --calibration N")
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
