"""``ppl-models impute``: the missing entries of a table, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from tyro.conf import Positional

from inference.cli import runs, table_file
from inference.cli.arguments import Common, Run, check_at_least, opt
from inference.cli.common import UsageError, say, table_text, usage

if TYPE_CHECKING:
    import pandas as pd

    from inference.checking.imputation import Imputation


@dataclass(frozen=True, kw_only=True)
class Impute:
    """Draw the missing entries of a table given what is there, by a model that was fitted to it.

    Writes imputed.csv, one row a missing entry: index, column, value (median, or most probable class), lower and
    upper end of its interval, probability of the class; and imputed_table.csv, the table with these values in place.
    Both are in the units of the file.

    Examples:
      ppl-models impute runs/patients
      ppl-models impute runs/patients new_patients.csv --interval 0.8 --out new.csv
    """

    folder: Run
    """Run folder."""
    data: Annotated[Positional[str | None], opt("FILE.csv", "all rows of the table of the run")] = None
    """Rows to fill: a file with the columns of the run, .csv, .tsv or .parquet."""
    draws: Annotated[int, opt("S")] = 100
    """Draws of each missing entry [draws]."""
    interval: Annotated[float, opt("P")] = 0.9
    """Probability of the central interval."""
    out: Annotated[Path | None, opt("FILE.csv", "imputed.csv in the run folder")] = None
    """Table of the entries to write; the filled table lies beside it, with _table at the end of its name."""
    seed: Annotated[int, opt("N")] = 0
    """Seed of the draws."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write both tables and print a summary."""
        impute(self)


def impute(command: Impute) -> None:
    """Write the missing entries and the filled table, and print a summary, one line a column."""
    check_at_least(1, draws=command.draws)
    check_at_least(0, seed=command.seed)
    if not 0 < command.interval < 1:
        raise UsageError(f"--interval is a probability between 0 and 1, got {command.interval}; try 0.9")
    path = command.out
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"--out {str(path)!r}: no folder {str(path.parent)!r}; make it first")
    card = runs.run_card(command.folder, command.common.plugin)
    if not table_file.is_table_card(card):
        raise UsageError(
            f"{str(command.folder)!r} was fitted to {card['name']!r}, which is no table; impute fills a run of "
            "`ppl-models fit ... --data FILE.csv`"
        )
    fitted = runs.load_fit(command.folder)
    x, frame = table_file.rows_for(command.data, card, fitted.program.observation.columns)
    import jax

    import inference

    with usage():
        found = inference.impute(fitted, x, draws=command.draws, key=jax.random.key(command.seed))
    path = fitted.folder / "imputed.csv" if path is None else path
    entries = by_day(found.frame(command.interval), found.columns).assign(index=frame.index.to_numpy()[found.row])
    runs.write_table(entries.rename(columns={"index": frame.index.name or "index"}), path)
    filled = path.with_name(f"{path.stem}_table{path.suffix}")
    runs.write_table(fill(frame, found), filled, index=frame.index.name is not None)
    rows = [line for column in found.columns if (line := summary(column, entries, len(frame))) is not None]
    print(table_text(rows, ["column", "kind", "missing", "values", f"width of the {command.interval:.0%} interval"]))
    low = int((found.ess < 10).sum())
    if low:
        say(f"warning: the weights of {low:,} rows rest on fewer than 10 draws; --draws {4 * command.draws} takes more")
    print(f"{path}: {len(entries):,} missing entries of {len(frame):,} rows, {command.draws} draws each")
    print(f"{filled}: the table, filled")


def by_day(entries: pd.DataFrame, columns: Sequence[Any]) -> pd.DataFrame:
    """The entries with dates as text, without the time of day."""
    for column in columns:
        mine = entries["column"] == column.name
        if column.date and mine.any():
            for name in ("value", "lower", "upper"):
                entries.loc[mine, name] = [day.strftime("%Y-%m-%d") for day in entries.loc[mine, name]]
    return entries


def fill(frame: pd.DataFrame, found: Imputation) -> pd.DataFrame:
    """The table as it stands in its file, with estimates where entries are missing; nothing else changes."""
    filled, estimate = frame.copy(), found.filled()
    for d, column in enumerate(found.columns):
        at = found.row[found.column == d]
        if not at.size:
            continue
        own, new = filled[column.name], estimate[column.name].iloc[at]
        text = not isinstance(own.dtype, np.dtype) or own.dtype == object
        if column.date and text:
            new = new.dt.strftime("%Y-%m-%d")
        cells = own.astype(object).copy()
        cells.iloc[at] = new.astype(object).to_numpy()
        if column.kind == "count" or (not text and column.values):
            cells = cells.infer_objects()  # whole numbers stay whole where missing entries had made them floats
            if cells.dtype.kind == "f" and (cells == np.floor(cells)).all():
                cells = cells.astype("int64")
        filled[column.name] = cells
    return filled


def summary(column: Any, entries: pd.DataFrame, n: int) -> list[Any] | None:
    """One line on the missing entries of a column; ``None`` where it has none."""
    import pandas as pd

    mine = entries[entries["column"] == column.name]
    if mine.empty:
        return None
    missing = f"{len(mine):,} ({len(mine) / n:.0%})"
    if column.values:
        shares = mine["value"].value_counts(normalize=True)
        listed = ", ".join(f"{value} {share:.0%}" for value, share in shares.head(3).items())
        return [column.name, column.kind, missing, listed, f"(class of probability {mine['probability'].mean():.2f})"]
    low, high = mine["value"].min(), mine["value"].max()
    if column.date:
        width = (pd.to_datetime(mine["upper"]) - pd.to_datetime(mine["lower"])).mean()
        return [column.name, column.kind, missing, f"{low} to {high}", f"{width.days} days on average"]
    width = (mine["upper"] - mine["lower"]).astype(float).mean()
    return [column.name, column.kind, missing, f"{low:.4g} to {high:.4g}", f"{width:.4g} on average"]
