"""The work that is interrupted: fit, evidence, posterior and coherence of one small run, each kept as soon as made.

An attempt finds in the folder what earlier ones finished, and does the rest: what a person does who starts the same
script again.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

STAGES = ("fit", "evidence", "posterior", "coherence")
STEPS, EVERY, BATCH, DATA, TEST = 300, 10, 32, 256, 24
SPEC = "in_context:tiny"


def warm() -> None:
    """Import whatever the work imports, in the process that forks; runs no operation of JAX."""
    import h5netcdf  # noqa: F401
    import numpyro  # noqa: F401
    import pandas  # noqa: F401
    import xarray  # noqa: F401

    import inference.checking.posterior_tree
    import inference.coherence.command
    import inference.fitting.run  # noqa: F401
    from ppl_models.program import families

    families()


def data() -> np.ndarray:
    """Sequences of 0 and 1 (DATA, n): NumPy's own, so that no operation of JAX is needed."""
    from ppl_models.program import resolve

    rng = np.random.default_rng(0)
    shape = resolve(SPEC).shape
    return (rng.random((DATA, *shape)) < rng.beta(1, 1, (DATA, *(1 for _ in shape)))).astype(np.uint8)


def begin(cache: str) -> None:
    """Start JAX in a child: programs compiled by an earlier child are found in ``cache``."""
    from inference.fitting.runtime import tune_runtime

    tune_runtime(cache_dir=cache)


def fitted(folder: Path, x: Any, **changes: Any) -> Any:
    """Fit into ``folder``, or go on there."""
    import jax

    from inference.fitting.folder import RunFolder
    from inference.fitting.run import fit, resume
    from ppl_models.program import resolve

    run = RunFolder(folder)
    begun = (folder / "run.json").exists()
    if begun and list(run.checkpoint.glob("step_*.npz")):
        return resume(folder, x, progress=False)
    assert begun or not folder.exists() or run.stillborn(), f"{folder} is neither a run nor free for one"
    program = resolve(SPEC).build(jax.random.key(0))
    options = {"steps": STEPS, "batch_size": BATCH, "checkpoint_every": EVERY, **changes}
    return fit(program, x, key=jax.random.key(0), out=folder, resume=begun, progress=False, **options)


def work(say: Callable[[str], None], folder: Path, cache: str) -> None:
    """Do what is not done yet of the four stages; says the name of each as it begins."""
    begin(cache)
    import jax

    from inference.checking.log_evidence import evidence, save_evidence
    from inference.checking.posterior_tree import posterior, save_posterior
    from inference.coherence.command import coherence_command
    from inference.fitting.fitted import load
    from inference.fitting.record import run_record

    x, path = data(), folder / "run.json"
    done = path.exists() and run_record(path.read_text(), path)["info"].get("stopped") == "steps"
    if not done:
        say("fit")
    fit = load(folder) if done else fitted(folder, x)
    key = jax.random.key(1)
    if not (folder / "evidence.csv").exists():
        say("evidence")
        save_evidence(evidence(fit, x[:TEST], particles=64, key=key, refine="none", progress=False), folder)
    if not (folder / "posterior.nc").exists():
        say("posterior")
        save_posterior(posterior(fit, x[:TEST], draws=8, key=key, progress=False), folder)
    if not (folder / "contexts.csv").exists():
        say("coherence")
        coherence_command(
            fit.program.exact.predictor(fit.params), label=SPEC, contexts=2, n=4, steps=8, paths=20, depth=2, out=folder
        )
    say("done")


# ------------------------------------------------------------------------------------------- what is in a folder
def contents(folder: Path) -> dict[str, str]:
    """Digest of each result of a run: of the arrays of the last checkpoint, the rows of the history without their
    seconds, and the bytes or arrays of the other files."""
    import xarray as xr

    newest = sorted((folder / "checkpoint").glob("step_*.npz"))[-1]
    with np.load(newest, allow_pickle=False) as file:
        found = {f"{newest.name} {n}": file[n].tobytes() for n in file.files if n != "__meta__"}
    with open(folder / "history.csv", newline="") as text:
        found["history.csv"] = repr([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(text)])
    for name in ("evidence.csv", "evidence.json", "coherence.csv", "contexts.csv"):
        if (folder / name).exists():
            found[name] = (folder / name).read_bytes()
    if (folder / "posterior.nc").exists():
        with xr.open_datatree(folder / "posterior.nc", engine="h5netcdf") as tree:
            for group in tree.subtree:
                found |= {f"{group.path} {n}": np.asarray(v.values).tobytes() for n, v in group.data_vars.items()}
    return {n: hashlib.sha256(v if isinstance(v, bytes) else v.encode()).hexdigest() for n, v in found.items()}


def differ(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Names of the results that are not the same bits."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def reached(folder: Path) -> int:
    """The step of the newest checkpoint, whose every byte is checked; -1 where there is none."""
    files = sorted((folder / "checkpoint").glob("step_*.npz")) if (folder / "checkpoint").is_dir() else []
    if not files:
        return -1
    with zipfile.ZipFile(files[-1]) as file:
        if (bad := file.testzip()) is not None:
            raise ValueError(f"{files[-1]} is torn at {bad}")
    return int(files[-1].stem[5:])


def check_readable(folder: Path) -> int:
    """Raise an error unless every file that has its final name is whole; returns the step reached."""
    import xarray as xr

    from inference.checking.log_evidence import read_evidence
    from inference.fitting.folder import RunFolder

    run = RunFolder(folder)
    if not folder.exists() or (not run.started() and run.stillborn()):
        return -1
    run.read_run()
    run.read_spec()
    if (folder / "evidence.csv").exists():
        read_evidence(folder)
    if (folder / "posterior.nc").exists():
        xr.open_datatree(folder / "posterior.nc", engine="h5netcdf").close()
    return reached(folder)
