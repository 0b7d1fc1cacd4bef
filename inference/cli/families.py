"""``ppl-models families``: what can be fitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inference.cli.arguments import Common
from inference.cli.common import (
    load_plugins,
    shape_text,
    start,
    table_text,
    to_json,
)


@dataclass(frozen=True, kw_only=True)
class Families:
    """List the families: presets, number of parameters, latent sites, shape of one datum.

    Examples:
      ppl-models families
      ppl-models families --json | jq '.mfcvae.presets | keys'
    """

    json: bool = False
    """Print JSON: an object by family."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the table."""
        families(self)


def facts_of(spec: Any) -> dict[str, Any]:
    """What there is to say of a preset, from shapes alone where its weights can be traced, else with them."""
    import jax

    found: dict[str, Any] = {}

    def build() -> int:
        built = spec.build(jax.random.key(0))
        found.update(
            parameters=built.parameter_count,
            latents=list(built.latents),
            observed=list(built.observed),
            shape=built.shape,
            knobs=dict(built.training.knobs),
            observation=built.observation.line,
        )
        return 0

    try:
        jax.eval_shape(build)
    except (TypeError, jax.errors.JAXTypeError):  # weights from NumPy
        build()
    return found


def _listed(sites: list[str]) -> str:
    """Names of sites, the middle of many left out."""
    if len(sites) > 8:
        return f"{', '.join(sites[:2])}, ..., {sites[-1]} ({len(sites)})"
    return ", ".join(sites) or "none"


def families(command: Families) -> None:
    """Print every family with its presets: parameters, latent sites, shape of one datum."""
    start()

    from inference.fitting.progress import Progress
    from ppl_models import program as contract

    load_plugins(command.common.plugin)
    found: dict[str, Any] = {}
    known = contract.families()
    total = sum(len(family.presets) for family in known.values())
    with Progress(total, "building presets", unit="presets", delay=2.0) as bar:
        for name, family in known.items():
            found[name] = {"paper": family.paper, "module": family.module, "spec": family.spec.__name__, "presets": {}}
            for preset, spec in family.presets.items():
                found[name]["presets"][preset] = facts_of(spec)
                bar.update(sum(len(one["presets"]) for one in found.values()))
    if command.json:
        print(to_json(found))
        return
    for name, family in found.items():
        print(f"{name}  ({family['paper']})")
        rows = [
            [
                f"  {name}:{preset}",
                facts["parameters"],
                shape_text(facts["shape"]) if isinstance(facts["shape"], tuple) else ", ".join(facts["shape"]),
                _listed(facts["latents"]),
            ]
            for preset, facts in family["presets"].items()
        ]
        print(table_text(rows, ["  name", "parameters", "shape", "latent sites"]))
    print("\nfit one: ppl-models fit FAMILY:PRESET --data NAME --out DIR  (shape and levels are set from the data)")
