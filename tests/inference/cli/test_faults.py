"""The command line under attack: signals, folders in use, runs of other versions, evidence of other parameters."""

import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from inference.checking.log_evidence import ATTRIBUTES, COLUMNS, read_evidence, save_evidence
from inference.checking.per_datum import params_checksum
from inference.cli import runs, tables
from inference.cli.app import main
from inference.cli.common import Terminated, UsageError, claim, read_run, terminable
from inference.fitting.lock import locked
from inference.fitting.record import FORMAT


def record(**changes):
    return json.dumps({"format": FORMAT, "arguments": {}, "card": {}, "info": {}, **changes})


def fitted(value):
    return SimpleNamespace(params={"w": np.full(3, value, "float32")}, mutable={})


def table(n=4, **attrs):
    numbers = dict.fromkeys(COLUMNS[2:-1], np.linspace(0.1, 0.2, n))
    frame = pd.DataFrame({"datum": range(n), "x_crc": range(n), **numbers, "estimator": "amortised"})
    frame.attrs = {
        **dict.fromkeys(ATTRIBUTES),
        "observation": "pixels",
        "particles": 8,
        "estimator": "importance",
        **attrs,
    }
    return frame


# ----------------------------------------------------------------------------------------------------- signals
def test_sigterm_is_said_with_the_command_that_goes_on(tmp_path, capsys, monkeypatch):
    (tmp_path / "run.json").write_text(record())

    def work(*args, **kwargs):
        with runs.resumable(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr("inference.cli.data.data_list", work)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["data", "list"]) == 143
    assert f"terminated; continue: ppl-models resume {tmp_path}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_is_left_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


# ----------------------------------------------------------------------------------------------------- folders
def test_a_run_that_is_being_fitted_is_not_overwritten(tmp_path):
    (tmp_path / "run.json").write_text(record())
    (tmp_path / "checkpoint").mkdir()
    claim(tmp_path, overwrite=True)
    with locked(tmp_path / "checkpoint", str(tmp_path)):
        with pytest.raises(UsageError, match=f"--out {tmp_path} is being written by process {os.getpid()}"):
            claim(tmp_path, overwrite=True)


def test_what_a_fit_killed_in_its_first_moments_left_is_no_obstacle(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / ".run.json.12.tmp").write_text("{")
    claim(tmp_path, overwrite=False)
    (tmp_path / "checkpoint" / "step_00000001.npz").touch()
    with pytest.raises(UsageError, match="left alone; give another folder"):
        claim(tmp_path, overwrite=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (record(format="ppl-models run 7"), "later version"),
        (record(format=None), "not written by this package"),
        ("{", "torn or not JSON"),
        ("[" * 90_000, "torn or not JSON"),
        ("\udcff", "no text"),
    ],
)
@pytest.mark.parametrize("verb", ["resume", "diagnose", "sample"])
def test_every_verb_says_what_is_wrong_with_a_run(tmp_path, capsys, text, says, verb):
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main([verb, str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert says in err and "run.json" in err and "shows where" not in err and err.count("\n") == 1


def test_a_run_without_its_description_is_refused_by_name(tmp_path):
    (tmp_path / "run.json").write_text(record(info=3))
    with pytest.raises(ValueError, match="no object 'info'"):
        read_run(tmp_path)


# ---------------------------------------------------------------------------------------------------- evidence
def test_evidence_is_told_by_its_parameters_not_by_the_times_of_files(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    newest = tmp_path / "checkpoint" / "step_00000009.npz"
    newest.touch()
    mine, other = fitted(1.0), fitted(2.0)
    save_evidence(table(params_crc=params_checksum(mine)), tmp_path)
    for at in (1, 2**32):  # as if the clock had been set, or the folder copied
        os.utime(newest, (at, at))
        assert tables.own_table(tmp_path, mine) is not None and tables.own_table(tmp_path, other) is None
    save_evidence(table(), tmp_path)  # of a version before: by the times
    assert tables.own_table(tmp_path, mine) is None
    os.utime(newest, (1, 1))
    assert tables.own_table(tmp_path, mine) is not None


def test_parameters_are_told_apart_by_name_and_value():
    assert params_checksum(fitted(1.0)) == params_checksum(fitted(1.0)) != params_checksum(fitted(1.5))
    named = SimpleNamespace(params={"v": np.ones(3, "float32")}, mutable={})
    assert params_checksum(named) != params_checksum(fitted(1.0))


def test_half_an_evidence_is_never_taken_for_a_whole_one(tmp_path):
    for name in ("old", "new", "mixed"):
        (tmp_path / name).mkdir()
    old, new = table(particles=8), table(particles=64).assign(log_px=1.0)
    save_evidence(old, tmp_path / "old")
    save_evidence(new, tmp_path / "new")
    for json_of, csv_of in (("new", "old"), ("old", "new")):  # killed between its two files
        for name, source in (("evidence.json", json_of), ("evidence.csv", csv_of)):
            (tmp_path / "mixed" / name).write_bytes((tmp_path / source / name).read_bytes())
        with pytest.raises(ValueError, match="one of them has changed.*compute it again"):
            read_evidence(tmp_path / "mixed")
    found = read_evidence(tmp_path / "new")
    assert found.equals(new) and found.attrs == new.attrs


@pytest.mark.parametrize("change", [(b"0.1", b"0.2"), (b"pixels", b"voxels"), (b'"particles": 8', b'"particles": 9')])
def test_a_changed_byte_of_the_evidence_is_seen(tmp_path, change):
    save_evidence(table(), tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes().replace(*change, 1))
    with pytest.raises(ValueError, match="one of them has changed"):
        read_evidence(tmp_path)


def test_other_line_ends_change_nothing(tmp_path):
    save_evidence(table(), tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_evidence(tmp_path).equals(table())
