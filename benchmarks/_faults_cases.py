"""Faults other than SIGKILL, one function each: what was done to a run, what it said, and whether it came through.

Each takes a :class:`Place` and returns a line of what was seen; it raises ``AssertionError`` where the suite said
nothing useful, lost something, or went on with wrong numbers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import _faults_work as work
from benchmarks._faults_fork import Say, start

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


def _fit(place: Place, folder: Path, x: Any = None, **changes: Any) -> dict[str, Any]:
    return start(_begin_fit, folder, place.cache, work.data() if x is None else x, changes, log=place.log).end()


def _step(folder: Path, least: int, seconds: float = 120.0) -> None:
    """Wait until a run has a checkpoint at or after ``least``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(ValueError, OSError):  # the newest may be replaced meanwhile
            if work.reached(folder) >= least:
                return
        time.sleep(0.01)
    raise AssertionError(f"{folder} has no checkpoint of step {least} after {seconds:.0f} s")


# --------------------------------------------------------------------------------------------------- signals
def sigterm(place: Place) -> str:
    folder = place.new("sigterm")
    child = start(work.work, folder, place.cache, log=place.log)
    child.wait_for("fit")
    _step(folder, work.EVERY)
    child.kill(signal.SIGTERM)
    code = child.end()["code"]
    assert code == -signal.SIGTERM, f"ended with {code}, not by SIGTERM"
    step = work.check_readable(folder)
    place.resumed(folder, "after SIGTERM")
    return f"checkpoint of step {step} written, then ended by the signal"


def _verb(say: Say, words: list[str], cache: str) -> int:
    from inference.cli.app import main

    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    say("verb")
    return main(words)


def sigterm_of_the_command_line(place: Place) -> str:
    folder = place.new("verb")
    words = ["fit", work.SPEC, "--data", "own", "--steps", "1000000", "--checkpoint-every", "10", "--out", str(folder)]
    log = place.new("verb.log")
    child = start(_verb, [*words, "--quiet"], place.cache, log=log)
    child.wait_for("verb")
    _step(folder, work.EVERY)
    child.kill(signal.SIGTERM)
    found, text = child.end(), log.read_text()
    assert found.get("value") == 143 and f"continue: ppl-models resume {folder}" in text, (found, text)
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


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


def _limited(say: Say, folder: Path, cache: str, size: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    work.work(say, folder, cache)


def full_disk(place: Place) -> str:
    """The disk fills up while a fit is on its way; where no disk can be mounted, a file may grow no further."""
    room = sum(p.stat().st_size for p in place.whole.rglob("*") if p.is_file())
    said = ""
    with disk(place.new("disk"), 4 * room + MIB) as mounted:
        folder, filler = place.new("disk") / "run", place.new("disk") / "filler"
        if not mounted:
            child = start(_limited, folder, place.cache, 3 * MIB // 1000, log=place.log)
            said = told(child.end(), "cannot write")
        else:
            child = start(work.work, folder, place.cache, log=place.log)
            child.wait_for("fit")
            _step(folder, work.EVERY)
            with contextlib.suppress(OSError), open(filler, "wb") as file:
                while True:
                    file.write(b"\0" * 4096)
                    file.flush()
            said = told(child.end(), "cannot write", str(folder), "No space left", "resume")
            step = work.check_readable(folder)
            assert step >= work.EVERY, f"the checkpoint of step {work.EVERY} is lost: {step} is what is there"
            filler.unlink()
        place.resumed(folder, "after a full disk")
    return said


def full_disk_of_an_evaluation(place: Place) -> str:
    """The disk is full when posterior.nc is to be written; the evidence before it stays."""
    with disk(place.new("disk2"), 64 * MIB) as mounted:
        if not mounted:
            return "not tried: no file system can be mounted here"
        folder, filler = Path(shutil.copytree(place.whole, place.new("disk2") / "run")), place.new("disk2") / "filler"
        (folder / "posterior.nc").unlink()
        with contextlib.suppress(OSError), open(filler, "wb") as file:
            while True:
                file.write(b"\0" * 1024)
                file.flush()
        said = told(place.attempt(folder), "cannot write", "posterior.nc")
        work.check_readable(folder)
        assert not (folder / "posterior.nc").exists() and not list(folder.glob(".posterior*")), "half a file is left"
        filler.unlink()
        place.resumed(folder, "after a full disk")
    return said


def read_only(place: Place) -> str:
    """A run on a disk that cannot be written is read; to go on is refused at once."""
    with disk(place.new("disk3"), 64 * MIB) as mounted:
        if not mounted:
            return "not tried: no file system can be mounted here"
        folder = Path(shutil.copytree(place.whole, place.new("disk3") / "run"))
        subprocess.run(["mount", "-o", "remount,ro", str(place.new("disk3"))], check=True, capture_output=True)
        work.check_readable(folder)
        found = place.attempt(folder)
        assert found["code"] == 0, f"a finished run could not be opened: {found}"
        return told(_fit(place, folder), "cannot write the run folder", "Read-only", "writable")


# ------------------------------------------------------------------------------------------------ torn files
def torn_checkpoint(place: Place) -> str:
    folder = place.copy("torn")
    newest = sorted((folder / "checkpoint").glob("step_*.npz"))[-1]
    os.truncate(newest, int(place.rng.integers(0, newest.stat().st_size)))
    history = folder / "history.csv"
    os.truncate(history, int(place.rng.integers(1, history.stat().st_size)))
    found = _fit(place, folder)
    assert found["code"] == 0, found
    place.same(folder, "after torn files")
    return f"{newest.name} and history.csv torn at a random byte: passed over, written again, the same bits"


def torn_texts(place: Place) -> str:
    """Each file of a run cut at 20 random bytes: read in full where only white space is lost, else refused by name."""
    import xarray as xr

    from inference.checking.log_evidence import read_evidence
    from inference.cli.common import read_run
    from inference.fitting.folder import RunFolder

    folder, whole = place.copy("texts"), RunFolder(place.whole)
    readers: dict[str, Callable[[], Any]] = {
        "run.json": lambda: RunFolder(folder).read_run() == whole.read_run() == read_run(folder),
        "spec.json": lambda: RunFolder(folder).read_spec() == whole.read_spec(),
        "evidence.csv": lambda: read_evidence(folder).equals(read_evidence(place.whole)),
        "evidence.json": lambda: read_evidence(folder).attrs == read_evidence(place.whole).attrs,
        "posterior.nc": lambda: xr.open_datatree(folder / "posterior.nc", engine="h5netcdf").load().equals(
            xr.open_datatree(place.whole / "posterior.nc", engine="h5netcdf").load()
        ),
    }  # fmt: skip
    refused = read = 0
    for name, same in readers.items():
        raw = (place.whole / name).read_bytes()
        for at in place.rng.integers(0, len(raw), 20):
            (folder / name).write_bytes(raw[:at])
            try:
                assert same(), f"{name} cut at byte {at} of {len(raw)} was read as something else"
                read += 1
            except (ValueError, OSError) as error:
                assert name == "posterior.nc" or name.partition(".")[0] in str(error) or "spec" in str(error), error
                refused += 1
        (folder / name).write_bytes(raw)
    return f"{refused} cuts refused by name, {read} lost nothing"


# ------------------------------------------------------------------------------------------ data and workers
def _host_sampler(bad: tuple[int, ...], fault: str, worker: Any = None) -> Callable[[Any, int], np.ndarray]:
    x, calls = work.data(), [0]

    def draw(key: Any, n: int) -> np.ndarray:
        import jax

        calls[0] += 1
        seed = np.asarray(jax.random.key_data(key))
        if calls[0] in bad and fault == "raises":
            raise ConnectionResetError("the worker that reads the data is gone")
        return x[np.random.default_rng(seed).integers(0, len(x), n)]

    return draw


def _nan_fit(say: Say, folder: Path, cache: str, share: float) -> Any:
    """Probabilistic data with NaN in a share of the batches, drawn on the host."""
    work.begin(cache)
    import warnings

    import jax

    from inference.fitting.run import fit
    from ppl_models.program import resolve

    program = resolve("mfcvae:tiny").build(jax.random.key(0))
    calls = [0]

    def draw(key: Any, n: int) -> np.ndarray:
        calls[0] += 1
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        x = rng.random((n, *program.shape)).astype(np.float32) * 16
        return np.full_like(x, np.nan) if calls[0] > 3 and rng.random() < share else x

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made = fit(
            program, draw, steps=100, batch_size=16, key=jax.random.key(0), out=folder, progress=False,
            steps_per_dispatch=1, checkpoint_every=5,
        )  # fmt: skip
    finite = all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(made.params))
    return {"skipped": made.info["skipped"], "finite": finite, "warned": [str(w.message) for w in seen]}


def nan_batches(place: Place) -> str:
    found = start(_nan_fit, place.new("nan"), place.cache, 0.2, log=place.log).end()
    assert found["code"] == 0, found
    value = found["value"]
    assert value["finite"] and value["skipped"] > 0 and any("skipped" in text for text in value["warned"]), value
    said = told(start(_nan_fit, place.new("all-nan"), place.cache, 1.0, log=place.log).end(), "not finite", "clip")
    assert work.reached(place.new("all-nan")) >= 0, "no checkpoint is left"
    return f"{value['skipped']} of 100 updates skipped and said; where all are NaN: {said}"


def dead_worker(place: Place) -> str:
    """The process behind a sampler dies: the fit stops at once, and goes on from its checkpoint with the same bits."""
    folder, whole = place.new("worker"), place.new("worker-whole")
    fine = _fit(place, whole, _host_sampler((), ""))
    assert fine["code"] == 0, fine
    said = told(_fit(place, folder, _host_sampler((150,), "raises")), "worker", "gone")
    assert work.check_readable(folder) >= work.EVERY
    again = _fit(place, folder, _host_sampler((), ""))
    assert again["code"] == 0, again
    found = work.differ(work.contents(folder), work.contents(whole))
    assert not found, f"after a dead worker {found} differ"
    return said


# ----------------------------------------------------------------------------------------- clocks and places
def _jumping(say: Say, folder: Path, cache: str) -> None:
    rng, real = np.random.default_rng(0), time.time
    with mock.patch("time.time", lambda: real() + rng.integers(-(10**9), 10**9)):
        work.work(say, folder, cache)


def _stale(say: Say, folder: Path, cache: str) -> dict[str, bool]:
    """Is evidence told from that of other parameters when the times of the files say the contrary?"""
    work.begin(cache)
    from inference.cli.tables import own_table
    from inference.fitting.fitted import load

    newest = sorted((folder / "checkpoint").glob("step_*.npz"))[-1]
    os.utime(newest, (2**32, 2**32))
    mine = own_table(folder, load(folder)) is not None
    newest.unlink()  # other parameters: those of ten steps before
    os.utime(folder / "evidence.csv", (2**33, 2**33))
    return {"mine": mine, "another's": own_table(folder, load(folder)) is not None}


def clock(place: Place) -> str:
    folder = place.new("clock")
    found = start(_jumping, folder, place.cache, log=place.log).end()
    assert found["code"] == 0, found
    place.same(folder, "under a clock that jumps")
    seen = start(_stale, folder, place.cache, log=place.log).end()
    assert seen.get("value") == {"mine": True, "another's": False}, seen
    return "the same bits under a clock that jumps by decades; evidence is told by its parameters, not by times"


def two_writers(place: Place) -> str:
    folder = place.new("two")
    first = start(work.work, folder, place.cache, log=place.log)
    first.wait_for("fit")
    _step(folder, 0)
    first.kill(signal.SIGSTOP)
    said = told(_fit(place, folder), "is being written by", f"process {first.pid}")
    first.kill(signal.SIGCONT)
    first.kill()
    first.end()
    place.resumed(folder, "after the first of two writers died")
    return said


def moved(place: Place) -> str:
    folder, new = place.new("here"), place.new("there")
    child = start(work.work, folder, place.cache, log=place.log)
    child.wait_for("fit")
    _step(folder, work.EVERY)
    child.kill()
    child.end()
    shutil.move(folder, new)
    place.resumed(new, "after the folder was moved")
    return "killed, moved, resumed in its new place: the same bits"


def old_formats(place: Place) -> str:
    """A run of version 0.1.0 is read; one of a later version, or of another program, is refused by name."""
    from inference.checking.log_evidence import read_evidence
    from inference.fitting.folder import RunFolder

    kept = Path(__file__).resolve().parent.parent / "tests" / "kept" / "run_0_1_0"
    run = RunFolder(kept)
    assert run.read_run()["info"]["steps"] == 20 and run.read_spec() is not None
    assert (read_evidence(kept)["estimator"] == "amortised").all()
    folder = place.copy("later")
    text = (folder / "run.json").read_text()
    said = []
    for other in ("ppl-models run 2", "ppl-models run 0", "another program"):
        (folder / "run.json").write_text(text.replace("ppl-models run 1", other))
        try:
            RunFolder(folder).read_run()
        except ValueError as error:
            said.append(str(error))
    assert len(said) == 3 and "later version" in said[0] and "no version wrote" in said[1], said
    return f"0.1.0 is read; {said[0]}"


CASES: dict[str, Callable[[Place], str]] = {
    "SIGTERM": sigterm, "SIGTERM of a verb": sigterm_of_the_command_line, "full disk": full_disk,
    "full disk at the end": full_disk_of_an_evaluation, "read-only disk": read_only, "torn checkpoint": torn_checkpoint,
    "torn texts": torn_texts, "NaN batches": nan_batches, "dead worker": dead_worker, "clock jumps": clock,
    "two writers": two_writers, "moved folder": moved, "old formats": old_formats,
}  # fmt: skip
