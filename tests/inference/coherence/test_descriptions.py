"""Descriptions of a model's probabilities: the rule's own numbers, its parameter found, and stock ArviZ reads it."""

import arviz as az
import jax
import numpy as np
import pytest
from numpyro.handlers import seed, substitute, trace

from inference.coherence import Told, compare_rules, description, tell
from ppl_models.in_context import parse_rule

CONTEXTS = np.random.default_rng(0).integers(0, 2, (12, 10))


@pytest.mark.parametrize(
    "rule, name, given",
    [
        ("beta:2,3", "beta", {"a": 2.0, "b": 3.0}),
        ("discounted:0.9", "discounted", {"keep": 0.9}),
        ("window:4", "window", {"width": 4.0}),
        ("fractional:0.5", "fractional", {"weight": 0.5}),
        ("sticky:0.1", "sticky", {"share": 0.1}),
        ("tempered:1.2", "tempered", {"power": 1.2}),
    ],
)
def test_each_is_its_rule(rule, name, given):
    told = tell(parse_rule(rule), CONTEXTS[:2], key=jax.random.key(0), steps=8)
    data = {"a": 1.0, "b": 1.0, "scale": 1.0} | given
    with trace() as sites, seed(rng_seed=0), substitute(data=data):
        description(name)(told.z, told.p)
    law = sites["p"]["fn"].base_dist
    np.testing.assert_allclose(law.loc, np.log(told.p / (1 - told.p)), atol=1e-5)
    assert told.start == 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape")
def test_the_right_one_is_found_and_arviz_reads_it():
    told = tell(parse_rule("sticky:0.1"), CONTEXTS, key=jax.random.key(0), steps=20)
    noisy = Told(told.z, 1 / (1 + (1 / told.p - 1) * np.exp(np.random.default_rng(1).normal(0, 0.1, told.p.shape))))
    found = compare_rules(noisy, key=jax.random.key(2), rules=("beta", "sticky"), draws=200, warmup=200)
    assert list(found.table.index) == ["sticky", "beta"]
    row = found.table.loc["sticky"]
    assert abs(row["mean"] - 0.1) < 4 * row["sd"] and row["sd"] < 0.02 and row["r_hat"] < 1.05 and 0 < row["khat"] < 2
    again = az.compare(found.trees)
    assert list(again.index) == ["sticky", "beta"]


def test_errors():
    p = np.full((2, 3), 0.5)
    with pytest.raises(ValueError, match="two symbols, 0 and 1"):
        Told(np.full((2, 4), 2), p)
    with pytest.raises(ValueError, match="one probability for each"):
        Told(np.zeros((2, 2), int), p)
    with pytest.raises(ValueError, match="did you mean 'sticky'"):
        description("stiky")
    with pytest.raises(ValueError, match="two descriptions or more"):
        compare_rules(Told(np.zeros((2, 4), int), p), key=jax.random.key(0), rules=("beta",))
