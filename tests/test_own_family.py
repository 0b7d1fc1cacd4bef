"""A family of one's own, `examples/poisson_factor.py`: one file outside the packages gets everything from one call."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.stats import poisson

from inference import evidence
from inference.cli.app import main
from inference.fitting import Fit
from inference.fitting.objectives import init_params
from ppl_models.datasets import load
from ppl_models.program import resolve

FILE = Path(__file__).resolve().parent.parent / "examples" / "poisson_factor.py"
SMALL = ["--data", "digits", "--n", "200", "--batch-size", "50", "--test-n", "12", "--particles", "30", "--draws", "6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the command line with the file as a plug-in: fitted and evaluated."""
    folder = tmp_path_factory.mktemp("own") / "counts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
        words = ["fit", "poisson_factor", "--plugin", str(FILE), *SMALL, "--steps", "60", "--quiet"]
        assert main([*words, "--out", str(folder)]) == 0
        yield folder


def call(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, capsys.readouterr().out


def test_it_is_short_registers_once_and_uses_nothing_private():
    text = FILE.read_text()
    assert len(text.splitlines()) < 80
    assert len(re.findall(r"^register\(", text, re.M)) == 1
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            assert not any(part.startswith("_") for name in names for part in name.split(".")), names
            if names[0].startswith(("ppl_models", "inference")):
                assert names[0] == "ppl_models.program"


def test_fit_evidence_diagnosis_and_report(run):
    assert len(pd.read_csv(run / "evidence.csv")) == 12
    checks = pd.read_csv(run / "diagnosis.csv").set_index("check")
    assert checks.loc["non-finite values", "verdict"] == "ok"
    assert "the best classical model of the same data" in checks.loc["log p(x) against classical models", "meaning"]
    assert set(pd.read_csv(run / "baselines.csv")) == {"datum", "x_crc", "categorical-mixture", "independent"}
    page = (run / "report.html").read_text()
    assert "poisson_factor fitted to digits" in page and "could not be drawn" not in page


def test_it_is_compared_with_baselines_and_later_commands_find_the_plugin(run, capsys):
    out = run.parent / "comparison"
    code, text = call(capsys, "compare", run, "--baselines", "--out", out, "--json")
    assert code == 0 and {row["name"] for row in json.loads(text)} == {"counts", "categorical-mixture"}
    code, text = call(capsys, "compare", run, out / "baselines" / "categorical-mixture", "--out", out)
    assert code == 0 and "64 counts as stored" in text  # a folder with no more than a table of evidence
    kept = (run / "baselines.csv").stat().st_mtime_ns
    code, text = call(capsys, "diagnose", run, "--json")
    assert (run / "baselines.csv").stat().st_mtime_ns == kept
    assert code == 0 and "non-finite values" in {row["check"] for row in json.loads(text)}


def test_without_activity_its_evidence_is_the_poisson_mass(run):
    spec = replace(resolve("poisson_factor"), sparsity=5.0)
    program, (x, _) = spec.build(jax.random.key(0)), load("digits", "test", n=8)
    params, _, _ = init_params(program, jax.random.key(0), jnp.asarray(x, "float32"))
    params |= {"W": jnp.full_like(params["W"], 1e-9), "b": jnp.full_like(params["b"], 3.0)}
    # q(z | x) = LogNormal(1.5, 0.55) whatever x: wider than the prior, whose log has mean 1.51 and deviation 0.47.
    last = params["encoder$params"]["last"]
    bias = jnp.repeat(jnp.array([1.5, 1 + np.log(0.55)]), spec.factors)
    params["encoder$params"]["last"] = {"kernel": 0 * last["kernel"], "bias": bias}
    table = evidence(Fit(program, params, {}, None, {}), x, particles=2000, key=jax.random.key(1), progress=False)
    # With W = 0, x says nothing of z: the weights are p(z) / q(z), and their average is 1 in expectation.
    assert (np.abs(table["log_px"] - poisson(3.0).logpmf(x).sum((1, 2))) < 4 * table["se"]).all()
    assert (table["se"] < 0.05).all()


def test_it_refuses_what_are_no_counts():
    with pytest.raises(ValueError, match="whole and >= 0"):
        resolve("poisson_factor").build(jax.random.key(0)).observation.check(np.full((1, 8, 8), 0.5))
