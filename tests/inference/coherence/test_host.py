"""Predictors that cannot be traced give the same report as the rule traced."""

import jax
import numpy as np
import pytest

from inference.coherence import (
    InProcess,
    coherence,
    drift_test,
    exact_tree,
    host_tree,
    predictive_paths,
    published,
    uncertainty_scaling,
)
from inference.coherence.paths import seed_of
from ppl_models.in_context import DirichletCategorical, parse_rule
from ppl_models.program import HostPaths, HostPredictor, Predictor

RULE = parse_rule("sticky:0.2")
CONTEXT = np.array([1, 0, 0, 1, 0, 1])


class Silent(InProcess):
    """Draws only."""

    def paths(self, context, steps, paths, seed):
        found = super().paths(context, steps, paths, seed)
        return HostPaths(found.z, np.full_like(found.p, np.nan), np.full_like(found.log_p, np.nan))


def test_paths_are_those_of_the_rule():
    key = jax.random.key(3)
    host = predictive_paths(InProcess(RULE), CONTEXT, steps=7, paths=5, key=key)
    traced = predictive_paths(RULE, CONTEXT, steps=7, paths=5, key=jax.random.key(seed_of(key)), others=0)
    np.testing.assert_array_equal(host.z, traced.z)
    np.testing.assert_allclose(host.p, traced.p, rtol=1e-6)
    assert host.names == traced.names and not host.samples_only
    assert isinstance(InProcess(RULE), HostPredictor) and not isinstance(RULE, HostPredictor)
    assert isinstance(RULE, Predictor) and not isinstance(InProcess(RULE), Predictor)


@pytest.mark.parametrize("rule, K", [(RULE, 2), (DirichletCategorical((1.0, 2.0, 1.0)), 3)])
def test_tree_is_that_of_the_rule(rule, K):
    host, traced = host_tree(InProcess(rule), CONTEXT, depth=3), exact_tree(rule, CONTEXT, depth=3)
    for one, other in zip(host.nodes, traced.nodes, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert host.row()["node_rms"] == pytest.approx(traced.row()["node_rms"], abs=1e-6)


def test_report_of_a_host():
    contexts = np.stack([CONTEXT, 1 - CONTEXT])
    found = coherence(InProcess(RULE), contexts, key=jax.random.key(0), steps=8, paths=40, depth=3)
    traced = coherence(RULE, contexts, key=jax.random.key(0), steps=8, paths=40, depth=3)
    for name in ("root_gap", "node_rms", "kl_per_symbol"):
        assert found.summary.loc[name, "mean"] == pytest.approx(traced.summary.loc[name, "mean"], abs=1e-6)
    np.testing.assert_allclose(found.contexts["p_next"], traced.contexts["p_next"], atol=1e-6)
    assert "one_step_gap" not in found.summary.index and found.verdict.startswith("Not a martingale, not Bayesian")
    plain = coherence(InProcess(RULE), contexts, key=jax.random.key(0), steps=8, paths=40)
    assert "The drift and lag tests" in plain.verdict and "the exact tree was left out" in plain.verdict


def test_draws_alone():
    host = Silent(RULE)
    drawn = predictive_paths(host, CONTEXT, steps=8, paths=30, key=jax.random.key(1))
    assert drawn.samples_only
    halves = drawn.z[:, :4].mean(1) - drawn.z[:, 4:].mean(1)
    assert drift_test(drawn)["effect"] == pytest.approx(halves.mean(), abs=1e-6)
    assert drift_test(drawn)["se"] == pytest.approx(halves.std(ddof=1) / np.sqrt(30), rel=1e-4)
    assert set(published(host, CONTEXT[None], key=jax.random.key(1), steps=12, paths=30)["inside"]) <= {True, False}
    with pytest.raises(ValueError, match="carry no probabilities"):
        coherence(host, CONTEXT[None], key=jax.random.key(1), steps=8, paths=30)
    rng = np.random.default_rng(0)
    contexts = [rng.integers(0, 2, (3, n)) for n in (4, 8, 16)]
    scaled = uncertainty_scaling(Silent(parse_rule("ewma:0.5")), contexts, key=jax.random.key(2), paths=200, steps=6)
    assert scaled.kind == "finite memory" or scaled.p_value < 0.05
