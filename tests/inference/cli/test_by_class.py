"""The command line on a diffusion by class: its labels come with the data, and ``sample`` leads towards one."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from inference.cli.app import main
from inference.cli.common import UsageError
from inference.cli.runs import labelled, load_data, make_card
from inference.cli.words import evidence_line
from ppl_models.diffusion import PRESETS
from ppl_models.program import spec_to_json

SPEC = dataclasses.replace(PRESETS["tiny"], classes=10)
OPTIONS = ["--steps", "2", "--batch-size", "8", "--n", "24", "--test-n", "6", "--draws", "3", "--quiet"]


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """Leave the allocator and the compile cache of the test session as they are."""
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    file = tmp_path_factory.mktemp("spec") / "by_class.json"
    file.write_text(spec_to_json(SPEC))
    return str(file)


def test_the_classes_come_with_the_data_of_the_card():
    card = labelled(make_card("digits", n=20, validation=5, test_n=3), SPEC)
    data = load_data(card, None)
    assert [len(part["label"]) for part in (data.train, data.validation, data.test)] == [15, 5, 3]
    np.testing.assert_array_equal(data.test["label"], data.factors["digit"])
    assert data.train["x"].shape == (15, 8, 8)
    plain = make_card("digits", n=20, validation=5, test_n=3)
    assert labelled(plain, PRESETS["tiny"]) == plain
    with pytest.raises(UsageError, match="'digits' has digit of 10; set classes"):
        labelled(card, dataclasses.replace(SPEC, classes=3))


def test_fit_and_sample_a_class(spec, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["fit", spec, "--data", "digits", "--out", str(out), *OPTIONS, "--no-evaluate"]) == 0
    assert main(["sample", str(out), "--n", "4", "--class", "3", "--guidance", "1"]) == 0
    with np.load(out / "samples.npz") as drawn:
        assert drawn["x"].shape == (4, 8, 8) and (drawn["label"] == 3).all() and np.isfinite(drawn["x"]).all()
    assert main(["sample", str(out), "--n", "4"]) == 0  # of the classes of held-out data
    with np.load(out / "samples.npz") as drawn:
        assert drawn["x"].shape == (4, 8, 8) and drawn["label"].shape == (4,)
    capsys.readouterr()
    for words, message in (
        (["--class", "10"], "0..9"),
        (["--guidance", "1"], "add --class"),
        (["--class", "1", "--guidance", "-2"], "at least 0"),
        (["--class", "1", "--facet", "digit", "--cluster", "1"], "different models"),
    ):
        assert main(["sample", str(out), *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_by_class_is_evaluated(spec, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["fit", spec, "--data", "digits", "--out", str(out), *OPTIONS]) == 0
    said = capsys.readouterr().out
    assert "given its class, 1 of 10" in said and "2 random probes a datum, stated error" in said
    assert (out / "report.html").exists() and np.isfinite(pd.read_csv(out / "evidence.csv")["log_px"]).all()


@pytest.mark.parametrize(
    ("se", "attrs", "said"),
    [
        ([0.3, 0.4], {"estimator": "exact", "solver": "ODE by RK4"}, ", ODE by RK4, stated error 0.35 nats a datum)"),
        ([0.0, 0.0], {"estimator": "exact"}, "2 data, exact)"),
        ([0.1, 0.1], {"estimator": "importance", "particles": 64, "solver": "log p(z): RK4"}, "64 particles, log p(z)"),
    ],
)
def test_the_line_of_the_evidence_says_solver_and_error(se, attrs, said):
    table = pd.DataFrame({"log_px": [-1.0, -2.0], "se": se})
    table.attrs = {"dims": 1, "bits_offset": None, "observation": "x", **attrs}
    assert said in evidence_line(table) and math.isfinite(table["se"].sum())
