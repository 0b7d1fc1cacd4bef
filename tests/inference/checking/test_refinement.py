"""Refined posteriors against exact ones: Gaussian, hierarchical, a mixture prior, and one that must stay flagged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr

from inference.checking import diagnose, evidence, posterior, read_evidence
from inference.checking.criticism import site_rates
from inference.checking.refinement import refine
from inference.fitting import Fit
from inference.reporting import report
from ppl_models.program import Program
from tests.closed_forms import linear_gaussian_hierarchy, linear_gaussian_program, mixture_program

KEY = jax.random.key(0)


def refined(fit, x, **arguments):
    return refine(fit, x, key=KEY, progress=False, **{"particles": 256, **arguments})


def score(fit, x, **arguments):
    return evidence(fit, x, key=jax.random.key(1), progress=False, **{"particles": 256, **arguments})


W = np.array([[1.5, 1.2], [0.2, 1.0], [-0.7, 0.5]], "float32")
NOISE = 0.5


def correlated(spoil: float = 0.3) -> tuple[Fit, np.ndarray]:
    """Factor analysis whose exact posterior has correlated latents, with a diagonal guide that is off; and 12 data."""

    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(z @ W.T, NOISE).to_event(1), obs=x)

    def guide(x):
        precision = np.eye(2) + W.T @ W / NOISE**2
        mean = x @ W @ np.linalg.inv(precision) / NOISE**2
        sd = 1 / np.sqrt(np.diag(precision))
        return lambda site, ctx: dist.Normal(mean + spoil, (1 + spoil) * sd).to_event(1)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2)) @ W.T + NOISE * rng.normal(size=(12, 3))
    return Fit(Program(None, model, guide, ("z",), (3,)), {}, {}, None, {}), x.astype("float32")


def exact_log_px(x: np.ndarray) -> np.ndarray:
    law = dist.MultivariateNormal(jnp.zeros(3), W @ W.T + NOISE**2 * np.eye(3))
    return np.asarray(law.log_prob(x))


def trusted(found, *shares: float):
    """The same with every datum drawn from these shares of refined posterior, guide and prior, whatever was decided."""
    n = len(found.table)
    return dataclasses.replace(found, locals=found.locals._replace(shares=jnp.tile(jnp.asarray(shares), (n, 1))))


@pytest.fixture(scope="module")
def full():
    fit, x = correlated()
    return fit, x, refined(fit, x, steps=200, widen=1.0, particles=256)


def test_full_covariance_recovers_the_exact_gaussian(full):
    fit, x, found = full
    assert (found.table["estimator"] == "refined").all() and found.kept == ()
    table = score(found, x)
    np.testing.assert_allclose(table["log_px"], exact_log_px(x), atol=0.02)
    np.testing.assert_allclose(table["elbo"], exact_log_px(x), atol=0.02)  # nothing is lost: q is exact
    assert (table["ess"] > 250).all() and (table["estimator"] == "refined").all()
    assert (score(fit, x, refine="none")["elbo"] < exact_log_px(x) - 0.2).all()
    draws = posterior(found, x, draws=400, key=KEY, predictive_draws=0, progress=False)["posterior"]["z"].to_numpy()[0]
    covariance = np.linalg.inv(np.eye(2) + W.T @ W / NOISE**2)
    np.testing.assert_allclose(draws.mean(0), x @ W @ covariance / NOISE**2, atol=0.1)
    np.testing.assert_allclose(np.mean([np.cov(draws[:, i].T) for i in range(12)], 0), covariance, atol=0.01)


def test_draws_of_the_latents_are_those_of_the_refined_posterior(full):
    _, x, found = full
    z = found.latents(x[:6], draws=4000, key=KEY)["z"]
    covariance = np.linalg.inv(np.eye(2) + W.T @ W / NOISE**2)
    assert z.shape == (6, 4000, 2)
    np.testing.assert_allclose(z.mean(1), x[:6] @ W @ covariance / NOISE**2, atol=0.05)
    np.testing.assert_allclose(np.mean([np.cov(one.T) for one in z], 0), covariance, atol=0.01)
    np.testing.assert_array_equal(found.latents(x[:2], draws=40, key=KEY)["z"], z[:2, :40])


@pytest.mark.slow
def test_the_report_is_of_the_refined_posterior(full, tmp_path):
    _, x, found = full
    found = dataclasses.replace(found, fit=dataclasses.replace(found.fit, history=pd.DataFrame()))
    page = report(found, x, key=KEY, out=tmp_path).read_text()
    table = read_evidence(tmp_path)
    np.testing.assert_allclose(table["log_px"], exact_log_px(x), atol=0.02)
    np.testing.assert_allclose(table["elbo"], exact_log_px(x), atol=0.02)
    assert f"{table['log_px'].mean():.2f} ±" in page and "posteriors of 12 were refined" in page
    assert table.attrs["refine"] == "all"
    tree = xr.open_datatree(tmp_path / "posterior.nc")
    assert tree.attrs["posterior"] == "refined"
    log_weight = tree["sample_stats"]["log_weight"].to_numpy()[0]
    np.testing.assert_allclose(log_weight, np.broadcast_to(exact_log_px(x), log_weight.shape), atol=0.1)


def test_a_posterior_with_nothing_to_gain_stops_long_before_the_last_step():
    form = linear_gaussian_program(spoil=0.0)
    found = refined(form.fit, form.sample(KEY, 12), steps=400, widen=1.0)
    assert found.table["steps"].between(20, 150).all()
    np.testing.assert_allclose(found.table["elbo"], found.table["elbo_amortised"], atol=0.05)


def test_a_diagonal_posterior_loses_what_mean_field_must(full):
    fit, x, _ = full
    precision = np.eye(2) + W.T @ W / NOISE**2
    loss = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])  # KL of the best product
    found = refined(fit, x, covariance="diag", steps=200, widen=1.0, particles=400)
    table = score(trusted(found, 1.0, 0.0, 0.0), x, particles=400)
    assert (exact_log_px(x) - table["elbo"]).mean() == pytest.approx(loss, abs=0.05)


def test_low_rank_and_doubly_reparameterised_gradients_reach_the_same_posterior(full):
    fit, x, _ = full
    found = refined(fit, x, covariance="low_rank", rank=1, objective="dreg", steps=400, tolerance=0.0, widen=1.0)
    table = score(trusted(found, 1.0, 0.0, 0.0), x)
    np.testing.assert_allclose(table["log_px"], exact_log_px(x), atol=0.02)
    assert (exact_log_px(x) - table["elbo"] < 0.05).all()


def test_a_hierarchy_is_refined_through_its_contexts():
    form = linear_gaussian_hierarchy(levels=2, spoil=0.8)
    x = form.sample(KEY, 6)
    assert (form.log_px(x) - score(form.fit, x, refine="none")["elbo"] > 0.5).all()
    found = refined(form.fit, x, steps=300, widen=1.0)
    table = score(found, x)
    np.testing.assert_allclose(table["log_px"], form.log_px(x), atol=0.02)
    np.testing.assert_allclose(table["elbo"], form.log_px(x), atol=0.02)
    # Rates of the levels, each given those above, add up to E log q - log p(z).
    rates = site_rates(found, x, key=KEY, draws=64)
    stats = posterior(found, x, draws=64, key=KEY, predictive_draws=0, progress=False)
    lik = stats["log_likelihood"]["x"].to_numpy()[0]
    total = (stats["sample_stats"]["log_q"] - stats["sample_stats"]["log_joint"]).to_numpy()[0] + lik
    assert list(rates) == list(form.program.latents)
    np.testing.assert_allclose(sum(rates.values()), total.mean(0), atol=0.6)


def test_a_mixture_prior_is_scored_by_its_closed_form():
    form = mixture_program(spoil=0.0)

    def guide(x):
        return lambda site, ctx: dist.Normal(jnp.tanh(x[:, :2]), 1.0).to_event(1)

    fit = dataclasses.replace(form.fit, program=dataclasses.replace(form.program, posterior=guide))
    x = form.sample(KEY, 12)
    before, table = score(fit, x, refine="none"), score(fit, x, refine="all")
    kept = (table["estimator"] == "refined").to_numpy()
    assert kept.sum() >= 8
    error = np.abs(table["log_px"] - form.log_px(x))[kept]
    assert (error < np.maximum(4 * table["se"][kept], 0.02)).all()
    assert table["ess"][kept].median() > 3 * before["ess"][kept].median()


def squared() -> tuple[Fit, np.ndarray]:
    """x = z^2 + noise: modes at both roots, and a guide that knows one of them, too narrow."""

    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(z[:, None] ** 2, 0.1).to_event(1), obs=x)

    def guide(x):
        return lambda site, ctx: dist.Normal(jnp.sqrt(x[:, 0]) + 0.05, 0.01)

    return Fit(Program(None, model, guide, ("z",), (1,)), {}, {}, None, {}), np.linspace(0.5, 2.0, 16)[:, None]


def test_two_far_modes_stay_flagged():
    fit, x = squared()
    before, table = score(fit, x, refine="none", particles=512), score(fit, x, particles=512)
    flagged = (before["khat"] > 0.7).to_numpy()
    assert flagged.sum() > 8
    # The refined posterior of one mode alone has fine weights; it must not be believed.
    assert (table["khat"][flagged] > 0.7).all() and (table["estimator"] == "amortised").all()
    blind = refined(fit, x, particles=512)
    assert (blind.table["khat"] < 0.7).mean() > 0.7 and (blind.table["estimator"] == "amortised").all()
    assert blind.table["missed"].median() == pytest.approx(np.log(2), abs=0.2)


def test_wider_and_defensive_proposals_stay_unbiased():
    form = linear_gaussian_program(spoil=0.4)
    x = form.sample(KEY, 60)
    found = refined(form.fit, x, steps=20, widen=1.4, defensive=0.2, particles=400)
    for shares in ((0.8, 0.0, 0.2), (0.4, 0.3, 0.3)):
        table = score(trusted(found, *shares), x, particles=400)
        z = (table["log_px"] - form.log_px(x)) / table["se"]
        assert abs(z.mean()) < 4 / np.sqrt(60) and 0.7 < z.std() < 1.4


def test_the_density_of_a_draw_is_that_of_the_mixture(full):
    fit, x, found = full
    tree = posterior(trusted(found, 0.4, 0.2, 0.4), x, draws=50, key=KEY, predictive_draws=0, progress=False)
    z = tree["posterior"]["z"].to_numpy()[0]  # (draw, datum, unit)
    guide, g = fit.program.posterior(x)("z", None), found.locals.q
    sd, mean = np.asarray(guide.base_dist.scale).reshape(-1)[:2], np.asarray(guide.base_dist.loc)
    root = sd[:, None] * np.exp(g.log_scale)[:, :, None] * (np.eye(2) + np.tril(g.lower, -1))
    refined_law = dist.MultivariateNormal(mean + sd * g.loc, scale_tril=root)
    each = [np.asarray(law.log_prob(z)) for law in (refined_law, guide, dist.Normal(jnp.zeros(2), 1).to_event(1))]
    expected = np.logaddexp(np.log(0.4) + np.logaddexp(each[0], each[2]), np.log(0.2) + each[1])
    np.testing.assert_allclose(tree["sample_stats"]["log_q"].to_numpy()[0], expected, atol=2e-3)
    assert (np.abs(z - mean) > 6 * sd).any()  # some came from the prior


def test_numbers_depend_on_the_key_and_not_on_the_chunk(full):
    fit, x, found = full
    part = refined(fit, x[:7], steps=200, widen=1.0, chunk=40, particles=256)
    for whole, some in zip(*(jax.tree.leaves(f.locals.q) for f in (found, part)), strict=True):
        np.testing.assert_allclose(whole[:7], some, atol=1e-3)
    both = (score(f, x[:7]) for f in (found, part))
    pd.testing.assert_frame_equal(*(table[["log_px", "elbo", "ess", "estimator"]] for table in both), rtol=0.02)


def test_evidence_refines_flagged_rows_alone_and_says_so():
    form = linear_gaussian_program(spoil=0.3)
    x = form.sample(KEY, 40)

    def guide(q):
        # Every other datum has an encoder gone wrong: too narrow.
        def posterior(x):
            wrong = (x[:, :1] > x[:, :1].mean() if x.shape[0] > 1 else x[:, :1] > 0) * 1.0
            base = q(x)("z", None).base_dist
            return lambda site, ctx: dist.Normal(base.loc + 0.3 * wrong, base.scale * (1 - 0.7 * wrong)).to_event(1)

        return posterior

    fit = dataclasses.replace(
        form.fit, program=dataclasses.replace(form.program, posterior=guide(form.program.posterior))
    )
    before, table = score(fit, x, refine="none"), score(fit, x)
    flagged = (before["khat"] > 0.7).to_numpy()
    assert 3 < flagged.sum() < 35 and (before["estimator"] == "amortised").all()
    np.testing.assert_array_equal(table["estimator"] == "refined", flagged)
    assert table[~flagged].equals(before[~flagged])
    assert (table["khat"] <= 0.7).all()
    error = np.abs(table["log_px"] - form.log_px(x))
    assert (error < np.maximum(4 * table["se"], 0.01))[flagged].all()
    assert error[flagged].max() < 0.1 < np.abs(before["log_px"] - form.log_px(x))[flagged].max()


def test_a_refined_fit_goes_where_a_fit_goes(full):
    _, x, found = full
    found = dataclasses.replace(found, fit=dataclasses.replace(found.fit, history=pd.DataFrame()))
    verdict = diagnose(found, x[::-1][:8].copy(), key=KEY, particles=100, draws=10)  # a part of them, in another order
    lines = verdict.set_index("check")
    assert lines.loc["share of data with Pareto k-hat > 0.7", "verdict"] == "ok"
    assert lines.loc["evidence - ELBO gap", "value"] < 0.05
    assert lines.loc["rate of z", "value"] > 1
    assert found.params is found.fit.params and found.folder is None and found.info == {}
    with pytest.raises(ValueError, match="datum 1 of x is not among the 12 data.*refine"):
        score(found, np.stack([x[0], x[0] + 1]))


def conjugate(law: dist.Distribution, prior, likelihood) -> Fit:
    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", prior, infer={"ctx": None})
            numpyro.sample("x", likelihood(z), obs=x)

    return Fit(Program(None, model, lambda x: lambda site, ctx: law, ("z",), (8,)), {}, {}, None, {})


COUNTS = np.array([[1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0, 0, 0]], "float32")


def bernoulli(z):
    return dist.Bernoulli(z[:, None] * jnp.ones(8)).to_event(1)


@pytest.mark.parametrize(
    ("law", "prior", "likelihood", "log_px"),
    [
        # log B(a + k, b + n - k) / B(a, b), and the same for Gamma-Poisson.
        (dist.Beta(2.0, 2.0), dist.Beta(1.0, 1.0), bernoulli, [-np.log(9 * 8), -np.log(9 * 8)]),
        (
            dist.LogNormal(-0.5, 0.7), dist.Exponential(1.0),
            lambda z: dist.Poisson(z[:, None] * jnp.ones(8)).to_event(1),
            [np.log(5040) - 8 * np.log(9), -2 * np.log(9)],
        ),
    ],
    ids=["beta", "lognormal"],
)  # fmt: skip
def test_posteriors_that_are_not_normal_are_refined_in_their_base(law, prior, likelihood, log_px):
    fit = conjugate(law, prior, likelihood)
    before, table = score(fit, COUNTS, refine="none"), score(refined(fit, COUNTS, steps=150), COUNTS)
    assert (table["estimator"] == "refined").all()
    np.testing.assert_allclose(table["log_px"], log_px, atol=0.03)
    assert (table["ess"] > 200).all() and (table["elbo"] > before["elbo"]).all()


def test_what_cannot_be_refined_is_said():
    form = mixture_program()
    with pytest.raises(ValueError, match="no latent whose posterior has a map from noise"):
        refined(form.fit, form.sample(KEY, 4))
    x = form.sample(KEY, 40)
    assert (score(form.fit, x, refine="all")["estimator"] == "amortised").all()  # and evidence goes on without

    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
            n = numpyro.sample("n", dist.Poisson(1.0), infer={"ctx": None})
            numpyro.sample("x", dist.Normal((z + n)[:, None], 0.5).to_event(1), obs=x)

    def guide(x):
        laws = {"z": dist.Normal(0.4 * x[:, 0], 2.0), "n": dist.Poisson(1.0)}
        return lambda site, ctx: laws[site]

    fit = Fit(Program(None, model, guide, ("z", "n"), (1,)), {}, {}, None, {})
    x = np.array([[0.3], [1.5]], "float32")
    with pytest.warns(UserWarning, match="posterior of n is no"):
        found = refined(fit, x)
    n = np.arange(30)
    each = dist.Normal(jnp.asarray(n), np.sqrt(1.25)).log_prob(x) + dist.Poisson(1.0).log_prob(n)
    table = score(found, x, particles=4000)
    np.testing.assert_allclose(table["log_px"], jax.scipy.special.logsumexp(each, axis=1), atol=4 * table["se"].max())
    assert found.kept == ("n",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "elb"}, "objective must be one of elbo, dreg, got 'elb'"),
        ({"covariance": "dense"}, "covariance must be one of auto"),
        ({"draws": 1, "objective": "dreg"}, "draws must be an integer of at least 2"),
        ({"widen": 0.0}, "widen multiplies standard deviations"),
        ({"widen": "wide"}, "widen multiplies standard deviations"),
        ({"defensive": 1.0}, "defensive is the prior's share"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"tolerance": -0.1}, "tolerance is a rise of the bound in nats, at least 0, got -0.1"),
        ({"particles": 10}, "particles must be an integer of at least 25"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message):
    fit, x = correlated()
    with pytest.raises(ValueError, match=message):
        refined(fit, x, **arguments)
    with pytest.raises(ValueError, match="refine must be one of flagged, all, none, got 'some'"):
        score(fit, x, refine="some")


def test_nothing_is_refined_without_latents():
    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            numpyro.sample("x", dist.Normal(jnp.zeros(2), 1).to_event(1), obs=x)

    fit = Fit(Program(None, model, None, (), (2,)), {}, {}, None, {})
    with pytest.raises(ValueError, match="has no latents"):
        refined(fit, np.zeros((2, 2), "float32"))
    assert (score(fit, np.zeros((2, 2), "float32"))["estimator"] == "exact").all()
