"""Faults other than SIGKILL, one function each: what was done to a run, what it said, and whether it came through.

Each takes a :class:`benchmarks._faults_place.Place` and returns a line of what was seen; it raises ``AssertionError``
where the suite said nothing useful, lost something, or went on with wrong numbers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _faults_work as work, _faults_world as world
from benchmarks._faults_fork import Say, start
from benchmarks._faults_place import MIB, Place, disk, fit_again, told, wait_for_step


# --------------------------------------------------------------------------------------------------- signals
def sigterm(place: Place) -> str:
    folder = place.new("sigterm")
    child = start(work.work, folder, place.cache, log=place.log)
    child.wait_for("fit")
    wait_for_step(child, folder, work.EVERY)
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
    wait_for_step(child, folder, work.EVERY)
    child.kill(signal.SIGTERM)
    found, text = child.end(), log.read_text()
    assert found.get("value") == 143 and f"continue: ppl-models resume {folder}" in text, (found, text)
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


# ----------------------------------------------------------------------------------------------------- disks
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
            wait_for_step(child, folder, work.EVERY)
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
        return told(fit_again(place, folder), "cannot write the run folder", "Read-only", "writable")


# ------------------------------------------------------------------------------------------------ torn files
def torn_checkpoint(place: Place) -> str:
    folder = place.copy("torn")
    newest = sorted((folder / "checkpoint").glob("step_*.npz"))[-1]
    os.truncate(newest, int(place.rng.integers(0, newest.stat().st_size)))
    history = folder / "history.csv"
    os.truncate(history, int(place.rng.integers(1, history.stat().st_size)))
    found = fit_again(place, folder)
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


CASES: dict[str, Callable[[Place], str]] = {
    "SIGTERM": sigterm, "SIGTERM of a verb": sigterm_of_the_command_line, "full disk": full_disk,
    "full disk at the end": full_disk_of_an_evaluation, "read-only disk": read_only, "torn checkpoint": torn_checkpoint,
    "torn texts": torn_texts, "NaN batches": world.nan_batches, "dead worker": world.dead_worker,
    "clock jumps": world.clock, "two writers": world.two_writers, "moved folder": world.moved,
    "old formats": world.old_formats, "slow endpoint": world.slow_endpoint, "lying endpoint": world.lying_endpoint,
}  # fmt: skip
