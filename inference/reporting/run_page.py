"""``report``: one self-contained HTML page on a fitted model, and its figures as PNG files.

The page has no script and loads nothing: it can be mailed, printed and read in ten years.  A figure that cannot be
drawn leaves its error in its place and a line at the top; it never takes the page with it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Key

from inference.checking import criticism, remedies
from inference.checking.log_evidence import bits_per_dim
from inference.clustering import plain_numbers
from inference.fitting.folder import RunFolder, versions, write_text
from inference.fitting.sources import stored
from inference.reporting import markup
from inference.reporting.calibration_figures import calibration_section
from inference.reporting.clusterings import clusterings
from inference.reporting.drawn import Drawn
from inference.reporting.sections import sections
from ppl_models.program import Panel, rows, spec_to_json, take

if TYPE_CHECKING:
    import jax
    import pandas as pd

    from inference.checking.calibration import Calibration

ORDER = ("fail", "warn", "ok")

FILES = {
    "spec.json": "the model as declared",
    "run.json": "arguments of the fit, data card, versions, what happened",
    "history.csv": "loss and its terms by step",
    "checkpoint": "parameters: step_*.npz, one array a leaf",
    "posterior.nc": "posterior draws, densities, predictive draws (ArviZ DataTree, netCDF)",
    "evidence.csv": "log p(x), its error, ELBO, effective sample size and k-hat of each datum",
    "diagnosis.csv": "the checks of this page",
    "calibration.csv": "ranks of known latents among posterior draws, by quantity: coverage, distance from uniform",
    "baselines.csv": "log p(x) of each datum under classical densities fitted to the training data, nats",
    "clustering.csv": "clusterings against known factors, and those of k-means and mixtures with as many clusters",
    "figures": "the figures of this page as PNG",
}
READ = """import numpy, pandas, xarray

tree = xarray.open_datatree("posterior.nc")          # tree["posterior"], tree["log_likelihood"], ...
evidence = pandas.read_csv("evidence.csv")           # one row a datum, nats
history = pandas.read_csv("history.csv")             # one row a logged step
checks = pandas.read_csv("diagnosis.csv")
"""
ARVIZ = (
    "<p>ArviZ takes the tree as it is: <code>arviz.summary(tree)</code>, <code>arviz.plot_forest(tree)</code>. The "
    "draws are independent draws from the fitted posterior, one chain, so R-hat says nothing here: read k-hat.</p>"
)


def report(
    fit: Any,
    x: Any,
    *,
    key: Key[jax.Array, ""],
    factors: Mapping[str, Any] | None = None,
    tree: Any = None,
    table: pd.DataFrame | None = None,
    verdict: pd.DataFrame | None = None,
    train: Any = None,
    names: Sequence[Any] | None = None,
    gaps: pd.DataFrame | None = None,
    calibration: Calibration | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a folder and return the path of the page.

    ``x``        stored held-out data (N, *shape), those of ``tree``, ``table`` and ``verdict``.
    ``factors``  known factors of the data by name, (N,) each; they colour the latents.
    ``tree``, ``table``, ``verdict``  results of ``posterior``, ``evidence`` and ``diagnose``; what is not given is
                 computed, with their default numbers of draws, and written beside the page.
    ``train``    stored training data: the classical clusterings that stand beside the model's are fitted to them
                 (without, to ``x``); a diagnosis that is made here measures its held-out gap on them and has the
                 classical densities fitted to them.
    ``names``    of the data (N), for a table: what its rows are called in the page; default: their numbers.
    ``gaps``     ``inference_gaps(fit, x, key=key)`` of some of the data: adds the figure of its two parts.
    ``calibration``  result of ``calibrate``: its figure and table become a section of the page.
    ``out``      folder of the page; default: the fit's run folder.

    Raises ``ValueError`` before any work if there is no folder to write to, or if the data cannot be scored.
    """
    import jax

    if out is None and fit.folder is None:
        raise ValueError("this fit has no run folder; pass out= with the folder to write the report to")
    x = stored(fit.program, x, "x")
    factors = _factors(factors, rows(x))
    folder = Path(out if out is not None else fit.folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    tree_key, table_key, rate_key = jax.random.split(key, 3)
    baseline_key = jax.random.fold_in(key, 3)
    if tree is None:
        from inference.checking.posterior_tree import posterior, save_posterior

        tree = posterior(fit, x, key=tree_key, factors=factors or None)
        save_posterior(tree, folder)
    if table is None:
        from inference.checking.log_evidence import evidence, save_evidence

        table = evidence(fit, x, key=table_key)
        save_evidence(table, folder)
    rates = criticism.site_rates(fit, x, key=rate_key)
    if verdict is None:
        from inference.checking.diagnostics import assemble, quick_baselines, split

        beside = {} if train is None else quick_baselines(fit.program, train, x, key=table_key)
        verdict = assemble(fit, table, tree, rates, beside, split(fit, x, train, table, key=jax.random.fold_in(key, 4)))
        write_text(folder / "diagnosis.csv", verdict.to_csv(index=False))

    drawn = Drawn(folder / "figures")
    shown = sections(fit, x, factors, tree, table, rates, names, gaps)
    if calibration is not None:
        shown.insert(1, calibration_section(calibration))  # after the evidence
    parts = [drawn.section(section) for section in shown]

    def clustered() -> str:
        source = None if train is None else plain_numbers(fit.program, train)
        return clusterings(tree, plain_numbers(fit.program, x), factors, source, folder, key=baseline_key,
                           what="columns" if fit.program.observation.features is not None else "pixels")  # fmt: skip

    parts.append(drawn.text("clusterings", clustered))
    declared, training = _declared(fit, x, drawn), _training(fit, drawn)
    title = _title(fit)
    body = "\n".join(
        [
            _head(title, fit, x),
            drawn.problems(),
            _summary(fit, table, verdict),
            declared,
            training,
            '<h2 id="diagnosis">Diagnosis</h2><p>Every check, with the threshold it is held against. '
            "<i>warn</i>: read the line before you use the result; <i>fail</i>: do not rely on the part it "
            "names.</p>" + diagnosis_table(verdict),
            *parts,
            _files(folder),
        ]
    )
    write_text(folder / "report.html", markup.page(title, body))
    return folder / "report.html"


def _factors(factors: Mapping[str, Any] | None, n: int) -> dict[str, np.ndarray]:
    found = {name: np.asarray(values) for name, values in (factors or {}).items()}
    for name, values in found.items():
        if values.shape[:1] != (n,):
            raise ValueError(f"factor {name!r} has shape {values.shape}, expected ({n},): one value a datum of x")
    return found


# --------------------------------------------------------------------------------------------- sections
def _family(spec: Any) -> tuple[str, dict[str, Any]]:
    """Name of the family and the fields of the spec, whether or not it is registered."""
    try:
        data = json.loads(spec_to_json(spec))
        return data["family"], data["spec"]
    except ValueError:
        known = dataclasses.is_dataclass(spec) and not isinstance(spec, type)
        body = dataclasses.asdict(spec) if known else {"spec": str(spec)}
        return type(spec).__name__, body


def _title(fit: Any) -> str:
    name, data = _family(fit.program.spec)[0], fit.card.get("label", fit.card.get("name"))
    return f"{name} fitted to {data}" if data else f"{name}: report on a fit"


def _head(title: str, fit: Any, x: Any) -> str:
    latents = fit.program.latents
    what = f"{len(latents)} latent variable{'s' * (len(latents) != 1)}" if latents else "no latent variables"
    links = {
        "verdict": "Verdict", "declared": "Model", "training": "Training", "diagnosis": "Diagnosis", "files": "Files",
    }  # fmt: skip
    nav = "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in links.items())
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"<h1>{escape(title)}</h1><p>A probabilistic model with {what}, fitted by variational inference and checked on "
        f"{rows(x):,} data: whether the fit can be trusted, what was declared, how training went, and what the model "
        f'learnt.</p><p class="small muted">Written {made}. Log densities are natural logarithms (nats), per datum.</p>'
        f"<nav>{nav}</nav>"
    )


def _summary(fit: Any, table: pd.DataFrame, verdict: pd.DataFrame) -> str:
    counts = {v: int((verdict["verdict"] == v).sum()) for v in ("ok", "warn", "fail")}
    badges = " ".join(markup.badge(v, n) for v, n in counts.items() if n)
    log_px, n = table["log_px"].to_numpy(float), len(table)
    mean = log_px.mean()
    se = log_px.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    values = [(f"{mean:.2f} ± {se:.2g}", "mean log p(x) in nats, with its standard error over data")]
    if not math.isnan(code := bits_per_dim(table)):
        values.append((f"{code:.3f}", "bits per dimension (lower is better)"))
    if np.isfinite(table["elbo"]).any():
        values.append((f"{table['elbo'].mean():.2f}", "mean ELBO in nats, the bound that training maximises"))
    values.append((f"{n:,}", "data evaluated"))
    if fit.info.get("parameters"):
        values.append((f"{fit.info['parameters']:,}", "trainable parameters"))
    if fit.info.get("seconds") is not None:
        values.append((f"{float(fit.info['seconds']):.0f} s", f"training time, {int(fit.info['steps']):,} steps"))
    worst = [row for v in ORDER[:2] for row in verdict[verdict["verdict"] == v].to_dict("records")]
    found = "".join(
        f'<div class="finding {row["verdict"]}"><p>{markup.badge(row["verdict"])} <b>{escape(row["check"])}</b> '
        f'{escape(markup.number(row["value"]))} <span class="muted">(should be {escape(row["threshold"])})</span></p>'
        f"<p>{escape(_sentence(row['meaning']))}</p></div>"
        for row in worst
    )  # fmt: skip
    todo = "".join(f"<li>{escape(text)}</li>" for text in remedies.advice(worst))
    if todo:
        found += f"<p><b>What to try</b>, for all of these together:</p><ol>{todo}</ol>"
    if counts["fail"]:
        say = "Do not rely on this fit before the failed checks below are dealt with."
    elif counts["warn"]:
        say = "Usable with care: read the warnings below first."
    else:
        say = "Every check passed: nothing here speaks against using this fit."
    return f'<h2 id="verdict">Verdict</h2><p>{badges}</p><p><b>{say}</b></p>{markup.tiles(values)}{found}'


def _sentence(text: str) -> str:
    """A check's text as a sentence: capital letter and full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")


def diagnosis_table(verdict: pd.DataFrame) -> str:
    """The table of ``diagnose`` as HTML, verdicts in colour and in words."""
    rows = []
    for row in verdict.to_dict("records"):
        remedy = f'<br><span class="muted">Try: {escape(row["remedy"])}</span>' if row["verdict"] != "ok" else ""
        rows.append(
            f"<tr><td>{markup.badge(row['verdict'])}</td><td><b>{escape(row['check'])}</b></td>"
            f'<td class="number" data-label="value">{escape(markup.number(row["value"]))}</td>'
            f'<td data-label="should be">{escape(str(row["threshold"]))}</td>'
            f"<td>{escape(_sentence(row['meaning']))}{remedy}</td></tr>"
        )
    head = "".join(f"<th scope=col>{h}</th>" for h in ("verdict", "check", "value", "should be", "what it means"))
    return markup.stack(head, "".join(rows))


def _flat(spec: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a spec, one line each; a list of parts has one line a part."""
    found: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            found |= {f"{name} {i + 1}": _plain(part) for i, part in enumerate(value)}
        else:
            found[name] = _plain(value)
    return found


def _declared(fit: Any, x: Any, drawn: Drawn) -> str:
    from inference.reporting.graph import model_graph

    program = fit.program
    density = escape("\n".join(program.views.density))
    import jax

    graph = drawn.panel(
        Panel(
            "model graph",
            "The generative model as a graph. Ellipses are random variables with their distribution; shaded ones are "
            "observed, dashed ones are computed from their parents. Orange dots are trained parameters. A box repeats "
            "what is inside it, once a datum. An arrow points to what depends on its tail. Good: it is the model that "
            "you meant.",
            lambda: model_graph(program.model, fit.prepare(take(x, slice(2)), jax.random.key(0))),
        )
    )
    return (
        '<h2 id="declared">What was declared</h2>'
        + (f"<p>The model in the symbols of its paper:</p><pre>{density}</pre>" if density else "")
        + f"<p>What is scored: <b>{escape(program.observation.line)}</b>. "
        + "Only models that score the same can be compared.</p>"
        + graph
        + "<h3>Specification</h3>"
        + markup.facts(_flat(_family(program.spec)[1]))
    )


def _training(fit: Any, drawn: Drawn) -> str:
    from inference.reporting import figures

    info = fit.info
    run: dict[str, Any] = {}
    if fit.folder is not None and (Path(fit.folder) / "run.json").exists():
        run = RunFolder(fit.folder).read_run()
    reasons = {"steps": "all steps were taken", "patience": "validation no longer improved"}
    rows = {
        "steps": info.get("steps"),
        "ended because": reasons.get(info.get("stopped", ""), info.get("stopped")),
        "step whose parameters are used": info.get("best_step"),
        "updates skipped": info.get("skipped"),
        "seconds": info.get("seconds"),
        "trainable parameters": info.get("parameters"),
    }
    shown = {"batch_size", "learning_rate", "optimizer", "clip", "weights", "average", "patience"}
    shown |= {"objective", "particles", "sleep"}
    rows |= {n: _plain(v) for n, v in run.get("arguments", {}).items() if n in shown and v not in (None, {}, 0.0)}
    rows |= {f"data: {n}": _plain(v) for n, v in fit.card.items()}
    rows["versions"] = ", ".join(f"{n} {v}" for n, v in run.get("versions", versions()).items())
    html = markup.facts({name: value for name, value in rows.items() if value is not None})
    figure = ""
    if len(fit.history):
        figure = drawn.panel(
            Panel(
                "training",
                "Training. Good: the curves fall and level off before the end, and the validation curve stays near "
                "the training curve. Still falling at the right edge: not settled. Validation rising while training "
                "falls: overfitting. A KL term at zero: that latent variable is not used.",
                lambda: figures.training(fit.history, info.get("best_step")),
            )
        )
    return f'<h2 id="training">Training</h2>{improvement(fit)}{figure}{html}'


def improvement(fit: Any) -> str:
    """HTML: by how much training improved on a program that started from the data; empty where it did not."""
    history, best = fit.history, fit.info.get("best_step")
    begin = [event.name for event in fit.program.training.events if event.step == 0]
    if not begin or best is None or "validation_elbo" not in history or "step" not in history:
        return ""
    known = history[["step", "validation_elbo"]].dropna().set_index("step")["validation_elbo"]
    if 0 not in known.index or best not in known.index:
        return ""
    first, last = float(known[0]), float(known[best])
    gained = (
        f"at step {int(best):,}, which is used, by {last:.2f}: training improved on its start by <b>{last - first:.2f} "
        "nats a datum</b>."
        if best
        else "and no later step did better: the start is used as it is."
    )
    return (
        f"<p>The program started from the data ({escape(', '.join(begin))}). There it predicted the validation data by "
        f"an ELBO of {first:.2f} nats a datum, {gained}</p>"
    )


def _plain(value: Any) -> str:
    """A value of a spec or an argument as text."""
    if isinstance(value, Mapping):
        return ", ".join(str(v) if k == "callable" else f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value)) if all(isinstance(v, int) for v in value) else ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _files(folder: Path) -> str:
    found = {name: folder / name for name in FILES if (folder / name).exists()}
    listed = markup.table(
        ("file", "what it holds"),
        [(f"{name}/" if path.is_dir() else name, FILES[name]) for name, path in found.items()],
    )
    return (
        '<h2 id="files">How to read this run without this package</h2><p>Everything lies beside this page in formats '
        f"of the wider ecosystem:</p>{listed}<pre>{escape(_reading(folder))}</pre>"
        + (ARVIZ if "posterior.nc" in found else "")
    )


def _reading(folder: Path) -> str:
    """The example code, without the lines of files that are not there."""
    named = [(line, re.search(r'"([\w.]+)"\)', line)) for line in READ.splitlines()]
    return "\n".join(line for line, name in named if name is None or (folder / name[1]).exists())
