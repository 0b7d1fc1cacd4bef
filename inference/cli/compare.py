"""``ppl-models compare``: runs side by side on the same held-out data, as a table and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from inference.cli import runs
from inference.cli.arguments import Common, check_at_least, opt
from inference.cli.common import UsageError, check_writable, say, table_text, to_json
from inference.cli.entries import (
    OWN_N,
    Entry,
    check_same_data,
    check_same_draws,
    entry_of,
    evidence_of,
    held_out,
    names,
)
from inference.cli.refined import AsInRun

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare runs by expected log predictive density on the same held-out data.

    Prints, and writes as comparison.csv and comparison.html, the paired differences with standard errors
    [nats] and the stacking weights. Evidence is recomputed only where it is missing or was made with other
    data or another number of draws. Runs that score different things (binarised pixels, dequantised grey
    levels) are compared in groups of their own. A folder with no more than evidence.csv and evidence.json
    counts too.

    Examples:
      ppl-models compare runs/one runs/two
      ppl-models compare runs/one --baselines
      ppl-models compare runs/one runs/two runs/three --out runs/comparison --json
    """

    folders: Annotated[Positional[tuple[Path, ...]], opt("DIR", "two or more; one with --baselines")]
    """Run folders."""
    baselines: bool = False
    """Compare with classical densities fitted to the same data: Gaussian, PPCA, mixtures."""
    out: Annotated[Path, opt("DIR")] = Path("comparison")
    """Folder for comparison.csv and comparison.html; an earlier comparison in it is replaced."""
    test_n: Annotated[int | None, opt("N", "the smallest of the runs' own")] = None
    """Compare on the first N of the held-out data [data]."""
    particles: Annotated[int | None, opt("K", "the largest of the runs' own, or 512")] = None
    """Draws from q(z | x) a datum [draws]."""
    method: Literal["importance", "ais", "smc"] = "importance"
    """How log p(x) is estimated; ais and smc anneal, for posteriors that importance sampling cannot be trusted with."""
    refine: AsInRun = None
    """Held-out data whose posterior is optimised by itself: none, those with k-hat > 0.7, or all."""
    json: bool = False
    """Print JSON: a list of objects, best model first."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the comparison."""
        compare(self)


def compare(command: Compare) -> None:
    """Print the comparison and write comparison.csv and comparison.html."""
    check_at_least(1, test_n=command.test_n)
    check_at_least(2, particles=command.particles)
    if len({folder.resolve() for folder in command.folders}) < (1 if command.baselines else 2):
        raise UsageError(
            "compare needs two or more different run folders, ppl-models compare DIR DIR [DIR ...], or one and "
            "--baselines"
        )
    check_writable(command.out)
    entries = [
        entry_of(name, folder, command.common.plugin)
        for name, folder in zip(names(command.folders), command.folders, strict=True)
    ]
    check_same_data(entries)
    together = groups(entries, baselines=command.baselines)
    x = held_out(entries, command.test_n)
    check_same_draws(entries, x)
    tables = evidence_of(entries, x, command.particles, command.method, command.refine)
    found = []
    for members in together:
        shown = {entry.name: tables[entry.name] for entry in members}
        folders = {entry.name: entry.folder for entry in members}
        if command.baselines:
            for name, table in baselines_of(members, x).items():
                name = name if name not in shown else f"{name}-baseline"
                shown[name], folders[name] = table, keep(table, command.out / "baselines", name)
        if len(shown) > 1:
            found.append((shown, folders))
    if not found:
        raise UsageError("nothing is left to compare")
    frames = conclude(found, command.out)
    if command.json:
        print(to_json([row for frame in frames for row in frame.reset_index().to_dict(orient="records")]))
        return
    print("\n\n".join(comparison_text(frame) for frame in frames))
    print(f"look at: {command.out / 'comparison.html'}")


def groups(entries: Sequence[Entry], *, baselines: bool) -> list[list[Entry]]:
    """Entries that score the same thing, together; one that nothing can be compared with is named and left out.

    Raises :class:`UsageError` where no group has two members; found out before any evidence is computed.
    """
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.observation, []).append(entry)
    kept = [members for members in found.values() if len(members) > 1 or (baselines and members[0].fit is not None)]
    if not kept:
        if len(entries) == 1:
            raise UsageError(f"{entries[0].folder} holds only a table of evidence; baselines need a run to score like")
        one, other = entries[:2]
        raise UsageError(
            f"{one.folder} scores {one.observation!r}, {other.folder} scores {other.observation!r}; densities of "
            "different things cannot be compared: fit both with the same likelihood"
        )
    for members in found.values():
        if members not in kept:
            say(f"left out: {members[0].folder} alone scores {members[0].observation!r}")
    return kept


def baselines_of(members: Sequence[Entry], x: Any) -> dict[str, pd.DataFrame]:
    """Return the baselines of one group, fitted to the training data of its first run; none where there are none."""
    from inference.checking.classical import baselines

    entry = next((e for e in members if e.fit is not None), None)
    if entry is None or entry.card is None or x is None:
        return {}
    data = runs.data_of(entry.fit.program, entry.card)
    train = runs.own_draws(data.train, entry.card, "baselines", OWN_N) if callable(data.train) else data.train
    say(f"baselines: fitting to the training data of {entry.folder}")
    try:
        return baselines(entry.fit.program, train, x, key=runs.keys()["evidence"], validation=data.validation)
    except ValueError as error:
        say(f"no baselines: {error}")
        return {}


def keep(table: pd.DataFrame, folder: Path, name: str) -> Path:
    """Write a baseline's evidence into a folder of its own, which ``compare`` takes like a run's."""
    from inference.checking.log_evidence import save_evidence

    (folder / name).mkdir(parents=True, exist_ok=True)
    save_evidence(table, folder / name)
    return folder / name


def conclude(found: Sequence[tuple[Mapping[str, pd.DataFrame], Mapping[str, Path]]], out: Path) -> list[pd.DataFrame]:
    """Compare groups of evidence tables, write comparison.csv and comparison.html into ``out``, return the comparisons.

    A group is (table by name, folder by name).
    """
    import pandas as pd

    from inference.checking.comparison import compare as run_compare
    from inference.reporting import compare_report

    frames = []
    for tables, _ in found:
        frame = run_compare(tables)
        frames.append(frame.assign(observation=frame.attrs["observation"]).__finalize__(frame))
    out.mkdir(parents=True, exist_ok=True)
    runs.write_table(pd.concat(frames), out / "comparison.csv", index=True)
    compare_report(frames, {name: folder for _, folders in found for name, folder in folders.items()}, out)
    return frames


def sentences(frame: pd.DataFrame) -> list[str]:
    """Say in words how far each model is behind the best, and what weakens the statement."""
    best = str(frame.index[0])
    lines = []
    for name, row in frame.iloc[1:].iterrows():
        if not math.isfinite(row["elpd_diff"]):
            lines.append(f"{name} gives some held-out data no probability and ranks last.")
            continue
        ratio = -row["elpd_diff"] / row["dse"] if row["dse"] > 0 else math.inf
        strength = (
            "a clear difference"
            if ratio > 4
            else "a likely difference"
            if ratio > 2
            else "not told apart by these data"
        )
        lines.append(
            f"{best} is ahead of {name} by {-row['elpd_diff'] / row['n']:.3g} nats a datum "
            f"({-row['elpd_diff']:.4g} over {int(row['n']):,} data, {ratio:.1f} paired standard errors): {strength}."
        )
        noise = math.hypot(row["mc_se"], frame["mc_se"].iloc[0])
        if noise > row["dse"] / 2:
            lines.append(f"Monte Carlo error {noise:.3g} nats is not small against that: use more --particles.")
    bad = [f"{name} ({row['khat_bad']:.0%})" for name, row in frame.iterrows() if row["khat_bad"] > 0.05]
    if bad:
        lines.append(
            f"Pareto k-hat is high for a share of the data of {', '.join(bad)}: log p(x) is a lower bound there."
        )
    return lines


def comparison_text(frame: pd.DataFrame) -> str:
    """Return the comparison as plain text: the table, its unit, and the sentences."""
    shown = [dict(_cells(row)) for _, row in frame.iterrows()]
    header = [title for title in shown[0] if any(cells[title] for cells in shown)]
    rows = [[name, *(cells[title] for title in header)] for name, cells in zip(frame.index, shown, strict=True)]
    about = f"held-out log p(x) in nats, {frame['n'].iloc[0]:,} data; scored: {frame.attrs['observation']}"
    return "\n".join([about, table_text(rows, ["model", *header]), *sentences(frame)])


def _cells(row: pd.Series) -> list[tuple[str, str]]:
    """Titles and texts of what a reader needs of one model's row; empty where a number does not exist."""
    return [
        ("a datum", f"{row['elpd_mean']:.2f}"),
        ("total", f"{row['elpd']:.1f}"),
        ("difference", f"{row['elpd_diff']:.1f}"),
        ("s.e. of it", f"{row['dse']:.1f}"),
        ("Monte Carlo error", f"{row['mc_se']:.2f}"),
        ("k-hat > 0.7", "exact" if math.isnan(row["khat_bad"]) else f"{row['khat_bad']:.0%}"),
        ("bits a dimension", "" if math.isnan(row["bits_per_dim"]) else f"{row['bits_per_dim']:.3f}"),
        ("stacking weight", f"{row['weight']:.2f}"),
    ]
