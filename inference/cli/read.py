"""Commands that read a fitted run: ``diagnose``, ``sample``, ``report``."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.cli import runs
from inference.cli.common import say, table_text, to_json
from inference.cli.facets import check_cluster, cluster_samples
from inference.cli.fit import check_at_least

if TYPE_CHECKING:
    import pandas as pd

    from inference.cli.commands import Diagnose, Report, Sample

PARTICLES, DRAWS = 512, 100


def table_of(fitted: Any, x: np.ndarray, *, particles: int | None) -> pd.DataFrame:
    """Return the run's evidence on ``x``: its own evidence.csv where that scored these data, else computed.

    ``particles`` asks for that number of draws a datum; ``None`` takes the table's own, or 512.  A new table is
    saved where the run had none for as many data.
    """
    from inference.checking.log_evidence import evidence, save_evidence

    own = own_table(fitted.folder)
    if own is not None and _scored(own, x) and _enough(own, particles):
        # A datum's numbers do not depend on the data beside it, so a table's first rows are a table.
        return own.iloc[: len(x)].__finalize__(own)
    wanted = particles or (own.attrs["particles"] if own is not None else PARTICLES)
    say(f"{fitted.folder}: evidence of {len(x):,} held-out data with {wanted} particles")
    table = evidence(fitted, x, particles=wanted, key=runs.keys()["evidence"])
    if own is None or len(own) <= len(x):
        save_evidence(table, fitted.folder)
    return table


def own_table(folder: Path) -> pd.DataFrame | None:
    """Return the evidence a run folder holds; ``None`` where there is none or it is older than the parameters."""
    from inference.checking.log_evidence import read_evidence

    path = folder / "evidence.csv"
    if not path.is_file() or not newer(path, folder):
        return None
    try:
        return read_evidence(folder)
    except ValueError as error:
        say(f"warning: {error}")
        return None


def _enough(table: pd.DataFrame, particles: int | None) -> bool:
    """Whether a table has the number of draws asked for; an exact one has no draws."""
    return table.attrs["estimator"] == "exact" or particles in (None, table.attrs["particles"])


def _scored(table: pd.DataFrame, x: np.ndarray) -> bool:
    """Whether a table's first rows are these data, by their checksums."""
    sums = [zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in x]
    return len(table) >= len(x) and table["x_crc"].tolist()[: len(x)] == sums


def tree_of(fitted: Any, x: np.ndarray, factors: Any) -> Any:
    """Return posterior.nc where it holds these data, else compute and write it."""
    import xarray as xr

    path = fitted.folder / "posterior.nc"
    if path.is_file():
        try:
            tree = xr.open_datatree(path)
            observed = next(iter(tree["observed_data"].data_vars.values()))
            if len(observed) == len(x) and newer(path, fitted.folder):
                return tree.load()
        except (OSError, KeyError, StopIteration, ValueError) as error:
            say(f"warning: {path} cannot be used ({error}); computing it again")
    return runs.draw_posterior(fitted, x, draws=DRAWS, factors=factors)


def newer(path: Path, folder: Path) -> bool:
    """Whether a file was written after the run's last checkpoint."""
    from inference.fitting.checkpoint import checkpoints

    found = checkpoints(folder / "checkpoint")
    return not found or path.stat().st_mtime >= found[-1].stat().st_mtime


def diagnose(command: Diagnose) -> None:
    """Print one line a check and write diagnosis.csv."""
    check_at_least(1, test_n=command.test_n)
    check_at_least(2, particles=command.particles)
    fitted, card = runs.open_run(command.folder, command.common.plugin)
    x, factors = runs.load_test(card, fitted.program.observation.sampler, test_n=command.test_n)
    from inference.checking.diagnostics import diagnose as run_diagnose

    table = table_of(fitted, x, particles=command.particles)
    tree = tree_of(fitted, x, factors)
    verdict = run_diagnose(fitted, x, key=runs.keys()["diagnose"], table=table, tree=tree)
    runs.write_table(verdict, fitted.folder / "diagnosis.csv")
    if command.json:
        print(to_json(verdict.to_dict(orient="records")))
        return
    print(runs.fit_line(fitted))
    print(runs.evidence_line(table))
    print()
    rows = [[row.verdict, row.check, f"{row.value:.4g}", row.threshold] for row in verdict.itertuples()]
    print(table_text(rows, ["verdict", "check", "value", "wanted"]))
    print()
    print(runs.verdict_lines(verdict, full=True))
    print(f"table: {fitted.folder / 'diagnosis.csv'}")


def report(command: Report) -> None:
    """Write report.html and its figures again and print the path."""
    check_at_least(1, test_n=command.test_n)
    fitted, card = runs.open_run(command.folder, command.common.plugin)
    data = runs.load_data(card, fitted.program.observation.sampler, test_n=command.test_n)
    x, factors = data.test, data.factors
    from inference.checking.diagnostics import diagnose as run_diagnose
    from inference.reporting.run_page import report as write_report

    table, tree = table_of(fitted, x, particles=None), tree_of(fitted, x, factors)
    verdict = run_diagnose(fitted, x, key=runs.keys()["diagnose"], table=table, tree=tree)
    runs.write_table(verdict, fitted.folder / "diagnosis.csv")
    page = write_report(
        fitted, x, key=runs.keys()["report"], factors=factors, tree=tree, table=table, verdict=verdict,
        train=None if callable(data.train) else data.train,
    )  # fmt: skip
    print(page)


def prior_samples(command: Sample, fitted: Any) -> dict[str, np.ndarray]:
    """Draw the latent and observed sites of a program without any observation."""
    import jax
    from numpyro.infer import Predictive

    drawn = Predictive(fitted.model, num_samples=1)(jax.random.key(command.seed), size=command.n)
    wanted = [name for name in (*fitted.program.latents, *fitted.program.observed) if name in drawn]
    return {name: np.asarray(drawn[name])[0] for name in wanted}


def sample(command: Sample) -> None:
    """Write draws x ~ p(x), or of one cluster, as samples.npz, for images a picture too, and print the paths."""
    check_at_least(1, n=command.n)
    check_at_least(0, seed=command.seed)
    check_cluster(command)
    fitted, _ = runs.open_run(command.folder, command.common.plugin)
    import io

    from inference.fitting.checkpoint import write_atomic

    program = fitted.program
    draw = prior_samples if command.facet is None else cluster_samples
    arrays: dict[str, Any] = draw(command, fitted)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = fitted.folder / "samples.npz"
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    print(f"{path}: {shapes}")
    site = program.observed[0]
    from inference.reporting import pictures

    if site in arrays and pictures.is_image(program.shape):
        folder = fitted.folder / "figures"
        folder.mkdir(exist_ok=True)
        pictures.prior_samples(arrays[site], n=min(command.n, 64)).savefig(folder / "samples.png", dpi=120)
        print(folder / "samples.png")
