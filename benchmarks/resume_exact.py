"""Does a run that is killed (SIGKILL) again and again end with the bits of the run that was left alone?

One run of a small clustering VAE on the digits is killed at random moments - while it compiles, trains or writes a
checkpoint - and resumed each time, by a fresh process.  Its final parameters are compared with those of the same run
in one piece.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from benchmarks.harness import HERE, Claim

SEED = 0


def child(folder: Path, steps: int) -> None:
    """Start the run of ``folder``, or resume it if it has begun."""
    from inference import fit, resume, tune_runtime
    from inference.fitting.checkpoint import checkpoints
    from ppl_models.datasets import load
    from ppl_models.program import resolve

    tune_runtime()
    x, _ = load("digits")
    print("begins", flush=True)
    if checkpoints(folder / "checkpoint"):
        resume(folder, x, validation=x[:200], progress=False)
        return
    program = resolve("mfcvae:tiny").build(jax.random.key(SEED))
    # A run killed while it was being set up has nothing to resume from and starts again.
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    fit(
        program, x, steps=steps, key=jax.random.key(SEED), validation=x[:200], validate_every=steps // 50,
        average=0.99, checkpoint_every=max(1, steps // 400), out=folder, progress=False,
    )  # fmt: skip


def launch(folder: Path, steps: int) -> subprocess.Popen[str]:
    """Start a child and return it once its program is about to be fitted."""
    command = [sys.executable, "-m", "benchmarks.resume_exact", str(folder), str(steps)]
    process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "begins" not in line:
        pass
    return process


def parameters(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint."""
    from inference.fitting.checkpoint import checkpoints

    with np.load(checkpoints(folder / "checkpoint")[-1]) as file:
        return {name: file[name] for name in file.files if name != "__meta__"}


def run(quick: bool) -> Iterable[Claim]:
    """Yield the number of arrays that differ after the kills, and how many kills there were."""
    kills, steps = (3, 20_000) if quick else (20, 200_000)
    moments = random.Random(SEED)
    with tempfile.TemporaryDirectory() as temporary:
        whole, cut = Path(temporary) / "whole", Path(temporary) / "cut"
        whole.mkdir()
        cut.mkdir()
        began = time.monotonic()
        if launch(whole, steps).wait() != 0:
            raise RuntimeError("the uninterrupted run failed; its output is above")
        seconds = time.monotonic() - began
        done, reached = 0, []
        while done < kills:
            process = launch(cut, steps)
            time.sleep(moments.uniform(0.0, 1.4 * seconds / kills))
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            done += 1
            files = sorted(p.stem for p in (cut / "checkpoint").glob("step_*.npz"))
            reached.append(int(files[-1][5:]) if files else 0)
        last = launch(cut, steps)
        if last.wait() != 0:
            raise RuntimeError("the last resume failed; its output is above")
        a, b = parameters(whole), parameters(cut)
        differ = [name for name in a if name not in b or a[name].tobytes() != b[name].tobytes()] + sorted(b.keys() - a)
    yield Claim(
        name="arrays_that_differ",
        claim=f"Arrays of the final state that differ in any bit after {done} SIGKILLs and resumes",
        value=len(differ),
        unit="arrays",
        target="== 0",
        seeds=(SEED,),
        detail={
            "kills": done,
            "steps": steps,
            "steps_on_disk_at_each_kill": reached,
            "differ": differ,
            "arrays": len(a),
        },
    )
    yield Claim(
        name="kills",
        claim="Kills at random moments that the run lived through",
        value=done,
        unit="kills",
        target="" if quick else ">= 20",
        seeds=(SEED,),
    )


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]))
