"""Stock autoguides as fits: densities and draws are NumPyro's, log p(y) is the closed form, and k-hat is right."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import (
    AutoBNAFNormal,
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from numpyro.infer.util import potential_energy

from inference import diagnose, evidence, from_autoguide, posterior, refine
from inference.fitting.objectives import joint_draw

KEY = jax.random.key(0)
T = np.array([[1.0, 0.9], [0.5, 0.6], [-1.0, -0.7], [0.3, 0.1]], "float32")
Y = np.array([1.0, 0.4, -0.9, 0.5], "float32")
NOISE = 0.4
PRECISION = np.eye(2) + T.T @ T / NOISE**2


def regression(t, y=None, *, noise=NOISE):
    """w ~ N(0, I), y ~ N(t w, noise^2): the posterior is a correlated Gaussian."""
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.deterministic("line", t @ w)
    with numpyro.plate("rows", len(t)):
        numpyro.sample("y", dist.Normal(t @ w, noise), obs=y)


def positive(y):
    """Sites with several supports, a flat prior and a factor."""
    scale = numpyro.sample("scale", dist.HalfNormal(2))
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
    shift = numpyro.sample("a_shift", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.factor("more", -(shift**2))
    numpyro.sample("y", dist.Normal(shift + shares[0], scale).expand([len(y)]).to_event(1), obs=y)


def log_px():
    return float(dist.MultivariateNormal(jnp.zeros(4), T @ T.T + NOISE**2 * np.eye(4)).log_prob(Y))


def exactly(guide, **arguments):
    """The guide with the exact posterior of the regression as its parameters."""
    mean = np.linalg.solve(PRECISION, T.T @ Y / NOISE**2)
    root = np.linalg.cholesky(np.linalg.inv(PRECISION))
    params = {"auto_loc": jnp.asarray(mean, "float32"), "auto_scale_tril": jnp.asarray(root, "float32")}
    return from_autoguide(guide, params, T, **arguments)


def test_an_exact_guide_gives_log_p_of_the_data_without_error():
    fit, x = exactly(AutoMultivariateNormal(regression), y=Y)
    assert sorted(x) == ["t", "y"] and x["t"].shape == (1, 4, 2)
    row = evidence(fit, x, key=KEY, particles=50, progress=False).iloc[0]
    assert row["log_px"] == pytest.approx(log_px(), abs=1e-4)
    assert row["log_px"] - row["elbo"] == pytest.approx(0, abs=1e-4) and row["ess"] == pytest.approx(50, rel=1e-3)


def test_a_diagonal_guide_loses_what_the_correlation_costs_and_refinement_returns_it():
    mean = np.linalg.solve(PRECISION, T.T @ Y / NOISE**2)
    params = {"auto_loc": jnp.asarray(mean, "float32"), "auto_scale": jnp.asarray(np.diag(PRECISION) ** -0.5)}
    fit, x = from_autoguide(AutoDiagonalNormal(regression), params, T, y=Y)
    row = evidence(fit, x, key=KEY, particles=4000, refine="none", progress=False).iloc[0]
    gap = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
    assert log_px() - row["elbo"] == pytest.approx(gap, abs=0.06)
    refined = refine(fit, x, key=KEY, steps=150, particles=256, progress=False)
    after = evidence(refined, x, key=KEY, particles=256, progress=False).iloc[0]
    assert after["estimator"] == "refined" and after["log_px"] == pytest.approx(log_px(), abs=0.02)
    assert after["log_px"] - after["elbo"] < 0.05


@pytest.mark.parametrize(
    "made", [AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoIAFNormal]
)
def test_densities_are_those_of_numpyro(made):
    y = np.array([0.3, 1.2, -0.5], "float32")
    guide = made(positive)
    svi = SVI(positive, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    result = svi.run(KEY, 30, y=y, progress_bar=False)
    fit, x = from_autoguide(guide, result.params, y=y)
    draw = joint_draw(fit.program, fit.params, KEY, jax.tree.map(jnp.asarray, x))
    u = draw.latents["auto_latent"][0]
    by_site = guide._unpack_latent(u)
    joint = sum(v[0] for part in (draw.log_prior, draw.log_lik) for v in part.values())
    assert joint == pytest.approx(-float(potential_energy(positive, (), {"y": y}, by_site)), rel=1e-4)
    law = guide.get_posterior(result.params)
    own = np.asarray(law.log_prob(u)).sum()
    assert draw.log_q["auto_latent"][0] == pytest.approx(own, rel=1e-3)
    for name in ("scale", "shares", "a_shift"):
        support = guide.prototype_trace[name]["fn"].support
        np.testing.assert_allclose(draw.deterministic[name][0], biject_to(support)(by_site[name]), rtol=1e-5)


def test_draws_predictions_and_a_diagnosis():
    fit, x = exactly(AutoMultivariateNormal(regression), y=Y, noise=NOISE)
    tree = posterior(fit, x, draws=2000, predictive_draws=500, key=KEY, progress=False)
    w = tree["posterior"]["w"].to_numpy()[0, :, 0]
    np.testing.assert_allclose(np.cov(w.T), np.linalg.inv(PRECISION), atol=0.03)
    np.testing.assert_allclose(tree["posterior"]["line"].to_numpy()[0, :, 0], w @ T.T, rtol=1e-4, atol=1e-5)
    spread = T @ np.linalg.inv(PRECISION) @ T.T + NOISE**2 * np.eye(4)
    y = tree["posterior_predictive"]["y"].to_numpy()[0, :, 0]
    np.testing.assert_allclose(np.cov(y.T), spread, atol=0.12)
    prior = tree["prior_predictive"]["y"].to_numpy()[0, :, 0]
    np.testing.assert_allclose(np.cov(prior.T), T @ T.T + NOISE**2 * np.eye(4), atol=0.6)
    checks = diagnose(fit, x, key=KEY, tree=tree, particles=200).set_index("check")
    assert checks.loc["share of data with Pareto k-hat > 0.7", "verdict"] == "ok"
    assert checks.loc["evidence - ELBO gap", "verdict"] == "ok"


def test_laplace_is_exact_for_a_gaussian_posterior():
    mean = jnp.asarray(np.linalg.solve(PRECISION, T.T @ Y / NOISE**2), "float32")
    fit, x = from_autoguide(AutoLaplaceApproximation(regression), {"auto_loc": mean}, T, y=Y)
    row = evidence(fit, x, key=KEY, particles=50, progress=False).iloc[0]
    assert row["log_px"] == pytest.approx(log_px(), abs=1e-3) and row["log_px"] - row["elbo"] < 1e-3


def test_a_flat_prior_can_be_scored_but_not_drawn_from():
    y = np.array([0.3, 1.2, -0.5], "float32")
    guide = AutoDiagonalNormal(positive)
    params = SVI(positive, guide, numpyro.optim.Adam(0.01), Trace_ELBO()).run(KEY, 5, y=y, progress_bar=False).params
    fit, x = from_autoguide(guide, params, y=y)
    tree = posterior(fit, x, draws=5, predictive_draws=0, key=KEY, progress=False)
    assert tree["posterior"]["shares"].shape == (1, 5, 1, 3)


def test_bad_input():
    with pytest.raises(ValueError, match="got AutoDelta"):
        from_autoguide(AutoDelta(regression), {}, T, y=Y)
    with pytest.raises(ValueError, match="got AutoBNAFNormal"):
        from_autoguide(AutoBNAFNormal(regression), {}, T, y=Y)
    with pytest.raises(ValueError, match="lack auto_loc, auto_scale_tril"):
        from_autoguide(AutoMultivariateNormal(regression), {"auto_scale": jnp.ones(2)}, T, y=Y)
    fit, x = exactly(AutoMultivariateNormal(regression), y=Y)
    with pytest.raises(ValueError, match="pass them as one dict"):
        evidence(fit, Y[None], key=KEY)
