"""What the tests of sharded fitting run in processes of their own, for the number of devices is fixed when JAX starts.

``python -m tests.inference.fitting.sharded WHAT OUT [ADDRESS PROCESSES NUMBER]`` writes what it found to OUT, as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax


def losses(fitted: Any) -> dict[str, list[float]]:
    return {name: fitted.history[name].tolist() for name in ("loss", "validation_elbo")}


def cut(text: str, least: int = 1) -> Any:
    """A mesh over which even the few parameters of a test are cut."""
    from inference.fitting.placement import OnMesh, as_placement

    return OnMesh(as_placement(text).mesh, least)


def toy(folder: Path, meshes: dict[str, Any], other: Any) -> dict[str, Any]:
    """A toy on several meshes, and a run that goes on over another."""
    from inference import evidence, fit, posterior, resume
    from tests.toy import PPCA, register_toy, toy_data

    register_toy()
    key, x = jax.random.key(3), toy_data()
    program = PPCA().build(jax.random.key(0))
    common = {"steps": 50, "batch_size": 32, "key": key, "progress": False, "learning_rate": 0.02, "clip": 1.0,
              "average": 0.9, "validation": x[:64], "validate_every": 10, "checkpoint_every": 25}  # fmt: skip
    found: dict[str, Any] = {}
    for name, mesh in meshes.items():
        fitted = fit(program, x, mesh=mesh, out=folder / name, **common)
        scored = {"key": key, "progress": False}
        table = evidence(fitted, x[:50], particles=40, refine="none", **scored)
        tree = posterior(fitted, x[:5], draws=6, **scored)
        found[name] = losses(fitted) | {
            "log_px": table["log_px"].tolist(), "z": tree["posterior"]["z"].values.ravel().tolist(),
            "mesh": fitted.info.get("mesh"),
            "prior": tree["prior_predictive"]["x"].values.ravel().tolist(),
        }  # fmt: skip
    start = next(iter(meshes))
    for name, mesh in (("same", meshes[start]), ("other", other)):
        fit(program, x, mesh=meshes[start], out=folder / f"next_{name}", **common)
        going_on = resume(folder / f"next_{name}", x, validation=x[:64], steps=51, mesh=mesh, progress=False)
        found[f"next_{name}"] = losses(going_on)
    return found


def families(meshes: dict[str, Any], steps: int) -> dict[str, Any]:
    """The loss path of every family's tiny preset on one device and on several meshes."""
    from inference import fit
    from ppl_models.program import families as registered
    from tests.test_contract import stored_data

    found: dict[str, Any] = {}
    for family, entry in registered().items():
        program = entry.presets["tiny"].build(jax.random.key(0))
        data = stored_data(program, 16)
        found[family] = {
            name: losses(fit(program, data, steps=steps, batch_size=8, key=jax.random.key(1), validation=data,
                             validate_every=steps, mesh=mesh, steps_per_dispatch=1, progress=False))
            for name, mesh in meshes.items()
        }  # fmt: skip
    return found


def main(what: str, out: str, *joining: str) -> None:
    warnings.simplefilter("ignore")
    if joining:
        from inference.fitting.processes import join

        join(joining[0], int(joining[1]), int(joining[2]))
    several = bool(joining)
    if several:
        meshes = {"data": "data=2", "model": cut("model=2")}
    else:
        meshes = {"both": cut("data=4,model=2"), "data": "data=8", "one": None}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out).parent / "runs" if several else Path(temporary)
        other = cut("model=2") if several else cut("data=2,model=4")
        if what == "toy":
            found = toy(folder, meshes, other)
        else:
            found = families({"one": None} if what == "one" else meshes, 50)
    if not several or jax.process_index() == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
