"""A run folder under attack: two writers, signals, torn files, other versions, full disks."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from inference.fitting import checkpoint, fit, load, resume
from inference.fitting.folder import History, RunFolder
from inference.fitting.lock import FolderInUse, check_free, locked
from inference.fitting.record import FORMAT, json_object, key_numbers, run_record
from tests.toy import PPCA, register_toy, toy_data

KEY = jax.random.key(3)
GOOD = {"format": FORMAT, "arguments": {"key": [0, 7]}, "card": {}, "info": {}}


@pytest.fixture(scope="module")
def program():
    register_toy()
    return PPCA().build(jax.random.key(0))


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    """A run that was left alone."""
    return run(program, tmp_path_factory.mktemp("whole") / "run")


def run(program, out, data=None, **more):
    options = {"steps": 40, "batch_size": 32, "checkpoint_every": 10, "steps_per_dispatch": 1, **more}
    return fit(program, toy_data() if data is None else data, out=out, key=KEY, progress=False, **options)


def same(a, b):
    return all(np.asarray(a.params[name]).tobytes() == np.asarray(b.params[name]).tobytes() for name in a.params)


# -------------------------------------------------------------------------------------------------------- lock
def hold(folder, ready):
    with locked(Path(folder), "run"):
        ready.set()
        time.sleep(60)


def test_a_lock_goes_with_the_process_that_holds_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=hold, args=(str(tmp_path), ready))
    child.start()
    try:
        assert ready.wait(60)
        with pytest.raises(FolderInUse, match=rf"written by process {child.pid} on"), locked(tmp_path, "run"):
            pass
        with pytest.raises(FolderInUse):
            check_free(tmp_path, "run")
    finally:
        child.kill()
        child.join()
    with locked(tmp_path, "run"):
        with pytest.raises(FolderInUse), locked(tmp_path, "run"):  # nor twice in one process
            pass
    check_free(tmp_path, "run")
    assert not list(tmp_path.iterdir())


def on_host(at, act):
    """A sampler that runs outside JAX, and calls ``act`` before its draw number ``at``; ``calls`` counts them."""
    x, calls = toy_data(), [0]

    def sampler(key, n):
        seed = np.asarray(jax.random.key_data(key))
        calls[0] += 1
        if calls[0] == at:
            act()
        return x[np.random.default_rng(seed).integers(0, len(x), n)]

    return sampler, calls


def test_a_second_fit_into_a_folder_is_refused_and_the_first_goes_on(program, tmp_path):
    said = []

    def second():
        with pytest.raises(FolderInUse, match="choose another folder") as caught:
            resume(tmp_path / "run", sampler, progress=False)
        said.append(str(caught.value))

    sampler, _ = on_host(12, second)
    result = run(program, tmp_path / "run", sampler)
    assert f"process {os.getpid()}" in said[0]
    assert result.info["steps"] == 40 and not (tmp_path / "run" / "checkpoint" / ".lock").exists()


# ------------------------------------------------------------------------------------------------- killed early
def test_a_run_killed_while_it_is_set_up_leaves_a_free_folder(program, whole, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoint").mkdir(parents=True)
    for torn in ("spec.json", ".run.json.12.tmp", ".spec.json.7.tmp", "checkpoint/.step_00000000.npz.12.tmp"):
        (out / torn).write_text("{")
    assert RunFolder(out).stillborn()
    assert same(run(program, out), whole)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("mine", ["notes.txt", "spec.json", "checkpoint/step_x.npz"])
def test_a_folder_with_other_files_is_left_alone(program, tmp_path, mine):
    file = tmp_path / "run" / mine
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        run(program, tmp_path / "run")
    assert file.read_text() == "mine"


def test_a_run_killed_before_its_first_checkpoint_starts_again(program, whole, tmp_path):
    run(program, tmp_path / "run")
    for file in checkpoint.checkpoints(tmp_path / "run" / "checkpoint"):
        file.unlink()
    with pytest.raises(checkpoint.CheckpointError, match="nothing is lost.*resume=True"):
        resume(tmp_path / "run", toy_data(), progress=False)
    again = run(program, tmp_path / "run", resume=True)
    assert same(again, whole) and list(again.history["step"]) == list(whole.history["step"])


def test_sigterm_ends_a_step_writes_a_checkpoint_and_goes_on_to_its_handler(program, tmp_path):
    got = []
    sampler, calls = on_host(25, lambda: os.kill(os.getpid(), signal.SIGTERM))
    calls[0] = 100
    left_alone = run(program, None, sampler)
    calls[0] = 0
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped at step"):
            run(program, tmp_path / "run", sampler)
        assert got == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["info"]["stopped"] == "interrupted"
    calls[0] = 100
    assert same(resume(tmp_path / "run", sampler, progress=False), left_alone)


# ------------------------------------------------------------------------------------------------- what is read
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "torn or not JSON"),
        ("[" * 100_000, "torn or not JSON"),
        ("[1]", "holds a JSON list, expected an object"),
        (json.dumps({**GOOD, "format": "ppl-models run 2"}), "later version.*'ppl-models run 2'.*newer ppl-models"),
        (json.dumps({**GOOD, "format": "ppl-models run 0"}), "no version wrote"),
        (json.dumps({**GOOD, "format": "other"}), "not written by this package"),
        (json.dumps({**GOOD, "format": 3}), "not written by this package"),
        (json.dumps({**GOOD, "card": None}), "no object 'card'"),
        (json.dumps({"format": FORMAT}), "no object 'arguments'"),
    ],
)
def test_run_records_that_cannot_be_read_are_named(text, says):
    with pytest.raises(ValueError, match=rf"run\.json.*{says}"):
        run_record(text, Path("run.json"))


@pytest.mark.parametrize("key", [None, [1], [1, 2, 3], [-1, 2], [1, 2**32], [True, 1], ["1", 2], [0.5, 1]])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(ValueError, match="no random key"):
        key_numbers({"arguments": {"key": key}}, Path("run.json"))
    assert key_numbers(GOOD, Path("run.json")) == [0, 7]


def test_json_objects_say_what_they_are_of():
    assert json_object('{"a": 1}', "x", "mend it") == {"a": 1}
    with pytest.raises(ValueError, match="^x is torn or not JSON.*mend it$"):
        json_object("{", "x", "mend it")


def test_a_record_of_other_arguments_is_refused(program, tmp_path):
    run(program, tmp_path / "run", steps=2)
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    record["arguments"]["warp"] = 9
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="arguments that fit does not take: warp"):
        resume(tmp_path / "run", toy_data(), progress=False)


def test_lines_of_a_history_that_no_fit_wrote_are_written_anew(tmp_path):
    path = tmp_path / "history.csv"
    path.write_bytes(b"step,loss\n1,0.5\n\xb2,1\n2,x\n3,1_0\n4,\0\n5,nan\n6,\n7\n8,1,2\n-1,3\n99,1\n")
    history = History(path, ["step", "loss"])
    history.restore(50)
    assert [row["step"] for row in history.rows] == [1, 5, 6] and history.rows[0]["loss"] == 0.5
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"history\.csv is torn.*remove it"):
        history.read()


# ------------------------------------------------------------------------------------------------------- disks
def test_a_disk_that_fills_up_is_said_with_the_file_and_the_run_goes_on_after(program, whole, tmp_path, monkeypatch):
    out, calls, real = tmp_path / "run", [0], os.fsync

    def fsync(descriptor):
        calls[0] += 1
        if calls[0] > 6:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        with pytest.raises(OSError, match=rf"cannot write {out}.*No space left.*free some space.*resume") as caught:
            run(program, out)
    assert caught.value.errno == 28 and not list(out.rglob("*.tmp"))
    assert load(out).info["stopped"] == "interrupted"
    assert same(resume(out, toy_data(), progress=False), whole)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(program, whole, tmp_path, monkeypatch):
    def read_only(path, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("builtins.open", read_only)
    with pytest.raises(OSError, match="cannot write the run folder.*Read-only file system; make it writable"):
        with locked(tmp_path, str(tmp_path)):
            pass
