"""Martingale posteriors: against the Beta posterior, and through ArviZ."""

import arviz as az
import jax
import matplotlib
import numpy as np
import pytest
from scipy import stats

from inference.coherence import (
    InProcess,
    context_variance,
    martingale_posterior,
    pit_tree,
    predictive_paths,
    reference_tree,
)
from inference.coherence.martingale import limit_law
from inference.coherence.published import t3
from ppl_models.in_context import BetaBernoulli, DirichletCategorical, NormalNormal, parse_rule

matplotlib.use("Agg")
CONTEXT = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1])
RULE = BetaBernoulli(1.0, 1.0)


def test_short_paths_give_the_beta_posterior():
    tree = martingale_posterior(RULE, CONTEXT, key=jax.random.key(0), steps=50, draws=20_000, scheme="hybrid")
    theta = tree["posterior"]["theta"].values.ravel()
    assert stats.kstest(theta, stats.beta(8, 14).cdf).statistic < 0.015
    assert tree.attrs["scheme"] == "hybrid" and tree.attrs["steps"] == 50


def test_short_paths_give_the_normal_posterior():
    rule, z = NormalNormal(0.0, 1.0, 1.0), np.array([0.2, 1.0, -0.5, 0.7], np.float32)
    tree = martingale_posterior(rule, z, key=jax.random.key(0), steps=50, draws=20_000, scheme="hybrid")
    theta = tree["posterior"]["theta"].values.ravel()
    assert stats.kstest(theta, stats.norm(1.4 / 5, 5**-0.5).cdf).statistic < 0.015


def test_variance_from_the_context_alone():
    """Exact for rules that move by a share of each innovation: conjugate updating, and a moving average, which ends at
    0 or 1.
    """
    mean, variance, names = context_variance(RULE, CONTEXT)
    assert mean[0] == pytest.approx(8 / 22, rel=1e-6) and names == ("z=1",)
    assert variance == pytest.approx(stats.beta(8, 14).var(), rel=1e-3)
    dice = np.array([0, 0, 1, 2, 0])
    exact = stats.dirichlet([4, 2, 2.5])
    found = context_variance(DirichletCategorical((1.0, 1.0, 1.5)), dice)[1]
    assert found == pytest.approx(exact.var().sum(), rel=1e-3)
    z = np.array([0.2, 1.0, -0.5, 0.7], np.float32)
    assert context_variance(NormalNormal(0.5, 2.0, 1.5), z)[1] == pytest.approx(1 / (1 / 4 + 4 / 2.25), rel=1e-3)
    average, moving, _ = context_variance(parse_rule("ewma:0.1"), CONTEXT)
    assert moving == pytest.approx(average[0] * (1 - average[0]), rel=1e-3)
    host = context_variance(InProcess(RULE), CONTEXT[:6])
    assert host[1] == pytest.approx(context_variance(RULE, CONTEXT[:6])[1], rel=1e-5)
    tree = martingale_posterior(RULE, CONTEXT, key=jax.random.key(0), draws=8000, scheme="context")
    theta = tree["posterior"]["theta"].values
    assert theta.mean() == pytest.approx(8 / 22, abs=4 * np.sqrt(variance / 8000))
    assert theta.var() == pytest.approx(variance, rel=0.08)


def test_symbols_have_a_dirichlet_limit():
    tree = martingale_posterior(
        DirichletCategorical((1.0, 1.0, 1.0)), np.array([0, 0, 1, 2, 0]), key=jax.random.key(1), steps=30, draws=8000,
        scheme="hybrid",
    )  # fmt: skip
    theta = tree["posterior"]["theta"].values.reshape(-1, 3)
    exact = stats.dirichlet([4, 2, 2])
    np.testing.assert_allclose(theta.sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(theta.mean(0), exact.mean(), atol=0.01)
    np.testing.assert_allclose(theta.var(0), exact.var(), rtol=0.1)
    expected = np.log(theta[:, [0, 0, 1, 2, 0]]).reshape(4, 2000, 5)
    np.testing.assert_allclose(tree["log_likelihood"]["z_context"].values, expected)


def test_limit_law_has_the_moments_asked_for():
    rng = np.random.default_rng(0)
    beta = limit_law(np.full((50_000, 1), 0.3), np.full(50_000, 0.02), rng, finite=True)
    assert beta.mean() == pytest.approx(0.3, abs=0.003) and beta.var() == pytest.approx(0.02, rel=0.03)
    wide = limit_law(np.full((1000, 1), 0.3), np.full(1000, 9.0), rng, finite=True)  # more than a frequency can have
    assert np.isfinite(wide).all() and ((wide < 1e-6) | (wide > 1 - 1e-6)).mean() > 0.9


@pytest.mark.filterwarnings("ignore:Variables z in")  # ArviZ's advice on plots
def test_arviz_reads_the_trees_as_they_are():
    trees = {
        name: martingale_posterior(rule, CONTEXT, key=jax.random.key(2), steps=20, draws=400, scheme="hybrid")
        for name, rule in {"uniform": RULE, "fair": BetaBernoulli(60.0, 60.0)}.items()
    }
    row = az.summary(trees["uniform"]).loc["theta"]
    assert float(row["mean"]) == pytest.approx(8 / 22, abs=0.03) and float(row["r_hat"]) < 1.05
    assert az.compare(trees).index[0] in trees
    paths = predictive_paths(RULE, CONTEXT, steps=20, paths=40, key=jax.random.key(3))
    beside = reference_tree(paths, key=jax.random.key(4), replicates=50)
    assert az.plot_ppc_tstat(beside, t_stat=lambda z: float(t3(np.asarray(z)))) is not None
    rng = np.random.default_rng(0)
    sequences = (rng.random((200, 12)) < rng.random((200, 1))).astype(int)
    pit = pit_tree(RULE, sequences, key=jax.random.key(5))
    assert stats.kstest(pit["prior_sbc"]["u"].values.ravel(), "uniform").pvalue > 0.01
    assert az.plot_ecdf_pit(pit) is not None
    matplotlib.pyplot.close("all")


def test_pit_of_real_symbols_is_the_distribution_function():
    z = np.array([[0.5, -1.0]], np.float32)
    u = pit_tree(NormalNormal(0.0, 1.0, 1.0), z, key=jax.random.key(0))["prior_sbc"]["u"].values.ravel()
    assert u == pytest.approx([stats.norm(0, 2**0.5).cdf(0.5), stats.norm(0.25, 1.5**0.5).cdf(-1.0)], abs=1e-5)


def test_bad_input():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="long-run mean only"):
        martingale_posterior(RULE, CONTEXT, key=key, scheme="hybrid", part="imputed")
    with pytest.raises(ValueError, match="at least 2 symbols"):
        context_variance(RULE, CONTEXT[:1])
    paths = predictive_paths(RULE, CONTEXT[:0], steps=6, paths=4, key=key)
    with pytest.raises(ValueError, match="after a context"):
        reference_tree(paths, key=key)
