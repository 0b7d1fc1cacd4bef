"""The page on one posterior of ``inference.sampling.condition``: verdict, figures, what was not checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.checking.sampling_checks import sampler_verdict
from inference.fitting.folder import write_text
from inference.reporting import markup
from inference.reporting.drawn import Drawn
from inference.reporting.run_page import diagnosis_table
from inference.reporting.sampling_figures import sampling_panels

if TYPE_CHECKING:
    import pandas as pd


def sampler_report(
    tree: Any,
    out: str | os.PathLike[str],
    *,
    truth: Any = None,
    ranks: Mapping[str, Any] | None = None,
    verdict: pd.DataFrame | None = None,
) -> Path:
    """Write one page on a tree of ``inference.sampling.condition`` and return its path.

    ``out``      the page (``*.html``), or a folder, which then gets ``posterior.html``; its figures are PNG in a
                 folder beside it, named after it.
    ``truth``    the datum that y was made from, in the shape of a draw, where it is known.
    ``ranks``    of ``inference.sampling.calibration_ranks``: adds their line to the verdict, and the coverage.
    ``verdict``  of ``inference.sampler_verdict``; made here if not given.

    Raises ``ValueError`` for a tree without a posterior, before anything is written.

    >>> inference.sampler_report(condition(law, likelihood, y, key=key), "runs/inpainted.html", truth=x)
    """
    verdict = sampler_verdict(tree, ranks=ranks) if verdict is None else verdict
    path = Path(out)
    path = path if path.suffix == ".html" else path / "posterior.html"
    figures_folder = path.parent / f"{path.stem}_figures"
    figures_folder.mkdir(parents=True, exist_ok=True)
    drawn = Drawn(figures_folder)
    figures = "\n".join(drawn.panel(panel) for panel in sampling_panels(tree, truth=truth, ranks=ranks))
    method = escape(str(tree.attrs.get("method", "chains")))
    sizes = tree["posterior"].sizes
    evidence = ""
    if "log_evidence" in tree.attrs:
        evidence = (
            f" log p(y) is {tree.attrs['log_evidence']:.4g} nats, with a standard error of "
            f"{tree.attrs['log_evidence_se']:.2g} over runs."
        )
    open_points = "".join(f"<li>{escape(line)}</li>" for line in verdict.attrs["unchecked"])
    body = (
        f"<h1>A posterior by {method}</h1>"
        f"<p>{sizes['chain']} independent runs of {sizes['draw']:,} draws.{evidence}</p>"
        f'{drawn.problems()}<h2 id="verdict">Verdict</h2>{diagnosis_table(verdict)}'
        + (f"<p><b>Not checked</b>:</p><ul>{open_points}</ul>" if open_points else "")
        + f'<h2 id="figures">Figures</h2>{figures}'
    )
    write_text(path, markup.page(f"A posterior by {method}", body))
    return path
