"""The page that compares several runs: table, figure, links."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.fitting.folder import write_text
from inference.reporting import markup
from inference.reporting.drawn import Drawn
from ppl_models.program import Panel

if TYPE_CHECKING:
    import pandas as pd

BAD_KHAT = 0.25
"""Share of data with unreliable log p(x) from which the conclusion says so (that at which ``diagnose`` fails)."""


COLUMNS = {
    "rank": "rank", "elpd_mean": "log p(x) per datum (nats)", "bits_per_dim": "bits per dim",
    "elpd_diff": "difference (nats, summed)", "dse": "its s.e.", "weight": "stacking weight",
    "mc_se": "Monte Carlo error", "khat_bad": "share with k-hat > 0.7",
}  # fmt: skip


def compare_report(
    comparison: pd.DataFrame | Sequence[pd.DataFrame],
    runs: Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str],
) -> Path:
    """Write one page that compares several runs: table, figure, and links to each run's own report.

    ``comparison``  the result of ``inference.compare``, one row a model, best first; or several such results, of
                    models that score different things: each gets a section of its own.
    ``runs``        folder of each run by the model's name.
    ``out``         the page to write (``*.html``), or a folder, which then gets ``comparison.html``.

    The figures are written beside the page as ``comparison.png``, ``comparison_2.png``, ...
    """
    import pandas as pd

    frames = [comparison] if isinstance(comparison, pd.DataFrame) else list(comparison)
    if not frames:
        raise ValueError("there is no comparison to report; pass the result of inference.compare, or several")
    path = Path(out)
    if path.suffix != ".html":
        path = path / "comparison.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Drawn(path.parent)
    sections = [_section(frame, drawn, alone=len(frames) == 1) for frame in frames]
    links = []
    for name, folder in runs.items():
        page = Path(folder) / "report.html"
        where = os.path.relpath(page, path.parent).replace(os.sep, "/")
        links.append(
            f'<li><a href="{escape(where)}">{escape(str(name))}</a></li>' if page.exists()
            else f"<li>{escape(str(name))} <span class=muted>(has no report.html)</span></li>"
        )  # fmt: skip
    counts = {int(frame["n"].iloc[0]) for frame in frames if "n" in frame}
    on = f"the same {counts.pop():,} held-out data" if len(counts) == 1 else "the same held-out data"
    split = "" if len(frames) == 1 else (
        " Densities of different things cannot be compared: models that score the same stand together, in "
        f"{len(frames)} groups."
    )  # fmt: skip
    body = (
        f"<h1>Comparison of {sum(map(len, frames))} models</h1><p>Each model was scored by log p(x) on {on}; "
        f"differences are taken datum by datum, so what is hard for all models cancels.{split}</p>{drawn.problems()}"
        + "".join(sections)
        + f"<h2>The runs</h2><ul>{''.join(links)}</ul>"
    )
    write_text(path, markup.page("Comparison of models", body))
    return path


def _section(comparison: pd.DataFrame, drawn: Drawn, *, alone: bool) -> str:
    """Table, figure and conclusion of models that score the same."""
    figure = drawn.panel(
        Panel(
            "comparison",
            "How far each model falls behind the best. A difference is worth believing when the thin line (two "
            "standard errors of the paired difference) stays clear of zero; models whose line crosses zero are not "
            "told apart by these data.",
            lambda: _figure(comparison),
        )
    )
    shown = [c for c in COLUMNS if c in comparison]
    comparison = comparison.assign(weight=comparison["weight"].round(4))
    rows = [[str(name), *(_native(row[c]) for c in shown)] for name, row in comparison.iterrows()]
    observation = comparison.attrs.get("observation")
    title = "Result" if alone or not observation else f"Result: {observation.partition(';')[0]}"
    return (
        f"<h2>{escape(title)}</h2>"
        + (f"<p>What is scored: <b>{escape(observation)}</b>.</p>" if observation else "")
        + f"<p><b>{escape(_conclusion(comparison, str(comparison.index[0])))}</b></p>"
        + markup.table(("model", *(COLUMNS[c] for c in shown)), rows)
        + '<p class="small muted">Difference: sum over the data of log p(x) minus that of the best model. Stacking '
        "weight: the mixture of the models that predicts these data best. Share with bad k-hat: data whose log p(x) "
        f"cannot be trusted; none where it is exact.</p>{figure}"
    )


def _figure(comparison: pd.DataFrame) -> Any:
    from inference.reporting import figures

    return figures.comparison(comparison)


def _native(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _conclusion(comparison: pd.DataFrame, best: str) -> str:
    """One sentence: is the best model clearly better than the next?"""
    if len(comparison) < 2:
        return f"‘{best}’ is the only model."
    difference, se = float(comparison["elpd_diff"].iloc[1]), float(comparison["dse"].iloc[1])
    second = comparison.index[1]
    if not np.isfinite(difference):
        return f"‘{best}’ is the only model with a finite log p(x) on all data."
    ratio = abs(difference) / se if se > 0 else float("inf")
    size = f"{abs(difference):.4g} nats, {ratio:.1f} standard errors"
    doubt = ""
    if "khat_bad" in comparison and (bad := float(comparison["khat_bad"].iloc[:2].max())) > BAD_KHAT:
        doubt = (
            f" With care: up to {100 * bad:.0f} % of the data have an unreliable log p(x); more particles or a better "
            "posterior may change the difference."
        )
    if ratio < 2:
        return f"‘{best}’ and ‘{second}’ are not told apart by these data: {size}.{doubt}"
    return f"‘{best}’ describes these data better than ‘{second}’, by {size}.{doubt}"
