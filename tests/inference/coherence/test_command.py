"""What the command line prints about one predictor."""

import numpy as np
import pandas as pd
import pytest

from inference.coherence.command import coherence_command, default_contexts, parse_context
from ppl_models.in_context import DirichletCategorical, NormalNormal, parse_rule

SMALL = {"contexts": 3, "n": 8, "steps": 8, "paths": 20, "depth": 3}


def test_verdict_first_then_effects_then_files(tmp_path, capsys):
    found = coherence_command(parse_rule("sticky:0.3"), label="sticky", method="both", out=tmp_path / "run", **SMALL)
    text = capsys.readouterr().out
    assert text.startswith("sticky: 3 context(s) of 8 symbols, 20 paths of 8 steps")
    assert text.index("Not a martingale, not Bayesian") < text.index("node_rms") < text.index("Published tests")
    assert "undefined" in text  # T2 at a lag that 8 steps cannot show
    assert found is not None and found.contexts.shape[0] == 3
    assert pd.read_csv(tmp_path / "run" / "coherence.csv", index_col=0).loc["lag", "p_holm"] <= 1
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"coherence.csv", "contexts.csv", "falck2024.csv"}


@pytest.mark.parametrize(
    "rule, says",
    [("bayes", "Coherent: a martingale and exchangeable to depth 3"), ("ewma:0.1", "A martingale, but not exchang")],
)
def test_verdicts(rule, says, capsys):
    coherence_command(parse_rule(rule), label=rule, context="01101", **SMALL)
    told = capsys.readouterr().out
    assert says in told and "1 context(s) of 5 symbols" in told


def test_contexts():
    assert parse_context("0.5,-1").tolist() == [0.5, -1.0]
    assert parse_context("0,12").tolist() == [0, 12]
    with pytest.raises(ValueError, match="digits .'0110'. or numbers between commas"):
        parse_context("01x")
    dice = default_contexts(DirichletCategorical((1.0, 1.0, 1.0)), 4, 30, 0)
    assert dice.shape == (4, 30) and set(np.unique(dice)) <= {0, 1, 2}
    assert default_contexts(NormalNormal(), 3, 200, 0).mean(1) == pytest.approx([-1, 0, 1], abs=0.25)
    with pytest.raises(ValueError, match="contexts must be at least 1"):
        coherence_command(parse_rule("bayes"), label="bayes", contexts=0)
