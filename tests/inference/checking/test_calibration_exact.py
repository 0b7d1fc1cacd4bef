"""Calibration where the posterior is known: uniform ranks, closed forms of coverage, TARP, observed data."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import chi2

from inference import refine
from inference.checking.calibration import calibrate
from inference.checking.column_checks import holm
from inference.checking.ecdf_bands import p_values
from inference.checking.sbc_ranks import rank_fractions
from inference.checking.simulated import Simulator
from ppl_models.program import Observation, Program
from tests.closed_forms import (
    linear_gaussian_hierarchy,
    linear_gaussian_program,
    mixture_program,
    random_coefficients,
)

KEY = jax.random.key(0)
QUIET = {"key": KEY, "progress": False}


def changed(fit, change):
    """The fit with a guide ``change(Normal, x)`` made from its exact one."""
    exact = fit.program.posterior

    def posterior(x):
        q = change(exact(x)("z", None).base_dist, x).to_event(1)
        return lambda site, ctx: q

    return dataclasses.replace(fit, program=dataclasses.replace(fit.program, posterior=posterior))


def scaled(fit, factor):
    return changed(fit, lambda q, x: dist.Normal(q.loc, factor * q.scale))


@pytest.fixture(scope="module")
def factors():
    return linear_gaussian_program(latent=3, spoil=0.0).fit


@pytest.mark.parametrize("form", [linear_gaussian_program, mixture_program, linear_gaussian_hierarchy])
def test_ranks_of_an_exact_posterior_are_uniform(form):
    names = {"levels": 2} if form is linear_gaussian_hierarchy else {}
    found = calibrate(form(spoil=0.0, **names).fit, simulations=500, draws=50, **QUIET)
    assert found.calibrated and found.table["p_value"].min() > 0.005
    assert {"log_lik", "log_q", "log_weight", "tarp"} <= set(found.table.index)


def test_ranks_of_a_spoilt_hierarchy_are_not():
    assert not calibrate(
        linear_gaussian_hierarchy(levels=2, spoil=0.3).fit, simulations=300, draws=50, **QUIET
    ).calibrated


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_expected_coverage_of_a_scaled_guide_has_a_closed_form(factors, factor):
    found = calibrate(scaled(factors, factor), simulations=2000, draws=200, chunk=500, **QUIET)
    curve = found.coverage()
    # The region of credibility c is a ball of radius^2 factor^2 F^-1(c) in units of the exact posterior.
    expected = chi2.cdf(factor**2 * chi2.ppf(curve["credibility"], 3), 3)
    assert np.abs(curve["coverage"] - expected).max() < 0.045  # 4 standard errors of 2,000
    assert (curve["coverage"] < curve["low"]).any() if factor < 1 else (curve["coverage"] > curve["high"]).any()
    wrong = found.table["p_holm"]
    assert wrong["log_q"] < 1e-6 and wrong["log_weight"] < 1e-6 and wrong["tarp"] < 0.05 and not found.calibrated


def test_tarp_and_densities_see_a_guide_that_returns_the_prior(factors):
    prior = changed(factors, lambda q, x: dist.Normal(jnp.zeros_like(q.loc), 1.0))
    found = calibrate(prior, simulations=500, draws=50, **QUIET)
    p = found.table["p_value"]
    assert p[["z[0]", "z[1]", "z[2]", "log_q"]].min() > 0.005
    assert p[["log_lik", "log_weight", "tarp"]].max() < 1e-4
    assert (found.tarp()["coverage"] > found.tarp()["high"]).any()  # the truth is nearer to what x suggests


def test_tarp_sees_a_biased_guide(factors):
    biased = changed(factors, lambda q, x: dist.Normal(q.loc + 1.0 * q.scale, q.scale))
    found = calibrate(biased, simulations=500, draws=50, **QUIET)
    assert found.table.loc["tarp", "p_value"] < 0.01 and found.table.loc["z[0]", "mean"] < 0.42


def test_the_joint_verdict_keeps_its_level(factors):
    ranks, ess = rank_fractions(factors, simulations=24_000, draws=20, chunk=4000, **QUIET)
    assert (ess == 20).all()
    p = np.stack([p_values(pit.reshape(400, 60).T) for pit in ranks.values()], axis=1)
    rejected = np.mean([holm(row).min() < 0.05 for row in p])
    assert 0.02 < rejected < 0.08  # 400 repetitions: .05 give or take .011


# ---------------------------------------------------------------------------------- near observed data
def test_near_an_observed_datum_the_weights_are_those_of_both_data(factors):
    x_o = np.full((1, 5), 1.0, "float32")
    kernels = Simulator(factors, {}, 4)
    sim = kernels.start(kernels.params, kernels.mutable, KEY, jnp.tile(x_o, (4, 1)), True)
    _, log_w = kernels.at(kernels.params, kernels.mutable, KEY, sim, None)
    # pi(z) / p(z) = p(z | x_o) / p(z) = p(x_o | z) / p(x_o): with q(z | x) it makes p(z | x_o, x).
    W, b = np.asarray(factors.params["W"]), _offset(factors)
    log_lik = dist.Normal(sim.truth["z"] @ W.T + b, 0.6).log_prob(x_o).sum(-1)
    log_px = linear_gaussian_program(latent=3, spoil=0.0).log_px(x_o)
    np.testing.assert_allclose(log_w, log_lik - log_px, atol=1e-3)


def _offset(fit):
    """b: the mean of x at z = 0."""
    with numpyro.handlers.trace() as sites, numpyro.handlers.seed(rng_seed=0):
        with numpyro.handlers.substitute(data={**fit.params, "z": jnp.zeros((1, 3))}):
            fit.program.model(size=1)
    return sites["x"]["fn"].mean[0]


def test_near_observed_data_an_exact_guide_passes_with_any_number_of_draws():
    draws = 3
    fit = linear_gaussian_program(latent=2, spoil=0.0).fit
    x_o = np.asarray([[0.0] * 5, [2.0, -1, 0, 3, 1]], "float32")
    found = calibrate(fit, around=x_o, simulations=1000, draws=draws, chunk=500, **QUIET)
    assert found.table["p_value"].min() > 0.003 and found.calibrated and found.table.attrs["around"] == 2
    assert (found.ess <= draws + 1e-3).all() and np.median(found.ess) < 0.9 * draws
    narrow = calibrate(scaled(fit, 0.7), around=x_o, simulations=1000, draws=100, chunk=500, **QUIET)
    assert not narrow.calibrated


def test_near_observed_data_only_what_lies_there_is_seen():
    form = linear_gaussian_program(dim=2, latent=1, noise=0.3, spoil=0.0)
    # Wrong where the posterior mean is above 1.5; the prior goes there seven times in a hundred.
    local = changed(form.fit, lambda q, x: dist.Normal(q.loc, jnp.where(q.loc > 1.5, 2.0, 1.0) * q.scale))
    W, b = np.asarray(form.params["W"])[:, 0], form.sample(KEY, 20_000).mean(0)
    here, there = (np.asarray(b + W * z, "float32")[None] for z in (0.0, 2.2))
    settings = {"simulations": 400, "draws": 60, "chunk": 400, **QUIET}
    assert calibrate(local, around=here, **settings).calibrated
    assert calibrate(local, around=there, **settings).p_value < 1e-6
    # A fault at the observed datum itself cannot be seen: no replicate is that datum.
    own = changed(
        form.fit, lambda q, x: dist.Normal(q.loc + jnp.where((x == there).all(-1), 0.5, 0.0)[:, None], q.scale)
    )
    assert calibrate(own, around=there, **settings).calibrated


def test_many_latent_numbers_near_observed_data_are_reported(recwarn):
    fit = linear_gaussian_program(dim=20, latent=16, spoil=0.0).fit
    with pytest.warns(UserWarning, match="effective draws of 20"):
        found = calibrate(fit, around=np.zeros((1, 20), "float32"), simulations=40, draws=20, **QUIET)
    assert np.median(found.ess) < 10


# ----------------------------------------------------------------------------------- refined, and others
@pytest.mark.slow
def test_refined_posteriors_of_simulated_data_are_calibrated_where_the_guide_is_not():
    form = linear_gaussian_program(latent=2, spoil=0.4)
    settings = {"simulations": 300, "draws": 50, "chunk": 150, **QUIET}
    how = {"covariance": "diag", "steps": 150, "particles": 64}
    found = calibrate(form.fit, refine=how, **settings)
    assert found.calibrated and found.table.attrs["posterior"] == "refined"
    x = form.sample(KEY, 4)
    wide = refine(form.fit, x, key=KEY, widen=1.6, progress=False, covariance="diag", steps=150, particles=64)
    own = calibrate(wide, **settings)
    assert own.table.attrs["posterior"] == "refined" and own.coverage()["coverage"].mean() > 0.55
    near = calibrate(form.fit, refine=how, around=x, **settings)
    assert near.calibrated


def test_a_discrete_latent_and_a_function_of_ones_own():
    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else len(x)):
            c = numpyro.sample("c", dist.Bernoulli(0.3), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(2.0 * c, 1.0), obs=x)

    def posterior(x, off=0.0):
        return lambda site, ctx: dist.Bernoulli(logits=jnp.log(0.3 / 0.7) + 2.0 * x - 2.0 + off)

    program = Program(None, model, posterior, ("c",), (), observation=Observation("x"))
    settings = {"simulations": 1000, "draws": 20, "chunk": 500, **QUIET}
    mine = {"c_times_x": lambda z, x: z["c"] * x}
    found = calibrate(SimpleNamespace(program=program, params={}), quantities=mine, **settings)
    assert found.calibrated and "c_times_x" in found.table.index
    off = dataclasses.replace(program, posterior=lambda x: posterior(x, 1.0))
    assert not calibrate(SimpleNamespace(program=off, params={}), quantities=mine, **settings).calibrated
    with pytest.raises(ValueError, match="one number a datum"):
        calibrate(SimpleNamespace(program=program, params={}), quantities={"f": lambda z, x: x.sum()}, **settings)
    with pytest.raises(ValueError, match="a name that is taken"):
        calibrate(SimpleNamespace(program=program, params={}), quantities={"log_q": lambda z, x: x}, **settings)


def test_a_conditional_program_is_calibrated_given_its_inputs():
    form = random_coefficients(spoil=0.0)
    x = form.sample(KEY, 30)
    assert calibrate(form.fit, inputs=x, simulations=300, draws=40, **QUIET).calibrated
    assert calibrate(form.fit, around=x, simulations=300, draws=40, **QUIET).calibrated
    with pytest.raises(ValueError, match="leave inputs out"):
        calibrate(form.fit, around=x, inputs=x, **QUIET)


def test_what_is_not_a_number_is_said_and_fails(factors):
    lost = {"nan": lambda z, x: jnp.where(x[:, 0] > 1, jnp.nan, z["z"][:, 0])}
    with pytest.warns(UserWarning, match="nan is not a number"):
        found = calibrate(factors, quantities=lost, simulations=50, draws=5, **QUIET)
    assert found.table.loc["nan", "p_value"] == 0 and not found.calibrated
    with pytest.raises(ValueError, match="has no inputs"):
        calibrate(factors, inputs=np.zeros((2, 5)), **QUIET)


def test_the_line_of_a_diagnosis_says_how_far_off_it_is(factors):
    line = calibrate(scaled(factors, 0.6), simulations=300, draws=40, **QUIET).check()
    assert line.verdict == "fail" and line.value < 1e-6 and "300 data drawn from the model" in line.meaning
    line = calibrate(factors, simulations=300, draws=40, **QUIET).check()
    assert line.verdict == "ok" and line.value >= 0.05 and not line.remedy
