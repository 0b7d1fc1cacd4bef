"""Do fits over eight devices, or in two processes, have the loss path of one device?

Every registered family's tiny preset makes 50 updates of 8 data on one device, over eight devices of the CPU (the batch
cut into eight; the batch into four and every parameter into two) and in two processes on loopback.  The number of
devices is fixed when JAX starts: each setting is a process of its own.
"""

from __future__ import annotations

import json
import os
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


def paths(meshes: list[str | None], names: list[str], folder: Path) -> dict[str, Any]:
    """Losses of 50 updates, seconds an update, and the loss after a checkpoint that goes on over another mesh."""
    import jax

    from inference import fit, resume
    from inference.fitting.placement import OnMesh, as_placement
    from ppl_models.program import families

    found: dict[str, Any] = {}
    for name in names:
        program = families()[name].presets["tiny"].build(jax.random.key(SEED))
        data = stored_data(program, 2 * BATCH)
        common: dict[str, Any] = {"batch_size": BATCH, "steps_per_dispatch": 1, "progress": False}
        found[name] = {}
        for text in meshes:
            # The parameters of tiny presets are small: here all that can be cut are.
            mesh = text if text is None or "model" not in text else OnMesh(as_placement(text).mesh, 1)
            out = folder / f"{name}_{text}"
            fitted = fit(
                program, data, steps=STEPS, key=jax.random.key(SEED + 1), mesh=mesh, out=out,
                checkpoint_every=STEPS, **common,
            )  # fmt: skip
            seconds = fitted.history["seconds"].to_numpy()
            found[name][str(text)] = {
                "loss": fitted.history["loss"].dropna().tolist(),
                "step_seconds": float(np.median(np.diff(seconds[seconds > 0]))),
            }
            last = meshes[-1] if text == meshes[0] else meshes[0]
            for which, then in (("same", mesh), ("other", last)) if text == meshes[0] and len(meshes) > 1 else ():
                if which == "other" and jax.process_count() > 1:
                    continue
                gone_on = resume(out, data, steps=STEPS + 1, mesh=then, progress=False)
                found[name][f"next_{which}"] = float(gone_on.history["loss"].iloc[-1])
                for file in (out / "checkpoint").glob(f"step_{STEPS + 1:08d}.npz"):
                    file.unlink()
    return found


def child(out: str, meshes: str, names: str, *joining: str) -> None:
    """Write the paths of some meshes, as one process or one of several."""
    from inference import tune_runtime

    tune_runtime()
    warnings.simplefilter("ignore")
    first = True
    if joining:
        from inference.fitting.processes import join

        first = join(joining[0], int(joining[1]), int(joining[2])) == 0
    wanted = [None if mesh == "none" else mesh for mesh in meshes.split(";")]
    found = paths(wanted, names.split(","), Path(out).parent / f"runs_{Path(out).stem}")
    if first:
        Path(out).write_text(json.dumps(found))


# ------------------------------------------------------------------------------------------------ the benchmark
def measure(out: Path, meshes: str, names: list[str], *, processes: int = 1, devices: int = 1) -> dict[str, Any]:
    """The paths that one process, or several, found."""
    joining: list[list[str]] = [[]]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        joining = [[address, str(processes), str(i)] for i in range(processes)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "benchmarks.sharding", str(out), meshes, ",".join(names)]
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

    names = list(QUICK) if quick else list(families())
    settings = {
        "eight_devices": ("data=8", "Over 8 devices, each with an eighth of the batch"),
        "four_by_two_devices": ("data=4,model=2", "Over 4 x 2 devices, the batch cut into 4 and all parameters into 2"),
        "two_processes": ("data=2", "In 2 processes, each with half of the batch"),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = Path(temporary), time.monotonic()
        alone = measure(folder / "alone.json", "none", names)
        eight = measure(folder / "eight.json", "data=8;data=4,model=2", names, devices=8)
        two = measure(folder / "two.json", "data=2", names, processes=2)
        minutes = (time.monotonic() - began) / 60
    for claim, (mesh, what) in settings.items():
        found = two if claim == "two_processes" else eight
        each, nats, seconds = {}, {}, {}
        for name in names:
            one, many = alone[name]["None"]["loss"], found[name][mesh]["loss"]
            each[name] = float(difference(many, one).max())
            nats[name] = float(np.abs(np.subtract(many, one)).max())
            seconds[name] = [alone[name]["None"]["step_seconds"], found[name][mesh]["step_seconds"]]
        beyond = [name for name in names if not each[name] <= 1e-5]
        yield Claim(
            name=claim,
            claim=f"{what}: largest relative difference of a loss from one device's, {STEPS} updates, every family",
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
    each = {name: float(difference([eight[name]["next_other"]], [eight[name]["next_same"]])[0]) for name in names}
    yield Claim(
        name="other_mesh",
        claim="The update after a checkpoint of 8 x 1 devices, on 4 x 2: relative difference of the loss, every family",
        value=max(each.values()),
        unit="of the loss",
        target="<= 1e-06",
        seeds=(SEED,),
        if_missed=MISSED.format(families=" and ".join(n for n in names if each[n] > 1e-6), nats=max(each.values())),
        detail={"by_family": each},
    )


if __name__ == "__main__":
    child(*sys.argv[1:])
