"""Baselines of tables: closed forms with missing entries, other implementations, densities that integrate to one."""

import itertools
import math

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal, nbinom, norm
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture

from inference import baselines
from inference.checking import row_factors as factors
from inference.checking.classical import linear_regression
from inference.checking.gaps import Gaps, at_least, log_normal
from inference.checking.row_blocks import Blocks, Layout
from inference.checking.row_factors import row_factors
from inference.checking.row_mixture import EM, row_mixture
from inference.clustering import clustering_baselines, plain_numbers
from ppl_models.datasets import table
from ppl_models.distributions import Columns
from ppl_models.program import Column, Observation, Program

KEY = jax.random.key(0)
G = 4
REAL = tuple(Column(f"x{i}", "real", loc=float(i), scale=2.0) for i in range(G))
MIXED = (
    Column("length", "real", loc=1.0, scale=2.0),
    Column("price", "positive", loc=0.5, scale=0.3),
    Column("number", "count"),
    Column("colour", "categorical", values=("red", "green", "blue")),
    Column("open", "binary", values=("no", "yes")),
)


def correlated(n=400, seed=0):
    rng = np.random.default_rng(seed)
    W = np.array([[1.0, 0.2], [0.8, -0.5], [-0.3, 0.9], [0.5, 0.5]])
    return rng.normal(size=(n, 2)) @ W.T + 0.6 * rng.normal(size=(n, G)) + 0.5


def holed(x, share=0.2, seed=1):
    return np.where(np.random.default_rng(seed).random(x.shape) < share, np.nan, x)


def mixed(n=300, missing=0.15, seed=0):
    """Stored rows of ``MIXED``, two clusters in them, NaN where missing."""
    rng = np.random.default_rng(seed)
    c = rng.integers(0, 2, n)
    x = np.stack(
        [
            rng.normal(3.0 * c - 1.5, 0.7), rng.normal(1.0 - 2.0 * c, 0.6), rng.poisson(np.array([1.0, 8.0])[c]),
            np.where(rng.random(n) < 0.8, 2 * c, 1), (rng.random(n) < 0.2 + 0.6 * c).astype(float),
        ], 1,
    )  # fmt: skip
    return holed(x, missing) if missing else x


def program(columns, **more):
    like = Columns(columns=columns)
    scored = Observation(
        like.observation(), prepare=like.prepare, check=like.check, columns=columns, features=like.numbers
    )
    return Program(None, lambda x=None: None, None, (), like.shape, observation=scored, **more)


def as_stored(x):
    return {"x": np.nan_to_num(x).astype("float32"), "there": ~np.isnan(x)}


def test_a_gaussian_with_missing_entries_is_the_marginal_of_the_whole():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(G, G))
    mean, covariance = rng.normal(size=G), A @ A.T + 0.1 * np.eye(G)
    x = holed(rng.normal(size=(100, G)), 0.4)
    x[0] = np.nan
    found = log_normal(Gaps(x), mean[None], covariance[None])[:, 0]
    assert found[0] == 0
    for row, value in zip(x[1:], found[1:], strict=True):
        o = np.flatnonzero(~np.isnan(row))
        if len(o):
            expected = multivariate_normal(mean[o], covariance[np.ix_(o, o)]).logpdf(row[o])
            assert value == pytest.approx(expected, abs=1e-10)


def test_one_component_is_the_gaussian_of_maximum_likelihood_in_the_units_of_the_file():
    x = correlated()
    file = np.array([c.loc for c in REAL]) + 2.0 * x  # the cells, of which x are the stored numbers
    expected = multivariate_normal(file.mean(0), np.cov(file.T, bias=True)).logpdf(file)
    np.testing.assert_allclose(row_mixture(REAL, x, components=1, ridge=0.0)(x), expected, atol=1e-9)
    positive = tuple(Column(c.name, "positive", loc=c.loc, scale=c.scale) for c in REAL)
    of_logs = row_mixture(positive, x, components=1, ridge=0.0)(x)
    np.testing.assert_allclose(of_logs, expected - file.sum(1), atol=1e-9)  # the density of v is that of log v over v


def test_em_with_missing_entries_is_stationary_and_never_loses():
    x = holed(correlated(200))
    layout = Layout.of(REAL, x)
    em = EM(Blocks(layout, x), "full", 0.0, 0.5)
    mixture = em.start(np.ones((200, 1)), em.blocks.gaps.x)
    values = []
    for _ in range(150):
        mixture, value = em.update(mixture)
        values.append(value)
    assert (np.diff(values) > -1e-12).all() and values[-1] - values[-2] < 1e-9
    rng = np.random.default_rng(2)
    for _ in range(5):  # a maximum: nothing nearby is better
        step = 0.03 * rng.normal(size=(G, G))
        near = (np.eye(G) + step) @ mixture.covariance[0] @ (np.eye(G) + step).T
        shifted = mixture.mean + 0.03 * rng.normal(size=(1, G))
        assert log_normal(em.blocks.gaps, shifted, near[None]).mean() < values[-1]


def test_mixtures_of_complete_real_columns_are_those_of_scikit_learn():
    x = np.concatenate([correlated(150), correlated(150, 1) + 4.0])
    z = (x - x.mean(0)) / x.std(0)
    jacobian = np.log(x.std(0)).sum() + G * math.log(2.0)
    for shape in ("full", "tied", "diag"):
        other = GaussianMixture(2, covariance_type=shape, reg_covar=1e-2, random_state=0, tol=2e-4, max_iter=200).fit(z)
        ours = row_mixture(REAL, x, components=2, covariance=shape, ridge=1e-2, seed=0)
        np.testing.assert_allclose(ours(x), other.score_samples(z) - jacobian, atol=1e-8)
        # Our EM stands still there.
        em = EM(Blocks(Layout.of(REAL, x), x), shape, 1e-2, 0.5)
        run = em.run(em.start(other.predict_proba(z), z), 200)[0]
        assert run.score(em.blocks).mean() == pytest.approx(other.score(z) - jacobian, abs=1e-3)


@pytest.mark.parametrize("rank", [1, 2])
def test_factor_analysis_is_that_of_scikit_learn(rank):
    rng, d = np.random.default_rng(0), 6
    x = rng.normal(size=(800, rank)) @ rng.normal(size=(rank, d)) + 0.7 * rng.normal(size=(800, d)) + 1.0
    z = (x - x.mean(0)) / x.std(0)
    other = FactorAnalysis(rank, svd_method="lapack", tol=1e-3, max_iter=5000).fit(z).score(z)
    columns = tuple(Column(f"x{i}", "real", scale=2.0) for i in range(d))
    jacobian = np.log(x.std(0)).sum() + d * math.log(2.0)
    assert row_factors(columns, x, rank=rank)(x).mean() == pytest.approx(other - jacobian, abs=1e-3)
    least = np.full(d, 1e-6)
    mean, W, psi = factors.expectation_maximisation(Gaps(z), np.zeros(d), rng.normal(size=(d, rank)), np.ones(d), least)
    assert multivariate_normal(mean, W @ W.T + np.diag(psi)).logpdf(z).mean() == pytest.approx(other, abs=1e-3)


def test_factor_analysis_and_ppca_with_missing_entries_come_near_the_truth():
    x, fresh = correlated(3000), correlated(500, 5)
    truth = row_mixture(REAL, x, components=1, ridge=0.0)(fresh).mean()
    for isotropic in (False, True):
        found = row_factors(REAL, holed(x, 0.3), rank=2, isotropic=isotropic)(fresh).mean()
        assert found == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize("components", [1, 2])
def test_the_density_of_a_mixed_row_integrates_and_sums_to_one(components):
    score = row_mixture(MIXED, mixed(), components=components, ridge=1e-2, seed=0)
    length, price = np.linspace(-6, 6, 121), np.linspace(-6, 6, 121)  # stored
    cells = (1.0 + 2.0 * length, np.exp(0.5 + 0.3 * price))
    total = 0.0
    grid = np.stack([a.ravel() for a in np.meshgrid(length, price, indexing="ij")], 1)
    for number, colour, opened in itertools.product(range(40), range(3), range(2)):
        rows = np.concatenate([grid, np.tile([number, colour, opened], (len(grid), 1))], 1)
        p = np.exp(score(rows)).reshape(121, 121)
        total += np.trapezoid(np.trapezoid(p, cells[1], axis=1), cells[0])
    assert total == pytest.approx(1.0, abs=2e-3)
    alone = np.full((3, 5), np.nan)
    alone[:, 3] = range(3)
    assert np.exp(score(alone)).sum() == pytest.approx(1.0, abs=1e-9)  # what is missing is summed out


def test_the_count_law_is_the_negative_binomial():
    rng = np.random.default_rng(0)
    x = rng.negative_binomial(3, 0.3, size=(4000, 1)).astype(float)
    score = row_mixture((Column("n", "count"),), x, components=1)
    truth = nbinom(3, 0.3).logpmf(x[:, 0]).mean()
    assert truth - 1e-4 < score(x).mean() < truth + 2e-3  # at least as likely as the truth, by about 2 / 2n
    k = np.arange(60.0)[:, None]
    np.testing.assert_allclose(np.exp(score(k)), nbinom(3, 0.3).pmf(k[:, 0]), atol=8e-3)
    assert np.exp(score(np.arange(2000.0)[:, None])).sum() == pytest.approx(1, abs=1e-9)


def test_no_conditional_scale_is_below_the_floor_of_its_column():
    """A column that doubles another, both recorded in tenths, would have a density without bound."""
    x = correlated()[:, :2]
    x[:, 1] = x[:, 0]
    columns = tuple(Column(f"x{i}", "real", resolution=0.1) for i in range(2))
    score = row_mixture(columns, x, components=1, ridge=0.0)
    floor = 0.1 / math.sqrt(2 * math.pi)
    assert columns[0].least_scale() == pytest.approx(floor)
    step = np.array([[0.0, 0.0], [0.0, 10.0]])  # of the second given the first: no narrower than the floor
    conditional = np.diff(score(x[:1] + step))[0]
    assert conditional > norm(0, floor).logpdf(10.0) - norm(0, floor).logpdf(0.0)
    S = np.diag([4.0, 1e-6])
    np.testing.assert_allclose(at_least(S, np.array([0.5, 0.5])), np.diag([4.0, 0.25]))


def test_a_table_gets_its_baselines_and_clusters_lift_the_mixture():
    x, fresh = mixed(250), mixed(300, seed=3)
    for quick in (True, False):
        tables = baselines(program(MIXED), as_stored(x), as_stored(fresh), key=KEY, quick=quick, progress=False)
        assert list(tables) == ["independent", "gaussian", "gaussian-mixture"]
        mean = {name: t["log_px"].mean() for name, t in tables.items()}
        assert mean["independent"] < mean["gaussian"] < mean["gaussian-mixture"] - 0.3
        assert {t.attrs["observation"] for t in tables.values()} == {program(MIXED).observation.line}
    real = baselines(program(REAL), as_stored(correlated()), as_stored(correlated(50, 1)), key=KEY, progress=False)
    assert list(real) == ["independent", "gaussian", "factor-analysis", "ppca", "gaussian-mixture"]
    assert abs(real["gaussian"]["log_px"].mean() - real["factor-analysis"]["log_px"].mean()) < 0.05
    classes = baselines(program(MIXED[3:]), as_stored(x[:, 3:]), as_stored(fresh[:, 3:]), key=KEY, progress=False)
    assert list(classes) == ["independent", "latent-class"]
    assert classes["latent-class"]["log_px"].mean() > classes["independent"]["log_px"].mean()


def test_labels_in_the_score_are_shared_by_no_baseline():
    labelled = program(MIXED, observed=("x", "c_kind"))
    with pytest.raises(ValueError, match="besides the columns"):
        baselines(labelled, as_stored(mixed(40)), as_stored(mixed(5)), key=KEY)


def test_linear_regression_is_the_conditional_density():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(5000, 2))
    y = u @ np.array([[1.0], [-2.0]]) + 0.5 + 0.3 * rng.normal(size=(5000, 1))
    score = linear_regression(np.concatenate([u, y], 1), inputs=2, ridge=1e-6)
    fresh = np.array([[0.3, -0.2, 1.4], [1.0, 1.0, 0.0]])
    expected = norm(fresh[:, 0] - 2 * fresh[:, 1] + 0.5, 0.3).logpdf(fresh[:, 2])
    np.testing.assert_allclose(score(fresh), expected, atol=0.1)
    line = Program(
        None, lambda x=None: None, None, (), {"u": (2,), "y": (1,)}, observed=("y",),
        observation=Observation("y given u", given=("u",)),
    )  # fmt: skip
    data = {"u": u.astype("float32"), "y": y.astype("float32")}
    test = {name: leaf[:200] for name, leaf in data.items()}
    tables = baselines(line, data, test, key=KEY, progress=False)
    assert list(tables) == ["gaussian", "linear-regression"]
    mean = tables["linear-regression"]["log_px"].mean()
    assert mean == pytest.approx(-0.5 * math.log(2 * math.pi * 0.09) - 0.5, abs=0.15)
    assert tables["gaussian"]["log_px"].mean() < mean - 1


def test_plain_numbers_of_a_table_are_neutral_where_entries_are_missing():
    frame = pd.DataFrame({"c": list("abcabc") * 5, "v": np.arange(30.0) % 7 + 0.5}).mask(
        np.random.default_rng(0).random((30, 2)) < 0.2
    )
    found = table(frame)
    numbers = plain_numbers(program(found.columns), found.x)
    assert numbers.shape == (30, 4) and np.isfinite(numbers).all()
    there, classes = found.x["there"], numbers[:, 1:]
    assert (numbers[~there[:, 1], 0] == 0).all() and (classes[~there[:, 0]] == 0).all()
    centres = np.unique(classes[there[:, 0]], axis=0)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(apart, 2.0, rtol=1e-6)  # as the codes of a binary column
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), np.linalg.norm(centres[0]), rtol=1e-5)


def test_k_means_and_mixtures_find_the_clusters_of_a_table():
    x = mixed(300)
    label = np.random.default_rng(0).integers(0, 2, 300)  # the draw with which ``mixed`` begins
    numbers = plain_numbers(program(MIXED), as_stored(x))
    scored = clustering_baselines(numbers, numbers, {2}, {"kind": label}, key=KEY, what="columns")
    assert set(scored["method"]) == {"k-means, columns", "k-means, PCA", "mixture, columns", "mixture, PCA"}
    assert scored.set_index("method").loc["k-means, columns", "ari"] > 0.75
