"""T1, T2, T3 against a derivation with loops, and the defects that the publication's tests have."""

import jax
import numpy as np
import pytest

from inference.coherence import BernoulliReference, Paths, falck2024, predictive_paths, published as published_tests
from inference.coherence.published import GaussianReference, keep_paths, t1, t2, t3
from ppl_models.in_context import rules
from ppl_models.in_context.predictors import BetaBernoulli, DirichletCategorical, NormalNormal

CONTEXT = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1])


def _quantile(values, q):
    values = sorted(values)
    at = q * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def _inside(values):
    q1, q3 = _quantile(values, 0.25), _quantile(values, 0.75)
    return [q1 - 1.5 * (q3 - q1) <= v <= q3 + 1.5 * (q3 - q1) for v in values]


def _t1(X, power):
    J, N = len(X), len(X[0])
    first = [X[j][k] ** power for j in range(J) for k in range(N // 2)]
    second = [X[j][k] ** power for j in range(J) for k in range(N // 2, N)]
    return sum(first) / len(first) - sum(second) / len(second)


def _A(X, i):
    J, N = len(X), len(X[0])
    t = [sum(X[j][m + i] * X[j][m] for m in range(N - i)) / (N - i) for j in range(J)]
    kept = [v for v, ok in zip(t, _inside(t), strict=True) if ok]
    square = [X[j][c] ** 2 for j in range(J) for c in range(i, N - i)]
    return sum(kept) / len(kept) / (1e-5 + sum(square) / len(square))


@pytest.mark.parametrize("real", [False, True])
def test_statistics_agree_with_loops(real):
    rng = np.random.default_rng(3)
    X = rng.normal(0.3, 1, (31, 17)) if real else (rng.random((31, 17)) < rng.random((31, 1))).astype(float)
    X[0] = 9.0 * X[0] + 9.0  # an outlier
    kept = [x for x, ok in zip(X.tolist(), _inside(np.abs(X).mean(1)), strict=True) if ok]
    np.testing.assert_array_equal(X[keep_paths(X)], kept)
    assert not keep_paths(X)[0]
    Y = np.array(kept)
    for power in (1, 2):
        assert t1(Y, power) == pytest.approx(_t1(kept, power), abs=1e-12)
    for k in (1, 2, 3, 4):
        assert t2(Y, k) == pytest.approx(_A(kept, k + 1) - _A(kept, 1), abs=1e-12)
    means = [sum(x) / len(x) for x in kept]
    assert t3(Y) == pytest.approx(_quantile(means, 0.75) - _quantile(means, 0.25), abs=1e-12)
    # Replicates are scored as if one at a time.
    np.testing.assert_allclose(t2(np.stack([Y, Y**2]), 2), [t2(Y, 2), t2(Y**2, 2)])


@pytest.fixture(scope="module")
def bayes_paths():
    return predictive_paths(BetaBernoulli(), CONTEXT, steps=40, paths=100, key=jax.random.key(1))


def test_bands_contain_exact_bayes_and_catch_a_short_memory(bayes_paths):
    table = falck2024(bayes_paths, key=jax.random.key(2), replicates=300)
    assert list(table.index) == ["T1", "T2_1", "T2_2", "T2_3", "T2_4", "T3"]
    assert table.loc[["T1", "T3"], "inside"].all() and table.attrs["paths_kept"] <= 100
    assert (table["lower"] < table["upper"]).all() and table["inside_tolerance"].isna().tolist() == [False] * 5 + [True]
    sticky = predictive_paths(rules.Sticky(0.3), CONTEXT, steps=40, paths=100, key=jax.random.key(1))
    assert not falck2024(sticky, key=jax.random.key(2), replicates=300).loc["T2_1", "inside"]


def test_reference_band_is_that_of_the_posterior(bayes_paths):
    # Var of a path mean = Var(theta | data) + E[theta (1 - theta)] / N, theta ~ Beta(n m + 1, n (1 - m) + 1).
    X = BernoulliReference().draw(np.random.default_rng(0), 0.5, 20, (50, 400, 40))
    var = 121 / (22**2 * 23)
    expected = var + (0.25 - var) / 40
    assert X.mean(-1).var() == pytest.approx(expected, rel=0.05)
    band = falck2024(bayes_paths, key=jax.random.key(2), replicates=300).loc["T3"]
    assert band.lower < 1.349 * np.sqrt(expected) < band.upper


# ------------------------------------------------------------------------------------------- known defects, kept
def test_t2_4_is_undefined_at_a_published_setting():
    paths = predictive_paths(BetaBernoulli(), CONTEXT, steps=10, paths=50, key=jax.random.key(0))
    table = falck2024(paths, key=jax.random.key(0), replicates=50)
    assert np.isnan(table.loc["T2_4", "value"]) and not table.loc["T2_4", "inside"]
    assert table.loc[["T1", "T2_1", "T2_2", "T2_3", "T3"], "value"].notna().all()


def test_one_band_serves_every_lag(bayes_paths):
    table = falck2024(bayes_paths, key=jax.random.key(2), replicates=50)
    assert table.loc["T2_1":"T2_4", ["lower", "upper"]].drop_duplicates().shape[0] == 1


def test_the_tolerance_widens_t1_and_t2_by_a_tenth_over_n(bayes_paths):
    p = np.asarray(bayes_paths.p)
    shifted = Paths(CONTEXT, bayes_paths.z, p, bayes_paths.log_p, bayes_paths.names)
    table = falck2024(shifted, key=jax.random.key(2), replicates=50)
    off = (table.value < table.lower - 0.1 / 20) | (table.value > table.upper + 0.1 / 20)
    assert (off == (table.inside_tolerance == 0)).all()


def test_t3_confounds_the_prior_with_coherence():
    # Beta(20, 20) updating is exactly Bayesian; its spread is far below that of the flat reference.
    one_sided = np.array([1] * 20)
    paths = predictive_paths(BetaBernoulli(200.0, 200.0), CONTEXT, steps=200, paths=200, key=jax.random.key(0))
    assert not falck2024(paths, key=jax.random.key(0), replicates=100).loc["T3", "inside"]
    paths = predictive_paths(BetaBernoulli(), one_sided, steps=40, paths=100, key=jax.random.key(0))
    assert falck2024(paths, key=jax.random.key(0), replicates=100).loc["T3", "inside"]


def test_t1_rejects_a_true_martingale_whose_dynamics_are_not_the_references():
    # EWMA .1 is a martingale: E T_1 = 0.  But its T_1 scatters more than that of the reference, whose band it meets.
    drawn = predictive_paths(rules.EWMA(0.1), CONTEXT, steps=40, paths=40_000, key=jax.random.key(0))
    own = t1(drawn.z.reshape(400, 100, 40))
    reference = t1(BernoulliReference().draw(np.random.default_rng(0), 0.5, 20, (400, 100, 40)))
    assert abs(own.mean()) < 4 * own.std() / 20
    assert own.std() / reference.std() > 1.2  # a band of 95 % then holds less than 90 %


def test_gaussian_reference_truncates_toward_zero():
    X = GaussianReference().draw(np.random.default_rng(0), -2.0, 50, (20, 50, 100))
    np.testing.assert_allclose(X * 10, np.round(X * 10), atol=1e-9)
    assert X.mean() - (-2.0 * 50 / 50.01) == pytest.approx(0.05, abs=0.02)  # negative means move up by half a step
    paths = predictive_paths(
        NormalNormal(0.0, 10.0, 1.0), np.random.default_rng(1).normal(-1, 1, 20), steps=20, key=jax.random.key(0)
    )
    table = falck2024(paths, key=jax.random.key(0), replicates=100)
    assert list(table.index)[:2] == ["T1", "T1_square"]


def test_fractional_bayes_widens_the_band(bayes_paths):
    plain = falck2024(bayes_paths, key=jax.random.key(2), replicates=200).loc["T3"]
    half = falck2024(bayes_paths, key=jax.random.key(2), replicates=200, fraction=0.5).loc["T3"]
    assert half.upper > plain.upper and half.lower > plain.lower


def test_errors(bayes_paths):
    empty = Paths(np.zeros(0, int), bayes_paths.z, bayes_paths.p, bayes_paths.log_p, bayes_paths.names)
    with pytest.raises(ValueError, match="got an empty one"):
        falck2024(empty, key=jax.random.key(0))
    with pytest.raises(ValueError, match="binary and real symbols, got 3 symbols"):
        three = predictive_paths(
            DirichletCategorical((1.0, 1.0, 1.0)), np.array([0, 2]), steps=6, paths=5, key=jax.random.key(0)
        )
        falck2024(three, key=jax.random.key(0))
    with pytest.raises(ValueError, match="fraction must leave"):
        falck2024(bayes_paths, key=jax.random.key(0), fraction=0.0)


def test_several_contexts_in_one_table():
    contexts = np.stack([CONTEXT, 1 - CONTEXT])
    table = published_tests(BetaBernoulli(), contexts, key=jax.random.key(0), steps=12, paths=20, replicates=20)
    assert table.shape[0] == 12 and set(table.index.names) == {"context", "statistic"}
