"""The command line on data that are inputs and outputs: cards, shapes, subsets, refusals."""

from __future__ import annotations

import json
import re

import pytest

from inference.cli import runs
from inference.cli.app import main
from ppl_models import datasets
from ppl_models.program import resolve


@pytest.fixture(autouse=True)
def untuned(monkeypatch, tmp_path):
    """Leave the allocator and the compile cache of the test session as they are; generated data in a fresh cache."""
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
    monkeypatch.setenv("PPL_MODELS_CACHE", str(tmp_path / "cache"))


def test_a_spec_takes_the_shapes_of_the_data():
    card = json.loads(json.dumps(runs.make_card("shape_masks", n=20, validation=5, test_n=3)))
    spec = runs.fitted_to(resolve("surrogate:tiny"), card)
    assert spec.shape == {"x": (32, 32, 1), "y": (32, 32, 1)}
    data = runs.load_data(card, None)
    assert [len(part["y"]) for part in (data.train, data.validation, data.test)] == [15, 5, 3]
    whole, _ = datasets.load("shape_masks", n=20)
    assert (data.validation["x"] == whole["x"][15:]).all()


@pytest.mark.parametrize(("model", "data"), [("surrogate:tiny", "digits"), ("diffusion:digits", "shape_masks")])
def test_data_of_another_kind_are_refused(model, data, tmp_path, capsys):
    assert main(["fit", model, "--data", data, "--out", str(tmp_path / "run")]) == 2
    assert re.search(rf"'{data}' holds .*, which is no data for (Surrogate|Diffusion)", capsys.readouterr().err)


def test_the_list_and_a_look_at_one(capsys):
    assert main(["data", "list"]) == 0
    assert "x 32x32x2, y 32x32x1" in capsys.readouterr().out
    assert main(["data", "get", "shape_masks"]) == 0
    assert "shape_masks: x float32 32x32x1, y uint8 32x32x1, 2,000 train" in capsys.readouterr().out


@pytest.mark.slow
def test_fit_evaluate_and_report(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--steps", "4", "--batch-size", "8", "--n", "24", "--validation", "4", "--test-n", "6", "--draws", "5"]
    assert main(["fit", "surrogate:masks", "--data", "shape_masks", "--out", str(out), *options]) == 0
    assert "exact" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "reliability" in page and "predictions" in page
    assert "calibration error of the mask" in (out / "diagnosis.csv").read_text()
    assert main(["sample", str(out), "--n", "4"]) == 0
