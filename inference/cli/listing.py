"""``ppl-models families`` and ``ppl-models data``: what can be fitted, and to what."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.cli.common import data_info, load_plugins, say, start, table_text, to_json


def families(as_json: bool, plugins: Sequence[Path] = ()) -> None:
    """Print every family with its presets: parameters, latent sites, shape of one datum."""
    start()
    import jax

    from ppl_models import program as contract

    load_plugins(plugins)
    found: dict[str, Any] = {}
    for name, family in contract.families().items():
        found[name] = {"paper": family.paper, "module": family.module, "spec": family.spec.__name__, "presets": {}}
        for preset, spec in family.presets.items():
            built = spec.build(jax.random.key(0))
            found[name]["presets"][preset] = {
                "parameters": built.parameter_count,
                "latents": list(built.latents),
                "observed": list(built.observed),
                "shape": list(built.shape),
                "knobs": dict(built.knobs),
                "observation": built.observation,
            }
    if as_json:
        print(to_json(found))
        return
    for name, family in found.items():
        print(f"{name}  ({family['paper']})")
        rows = [
            [f"  {name}:{preset}", facts["parameters"], _shape(facts["shape"]), ", ".join(facts["latents"]) or "none"]
            for preset, facts in family["presets"].items()
        ]
        print(table_text(rows, ["  name", "parameters", "shape", "latent sites"]))
    print("\nfit one: ppl-models fit FAMILY:PRESET --data NAME --out DIR  (shape and levels are set from the data)")


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
            _shape(entry["shape"] or ()),
            " + ".join(f"{size:,} {split}" for split, size in (entry["sizes"] or {}).items()),
            textwrap.shorten(entry["description"] or entry["where"] or "", 60, placeholder=" ..."),
        ]
        for name, entry in found.items()
    ]
    print(table_text(rows, ["name", "at hand", "shape", "sizes", "what it is"]))
    print("\nppl-models data get NAME fetches a set where that is possible, and says how to get it and its licence")


def data_get(name: str) -> None:
    """Fetch a set that is not at hand where that is possible, and print what is there and its licence."""
    from ppl_models import datasets
    from ppl_models.datasets.download import RECIPES

    info = data_info(name)
    if not info.available() and name in RECIPES:
        datasets.fetch(name, progress=say)
    x, factors = datasets.load(name, "train", n=1)
    held_out = ", ".join(f"{size:,} {split}" for split, size in info.sizes.items())
    print(f"{info.name}: {x.dtype} {_shape(x.shape[1:])}, {held_out}; factors: {', '.join(factors) or 'none'}")
    print(f"{info.description}\nlicence: {info.licence}\nprovenance: {info.provenance}")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
