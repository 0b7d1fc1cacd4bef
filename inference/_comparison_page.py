"""The page that compares several runs: table, figure, links."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference import _page
from inference._drawn import Drawn
from inference.folder import write_text
from ppl_models.program import Panel

if TYPE_CHECKING:
    import pandas as pd

BAD_KHAT = 0.25
"""Share of data with unreliable log p(x) from which the conclusion says so (that at which ``diagnose`` fails)."""


def compare_report(
    comparison: pd.DataFrame, runs: Mapping[str, str | os.PathLike[str]], out: str | os.PathLike[str]
) -> Path:
    """Write one page that compares several runs: table, figure, and links to each run's own report.

    ``comparison``  the result of ``inference.compare``, one row a model, best first.
    ``runs``        folder of each run by the model's name.
    ``out``         the page to write (``*.html``), or a folder, which then gets ``comparison.html``.

    The figure is written beside the page as ``comparison.png``.
    """
    from inference import figures

    path = Path(out)
    if path.suffix != ".html":
        path = path / "comparison.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Drawn(path.parent)
    figure = drawn.panel(
        Panel(
            "comparison",
            "How far each model falls behind the best. A difference is worth believing when the thin line (two "
            "standard errors of the paired difference) stays clear of zero; models whose line crosses zero are not "
            "told apart by these data.",
            lambda: figures.comparison(comparison),
        )
    )
    columns = {
        "rank": "rank", "elpd_mean": "log p(x) per datum (nats)", "bits_per_dim": "bits per dim",
        "elpd_diff": "difference (nats, summed)", "dse": "its s.e.", "weight": "stacking weight",
        "mc_se": "Monte Carlo error", "khat_bad": "share with k-hat > 0.7",
    }  # fmt: skip
    shown = [c for c in columns if c in comparison]
    comparison = comparison.assign(weight=comparison["weight"].round(4))
    rows = [[str(name), *(_native(row[c]) for c in shown)] for name, row in comparison.iterrows()]
    best = str(comparison.index[0])
    links = []
    for name, folder in runs.items():
        page = Path(folder) / "report.html"
        where = os.path.relpath(page, path.parent).replace(os.sep, "/")
        links.append(
            f'<li><a href="{escape(where)}">{escape(str(name))}</a></li>' if page.exists()
            else f"<li>{escape(str(name))} <span class=muted>(has no report.html)</span></li>"
        )  # fmt: skip
    observation = comparison.attrs.get("observation")
    n = int(comparison["n"].iloc[0]) if "n" in comparison else None
    on = f"the same {n:,} held-out data" if n else "the same held-out data"
    body = (
        f"<h1>Comparison of {len(comparison)} models</h1><p>Each model was scored by log p(x) on {on}; differences are "
        f"taken datum by datum, so what is hard for all models cancels.</p>{drawn.problems()}"
        + (f"<p>What is scored: <b>{escape(observation)}</b>.</p>" if observation else "")
        + f"<h2>Result</h2><p><b>{escape(_conclusion(comparison, best))}</b></p>"
        + _page.table(("model", *(columns[c] for c in shown)), rows)
        + '<p class="small muted">Difference: sum over the data of log p(x) minus that of the best model. Stacking '
        "weight: the mixture of the models that predicts these data best. Share with bad k-hat: data whose log p(x) "
        f"cannot be trusted.</p>{figure}<h2>The runs</h2><ul>{''.join(links)}</ul>"
    )
    write_text(path, _page.page("Comparison of models", body))
    return path


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
