"""The page of a sweep: each measure by setting, every seed a point; learning curves; the spread; links to the runs."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.fitting.folder import write_text
from inference.fitting.sweeps import MEASURES, Sweep
from inference.reporting import markup
from inference.reporting.drawn import Drawn
from inference.reporting.style import CYCLE, canvas, note, styled
from ppl_models.program import Panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAMES = {
    "loss": "training loss (nats a datum, lower is better)", "elbo": "training ELBO (nats a datum)",
    "validation": "best validation (nats a datum)", "log_px": "held-out log p(x) (nats a datum)",
}  # fmt: skip


def sweep_report(found: Sweep) -> Path:
    """Write ``sweep.html`` and its figures into the folder of a sweep; returns the page.

    The measure that decides is the last of :data:`inference.fitting.sweeps.MEASURES` that the table has.
    """
    table, drawn = found.table, Drawn(found.folder)
    spread, measure = found.spread(), deciding(table)
    labels = [label(row, found.settings) for _, row in spread.iterrows()]
    seeds = ", ".join(str(seed) for seed in table["seed"].unique())
    points = drawn.panel(
        Panel(
            "spread",
            f"{NAMES[measure].capitalize()} by setting. Each point is a seed, the bar their mean. Settings whose "
            "points overlap are not told apart by so many seeds.",
            lambda: _points(table, found.settings, measure),
        )
    )
    curves = drawn.panel(
        Panel(
            "curves",
            "Learning curves. One line a seed, one colour a setting: lines of a colour differ by the seed alone.",
            lambda: _curves(found),
        )
    )
    shown = [name for name in MEASURES if f"{name}_mean" in spread]
    rows = [
        [name, int(row["seeds"]), int(row["failed"]), *(cell for m in shown for cell in _cells(row, m))]
        for name, (_, row) in zip(labels, spread.iterrows(), strict=True)
    ]
    header = (
        "setting",
        "seeds",
        "failed",
        *(f"{NAMES[m]}: {part}" for m in shown for part in ("mean ± s.d.", "range")),
    )
    plain = [name for name in ("stopped", "steps", "seconds", "skipped", *MEASURES) if name in table]
    members = "".join(_member(row, found.settings, plain, found.folder) for _, row in table.iterrows())
    heads = "".join(f"<th scope=col>{escape(h)}</th>" for h in ("run", "seed", *found.settings, *plain))
    body = (
        f"<h1>Sweep of {len(spread)} settings and {table['seed'].nunique()} seeds</h1>"
        f"<p><b>{escape(conclusion(spread, labels, measure))}</b></p>"
        f"<p>Seeds: {escape(seeds)}. Settings differ in: {escape(', '.join(found.settings) or 'nothing')}. A seed "
        "decides initial weights, batches and noise; the data are the same.</p>"
        f"{drawn.problems()}<h2>Spread over seeds</h2>{points}{markup.table(header, rows)}"
        f"<h2>Training</h2>{curves}<h2>The runs</h2>{markup.stack(heads, members)}"
    )
    path = found.folder / "sweep.html"
    write_text(path, markup.page("Sweep", body))
    return path


def deciding(table: pd.DataFrame) -> str:
    """The measure that says most of what a table has: held-out log p(x), else validation, else the training ELBO."""
    return next(name for name in reversed(MEASURES) if name in table and (table[name].notna().any() or name == "loss"))


def label(row: Any, settings: tuple[str, ...]) -> str:
    """A setting in words."""
    return ", ".join(f"{name} {row[name]}" for name in settings) or "all"


def conclusion(spread: pd.DataFrame, labels: list[str], measure: str) -> str:
    """One sentence: the best setting, and whether its lead exceeds what seeds alone make of the two best.

    The lead is set against the standard error of the difference of two means, sqrt(s1^2 / n1 + s2^2 / n2).
    """
    sign = -1.0 if measure == "loss" else 1.0
    mean, sd, n = (spread[c].to_numpy(float) for c in (f"{measure}_mean", f"{measure}_sd", "seeds"))
    order = [i for i in np.argsort(-sign * mean) if math.isfinite(mean[i])]
    if not order:
        return "No fit ended with finite numbers."
    one = order[0]
    told = f"{mean[one]:.4g}" if math.isnan(sd[one]) else f"{mean[one]:.4g} ± {sd[one]:.2g} over {int(n[one])} seeds"
    if len(order) == 1:
        return f"{NAMES[measure]}: {told}."
    other = order[1]
    lead = sign * (mean[one] - mean[other])
    error = math.sqrt(sd[one] ** 2 / n[one] + sd[other] ** 2 / n[other])
    if math.isnan(error):
        return f"{NAMES[measure]}: ‘{labels[one]}’ is first with {told}; one seed a setting says nothing of chance."
    apart = "more than seeds make" if lead > 2 * error else "no more than seeds make: the settings are not told apart"
    return (
        f"{NAMES[measure]}: ‘{labels[one]}’ is first with {told}, {lead:.3g} ahead of ‘{labels[other]}’ "
        f"(standard error {error:.2g}), {apart}."
    )


def _cells(row: Any, measure: str) -> tuple[str, str]:
    mean, sd, low, high = (float(row[f"{measure}_{part}"]) for part in ("mean", "sd", "min", "max"))
    return f"{mean:.4g}" + ("" if math.isnan(sd) else f" ± {sd:.2g}"), f"{low:.4g} to {high:.4g}"


def _member(row: Any, settings: tuple[str, ...], plain: list[str], folder: Path) -> str:
    name = str(row["run"])
    inside = f'<a href="{escape(name)}/report.html">{escape(name)}</a>'
    run = inside if (folder / name / "report.html").exists() else escape(name)
    values = [row["seed"], *(row[s] for s in settings), *(row[p] for p in plain)]
    cells = "".join(
        f"<td>{escape(markup.number(v.item() if isinstance(v, np.generic) else v))}</td>" for v in values
    )  # fmt: skip
    return f"<tr><td>{run}</td>{cells}</tr>"


@styled
def _points(table: pd.DataFrame, settings: tuple[str, ...], measure: str) -> Figure:
    groups = list(table.groupby(list(settings), sort=False, dropna=False)) if settings else [((), table)]
    figure, axes = canvas(7.2, 1.2 + 0.45 * len(groups))
    axis = axes[0, 0]
    for i, (_, group) in enumerate(groups):
        values = group[measure].dropna().to_numpy(float)
        axis.plot(values, np.full(len(values), i), "o", ms=5, alpha=0.65, color=CYCLE[i % len(CYCLE)])
        if len(values):
            axis.plot([values.mean()] * 2, [i - 0.3, i + 0.3], color=CYCLE[i % len(CYCLE)], lw=2.5)
    axis.set_yticks(range(len(groups)), [label(group.iloc[0], settings) for _, group in groups])
    axis.set(xlabel=NAMES[measure], ylim=(len(groups) - 0.5, -0.5))
    return figure


@styled
def _curves(found: Sweep) -> Figure:
    import pandas as pd

    figure, axes = canvas(7.2, 3.6)
    axis, colours, ends = axes[0, 0], dict[str, str](), list[float]()
    for _, row in found.table.iterrows():
        file = found.folder / str(row["run"]) / "history.csv"
        if not file.exists():
            continue
        history, name = pd.read_csv(file), label(row, found.settings)
        first = name not in colours
        colour = colours.setdefault(name, CYCLE[len(colours) % len(CYCLE)])
        column = "validation_elbo" if history["validation_elbo"].notna().any() else "elbo"
        curve = history[["step", column]].dropna()
        axis.plot(curve["step"], curve[column], color=colour, lw=1, alpha=0.8, label=name if first else None)
        ends += curve[column].iloc[len(curve) // 10 :].tolist()
    if not colours:
        note(axis, "no run has a history")
        return figure
    ends = [value for value in ends if math.isfinite(value)]
    if ends and np.ptp(ends) > 0:
        axis.set_ylim(min(ends) - 0.06 * np.ptp(ends), max(ends) + 0.06 * np.ptp(ends))
    axis.set(xlabel="step", ylabel="ELBO (nats a datum), of validation data if any")
    axis.legend()
    return figure
