"""Do fits over eight devices, or in two processes, have the loss path of one device?

Every registered family's tiny preset makes 50 updates of 8 data on one device, over eight devices of the CPU (the batch
cut into eight; the batch into four and every parameter into two) and in two processes on loopback.  The number of
devices is fixed when JAX starts: each setting is a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import HERE, Claim

SEED = 0
STEPS = 50
BATCH = 8
QUICK = ("hvae",)
MISSED = (
    "the losses of {families} are differences of large terms that nearly cancel: they differ by rounding of the terms, "
    "{nats:.1g} nats at most, at the first update already, before any parameter has moved"
)


# ------------------------------------------------------------------------------------------------ in a process
def stored_data(program: Any, n: int) -> Any:
    """Data of a program's shape that it can score: grey levels at random, else its own draws."""
    import jax
    from numpyro.handlers import seed, trace

    from ppl_models.program import part

    key, levels = jax.random.key(SEED), getattr(program.spec, "levels", None)
    if levels is not None and isinstance(program.shape, tuple):
        return np.random.default_rng(SEED).integers(0, levels, (n, *program.shape)).astype("uint8")
    given = {}
    if program.observation.given:
        inputs = program.observation.sampler(key, n)
        given = {name: part(inputs, name) for name in program.observation.given}
    call = {"data": given} if given else {"size": n}
    sites = trace(seed(program.model, key)).get_trace(**call)
    drawn = program.from_draw({**given, **{name: sites[name]["value"] for name in program.observed}})
    return jax.tree.map(np.asarray, drawn)


def paths(meshes: list[str], names: list[str], steps: int, folder: Path) -> dict[str, Any]:
    """Losses of the updates and seconds of one; of the first mesh, also the loss after it goes on over the last."""
    import jax

    from inference import fit, resume
    from inference.fitting.placement import OnMesh, as_placement
    from ppl_models.program import families

    def placed(text: str) -> Any:
        # The parameters of tiny presets are small: here all that can be cut are.
        if "model" not in text:
            return None if text == "none" else text
        whole = as_placement(text)
        assert isinstance(whole, OnMesh)
        return OnMesh(whole.mesh, 1)

    found: dict[str, Any] = {}
    for name in names:
        program = families()[name].presets["tiny"].build(jax.random.key(SEED))
        data = stored_data(program, 2 * BATCH)
        common: dict[str, Any] = {"batch_size": BATCH, "steps_per_dispatch": 1, "progress": False}
        found[name] = {}
        for text in meshes:
            out = folder / f"{name}_{text}"
            fitted = fit(
                program, data, steps=steps, key=jax.random.key(SEED + 1), mesh=placed(text), out=out,
                checkpoint_every=steps, **common,
            )  # fmt: skip
            seconds = fitted.history["seconds"].to_numpy()
            found[name][text] = {
                "loss": fitted.history["loss"].dropna().tolist(),
                "step_seconds": float(np.median(np.diff(seconds[seconds > 0]))),
            }
        for which, then in (("same", meshes[0]), ("other", meshes[-1])) if len(meshes) > 1 else ():
            out = folder / f"{name}_{which}"
            shutil.copytree(folder / f"{name}_{meshes[0]}", out)
            gone_on = resume(out, data, steps=steps + 1, mesh=placed(then), progress=False)
            found[name][f"next_{which}"] = float(gone_on.history["loss"].iloc[-1])
    return found


def child(out: str, meshes: str, names: str, steps: str, *joining: str) -> None:
    """Write the paths of some meshes, as one process or one of several."""
    from inference import tune_runtime

    tune_runtime()
    warnings.simplefilter("ignore")
    first = True
    if joining:
        from inference.fitting.processes import join

        first = join(joining[0], int(joining[1]), int(joining[2])) == 0
    found = paths(meshes.split(";"), names.split(","), int(steps), Path(out).parent / f"runs_{Path(out).stem}")
    if first:
        Path(out).write_text(json.dumps(found))


# ------------------------------------------------------------------------------------------------ the benchmark
def measure(
    out: Path, meshes: list[str], names: list[str], steps: int, *, processes: int = 1, devices: int = 1
) -> dict[str, Any]:
    """The paths that one process, or several, found."""
    joining: list[list[str]] = [[]]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        joining = [[address, str(processes), str(i)] for i in range(processes)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "benchmarks.sharding", str(out), ";".join(meshes), ",".join(names), str(steps)]
    running = [subprocess.Popen([*command, *rest], cwd=HERE.parent, env=environment) for rest in joining]
    if any([process.wait() for process in running]):
        raise RuntimeError("a process of the benchmark failed; its output is above")
    return json.loads(out.read_text())


def difference(path: list[float], reference: list[float]) -> np.ndarray:
    """Relative difference of two loss paths, update by update."""
    return np.abs(np.asarray(path) - reference) / np.abs(reference)


def run(quick: bool) -> Iterable[Claim]:
    """Yield, for each setting, the largest relative difference of a loss, the families' own in the detail."""
    from ppl_models.program import families

    names, steps = (list(QUICK), 5) if quick else (list(families()), STEPS)
    settings = {
        "eight_devices": ("data=8", "Over 8 devices, each with an eighth of the batch"),
        "four_by_two_devices": ("data=4,model=2", "Over 4 x 2 devices, the batch cut into 4 and all parameters into 2"),
        "two_processes": ("data=2", "In 2 processes, each with half of the batch"),
    }
    if quick:
        settings = {"eight_devices": settings["eight_devices"]}
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = Path(temporary), time.monotonic()
        here = ["data=8", "none"] if quick else ["data=8", "none", "data=4,model=2"]
        found = measure(folder / "eight.json", here, names, steps, devices=8)
        if not quick:
            two = measure(folder / "two.json", ["data=2"], names, steps, processes=2)
            found = {name: found[name] | two[name] for name in names}
        minutes = (time.monotonic() - began) / 60
    for claim, (mesh, what) in settings.items():
        each, nats, seconds = {}, {}, {}
        for name in names:
            one, many = found[name]["none"]["loss"], found[name][mesh]["loss"]
            each[name] = float(difference(many, one).max())
            nats[name] = float(np.abs(np.subtract(many, one)).max())
            seconds[name] = [found[name]["none"]["step_seconds"], found[name][mesh]["step_seconds"]]
        beyond = [name for name in names if not each[name] <= 1e-5]
        yield Claim(
            name=claim,
            claim=f"{what}: largest relative difference of a loss from one device's, {steps} updates, every family",
            value=max(each.values()),
            unit="of the loss",
            target="<= 1e-05",
            seeds=(SEED,),
            if_missed=MISSED.format(families=" and ".join(beyond), nats=max((nats[n] for n in beyond), default=0.0)),
            detail={
                "by_family": each, "largest_difference_nats": nats, "batch": BATCH, "mesh": mesh,
                "wall_seconds_of_an_update_one_device_and_here": seconds, "minutes_of_all_settings": minutes,
            },
        )  # fmt: skip
    each = {name: float(difference([found[name]["next_other"]], [found[name]["next_same"]])[0]) for name in names}
    beyond = [name for name in names if not each[name] <= 1e-6]
    nats = {name: abs(found[name]["next_other"] - found[name]["next_same"]) for name in names}
    yield Claim(
        name="other_mesh",
        claim=f"The update after a checkpoint of 8 x 1 devices, on {here[-1]} against on 8 x 1 again: relative "
        "difference of the loss, every family",
        value=max(each.values()),
        unit="of the loss",
        target="<= 1e-06",
        seeds=(SEED,),
        if_missed=MISSED.format(families=" and ".join(beyond), nats=max((nats[n] for n in beyond), default=0.0)),
        detail={"by_family": each},
    )


if __name__ == "__main__":
    child(*sys.argv[1:])
