"""Named data with provenance, factors and checksums; tables; counts; procedural facets. Nothing is read on import.

    from ppl_models import datasets
    x, factors = datasets.load("digits", "train", n=500)
    datasets.info("fashion_mnist").how_to_get
    datasets.table(datasets.read_table("patients.csv"), labels="diagnosis").describe()
    datasets.read_counts("cells.h5ad", labels="cell_type", top=2000)

The table of sets, the layout of your own files and the licences are in the README beside this file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppl_models.datasets.catalogue import info as info, load as load, names as names
from ppl_models.datasets.describe import Info as Info
from ppl_models.datasets.download import HuggingFace as HuggingFace, OpenML as OpenML, fetch as fetch
from ppl_models.datasets.facets import facet_factors as facet_factors, render_facets as render_facets
from ppl_models.datasets.images import folder_dataset as folder_dataset, images_folder as images_folder
from ppl_models.datasets.locate import DataMissingError as DataMissingError
from ppl_models.datasets.operators import trajectories as trajectories

if TYPE_CHECKING:
    from ppl_models.datasets.count_files import read_counts as read_counts
    from ppl_models.datasets.count_matrices import CountMatrix as CountMatrix, counts as counts
    from ppl_models.datasets.darcy import solve_darcy as solve_darcy
    from ppl_models.datasets.navier_stokes import solve_navier_stokes as solve_navier_stokes
    from ppl_models.datasets.reference_posteriors import (
        ReferencePosterior as ReferencePosterior,
        reference_posterior as reference_posterior,
    )
    from ppl_models.datasets.table_files import read_table as read_table
    from ppl_models.datasets.tables import (
        Table as Table,
        decode_frame as decode_frame,
        encode_frame as encode_frame,
        table as table,
    )

_LATE = {
    "read_table": "table_files",
    **dict.fromkeys(("Table", "decode_frame", "encode_frame", "table"), "tables"),
    "read_counts": "count_files",
    "solve_darcy": "darcy",
    "solve_navier_stokes": "navier_stokes",
    **dict.fromkeys(("ReferencePosterior", "reference_posterior"), "reference_posteriors"),
    **dict.fromkeys(("CountMatrix", "counts"), "count_matrices"),
}


def __getattr__(name: str) -> Any:
    """Imported when first used: tables, counts and reference posteriors need pandas, the solvers SciPy and JAX."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
