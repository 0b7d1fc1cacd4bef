"""Data that are drawn from a seed and cost seconds: made in blocks, kept in the user cache, with a line of progress.

A block is a fixed number of rows from a random stream of its own, a function of (set, seed, split, number of block):
n data are the first n of more, and training data are never drawn from the numbers of test data.  Blocks lie in
``CACHE/generated/NAME/``; a cache that cannot be written, or a file that is torn, only means that they are made again.
"""

from __future__ import annotations

import os
import sys
import time
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from ppl_models.datasets.locate import cache_dir

DELAY, EVERY = 2.0, 10.0
"""Seconds before the first line of progress, and between two."""

Make = Callable[[np.random.Generator], dict[str, np.ndarray]]


def block_stream(stream: int, split: int, seed: int, index: int) -> np.random.Generator:
    """The random numbers of one block."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, split, index))))


def blocks(
    name: str, make: Make, *, stream: int, split: int, seed: int, count: int, keep: bool = True
) -> dict[str, np.ndarray]:
    """The first ``count`` blocks of a set, joined along the first axis of every array.

    ``name`` is the folder of the cache: it carries whatever the blocks depend on beside seed, split and number.
    """
    began, told, found = time.monotonic(), 0.0, []
    for index in range(count):
        path = cache_dir() / "generated" / name / f"seed{seed}-split{split}-block{index}.npz"
        block = _read(path) if keep else None
        if block is None:
            block = make(block_stream(stream, split, seed, index))
            if keep:
                _write(path, block)
        found.append(block)
        now = time.monotonic()
        if now - began > DELAY and now - told > EVERY and index + 1 < count:
            left = (now - began) / (index + 1) * (count - index - 1)
            print(f"generating {name}: {index + 1}/{count} blocks, {left:.0f} s left", file=sys.stderr, flush=True)
            told = now
    return {key: np.concatenate([block[key] for block in found]) for key in found[0]}


def _read(path: os.PathLike[str]) -> dict[str, np.ndarray] | None:
    try:
        # Opened here: of a torn file the archive would leave it open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def _write(path: os.PathLike[str], block: dict[str, np.ndarray]) -> None:
    folder, fresh = os.path.dirname(path), f"{path}.{os.getpid()}.part"
    try:
        os.makedirs(folder, exist_ok=True)
        with open(fresh, "wb") as file:
            np.savez(file, allow_pickle=False, **block)
        os.replace(fresh, path)
    except OSError:
        if os.path.exists(fresh):
            os.unlink(fresh)
