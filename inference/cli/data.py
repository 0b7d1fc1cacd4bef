"""``ppl-models data list`` and ``data get``: what can be fitted to."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional

from inference.cli.arguments import Command, Common, opt
from inference.cli.common import (
    data_info,
    say,
    shape_text,
    table_text,
    to_json,
)


@dataclass(frozen=True, kw_only=True)
class DataList:
    """List the data sets: shape, sizes, licence, and whether each is at hand.

    Examples:
      ppl-models data list
    """

    json: bool = False
    """Print JSON: an object by name."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the table."""
        data_list(self.json)


@dataclass(frozen=True, kw_only=True)
class DataGet:
    """Make sure that a data set is at hand; says how to get it where it is not.

    Examples:
      ppl-models data get digits
    """

    name: Annotated[Positional[str], opt("NAME")]
    """Data set by name (`ppl-models data list`)."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Load it once and print what came."""
        data_get(self.name)


def data_list(as_json: bool) -> None:
    """Print every data set with its shape, sizes, licence, and whether it is at hand."""
    from ppl_models import datasets

    found = {entry["name"]: entry for entry in datasets.table()}
    if as_json:
        print(to_json(found))
        return
    rows = [
        [
            name,
            "yes" if entry["available"] else "no",
            shape_text(entry["shape"] or ()),
            " + ".join(f"{size:,} {split}" for split, size in (entry["sizes"] or {}).items()),
            textwrap.shorten(entry["description"] or entry["where"] or "", 60, placeholder=" ..."),
        ]
        for name, entry in found.items()
    ]
    print(table_text(rows, ["name", "at hand", "shape", "sizes", "what it is"]))
    print("\nppl-models data get NAME fetches a set where that is possible, and says how to get it and its licence")
    print(
        "fit --data also takes files: FILE.csv|.tsv|.parquet, a table; FILE.h5ad|.npz, counts; FILE.npy or a folder of "
        "such shards, arrays that may be larger than memory"
    )


def data_get(name: str) -> None:
    """Fetch a set that is not at hand where that is possible, and print what is there and its licence."""
    from ppl_models import datasets
    from ppl_models.datasets.download import RECIPES

    info = data_info(name)
    if not info.available() and name in RECIPES:
        datasets.fetch(name, progress=say)
    x, factors = datasets.load(name, "train", n=1)
    held_out = ", ".join(f"{size:,} {split}" for split, size in info.sizes.items())
    parts = x.items() if isinstance(x, Mapping) else [("", x)]
    arrays = ", ".join(f"{name} {part.dtype} {shape_text(part.shape[1:])}".strip() for name, part in parts)
    print(f"{info.name}: {arrays}, {held_out}; factors: {', '.join(factors) or 'none'}")
    print(f"{info.description}\nlicence: {info.licence}\nprovenance: {info.provenance}")


DATA: Mapping[str, type[Command]] = {"list": DataList, "get": DataGet}
