"""Paths, the drift and lag tests, the martingale posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from inference.coherence import (
    calibrated,
    calibrated_tests,
    coherence,
    drift_curve,
    martingale_posterior,
    paths_tree,
    predictive_paths,
)
from inference.coherence.calibrated import contrasts, holm, martingale_tests, sign_flip_test, t_test
from inference.coherence.paths import draw_paths
from inference.coherence.report import fisher
from ppl_models.in_context import rules
from ppl_models.in_context.exact import NormalInverseGamma
from ppl_models.in_context.predictors import BetaBernoulli, DirichletCategorical, NormalNormal

CONTEXT = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])


@pytest.fixture(scope="module")
def paths():
    return predictive_paths(BetaBernoulli(), CONTEXT, steps=40, paths=200, key=jax.random.key(0))


def test_paths_carry_the_probabilities_they_were_drawn_with(paths):
    s = CONTEXT.sum() + np.concatenate([np.zeros((200, 1)), paths.z.cumsum(1)], 1)
    np.testing.assert_allclose(paths.p[..., 0], (1 + s) / (2 + 20 + np.arange(41)), rtol=1e-5)
    p = paths.p[:, :-1, 0]
    np.testing.assert_allclose(paths.log_p, np.log(np.where(paths.z == 1, p, 1 - p)), rtol=1e-4)
    again = predictive_paths(BetaBernoulli(), CONTEXT, steps=40, paths=200, key=jax.random.key(0))
    np.testing.assert_array_equal(again.z, paths.z)


def test_a_predictor_that_is_no_pytree_works_too():
    class Coin:
        def init(self, context):
            return jnp.asarray(0.25)

        def predict(self, state):
            import numpyro.distributions as dist

            return dist.Bernoulli(probs=state)

        def update(self, state, z):
            return state

    drawn = predictive_paths(Coin(), CONTEXT, steps=50, paths=400, key=jax.random.key(0))
    assert drawn.z.mean() == pytest.approx(0.25, abs=0.012)
    table = calibrated_tests(drawn, key=jax.random.key(0))
    assert table.loc[["drift", "lag"], "p_value"].tolist() == [1.0, 1.0]  # constant probabilities: nothing to reject


def test_further_symbols_leave_the_paths_as_they_are_and_turn_the_mean_from_them():
    rule, context = NormalNormal(0.0, 2.0, 1.0), np.array([0.3, -1.0, 2.0])
    plain, turned = (
        predictive_paths(rule, context, steps=6, paths=400, key=jax.random.key(4), others=k) for k in (0, 4)
    )
    np.testing.assert_allclose(plain.z, turned.z, rtol=1e-5)
    assert plain.others is None and turned.others.shape == (400, 6, 4, 2)
    # m' - m = (z - m) / (n + 1 + 1/4) at step n + 1, and z has the variance of the predictive.
    before = turned.p[:, :-1]
    move = turned.others[..., 0] - before[:, :, None, 0]
    spread = np.sqrt(before[..., 1] - before[..., 0] ** 2) / (3 + np.arange(1, 7) + 0.25)
    assert stats.kstest((move / spread[..., None])[:, 2].ravel(), "norm").pvalue > 0.01


def test_multipliers_keep_mean_square_and_cube():
    for R in (1, 5):
        signs = np.asarray(calibrated._signs(jax.random.key(0), (200, 1000, R)), float)
        assert signs.mean() == pytest.approx(0, abs=0.005)
        assert (signs**2).mean() == pytest.approx(1 / R, rel=0.02)
        assert (signs**3).mean() == pytest.approx(1 / R, rel=0.03)


def test_the_level_holds_for_real_symbols_of_unknown_variance():
    """With the steps seen alone .11 were rejected at 5 %; 600 repetitions, 4 s.e."""
    rule, given = NormalInverseGamma(), jax.random.normal(jax.random.key(9), (600, 5))

    def one(item):
        context, key = item
        draw_key, test_key = jax.random.split(key)
        drawn = draw_paths(rule, context, draw_key, steps=6, paths=10, others=4)
        g = jnp.stack([drawn.z, drawn.z**2], -1)
        tests = martingale_tests(g, drawn.p, test_key, finite=False, others=drawn.others)
        return [test.p_value for test in tests]

    keys = jax.random.split(jax.random.key(3), 600)
    drift, lag = (np.asarray(p) for p in jax.jit(lambda x: jax.lax.map(one, x, batch_size=50))((given, keys)))
    assert (drift < 0.05).mean() < 0.086 and (lag < 0.05).mean() < 0.086
    assert (drift < 0.3).mean() > 0.2 and (lag < 0.3).mean() > 0.15


def test_t_test_and_holm_agree_with_scipy_and_hand():
    values = np.random.default_rng(0).normal(0.2, 1, 60).astype(np.float32)
    ours, theirs = t_test(jnp.asarray(values)), stats.ttest_1samp(values, 0)
    assert float(ours.statistic) == pytest.approx(theirs.statistic, rel=1e-4)
    assert float(ours.p_value) == pytest.approx(theirs.pvalue, rel=1e-3)
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    p = np.array([0.2, 0.03, 0.7])
    assert fisher(p) == pytest.approx(stats.combine_pvalues(p).pvalue, rel=1e-4)


def test_contrasts_agree_with_loops(paths):
    S = np.asarray(contrasts(jnp.asarray(paths.g[:7]), jnp.asarray(paths.p[:7])))[..., 0]
    N, p = 40, paths.p[..., 0]
    for j in (0, 3, 6):
        assert S[j, 0] == pytest.approx(p[j, :20].mean() - p[j, 20:40].mean(), abs=1e-6)
        for c, k in enumerate((2, 3, 4, 5)):
            # p_i of the definition is the probability before draw i, counted from one.
            want = np.mean([(paths.z[j, m - 1] - p[j, m - 1]) * (p[j, m + k - 1] - p[j, m]) for m in range(1, N - 4)])
            assert S[j, c + 1] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("n, ones, steps, count", [(5, 0, 6, 10), (20, 2, 10, 35)], ids=["tiny", "rare"])
def test_the_level_holds_for_rare_symbols_in_few_short_paths(n, ones, steps, count):
    """Against signs on whole paths this test rejected .09 to .12 of true Bayes at 5 %; 600 repetitions, 4 s.e."""
    rule, context = BetaBernoulli(0.5, 0.5), np.repeat([0, 1], [n - ones, ones])

    def one(key):
        draw_key, test_key = jax.random.split(key)
        drawn = draw_paths(rule, jnp.asarray(context), draw_key, steps=steps, paths=count)
        g = drawn.z[..., None].astype(float)
        return [test.p_value for test in martingale_tests(g, drawn.p, test_key, finite=True)]

    keys = jax.random.split(jax.random.key(3), 600)
    drift, lag = (np.asarray(p) for p in jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(keys))
    assert (drift < 0.05).mean() < 0.086 and (lag < 0.05).mean() < 0.086
    assert (drift < 0.3).mean() > 0.2 and (lag < 0.3).mean() > 0.2


@pytest.mark.parametrize("rule", [BetaBernoulli(), DirichletCategorical((1.0, 2.0, 1.0))], ids=["binary", "three"])
def test_very_many_steps_are_drawn_from_the_covariance_of_their_sum(rule, monkeypatch):
    drawn = predictive_paths(rule, CONTEXT, steps=20, paths=60, key=jax.random.key(1))
    p = jnp.asarray(drawn.p)
    step = jax.random.normal(jax.random.key(2), (60, 20, 5, p.shape[-1]))
    monkeypatch.setattr(calibrated, "FLIPS", 4000)
    keys = jax.random.split(jax.random.key(3), 4000)
    one = lambda key: jnp.einsum("jnsf,jnf->sf", step, calibrated._innovations(key, p[:, :-1]))  # noqa: E731
    each = np.asarray(jax.lax.map(one, keys)).reshape(4000, -1)
    sums = np.asarray(calibrated._gaussian(keys[0], calibrated._finite_covariance(step, p[:, :-1]))).reshape(4000, -1)
    size = np.sqrt(np.outer(each.var(0), each.var(0)))
    np.testing.assert_allclose(np.cov(each.T) / size, np.cov(sums.T) / size, atol=0.1)  # 4 s.e. of either


def test_a_mean_that_moves_after_a_sure_symbol_is_no_martingale(paths):
    p = np.ones((5, 9, 1), np.float32)
    p[:, 5:] = 0.5
    g = jnp.ones((5, 8, 1))
    found = martingale_tests(g, jnp.asarray(p), jax.random.key(0), finite=True)
    assert [float(test.p_value) for test in found] == [0.0, 0.0]


def test_sign_flip_p_values_are_uniform_under_heavy_tails():
    def one(key):
        value_key, flip_key = jax.random.split(key)
        values = jax.random.t(value_key, 3.0, (40, 3))
        return sign_flip_test(values.at[:, 1].add(values[:, 0]), flip_key, flips=200).p_value

    p = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 600)))
    assert stats.kstest(p + np.random.default_rng(0).uniform(-0.5, 0.5, 600) / 201, "uniform").pvalue > 0.01


def test_known_wrong_rules_are_seen_and_bayes_is_not(paths):
    key = jax.random.key(5)
    assert (calibrated_tests(paths, key=key).loc[["drift", "lag"], "p_value"] > 0.01).all()
    sticky = predictive_paths(rules.Sticky(0.1), CONTEXT, steps=40, paths=200, key=key)
    assert calibrated_tests(sticky, key=key).loc["lag", "p_holm"] < 0.01
    drift = predictive_paths(rules.Drift(0.02), CONTEXT, steps=40, paths=200, key=key)
    table = calibrated_tests(drift, key=key)
    assert table.loc["drift", "p_holm"] < 0.01 and table.loc["drift", "effect"] < 0
    curve = drift_curve(drift, key=key)
    last = curve.iloc[-1]
    assert curve.iloc[0].drift == 0 and last.lower > 0 and last.k == 41


@pytest.mark.parametrize(
    "rule, context",
    [
        (DirichletCategorical((1.0, 2.0, 1.0)), np.array([0, 2, 1, 1])),
        (NormalNormal(0.0, 2.0, 1.0), np.array([0.3, -1.0, 2.0])),
    ],
    ids=["categorical", "real"],
)
def test_other_symbols(rule, context):
    drawn = predictive_paths(rule, context, steps=20, paths=100, key=jax.random.key(1))
    table = calibrated_tests(drawn, key=jax.random.key(2))
    assert (table.loc[["drift", "lag"], "p_value"] > 0.01).all()
    assert drawn.p.shape == (100, 21, len(drawn.names))


def test_coherence_over_contexts():
    contexts = (np.random.default_rng(0).random((6, 12)) < 0.3).astype(int)
    exact = coherence(BetaBernoulli(), contexts, key=jax.random.key(0), steps=20, paths=60, depth=6)
    assert exact.summary.loc["node_rms", "largest"] < 1e-12 and exact.contexts.shape[0] == 6
    assert exact.summary.loc[["drift", "lag"], "p_holm"].min() > 0.01
    wrong = coherence(rules.Alternate(0.1), contexts, key=jax.random.key(0), steps=20, paths=60, depth=6)
    assert wrong.summary.loc["lag", "p_holm"] < 1e-3 and wrong.summary.loc["lag", "rejected"] > 0.9
    assert wrong.summary.loc["node_rms", "mean"] > 0.02
    real = coherence(NormalNormal(), np.zeros((3, 4)), key=jax.random.key(0), steps=8, paths=20)
    assert "root_gap" not in real.summary.index and real.summary.loc["drift", "p_value"] > 0.01


def test_martingale_posterior_of_the_beta_rule_is_the_beta_posterior():
    tree = martingale_posterior(BetaBernoulli(2.0, 1.0), CONTEXT, steps=3000, draws=2000, key=jax.random.key(0))
    theta = tree["posterior"]["theta"].values
    assert theta.shape == (4, 500)
    s = CONTEXT.sum()
    assert stats.kstest(theta.ravel(), stats.beta(2 + s, 1 + 20 - s).cdf).pvalue > 0.01
    import arviz as az

    assert az.summary(tree["posterior"]).loc["theta", "r_hat"] < 1.02


def test_martingale_posterior_of_the_urn_is_the_bayesian_bootstrap():
    # Polya urn of mass n: the limit is Beta(s, n - s), the Bayesian bootstrap of a proportion.
    tree = martingale_posterior(
        rules.Urn(), CONTEXT, steps=3000, draws=2000, part="imputed", chains=1, key=jax.random.key(1)
    )
    s = CONTEXT.sum()
    assert stats.kstest(tree["posterior"]["theta"].values.ravel(), stats.beta(s, 20 - s).cdf).pvalue > 0.01


def test_paths_tree_is_read_by_arviz(paths):
    import arviz as az

    tree = paths_tree(paths, chains=4)
    assert tree["posterior_predictive"]["z"].dims == ("chain", "draw", "step")
    assert tree["sample_stats"]["p"].shape == (4, 50, 41, 1)
    assert az.summary(tree, group="posterior_predictive", var_names=["z"]).shape[0] == 40


def test_errors(paths):
    with pytest.raises(ValueError, match="steps must be a whole number"):
        predictive_paths(BetaBernoulli(), CONTEXT, steps=0, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"context must have shape \(n,\), got \(1, 20\)"):
        predictive_paths(BetaBernoulli(), CONTEXT[None], steps=3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="at least 6 steps, got 4"):
        coherence(BetaBernoulli(), CONTEXT[None], key=jax.random.key(0), steps=4)
    with pytest.raises(ValueError, match="chains must divide"):
        paths_tree(paths, chains=7)
    with pytest.raises(ValueError, match="draws must be a multiple of chains=4, got 10"):
        martingale_posterior(BetaBernoulli(), CONTEXT, draws=10, key=jax.random.key(0))
