"""A run's evidence and posterior draws: those in its folder where they fit what is asked, else computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.cli import runs
from inference.cli.common import say
from inference.cli.refined import Which

if TYPE_CHECKING:
    import pandas as pd


PARTICLES, DRAWS = 512, 100


def table_of(
    fitted: Any, x: Any, *, particles: int | None, method: str = "importance", refine: str | None = None
) -> pd.DataFrame:
    """Return the run's evidence on ``x``: its own evidence.csv where that scored these data, else computed.

    ``particles`` asks for that number of draws a datum; ``None`` takes the table's own, or 512.  ``refine`` asks for
    posteriors refined so (:func:`inference.evidence`); ``None`` takes the table's own, or flagged.  A new table is
    saved where the run had none for as many data.  An annealed table is always computed and never saved: the run's own
    is also what its posterior is judged by.
    """
    from inference.checking.log_evidence import evidence, save_evidence
    from inference.fitting.sources import stored
    from ppl_models.program import rows

    x = stored(fitted.program, x)
    if method != "importance":
        say(f"{fitted.folder}: annealed evidence of {rows(x):,} held-out data ({method})")
        return evidence(fitted, x, particles=particles, key=runs.keys()["evidence"], method=method)
    own = own_table(fitted.folder, fitted)
    if own is not None and _scored(own, x) and _enough(own, particles) and _refined_so(own, refine):
        # A datum's numbers do not depend on the data beside it, so a table's first rows are a table.
        return own.iloc[: rows(x)].__finalize__(own)
    wanted = particles or (own.attrs["particles"] if own is not None else PARTICLES)
    say(f"{fitted.folder}: evidence of {rows(x):,} held-out data with {wanted} particles")
    how = refine or ("flagged" if own is None else own.attrs.get("refine", "flagged"))
    table = evidence(fitted, x, particles=wanted, key=runs.keys()["evidence"], refine=how)
    if own is None or len(own) <= rows(x):
        save_evidence(table, fitted.folder)
    return table


def refine_of(fitted: Any, which: Which | None) -> Which | None:
    """What was asked for, or what the run's own evidence was made with; ``None`` where that is not known."""
    if which is not None:
        return which
    own = own_table(fitted.folder, fitted)
    return None if own is None else own.attrs.get("refine")


def own_table(folder: Path, fitted: Any = None) -> pd.DataFrame | None:
    """Return the evidence a run folder holds; ``None`` where there is none, or it is of other parameters."""
    from inference.checking.log_evidence import read_evidence

    path = folder / "evidence.csv"
    if not path.is_file():
        return None
    try:
        table = read_evidence(folder)
    except ValueError as error:
        say(f"warning: {error}")
        return None
    return table if current(table.attrs, path, folder, fitted) else None


def _enough(table: pd.DataFrame, particles: int | None) -> bool:
    """Whether a table has the number of draws asked for; an exact one has no draws."""
    return table.attrs["estimator"] == "exact" or particles in (None, table.attrs["particles"])


def _refined_so(table: pd.DataFrame, refine: str | None) -> bool:
    """Whether a table's posteriors were refined as asked; an exact one has none, an older one none refined."""
    return refine is None or table.attrs["estimator"] == "exact" or table.attrs.get("refine", "none") == refine


def _scored(table: pd.DataFrame, x: Any) -> bool:
    """Whether a table's first rows are these data, by their checksums."""
    from inference.checking.log_evidence import checksums
    from ppl_models.program import rows

    return len(table) >= rows(x) and table["x_crc"].tolist()[: rows(x)] == checksums(x).tolist()


def tree_of(fitted: Any, x: Any, factors: Any) -> Any:
    """Return posterior.nc where it holds these data and posteriors like those of the fit, else compute and write it."""
    import xarray as xr

    from ppl_models.datasets.hdf5 import check_hdf5
    from ppl_models.program import rows

    path = fitted.folder / "posterior.nc"
    if path.is_file():
        try:
            check_hdf5(path)
            tree = xr.open_datatree(path)
            observed = next(iter(tree["observed_data"].data_vars.values()))
            alike = tree.attrs.get("posterior", "amortised") == ("refined" if hasattr(fitted, "local") else "amortised")
            if alike and len(observed) == rows(x) and current(tree.attrs, path, fitted.folder, fitted):
                return tree.load()
        # A torn file makes HDF5, h5netcdf and xarray raise all of these.
        except (OSError, KeyError, StopIteration, ValueError, RuntimeError, TypeError, AttributeError) as error:
            say(f"warning: {path} cannot be used ({error}); computing it again")
    return runs.draw_posterior(fitted, x, draws=DRAWS, factors=factors)


def current(attrs: Any, path: Path, folder: Path, fitted: Any) -> bool:
    """Whether a result is that of the run's parameters: by their checksum, else (of an earlier version, or where the
    parameters are not at hand) by the times of the files, which a copy or a clock that was set may have changed."""
    from inference.checking.per_datum import params_checksum

    if fitted is None or "params_crc" not in attrs:
        return newer(path, folder)
    return int(attrs["params_crc"]) == params_checksum(fitted)


def newer(path: Path, folder: Path) -> bool:
    """Whether a file was written after the run's last checkpoint."""
    from inference.fitting.checkpoint import checkpoints

    found = checkpoints(folder / "checkpoint")
    return not found or path.stat().st_mtime >= found[-1].stat().st_mtime
