"""``ppl-models fit --objective --train-particles --sleep``: recorded, resumable, refused with words."""

import json

import numpy as np
import pandas as pd
import pytest

from inference.cli.app import main

FIT = ["fit", "hvae:tiny", "--data", "digits"]
SMALL = ["--n", "60", "--batch-size", "20", "--steps", "4", "--validation", "10", "--no-evaluate", "--quiet"]
SMALL += ["--checkpoint-every", "2", "--validate-every", "2"]


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """Leave the allocator and the compile cache of the test session as they are."""
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})


def test_a_run_keeps_its_objective_and_resumes_with_it(capsys, tmp_path):
    out = tmp_path / "run"
    own = ["--objective", "dreg", "--train-particles", "2", "--sleep", "0.5"]
    assert main([*FIT, "--out", str(out), *SMALL, *own]) == 0, capsys.readouterr().err
    record = json.loads((out / "run.json").read_text())
    kept = record["arguments"]
    assert (kept["objective"], kept["particles"], kept["sleep"]) == ("dreg", 2, 0.5)
    before = pd.read_csv(out / "history.csv").drop(columns="seconds")
    assert np.isfinite(before[["bound", "sleep", "validation_bound"]].iloc[-1]).all()
    (out / "checkpoint" / "step_00000004.npz").unlink()  # as if it had been killed after step 2
    (out / "run.json").write_text(json.dumps({**record, "info": {}}))
    assert main(["resume", str(out), "--no-evaluate", "--quiet"]) == 0, capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_csv(out / "history.csv").drop(columns="seconds"), before)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*FIT, "--objective", "iwea"], "--objective"),
        ([*FIT, "--train-particles", "4"], "add one of them, or leave it out (--particles sets the draws"),
        ([*FIT, "--objective", "iwae", "--train-particles", "0"], "--train-particles must be at least 1, got 0"),
        ([*FIT, "--sleep", "-1"], "--sleep is a weight, at least 0 and finite, got -1.0"),
        (["fit", "diffusion:tiny", "--data", "digits", "--objective", "iwae"], "this program has no latents"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(words, says, capsys, tmp_path):
    assert main([*words, "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr()
    assert says in " ".join(said.err.split()) and said.out == ""
    assert list(tmp_path.iterdir()) == []
