"""``ppl-models experiment``: on a rule and on an endpoint; what is wrong is said before any work."""

import json

import pandas as pd
import pytest
import xarray as xr

from inference.cli.app import main
from ppl_models.in_context import parse_rule
from ppl_models.in_context.language import BERNOULLI
from tests.language_server import serving

SMALL = ["--contexts", "1", "--paths", "40", "--sizes", "12"]


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """Leave the allocator and the compile cache of the test session as they are."""
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})


def test_a_rule(tmp_path, capsys):
    out = tmp_path / "coin"
    assert main(["experiment", "bernoulli", "sticky:0.5", *SMALL, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("bernoulli, sticky:0.5\n\nMartingale property: rejected in 6 of 6 settings")
    held = json.loads((out / "experiment.json").read_text())
    assert held["seed"] == 0 and held["sizes"] == [12] and len(held["settings"]) == 6 and held["verdict"] in text
    table = pd.read_csv(out / "verdict.csv")
    assert set(table["verdict"]) == {"rejected"} and "published_T1_inside" in table
    assert (out / "figure.png").stat().st_size > 1000 and len(pd.read_csv(out / "contexts.csv")) == 6
    with xr.open_datatree(out / "paths.nc", engine="h5netcdf") as tree:
        assert tree["theta=0.3,n=12,N=6"]["posterior_predictive"]["z"].shape == (1, 40, 6)


def test_an_endpoint_says_what_the_rule_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    rule, out = parse_rule("sticky:0.5"), tmp_path / "served"
    with serving(rule, BERNOULLI) as (url, requests, headers):
        line = ["experiment", "bernoulli", url, "--model", "fake", *SMALL, "--out", str(out)]
        assert main(line) == 0
        first = capsys.readouterr()
        asked = len(requests)
        assert main(line) == 0  # from the answers that were kept
        assert len(requests) == asked == 6
    assert headers[0]["Authorization"] == "Bearer sk-secret-of-the-test"
    assert "rejected in 6 of 6" in first.out and "mass_mean 1" in first.out and "answers kept in" in first.err
    kept = [file.read_bytes() for file in out.rglob("*") if file.is_file()]
    assert len(kept) == 11 and all(b"secret" not in raw for raw in kept) and "secret" not in first.out + first.err


WRONG = {
    "study": (["experiment", "coins", "bayes"], 2, "coins"),
    "rule": (["experiment", "bernoulli", "temperd:1.2"], 2, "did you mean 'tempered'"),
    "real rule": (["experiment", "gaussian", "bayes"], 2, "rules of real symbols are normal:LOC,SCALE,NOISE"),
    "model of a rule": (["experiment", "bernoulli", "bayes", "--model", "x"], 2, "--model is for an endpoint"),
    "endpoint without model": (["experiment", "bernoulli", "http://127.0.0.1:1/v1"], 2, "needs --model NAME"),
    "sizes": (["experiment", "bernoulli", "bayes", "--sizes", "a,b"], 2, "whole numbers between commas"),
    "short": (["experiment", "bernoulli", "bayes", "--sizes", "4"], 2, "lengths of at least 12 symbols"),
    "few sizes": (["experiment", "scaling", "bayes", "--sizes", "20,50"], 2, "three or more different lengths"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name, capsys):
    line, code, says = WRONG[name]
    assert main(line) == code
    captured = capsys.readouterr()
    assert says in " ".join((captured.out + captured.err).split())


def test_files_of_something_else_are_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["experiment", "bernoulli", "bayes", "--out", str(tmp_path)]) == 2
    assert "notes.txt" in capsys.readouterr().err and (tmp_path / "notes.txt").read_text() == "mine"
