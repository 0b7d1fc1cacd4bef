"""``ppl-models families`` and ``ppl-models data``: what can be fitted, and to what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference._cli_common import data_info, load_plugins, start, table_text, to_json


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

    infos = [datasets.info(name) for name in datasets.names()]
    if as_json:
        facts = ("shape", "levels", "sizes", "description", "licence", "provenance", "how_to_get")
        print(to_json({i.name: {**{f: getattr(i, f) for f in facts}, "available": bool(i.available())} for i in infos}))
        return
    rows = [
        [
            info.name,
            "yes" if info.available() else "no",
            _shape(info.shape),
            " + ".join(f"{size:,} {split}" for split, size in info.sizes.items()),
            info.licence.partition(";")[0].partition(",")[0],
            info.description.partition(". ")[0],
        ]
        for info in infos
    ]
    print(table_text(rows, ["name", "at hand", "shape", "sizes", "licence", "what it is"]))
    if not all(info.available() for info in infos):
        print("\nnot at hand? ppl-models data get NAME says how to get it")


def data_get(name: str) -> None:
    """Load the training split once, fetching it where that is possible, and print what came."""
    from ppl_models import datasets

    info = data_info(name)
    x, factors = datasets.load(name, "train", n=None)
    held_out = ", ".join(f"{size:,} {split}" for split, size in info.sizes.items())
    print(f"{info.name}: {x.dtype} {_shape(x.shape[1:])}, {held_out}; factors: {', '.join(factors) or 'none'}")
    print(f"{info.description}\nlicence: {info.licence}\nprovenance: {info.provenance}")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"
