"""``ppl-models compare``: runs side by side on the same held-out data, as a table and a page."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    wanted = command.test_n or min(card["test_n"] for card in cards)
    x, _ = runs.load_test(cards[0], test_n=wanted)
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


def names(folders: Sequence[Path]) -> list[str]:
    """Name runs by their folders: the last part where it tells them apart, else the path."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def conclude(tables: Mapping[str, pd.DataFrame], folders: Mapping[str, Path], out: Path) -> pd.DataFrame:
    """Compare evidence tables, write comparison.csv and comparison.html into ``out``, return the comparison."""
    from inference.compare import compare as run_compare
    from inference.folder import write_text

    frame = run_compare(tables)
    out.mkdir(parents=True, exist_ok=True)
    runs.write_table(frame, out / "comparison.csv", index=True)
    write_text(out / "comparison.html", page(frame, folders, out))
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
        strength = "a clear difference" if ratio > 4 else "a likely difference" if ratio > 2 else "too close to call"
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
    rows = [[name, *(value for _, value in _cells(row))] for name, row in frame.iterrows()]
    header = ["model", *(title for title, _ in _cells(frame.iloc[0]))]
    about = f"held-out log p(x) in nats, {frame['n'].iloc[0]:,} data; scored: {frame.attrs['observation']}"
    return "\n".join([about, table_text(rows, header), *sentences(frame)])


def _cells(row: pd.Series) -> list[tuple[str, str]]:
    """Titles and texts of what a reader needs of one model's row."""
    return [
        ("a datum", f"{row['elpd_mean']:.2f}"),
        ("total", f"{row['elpd']:.1f}"),
        ("difference", f"{row['elpd_diff']:.1f}"),
        ("s.e. of it", f"{row['dse']:.1f}"),
        ("Monte Carlo error", f"{row['mc_se']:.2f}"),
        ("k-hat high", "exact" if math.isnan(row["khat_bad"]) else f"{row['khat_bad']:.0%}"),
        ("bits a dimension", f"{row['bits_per_dim']:.3f}"),
        ("stacking weight", f"{row['weight']:.2f}"),
    ]


_STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#1b2430;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.3rem .8rem;border-bottom:1px solid #e3e7ed;
text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}dt{font-weight:600}.muted{color:#5b6675}"""

_TERMS = {
    "a datum, total": "the log of the density (or mass) that the model gives to data it was not fitted to; higher is "
    "better. Estimated by importance sampling from q(z | x), so it is a lower bound in expectation.",
    "difference, s.e. of it": "total minus that of the best model, and the standard error of the paired differences "
    "over data. Believe a difference of several standard errors; below two the models are not told apart.",
    "Monte Carlo error": "error of the total that more particles make smaller; it should be small against the "
    "difference.",
    "k-hat high": "share of data whose importance weights are too heavy-tailed to trust (Pareto k-hat); good is below "
    "5 %.",
    "bits a dimension": "minus log p(x) a datum, divided by its dimension and ln 2; lower is better.",
    "stacking weight": "share of each model in the mixture that predicts held-out data best; near 0 means that the "
    "model adds nothing to the others.",
}  # fmt: skip


def page(frame: pd.DataFrame, folders: Mapping[str, Path], out: Path) -> str:
    """Return the comparison as one self-contained HTML page."""
    from inference import figures

    buffer = io.BytesIO()
    figures.comparison(frame).savefig(buffer, format="png", dpi=130)
    image = base64.b64encode(buffer.getvalue()).decode()
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ["model", *(t for t, _ in _cells(frame.iloc[0]))])
    body = "".join(
        f"<tr><td>{_link(str(name), folders.get(str(name)), out)}</td>"
        + "".join(f"<td>{html.escape(text)}</td>" for _, text in _cells(row))
        + "</tr>"
        for name, row in frame.iterrows()
    )
    said = "".join(f"<p>{html.escape(line)}</p>" for line in sentences(frame))
    terms = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in _TERMS.items())
    title = html.escape(" against ".join(str(name) for name in frame.index))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Comparison: {title}</title><style>{_STYLE}</style></head><body>
<h1>Comparison: {title}</h1>
<p>Expected log predictive density on {frame["n"].iloc[0]:,} held-out data, in nats.
<span class="muted">Scored: {html.escape(frame.attrs["observation"])}.</span></p>
{said}
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<figure><img alt="Differences to the best model with standard errors" src="data:image/png;base64,{image}">
<figcaption class="muted">Difference to the best model with one (thick) and two (thin) paired standard errors.
An interval that stays clear of the dashed line is a difference to believe.</figcaption></figure>
<h2>How to read the table</h2><dl>{terms}</dl>
</body></html>
"""


def _link(name: str, folder: Path | None, out: Path) -> str:
    """The model's name, as a link to its report where there is one."""
    if folder is None or not (folder / "report.html").is_file():
        return html.escape(name)
    target = os.path.relpath(folder / "report.html", out)
    return f'<a href="{html.escape(target, quote=True)}">{html.escape(name)}</a>'
