"""``ppl-models compare``: runs side by side on the same held-out data, as a table and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference import _cli_run as runs
from inference._cli_common import UsageError, check_writable, table_text, to_json
from inference._cli_fit import check_at_least
from inference._cli_read import PARTICLES, own_table, table_of

if TYPE_CHECKING:
    import pandas as pd

    from inference._cli_commands import Compare


def compare(command: Compare) -> None:
    """Print the comparison and write comparison.csv and comparison.html."""
    check_at_least(1, test_n=command.test_n)
    check_at_least(2, particles=command.particles)
    if len({folder.resolve() for folder in command.folders}) < 2:
        raise UsageError("compare needs two or more different run folders: ppl-models compare DIR DIR [DIR ...]")
    check_writable(command.out)
    opened = [runs.open_run(folder, command.common.plugin) for folder in command.folders]
    fits, cards = [fitted for fitted, _ in opened], [card for _, card in opened]
    check_same_data(command.folders, cards)
    check_same_observation(command.folders, [fitted.program.observation for fitted in fits])
    wanted = command.test_n or min(card["test_n"] for card in cards)
    x, _ = runs.load_test(cards[0], fits[0].program.sampler, test_n=wanted)
    check_same_draws(command.folders, cards, fits, x)
    own = [table for fitted in fits if (table := own_table(fitted.folder)) is not None]
    particles = command.particles or max((table.attrs["particles"] for table in own), default=PARTICLES)
    tables = {
        name: table_of(fitted, x, particles=particles)
        for name, fitted in zip(names(command.folders), fits, strict=True)
    }
    frame = conclude(tables, dict(zip(tables, command.folders, strict=True)), command.out)
    if command.json:
        print(to_json(frame.reset_index().to_dict(orient="records")))
        return
    print(comparison_text(frame))
    print(f"look at: {command.out / 'comparison.html'}")


def check_same_data(folders: Sequence[Path], cards: Sequence[Mapping[str, Any]]) -> None:
    """Raise :class:`UsageError` unless all runs are evaluated on the same data set."""
    first = cards[0]
    for folder, card in zip(folders, cards, strict=True):
        if any(card[entry] != first[entry] for entry in ("name", "held_out", "shape", "levels", "seed")):
            raise UsageError(
                f"{folders[0]} is a model of data {first['name']!r}, {folder} of {card['name']!r}; densities of "
                "different data cannot be compared: fit both to the same data"
            )


def check_same_draws(
    folders: Sequence[Path], cards: Sequence[Mapping[str, Any]], fits: Sequence[Any], x: np.ndarray
) -> None:
    """Raise :class:`UsageError` for runs that were fitted to their own draws where these are not the same draws."""
    for folder, card, fitted in zip(folders, cards, fits, strict=True):
        if card["name"] != runs.OWN:
            continue
        own, _ = runs.load_test(card, fitted.program.sampler, test_n=len(x))
        if not np.array_equal(own, x):
            raise UsageError(
                f"{folders[0]} and {folder} were each fitted to draws of its own program, and these programs draw "
                "different data; only models of the same data can be compared"
            )


def check_same_observation(folders: Sequence[Path], observations: Sequence[str]) -> None:
    """Raise :class:`UsageError` unless all runs score the same thing; found out before any evidence is computed."""
    for folder, observation in zip(folders, observations, strict=True):
        if observation != observations[0]:
            raise UsageError(
                f"{folders[0]} scores {observations[0]!r}, {folder} scores {observation!r}; densities of different "
                "things cannot be compared: fit both with the same likelihood"
            )


def names(folders: Sequence[Path]) -> list[str]:
    """Name runs by their folders: the last part where it tells them apart, else the path."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def conclude(tables: Mapping[str, pd.DataFrame], folders: Mapping[str, Path], out: Path) -> pd.DataFrame:
    """Compare evidence tables, write comparison.csv and comparison.html into ``out``, return the comparison."""
    from inference.compare import compare as run_compare
    from inference.report import compare_report

    frame = run_compare(tables)
    out.mkdir(parents=True, exist_ok=True)
    runs.write_table(frame, out / "comparison.csv", index=True)
    compare_report(frame, folders, out)
    return frame


# -------------------------------------------------------------------------------------------------- words
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
