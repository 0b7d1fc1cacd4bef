"""Do data that stay on disk train as fast as data in memory, in little memory?

Images: 20 GB of 32x32x3 uint8 in twenty .npy shards, sparse files of which the first 16 MB each are written (random
bytes; the rest reads as zeros), for the dense ``mfcvae:facets``; beside it the same step on 50,000 images in memory.
Table: 10^7 rows of eight columns of all kinds in a Parquet file of 250,000 rows a group, for ``mfcvae:table``; beside
it 10^6 of the rows in memory.  Steps of the two are taken in turns.  Speed is per second of this process's processor
time, threads that read ahead included, so that other processes do not count and reading that overlaps with the step is
counted in full; ``detail`` has the clock on the wall too.  Memory is the peak resident set (VmHWM, mapped pages
included) of a process of its own that trains from disk alone and also reads further at random.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.harness import HERE, Claim

KEY = jax.random.key(0)
SHAPE = (32, 32, 3)
BYTES = 20 * 10**9
SHARDS, WRITTEN = 20, 2**24
GROUP = 250_000
ROWS = 10_000_000
BATCH = {"images": 128, "table": 512}
SIZES = {"images": (6, 100, 200, 12_000), "table": (8, 600, 500, 20_000)}
"""Rounds, and steps in each, of the comparison; of the process of its own: steps, and batches that it reads on."""


# ------------------------------------------------------------------------------------------------ the data
def write_images(folder: Path) -> int:
    """Sparse shards of images; returns their number."""
    each = BYTES // SHARDS // int(np.prod(SHAPE))
    noise = np.random.default_rng(0)
    for i in range(SHARDS):
        shard = np.lib.format.open_memmap(folder / f"{i}.npy", mode="w+", dtype=np.uint8, shape=(each, *SHAPE))
        some = WRITTEN // int(np.prod(SHAPE))
        shard[:some] = noise.integers(0, 256, (some, *SHAPE), dtype=np.uint8)
        shard.flush()
    return SHARDS * each


def columns() -> tuple[Any, ...]:
    """Five real columns, a positive, a binary and a categorical one."""
    from ppl_models.program import Column

    real = [Column(f"real_{i}", "real") for i in range(4)]
    more = (Column("dose", "positive"), Column("visits", "count", loc=1.1, scale=0.5))
    return (
        *real,
        *more,
        Column("smoker", "binary", values=("no", "yes")),
        Column("site", "categorical", values=tuple("abcd")),
    )


def rows_of(group: int, n: int) -> dict[str, Any]:
    """One row group of the table: eight columns that hang together by a hidden class."""
    noise = np.random.default_rng(group)
    hidden = noise.integers(0, 4, n)
    real = {f"real_{i}": (noise.normal(size=n) + np.cos(hidden + i)).astype("float32") for i in range(4)}
    return {
        **real,
        "dose": np.exp(0.3 * noise.normal(size=n) + 0.2 * hidden).astype("float32"),
        "visits": noise.poisson(1 + hidden).astype("int32"),
        "smoker": np.asarray(["no", "yes"])[(noise.random(n) < 0.2 + 0.15 * hidden).astype(int)],
        "site": np.asarray(list("abcd"))[hidden],
    }


def write_table(file: Path, rows: int) -> None:
    """A Parquet file of so many rows, in row groups."""
    import pyarrow
    from pyarrow import parquet

    writer = None
    for group in range(rows // GROUP):
        part = pyarrow.table(rows_of(group, GROUP))
        writer = writer or parquet.ParquetWriter(file, part.schema)
        writer.write_table(part, row_group_size=GROUP)
    assert writer is not None
    writer.close()


# ------------------------------------------------------------------------------------------------ the steps
def program_of(kind: str, quick: bool = False) -> Any:
    from ppl_models import mfcvae

    if quick:
        return replace(mfcvae.PRESETS["tiny"], shape=SHAPE, levels=256).build(KEY)
    if kind == "images":
        return mfcvae.PRESETS["facets"].build(KEY)
    spec = mfcvae.PRESETS["table"]
    likelihood = replace(spec.likelihood, columns=columns())
    return replace(spec, shape=(len(likelihood.columns),), likelihood=likelihood).build(KEY)


def stepper(program: Any, data: Any, batch: int) -> tuple[Callable[[int], Any], Any]:
    """A function that takes so many steps of a fit to the data and waits for them, and the source of its batches."""
    from inference.fitting.sources import as_source
    from inference.fitting.trainer import Trainer, make_optimizer, scheduled

    source = as_source(data, program, batch, KEY)
    trainer = Trainer(program, source, make_optimizer(1e-3, None, None), scheduled(program, None), None)
    held = {"state": trainer.init(KEY), "at": 0}

    def steps(count: int) -> None:
        for _ in range(count):
            held["state"] = trainer.update(held["state"], source.feed(held["at"], 1))
            held["at"] += 1
        jax.block_until_ready(held["state"].step)

    steps(2)
    return steps, source


def in_turns(each: Mapping[str, Callable[[int], Any]], rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Seconds a step, of the processor and on the wall, over all rounds: what comes now and then counts."""
    spent = {name: {"cpu": 0.0, "wall": 0.0} for name in each}
    for turn in range(rounds):
        for name, steps in list(each.items())[:: 1 if turn % 2 else -1]:
            cpu, wall = time.process_time(), time.perf_counter()
            steps(count)
            spent[name]["cpu"] += (time.process_time() - cpu) / (rounds * count)
            spent[name]["wall"] += (time.perf_counter() - wall) / (rounds * count)
    return spent


def peak() -> float:
    """Peak resident memory of this process so far, GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def child(kind: str, path: str, steps: int, batches: int) -> None:
    """Train from disk alone, then read on without training; prints the peak and what was read."""
    take, source = stepper(program_of(kind), path, BATCH[kind])
    take(steps)
    for at in range(steps + 2, steps + 2 + batches):
        source.feed(at, 1)
    read = (steps + batches + 2) * BATCH[kind]
    print(json.dumps({"peak_gb": peak(), "rows_read": read, "rows": source.size}), flush=True)


def measured(kind: str, path: Path, steps: int, batches: int) -> dict[str, Any]:
    """What :func:`child` prints, of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.streaming", kind, str(path), str(steps), str(batches)]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def claims(kind: str, title: str, path: Path, memory: Any, quick: bool) -> Iterator[Claim]:
    """Speed and memory of one kind of data."""
    program, batch = program_of(kind, quick), BATCH[kind]
    rounds, count, steps, batches = (2, 20, 0, 0) if quick else SIZES[kind]
    disk, source = stepper(program, path, batch)
    spent = in_turns({"disk": disk, "memory": stepper(program, memory, batch)[0]}, rounds, count)
    rate = {name: {clock: batch / s for clock, s in found.items()} for name, found in spent.items()}
    yield Claim(
        name=f"{kind}_speed",
        claim=f"{title}: data a second over those of data in memory, batch {batch}",
        value=rate["disk"]["cpu"] / rate["memory"]["cpu"],
        unit="ratio",
        target=">= 0.8",
        seeds=(0,),
        if_missed="reading and decoding cost processor time of their own, a larger share the smaller the model",
        detail={
            "data_per_second": rate, "steps": rounds * count, "rows": source.size,
            "ratio_on_the_wall": rate["disk"]["wall"] / rate["memory"]["wall"],
        },
    )  # fmt: skip
    found = {"peak_gb": peak()} if quick else measured(kind, path, steps, batches)
    yield Claim(
        name=f"{kind}_memory",
        claim=f"{title}: peak resident memory of a process that trains from disk",
        value=found["peak_gb"],
        unit="GB",
        target="< 2",
        seeds=(0,),
        detail=found,
    )


def run(quick: bool) -> Iterator[Claim]:
    """Yield speed and memory of both kinds of data; quick: of the images, for a smaller model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        n = write_images(folder)
        some = np.random.default_rng(1).integers(0, 256, (2_000 if quick else 50_000, *SHAPE), dtype=np.uint8)
        title = f"{n:,} images of 32x32x3 in .npy shards, {BYTES / 1e9:.0f} GB"
        yield from claims("images", title, folder, some, quick)
    if quick:
        return
    import pandas as pd

    from ppl_models.datasets import encode_frame

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "table.parquet"
        write_table(file, ROWS)
        frame = pd.concat([pd.DataFrame(rows_of(group, GROUP)) for group in range(4)])
        title = f"{ROWS:,} rows of 8 columns in Parquet"
        yield from claims("table", title, file, encode_frame(columns(), frame), quick)


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
