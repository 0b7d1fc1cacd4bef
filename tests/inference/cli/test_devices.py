"""``--mesh``, ``--distributed`` and ``ppl-models sweep``: what they write, and what they refuse with words."""

import json

import pandas as pd
import pytest

from inference.cli.app import main
from inference.cli.sweep import grid_of

FIT = ["fit", "hvae:tiny", "--data", "digits"]
SWEEP = ["sweep", "hvae:tiny", "--data", "digits"]
SMALL = ["--n", "60", "--batch-size", "20", "--steps", "4", "--quiet"]


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """Leave the allocator and the compile cache of the test session as they are."""
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})


def test_a_fit_on_a_mesh_is_evaluated_on_it_and_resumed_without(capsys, tmp_path):
    out = tmp_path / "run"
    few = ["--mesh", "data=1,model=1", "--no-evaluate"]
    assert main([*FIT, "--out", str(out), *SMALL, *few]) == 0, capsys.readouterr().err
    record = json.loads((out / "run.json").read_text())
    assert record["info"]["mesh"] == {"data": 1, "model": 1, "processes": 1} and "mesh" not in record["arguments"]
    assert main(["resume", str(out), "--no-evaluate", "--mesh", "data=1"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mesh", "rows=2"], "a mesh has the axes data and model, got 'rows=2'"),
        (["--mesh", "data=512"], "needs 512 devices"),
        (["--num-processes", "2"], "--num-processes is for several processes; add --distributed"),
        (["--coordinator", "here:1"], "--coordinator is for several processes"),
        (["--distributed", "--coordinator", "here"], "the coordinator is HOST:PORT, got 'here'"),
        (["--distributed", "--process-id", "-1"], "--process-id must be at least 0, got -1"),
    ],
)
def test_devices_that_there_are_not_are_refused_before_any_work(words, says, capsys, tmp_path):
    assert main([*FIT, *words, "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr()
    assert says in " ".join(said.err.split()) and said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_evaluates_its_runs_and_shows_their_spread(capsys, tmp_path):
    out = tmp_path / "it"
    words = [*SWEEP, "--out", str(out), *SMALL, "--seeds", "2", "--processes", "1", "--test-n", "20"]
    assert main([*words, "--particles", "30"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    table, spread = pd.read_csv(out / "sweep.csv"), pd.read_csv(out / "spread.csv")
    assert list(table["run"]) == ["seed=0", "seed=1"] and table["log_px"].notna().all()
    assert spread["log_px_sd"].iloc[0] == pytest.approx(table["log_px"].std())
    assert f"{spread['log_px_sd'].iloc[0]:.2f}; " in said and "sweep.html" in said
    assert (out / "seed=1" / "evidence.csv").exists()
    compared = ["compare", str(out / "seed=0"), str(out / "seed=1"), "--out", str(tmp_path / "beside")]
    assert main([*compared, "--particles", "30"]) == 0, capsys.readouterr().err


def test_a_grid_is_read():
    read = grid_of(["learning-rate=1e-3,3e-3", "objective=elbo,iwae", "train-particles=4"])
    assert read == {"learning_rate": [1e-3, 3e-3], "objective": ["elbo", "iwae"], "particles": [4]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--grid", "learning_rate"], "--grid takes NAME=VALUE,VALUE"),
        (["--grid", "learning_rate=1,"], "--grid takes NAME=VALUE,VALUE"),
        (["--grid", "n=1", "--grid", "n=2"], "names 'n' twice"),
        (["--grid", "batch=1,2"], "did you mean 'batch_size'"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_before_any_work(words, says, capsys, tmp_path):
    assert main([*SWEEP, *words, "--out", str(tmp_path / "x")]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
