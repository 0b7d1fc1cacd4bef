"""How uncertainty falls with the length of the context: against the exact 1 / (n + c)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference.coherence import predictive_paths, uncertainty_scaling
from inference.coherence.scaling import SIZES, fit_curve, fit_scaling, spread, spread_of
from ppl_models.in_context import BetaBernoulli, NormalNormal, parse_rule

N = np.array(SIZES, float)


def contexts(count=8):
    rng = np.random.default_rng(0)
    return {n: (rng.random((count, n)) < 0.5).astype(int) for n in SIZES}


@pytest.mark.parametrize("C, c, beta", [(1.0, 0.0, 1.0), (1.0, 40.0, 1.0), (2.0, 4.0, 1.0), (0.5, 3.0, 0.7)])
def test_a_curve_without_noise_is_found_again(C, c, beta):
    log_u = (np.log(C) - beta * np.log(N + c))[None]
    found = fit_curve(N, log_u, np.ones((1, 5)), most=200.0)
    assert found.beta[0] == pytest.approx(beta, abs=1e-4) and found.sse[0] < 1e-8
    assert found.c[0] == pytest.approx(c, abs=0.02) and found.C[0] == pytest.approx(C, rel=2e-3)
    fixed = fit_curve(N, log_u, np.ones((1, 5)), most=200.0, beta=beta, C=C)
    assert fixed.c[0] == pytest.approx(c, abs=1e-3)


def test_spread_is_the_posterior_variance():
    """Beta(a, b) after n: V = p (1 - p) / (M + 1), V / W = 1 / M with M = n + a + b."""
    context = np.array([1, 0, 1, 1, 0, 1, 1])
    paths = predictive_paths(BetaBernoulli(2.0, 3.0), context, steps=6, paths=20_000, key=jax.random.key(0))
    found, p, M = spread_of(paths), 7 / 12, 12
    assert float(found.between) == pytest.approx(p * (1 - p) / (M + 1), rel=0.04)
    assert float(found.between + found.within) == pytest.approx(p * (1 - p), rel=1e-5)
    assert float(found.between / found.within) == pytest.approx(1 / M, rel=0.05)
    drawn = spread(
        jnp.asarray(paths.g), jnp.asarray(paths.p), finite=True, drawn=True
    )  # the same from the draws alone, with more noise
    assert float(drawn.between) == pytest.approx(p * (1 - p) / (M + 1), rel=0.15)
    assert float(drawn.between + drawn.within) == pytest.approx(p * (1 - p), rel=0.01)


def test_spread_of_a_normal_mean():
    rule, context = NormalNormal(0.0, 2.0, 1.5), np.array([0.3, -1.0, 0.5, 2.0])
    found = spread_of(predictive_paths(rule, context, steps=5, paths=20_000, key=jax.random.key(1)))
    exact = 1 / (1 / 4 + 4 / 2.25)
    assert float(found.between) == pytest.approx(exact, rel=0.05)
    assert float(found.between + found.within) == pytest.approx(exact + 2.25, rel=1e-4)


@pytest.mark.parametrize(
    "rule, kind, C",
    [("bayes:20,20", "bayes", 1), ("fractional:0.5", "fractional", 2), ("ewma:0.1", "finite memory", 0)],
)
def test_kinds(rule, kind, C):
    told = []
    found = uncertainty_scaling(
        parse_rule(rule), contexts(), key=jax.random.key(2), steps=12, paths=400, told=lambda *at: told.append(at)
    )
    assert found.kind == kind and told == [(i, 5) for i in range(1, 6)]
    low, high = found.interval
    assert low < found.beta < high
    if C:
        assert low < 1 < high and found.C == pytest.approx(C, rel=0.1)
    else:
        assert low < 0 < high and found.p_value < 1e-3 and "A finite memory" in found.verdict
    assert found.row()["kind"] == kind and found.table.loc[20, "contexts"] == 8


def test_a_frozen_rule_has_no_spread():
    found = uncertainty_scaling(parse_rule("plugin"), contexts(3), key=jax.random.key(0), steps=4, paths=20)
    assert found.kind == "no spread" and np.isnan(found.beta)
    assert "n = 20, 50, 100, 200, 400" in found.verdict


def test_exact_ratios_give_bayes_exactly():
    V = {n: np.full(3, 1.0) for n in SIZES}
    found = fit_scaling(V, {n: np.full(3, n + 5.0) for n in SIZES}, dict.fromkeys(SIZES, 2))
    assert found.beta == pytest.approx(1, abs=1e-4) and found.c == pytest.approx(5, abs=0.01) and found.kind == "bayes"
    assert found.table["symbols"].tolist() == pytest.approx([n + 5.0 for n in SIZES])


def test_noise_leaves_it_undecided():
    rng = np.random.default_rng(0)
    V = {n: np.maximum(rng.normal(1.0, 1.0, 8), 0.2) for n in (20, 50, 100)}
    found = fit_scaling(V, {n: np.full(8, n + 5.0) for n in V}, dict.fromkeys(V, 2))
    assert found.kind == "undecided" and "Too noisy to tell" in found.verdict and found.p_value > 0.05


def test_bad_input():
    V = {n: np.full(3, np.nan if n == 50 else 1.0) for n in SIZES}
    with pytest.raises(ValueError, match="variances at n = 50 are not finite"):
        fit_scaling(V, V, dict.fromkeys(SIZES, 2))
    key, rule = jax.random.key(0), parse_rule("bayes")
    with pytest.raises(ValueError, match="at least 3 different lengths"):
        uncertainty_scaling(rule, {20: np.zeros((3, 20), int)}, key=key)
    with pytest.raises(ValueError, match="at least 10 paths"):
        uncertainty_scaling(rule, contexts(3), key=key, paths=2)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        uncertainty_scaling(rule, contexts(3), key=key, steps=1)
