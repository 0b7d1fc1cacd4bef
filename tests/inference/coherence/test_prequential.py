"""Streams: the mixture against its integral, coverage at all times, known evidence, uniform PITs."""

import jax
import numpy as np
import pandas as pd
import pytest
from numpyro.infer import Predictive
from scipy import integrate, stats

from inference import evidence
from inference.coherence import confidence_sequence, prequential, prequential_rows, watch
from inference.coherence.betting import log_wealth
from inference.coherence.confidence import boundary, intrinsic_time, log_mixture
from inference.coherence.prequential import pit_payoffs
from ppl_models.in_context.exact import GammaPoisson
from ppl_models.in_context.predictors import BetaBernoulli, DirichletCategorical, NormalNormal
from tests.closed_forms import linear_gaussian_program

KEY = jax.random.key(0)


@pytest.mark.parametrize("s, v, rho", [(3.0, 10.0, 2.0), (0.5, 0.1, 1.0), (40.0, 300.0, 20.0), (-2.0, 6.0, 3.0)])
def test_the_mixture_is_its_integral(s, v, rho):
    def density(x):  # of 1 - lambda, Gamma(rho, rho) cut to (0, 1)
        return stats.gamma.pdf(x, rho, scale=1 / rho) / stats.gamma.cdf(1, rho, scale=1 / rho)

    value, _ = integrate.quad(lambda x: np.exp((1 - x) * s + v * (np.log(x) + 1 - x)) * density(x), 0, 1, epsrel=1e-10)
    assert log_mixture(s, v, rho) == pytest.approx(np.log(value), abs=1e-7)
    if s > 0:
        assert log_mixture(boundary(np.array([v]), 0.025, rho), v, rho)[0] == pytest.approx(np.log(40), abs=1e-9)


def test_bounded_means_are_covered_at_all_times():
    rng = np.random.default_rng(0)
    means = 0.3 + 0.2 * np.sin(np.arange(400) / 30)  # they change
    x = (rng.random((1000, 400)) < means).astype(float)
    total = (x - means).cumsum(1)
    v = intrinsic_time(x)
    up, down = (log_mixture(np.maximum(sign * total, 0), v, 2.0).max(1) >= np.log(40) for sign in (1, -1))
    assert (up | down).mean() <= 0.05
    table = confidence_sequence(x[0], bounds=(0, 1))
    running = means.cumsum() / np.arange(1, 401)
    assert ((table["lower"] <= running) & (running <= table["upper"])).all()
    assert table.loc[400, "upper"] - table.loc[400, "lower"] < 0.25
    scaled = confidence_sequence(3 * x[0] - 1, bounds=(-1, 2))
    np.testing.assert_allclose(scaled, 3 * table - 1, atol=1e-9)


def test_unbounded_means_by_the_formula():
    x = np.random.default_rng(1).normal(1e3, 2.0, 500)
    table = confidence_sequence(x, level=0.9, best_at=100)
    r2 = (-2 * np.log(0.1) + np.log(-2 * np.log(0.1) + 1)) / 100
    radius = x.std() * np.sqrt(2 * (500 * r2 + 1) / (500**2 * r2) * np.log(np.sqrt(500 * r2 + 1) / 0.1))
    assert table.loc[500, "upper"] - x.mean() == pytest.approx(radius)
    assert np.isinf(table.loc[9, "upper"]) and table.attrs["kind"] == "asymptotic"


def test_scores_of_known_rules():
    z = np.array([0, 1, 1])
    assert np.exp(prequential(BetaBernoulli(), z, key=KEY)["log_p"].sum()) == pytest.approx(1 / 12, rel=1e-5)
    x = np.array([0.5, -1.0, 3.0])
    frame = prequential(NormalNormal(0.0, 1.0, 1.0), x, key=KEY)
    law = stats.multivariate_normal(np.zeros(3), np.eye(3) + 1)
    assert frame["log_p"].sum() == pytest.approx(law.logpdf(x), rel=1e-5)
    assert frame.loc[1, "pit"] == pytest.approx(stats.norm.cdf(0.5 / np.sqrt(2)), rel=1e-5)
    counts = prequential(GammaPoisson(2.0, 1.0), np.array([4.0]), key=KEY)
    law = stats.nbinom(2, 1 / 2)
    assert law.cdf(3) <= counts.loc[1, "pit"] + 1e-6 and counts.loc[1, "pit"] <= law.cdf(4) + 1e-6
    dice = prequential(DirichletCategorical((1.0, 1.0, 2.0)), np.array([2]), key=KEY, context=np.array([0]))
    assert dice.loc[1, "log_p"] == pytest.approx(np.log(2 / 5)) and dice.loc[1, "pit"] >= 3 / 5


def test_bets_on_uniform_pits_are_fair():
    nodes, weight = np.polynomial.legendre.leggauss(8)
    u = np.stack(np.meshgrid((nodes + 1) / 2, (nodes + 1) / 2, indexing="ij"), -1).reshape(-1, 2)
    chance = np.outer(weight, weight).ravel() / 4
    payoffs = np.stack([pit_payoffs(row) for row in u])
    np.testing.assert_allclose(chance @ np.exp(log_wealth(payoffs)), 1.0, rtol=1e-12)
    assert payoffs.min() >= -1
    even = np.random.default_rng(3).random(300)
    narrow = stats.norm.cdf(stats.norm.ppf(even) * 1.5)  # of forecasts that are too narrow
    assert log_wealth(pit_payoffs(narrow))[-1] > np.log(20) > log_wealth(pit_payoffs(even)).max()
    follows = np.sort(even)  # uniform, and each near the one before
    assert log_wealth(pit_payoffs(follows))[-1] > np.log(20)


def test_rows_of_a_table():
    rng = np.random.default_rng(2)
    rows = pd.DataFrame({"height": rng.normal(0, 1, 600), "sort": rng.integers(0, 2, 600).astype(float)})
    rows.loc[300:, "height"] += 1.0  # the stream changes half-way
    rows.loc[5, "sort"] = np.nan
    draws = np.stack([rng.normal(0, 1, 500), rng.integers(0, 2, 500)], -1)
    log_p = stats.norm.logpdf(rows["height"]) - np.log(2)
    frame = prequential_rows(pd.DataFrame({"log_px": log_p}), rows, draws, key=KEY)
    assert list(frame) == ["log_p", "pit height", "pit sort"] and np.isnan(frame.loc[6, "pit sort"])
    assert stats.kstest(frame["pit sort"].dropna(), "uniform").pvalue > 0.01
    seen = watch(frame)
    assert 300 < seen.attrs["alarm"] < 450 and seen["log_e sort"].max() < np.log(20)
    assert seen.loc[300, "lower"] < 1.4189 + np.log(2) < seen.loc[300, "upper"]  # the entropy of a row, nats
    each = prequential_rows(log_p, rows, np.broadcast_to(draws[:, None], (500, 600, 2)), key=KEY)
    np.testing.assert_array_equal(each["pit height"], frame["pit height"])


def test_rows_of_a_fitted_program():
    made = linear_gaussian_program(dim=3, latent=2, spoil=0.0)
    rows = np.asarray(made.sample(jax.random.key(1), 200))
    table = evidence(made.fit, rows, particles=4, key=jax.random.key(2), progress=False)
    drawn = np.asarray(Predictive(made.fit.model, num_samples=1)(jax.random.key(3), size=1000)["x"])[0]
    frame = prequential_rows(table, rows, drawn, key=KEY)
    np.testing.assert_allclose(frame["log_p"], made.log_px(rows), atol=1e-3)
    assert watch(frame).attrs["alarm"] is None
    shifted = prequential_rows(table, rows + 3 * rows.std(0), drawn, key=KEY)
    assert watch(shifted).attrs["alarm"] < 30


def test_errors():
    with pytest.raises(ValueError, match="bounds must enclose"):
        confidence_sequence([0.0, 2.0], bounds=(0, 1))
    with pytest.raises(ValueError, match="finite numbers"):
        confidence_sequence([0.0, np.nan])
    with pytest.raises(ValueError, match=r"speaks of the symbols 0..1"):
        prequential(BetaBernoulli(), np.array([0, 2]), key=KEY)
    with pytest.raises(ValueError, match=r"draws must have shape \(draw, 2\)"):
        prequential_rows(np.zeros(3), np.zeros((3, 2)), np.zeros((5, 3)), key=KEY)
    with pytest.raises(ValueError, match="expected a frame of prequential"):
        watch(pd.DataFrame({"x": [1.0]}))
