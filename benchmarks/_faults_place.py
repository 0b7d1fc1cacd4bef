"""Where faults are injected: scratch folders, the run that was left alone, disks that fill, and what counts as told."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _faults_work as work
from benchmarks._faults_fork import Child, Say, start

MIB = 2**20


@dataclass(frozen=True)
class Place:
    """Where cases work: a scratch folder, the cache of compiled programs, and the run that was left alone."""

    folder: Path
    cache: str
    whole: Path
    log: Path
    rng: np.random.Generator

    def new(self, name: str) -> Path:
        return self.folder / name

    def attempt(self, folder: Path) -> dict[str, Any]:
        """Start the work on a folder once more, to its end."""
        return start(work.work, folder, self.cache, log=self.log).end()

    def same(self, folder: Path, what: str) -> None:
        found = work.differ(work.contents(folder), work.contents(self.whole))
        assert not found, f"{what}: {len(found)} results are not those of the run left alone, first {found[0]}"

    def resumed(self, folder: Path, what: str) -> None:
        """Start the work again, which must end with the results of the run that was left alone."""
        found = self.attempt(folder)
        assert found["code"] == 0, f"{what}: the next start ended with {found}"
        self.same(folder, what)

    def copy(self, name: str) -> Path:
        """A copy of the run that was left alone."""
        return Path(shutil.copytree(self.whole, self.new(name)))


def told(found: dict[str, Any], *words: str) -> str:
    """What an attempt said when it failed; it must be an error for users that holds ``words``."""
    assert found.get("error"), f"expected an error that says {words}, got {found}"
    assert found["os"] or found["error"] in ("ValueError", "CheckpointError", "FolderInUse", "FloatingPointError"), (
        found
    )
    assert all(word in found["says"] for word in words), f"{found['says']!r} does not say {words}"
    return f"{found['error']}: {found['says']}"


def _begin_fit(say: Say, folder: Path, cache: str, x: Any, changes: dict[str, Any]) -> Any:
    work.begin(cache)
    say("fit")
    return work.fitted(folder, x, **changes).info


def fit_again(place: Place, folder: Path, x: Any = None, **changes: Any) -> dict[str, Any]:
    return start(_begin_fit, folder, place.cache, work.data() if x is None else x, changes, log=place.log).end()


def wait_for_step(child: Child, folder: Path, least: int, seconds: float = 900.0) -> None:
    """Wait until the run of a child has a checkpoint at or after ``least``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(ValueError, OSError):  # the newest may be replaced meanwhile
            if work.reached(folder) >= least:
                return
        if child.ended():
            raise AssertionError(f"an attempt ended before step {least}: {child.end()}")
        time.sleep(0.01)
    raise AssertionError(f"{folder} has no checkpoint of step {least} after {seconds:.0f} s")


# ----------------------------------------------------------------------------------------------------- disks
@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of ``size`` bytes at ``folder``; yields False where none can be mounted."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None and not subprocess.run(["mount", *options], capture_output=True).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)
