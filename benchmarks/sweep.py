"""How much faster are ten seeds as one program than ten fits in a row, and are they the same fits?

A dense clustering VAE on the digits of scikit-learn, ten seeds: ``inference.sweep`` against ``inference.fit`` with each
seed in turn, each way in a process of its own that starts with nothing compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import HERE, Claim

SEEDS, STEPS, BATCH = 10, 2000, 128
HELD_OUT = 200


def child(way: str, folder: str, seeds: int, steps: int) -> None:
    """Fit all seeds one way; print CPU and wall seconds from after the imports to the last file."""
    import jax

    from inference import fit, sweep, tune_runtime
    from ppl_models.datasets import load
    from ppl_models.program import resolve

    tune_runtime()
    jax.config.update("jax_enable_compilation_cache", False)  # a first sweep, not one that was made before
    x, _ = load("digits")
    spec, out = resolve("mfcvae:tiny"), Path(folder)
    common: dict[str, Any] = {"steps": steps, "batch_size": BATCH, "validation": x[-HELD_OUT:], "progress": False}
    cpu, wall = time.process_time(), time.monotonic()
    if way == "together":
        sweep(spec, x[:-HELD_OUT], seeds=seeds, out=out, **common)
    else:
        for seed in range(seeds):
            key = jax.random.key(seed)
            fit(spec.build(key), x[:-HELD_OUT], key=key, out=out / f"seed={seed}", **common)
    print(json.dumps({"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}))


def timed(way: str, folder: Path, seeds: int, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.sweep", way, str(folder), str(seeds), str(steps)]
    said = subprocess.run(
        command, cwd=HERE.parent, env=os.environ.copy(), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(said.stdout.splitlines()[-1])


def history(folder: Path, seed: int) -> Any:
    import pandas as pd

    return pd.read_csv(folder / f"seed={seed}" / "history.csv")


def run(quick: bool) -> Iterable[Claim]:
    """Yield the ratio of CPU times, the largest difference of a loss and of the validation, and the spread of seeds."""
    seeds, steps = (2, 20) if quick else (SEEDS, STEPS)
    with tempfile.TemporaryDirectory() as temporary:
        together, apart = Path(temporary) / "together", Path(temporary) / "apart"
        one = timed("together", together, seeds, steps)
        many = timed("apart", apart, seeds, steps)
        pairs = [(history(together, seed), history(apart, seed)) for seed in range(seeds)]
    loss = [float(np.abs(a["loss"] / b["loss"] - 1).max()) for a, b in pairs]
    early = [float(np.abs(a["loss"] / b["loss"] - 1)[a["step"] <= max(50, steps // 100)].max()) for a, b in pairs]
    final = [a["validation_elbo"].dropna().iloc[-1] for a, _ in pairs]
    yield Claim(
        name="speed",
        claim=f"{seeds} seeds in a row against one sweep of them: ratio of CPU time, compilation and files included",
        value=many["cpu"] / one["cpu"],
        unit="times",
        target="" if quick else ">= 2",
        seeds=tuple(range(seeds)),
        if_missed="the update of this model is bound by arithmetic, which a sweep does not save; what it saves is "
        "compilation and dispatch",
        detail={
            "seconds_together": one,
            "seconds_in_a_row": many,
            "steps": steps,
            "batch": BATCH,
            "model": "mfcvae:tiny",
        },
    )
    yield Claim(
        name="same",
        claim=f"Losses of {seeds} fits that ran together against the same fits by themselves: largest relative "
        "difference at a row of the history",
        value=max(loss),
        unit="of the loss",
        target="<= 1e-05",
        seeds=tuple(range(seeds)),
        if_missed="rounding of two orders of summation, which training amplifies with the number of updates: see the "
        "difference of the first updates",
        detail={"by_seed": loss, "first_updates": max(early), "steps": steps},
    )
    yield Claim(
        name="spread",
        claim=f"Standard deviation over {seeds} seeds of the validation ELBO that a single run would report",
        value=float(np.std(final, ddof=1)),
        unit="nats a datum",
        seeds=tuple(range(seeds)),
        detail={"validation_elbo": final},
    )


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
