"""``diagnose`` and ``report`` of FILE.nc: draws of a conditional sampler in the place of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.cli import words
from inference.cli.common import UsageError, did_you_mean_path, is_run, shell, start, table_text, to_json, usage


def is_draws(path: Path) -> bool:
    """Whether the path names saved draws rather than a run folder."""
    return path.suffix == ".nc" and not path.is_dir()


def open_draws(path: Path, verb: str, **run_only: Any) -> Any:
    """The DataTree in a file; a usage error where there is none, or an option is given that only runs have."""
    for name, value in run_only.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is an option of run folders, {path} holds draws")
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}{did_you_mean_path(path)}")
    if is_run(path.parent):
        raise UsageError(f"{path} is the posterior of a run: ppl-models {verb} {shell(path.parent)}")
    start()
    import xarray as xr

    from inference.checking.sampling_checks import is_tree

    try:
        tree = xr.load_datatree(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a netCDF file that xarray reads ({error})") from error
    if not is_tree(tree):
        raise UsageError(f"{path} has no group 'posterior'; save one by tree.to_netcdf(FILE), tree of condition(...)")
    return tree


def read_ranks(path: Path | None) -> dict[str, Any] | None:
    """Ranks by quantity, as ``numpy.savez(FILE, **ranks)`` wrote them."""
    if path is None:
        return None
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as held:
            found = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no ranks; write them by numpy.savez(FILE, **ranks) ({error})") from error
    for name, values in found.items():
        if values.ndim == 0 or not ((values > 0) & (values < 1)).all():
            raise UsageError(f"{path}: {name!r} are no rank fractions, expected numbers in (0, 1), a row a simulation")
    return found


def diagnose_draws(path: Path, ranks: Path | None, *, as_json: bool, **run_only: Any) -> None:
    """Print the verdict on the sampler, and what it could not check."""
    tree = open_draws(path, "diagnose", **run_only)
    from inference.checking.sampling_checks import sampler_verdict

    with usage():
        verdict = sampler_verdict(tree, ranks=read_ranks(ranks))
    if as_json:
        print(to_json(verdict.to_dict(orient="records")))
        return
    sizes = tree["posterior"].sizes
    print(f"{path}: {sizes['chain']} runs of {sizes['draw']:,} draws by {tree.attrs.get('method', 'chains')}")
    print()
    rows = [[row.verdict, row.check, f"{row.value:.4g}", row.threshold] for row in verdict.itertuples()]
    print(table_text(rows, ["verdict", "check", "value", "wanted"]))
    print()
    print(words.verdict_lines(verdict, full=True))
    for line in verdict.attrs["unchecked"]:
        print(f"  not checked: {line}")


def report_draws(path: Path, **run_only: Any) -> None:
    """Write the page beside the file and print its path."""
    tree = open_draws(path, "report", **run_only)
    from inference.reporting.sampling_page import sampler_report

    print(sampler_report(tree, path.with_suffix(".html")))
