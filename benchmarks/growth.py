"""What do evidence, posterior and fit cost as data, draws and latents grow 10x and 100x?

``mfcvae:tiny`` (8x8 images, dense), fitted for 20 steps to noise.  Time is processor time of the process, the first
call (which compiles) left out, at 1x the median of several calls.  Memory is the peak resident set while a call runs
(VmHWM, reset before it), inputs and results included, in one process that goes from small to large.  The posterior is
written to a zarr store, for in memory its tree grows with the data by its nature.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from benchmarks.harness import HERE, Claim

KEY = jax.random.key(0)
SIZES = (1, 10, 100)
CHUNK = 4096


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 17, (n, 8, 8), dtype=np.uint8)


def fitted(latents: int = 1) -> Any:
    """The program with so many times the latent numbers, a few steps into its fit."""
    from inference import fit
    from ppl_models import mfcvae

    spec = mfcvae.PRESETS["tiny"]
    spec = replace(spec, facets=tuple(replace(facet, dim=facet.dim * latents) for facet in spec.facets))
    return fit(spec.build(KEY), images(512), steps=20, key=KEY, progress=False)


def resident(name: str) -> float:
    """A line of /proc/self/status in MB: VmRSS now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def cost(call: Callable[[], Any], times: int = 1) -> dict[str, float]:
    """Processor seconds (median), peak resident memory, and what of it came on top of what was held before, MB."""
    spent = []
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident("VmRSS")
    for _ in range(times):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return {"seconds": median(spent), "peak_mb": resident("VmHWM"), "on_top_mb": resident("VmHWM") - before}


def evidence_of(fit: Any, x: Any, particles: int) -> Callable[[], Any]:
    from inference import evidence

    return lambda: evidence(fit, x, particles=particles, key=KEY, chunk=CHUNK, refine="none", progress=False)


def posterior_of(fit: Any, x: Any, draws: int) -> Callable[[], Any]:
    from inference import posterior

    def call() -> None:
        with tempfile.TemporaryDirectory() as folder:
            found = posterior(
                fit, x, draws=draws, key=KEY, chunk=CHUNK, predictive_draws=4, store=Path(folder) / "p.zarr",
                progress=False,
            )  # fmt: skip
            found.close()

    return call


def fit_of(fit: Any, x: Any, steps: int) -> Callable[[], Any]:
    from inference import fit as run

    return lambda: run(fit.program, x, steps=steps, batch_size=128, key=KEY, progress=False)


def grown(make: Callable[[int], Callable[[], Any]], sizes: tuple[int, ...], times: int) -> dict[int, dict[str, float]]:
    """Cost by size, from small to large; each small call once before, to compile."""
    make(sizes[0])()
    return {size: cost(make(size), times if size == sizes[0] else 1) for size in sizes}


def experiments(quick: bool) -> Mapping[str, tuple[Callable[[int], Callable[[], Any]], int]]:
    """Name -> (size -> call, calls at 1x)."""
    once = fitted()
    n, few = (64, 32) if quick else (512, 64)
    fits = {size: once if size == 1 else None for size in SIZES}

    def wider(size: int) -> Callable[[], Any]:
        fits[size] = fits[size] or fitted(size)
        call = evidence_of(fits[size], images(n), 64)
        call()  # another program: compile it first
        return call

    return {
        "evidence_data": (lambda size: evidence_of(once, images(n * size), 64), 5),
        "posterior_data": (lambda size: posterior_of(once, images(n * size), 16), 3),
        "fit_data": (lambda size: fit_of(once, images(2_000 * size), 50 if quick else 1_000), 1),
        "evidence_draws": (lambda size: evidence_of(once, images(few), 64 * size), 5),
        "posterior_draws": (lambda size: posterior_of(once, images(few), 16 * size), 3),
        "evidence_latents": (wider, 3),
    }


TITLES = {
    "evidence_data": ("evidence of 51,200 data over 512, 64 draws each", "90 to 110", "<= 1.1"),
    "posterior_data": ("posterior of 51,200 data over 512, 16 draws each, to zarr", "90 to 110", "<= 1.1"),
    "fit_data": ("1,000 steps of a fit to 200,000 data over 2,000", "<= 1.1", ""),
    "evidence_draws": ("evidence of 64 data with 6,400 draws over 64", "<= 110", "<= 1.1"),
    "posterior_draws": ("posterior of 64 data with 1,600 draws over 16, to zarr", "<= 110", "<= 1.1"),
    "evidence_latents": ("evidence of 512 data with 100x the latent numbers", "<= 110", ""),
}
"""What is compared, target of the time ratio, target of the memory ratio."""


def child(name: str, quick: bool) -> None:
    make, times = experiments(quick)[name]
    found = grown(make, SIZES[:2] if quick else SIZES, 1 if quick else times)
    print(json.dumps(found), flush=True)


def run(quick: bool) -> Iterator[Claim]:
    """Yield the ratios of time and memory between the largest size and the smallest."""
    for name in ("evidence_data",) if quick else TITLES:
        title, time_target, memory_target = TITLES[name]
        command = [sys.executable, "-m", "benchmarks.growth", name, str(int(quick))]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        small, large = found["1"], found[str((SIZES[:2] if quick else SIZES)[-1])]
        for kind, words, of, target, why in (
            ("time", "processor time", "seconds", time_target, "a call has a fixed cost, which the small one has too"),
            (
                "memory",
                "peak resident memory",
                "peak_mb",
                memory_target,
                "inputs and results count (detail: on_top_mb)",
            ),
        ):
            yield Claim(
                f"{name}_{kind}", f"{title}: {words}", large[of] / small[of], "ratio", "" if quick else target, (0,),
                if_missed=why, detail=found,
            )  # fmt: skip


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2] == "1")
