"""Annealed importance sampling, sequential Monte Carlo and the sandwich, against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from inference import Fit, diagnose, evidence, refine, sandwich
from inference.checking.annealed_evidence import WIDENING, annealable, starts
from inference.checking.annealing import Annealer, Annealing, Ladder
from inference.checking.per_datum import pairs_at_once
from ppl_models.program import Program, rows, take
from tests.closed_forms import linear_gaussian_hierarchy, linear_gaussian_program, mixture_program, random_coefficients

KEY = jax.random.key(0)
SPOIL, D = 0.5, 3
WIDE = (1 + SPOIL) * (1 + np.sqrt(WIDENING / D))
"""Standard deviations of the start in units of the exact posterior's, whose mean is SPOIL of them away."""


def score(fit, x, **arguments):
    return evidence(
        fit, x, key=KEY, progress=False, **{"method": "ais", "refine": "none", "particles": 16, **arguments}
    )


def chains_of(form, x, **settings):
    """An annealer, its data and one block of 16 chains a datum at the start."""
    found = Annealing(**settings)
    parts, pairs = annealable(form.fit, x, found), pairs_at_once(form.program, None)
    data = starts(form.fit, x, parts, "none", key=KEY, pairs=pairs, progress=False)
    annealer = Annealer(form.fit, found, pairs, progress=False)
    (block,) = annealer.blocks(data, 16)
    keys = annealer.keys(block, KEY, 24, 16)
    return annealer, data, block, keys, annealer.start(block, keys)


@pytest.fixture(scope="module")
def gaussian():
    form = linear_gaussian_program(spoil=SPOIL)
    x = form.sample(KEY, 200)
    return form, x, form.log_px(x)


# ------------------------------------------------------------------------------------------------ transitions
def test_leapfrog_is_reversible_and_keeps_volume(gaussian):
    form, x, _ = gaussian
    annealer, _, block, _, chains = chains_of(form, x[:1])
    chains = take(chains, (slice(None), slice(1)))
    b, h = jnp.array([0.6]), jnp.array([[0.3]])

    def flow(up):
        at = annealer._at(block, up[None, None, :D], chains.own)
        end, p = annealer.trajectory(block, at, up[None, None, D:], h, b)
        return jnp.concatenate([end.u[0, 0], p[0, 0]])

    begin = jnp.concatenate([chains.u[0, 0], jnp.array([0.5, -1.0, 0.2])])
    end = flow(begin)
    flip = jnp.array([1.0] * D + [-1.0] * D)
    assert np.abs(end - begin).max() > 0.3
    np.testing.assert_allclose(flip * flow(flip * end), begin, atol=2e-5)
    sign, log_volume = np.linalg.slogdet(jax.jacobian(flow)(begin))
    assert sign == 1 and abs(log_volume) < 1e-4


def test_transitions_leave_the_tempered_posterior_as_it_is(gaussian):
    # In units of the exact posterior q0 is N(SPOIL, WIDE^2); in those of q0, u, the posterior is N(-SPOIL, 1) / WIDE.
    form, x, _ = gaussian
    annealer, _, block, keys, chains = chains_of(form, x)
    b = 0.7
    precision = (1 - b) + b * WIDE**2
    mean = b * WIDE**2 * (-SPOIL / WIDE) / precision
    chains = annealer._at(block, mean + chains.u / np.sqrt(precision), chains.own)  # exact draws of pi_b
    for time in range(3):
        chains, rate = annealer._move(block, chains, keys, (time, 0), np.full(200, b), np.full(200, 0.9))
    u = np.asarray(chains.u).reshape(-1)
    assert 0.5 < rate.mean() < 0.97
    assert abs(u.mean() - mean) < 4 * np.sqrt(1 / precision / len(u))
    assert u.var() * precision == pytest.approx(1, abs=4 * np.sqrt(2 / len(u)))


# ---------------------------------------------------------------------------------------------------- weights
def test_one_temperature_is_importance_sampling(gaussian):
    form, x, log_px = gaussian
    annealer, data, block, keys, chains = chains_of(form, x, temperatures=1)
    b = np.tile([0.0, 1.0], (200, 1))
    log_w, accepted = annealer.forward(data, Ladder(b, b), KEY, 16)
    np.testing.assert_allclose(log_w, chains.joint - chains.start, rtol=1e-6)
    assert np.isnan(accepted).all()
    lost = D * (-np.log(WIDE) + (WIDE**2 + SPOIL**2 - 1) / 2)  # KL(q || p)
    error = (log_w - log_px[:, None]).mean(1) + lost
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(200)


@pytest.mark.parametrize(("method", "start"), [("ais", "posterior"), ("smc", "posterior"), ("smc", "prior")])
def test_the_average_weight_is_unbiased_and_its_error_is_the_one_stated(gaussian, method, start):
    form, x, log_px = gaussian
    table = score(form.fit, x, method=method, start=start, temperatures=6 if start == "posterior" else 24)
    ratio = np.exp(table["log_px"] - log_px)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(200)
    # The square of the stated error is unbiased for the variance too: Lee & Whiteley's, where particles are resampled.
    excess = (ratio - 1) ** 2 - (ratio * table["se"]) ** 2
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(200) and excess.std() > 0
    assert (table["estimator"] == method).all() and table.attrs["estimator"] == method
    assert (table["elbo"] < table["log_px"]).all() and (table["ess"] <= 16.001).all()


def test_more_temperatures_bring_the_bound_nearer(gaussian):
    form, x, log_px = gaussian
    gaps = [(log_px - score(form.fit, x, temperatures=K)["elbo"]).mean() for K in (1, 4, 16)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_temperatures_and_steps_follow_the_path(gaussian):
    form, x, _ = gaussian
    annealer, data, *_ = chains_of(form, x[:50], temperatures=12, start="prior")
    ladder = annealer.pilot(data, KEY)
    assert (np.diff(ladder.b) > 0).all() and (ladder.b[:, 0] == 0).all() and (ladder.b[:, -1] == 1).all()
    assert ladder.b[:, 1].mean() < 1 / 24  # dense at the prior, where log p(x | z) varies most
    _, accepted = annealer.forward(data, ladder, KEY, 16)
    assert accepted.mean() == pytest.approx(0.8, abs=0.08)


def test_a_hierarchy_conditional_data_and_a_refined_start():
    form = linear_gaussian_hierarchy(levels=2, spoil=0.6)
    x = form.sample(KEY, 24)
    table = score(form.fit, x, temperatures=24, particles=64)
    assert (np.abs(table["log_px"] - form.log_px(x)) < 4 * table["se"]).all() and (table["se"] < 0.3).all()
    refined = refine(form.fit, x, key=KEY, steps=150, particles=64, progress=False)
    near = score(refined, x, temperatures=24, particles=64)
    assert (near["estimator"] == "ais").all() and near["se"].mean() < 0.7 * table["se"].mean()
    assert (np.abs(near["log_px"] - form.log_px(x)) < 4 * near["se"]).all()

    given = random_coefficients(spoil=0.4)
    x = given.sample(KEY, 24)
    table = score(given.fit, x, method="smc", temperatures=12, particles=64)
    assert (np.abs(table["log_px"] - given.log_px(x)) < 4 * table["se"]).all()


def test_latents_that_are_not_normal_are_annealed_in_their_noise():
    # Each is conjugate or a distribution function of one; independent given x, so that log p(x) is a sum.
    laws = {
        "beta": (dist.Beta(2.0, 2.0), dist.Beta(1.0, 1.0), lambda z: z),
        "dirichlet": (dist.Dirichlet(jnp.array([2.0, 2.0])), dist.Dirichlet(jnp.ones(2)), lambda z: z[..., 0]),
        "logistic": (dist.Logistic(0.0, 1.2), dist.Logistic(0.0, 1.0), jax.nn.sigmoid),
        "gamma": (dist.Gamma(2.0, 2.0), dist.Exponential(1.0), None),
    }

    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            parts = []
            for name, (_, prior, probability) in laws.items():
                z = numpyro.sample(name, prior, infer={"ctx": None})
                given = dist.Poisson(z) if probability is None else dist.Bernoulli(probability(z))
                parts.append(given.expand_by([8]).log_prob(x.T).sum(0))
            numpyro.factor("x", sum(parts))

    program = Program(None, model, lambda x: lambda site, ctx: laws[site][0], tuple(laws), (8,))
    fit = Fit(program, {}, {}, None, {})
    x = np.array([[1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0, 0, 0]], "float32")
    log_px = -3 * np.log(9 * 8) + np.array([np.log(5040) - 8 * np.log(9), -2 * np.log(9)])
    table = score(fit, x, temperatures=24)
    assert (table["se"] < 0.5).all()
    assert (np.abs(table["log_px"] - log_px) < 4 * table["se"]).all()


def test_another_mode_is_found_from_the_prior_and_warned_of_from_the_posterior():
    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(z[:, None] ** 2, 0.1).to_event(1), obs=x)

    guide = lambda x: lambda site, ctx: dist.Normal(jnp.sqrt(x[:, 0]) + 0.05, 0.01)  # noqa: E731
    fit, x = Fit(Program(None, model, guide, ("z",), (1,)), {}, {}, None, {}), np.linspace(0.5, 2.0, 12)[:, None]
    z = np.linspace(-6, 6, 40_001)
    density = np.exp(-(z**2) / 2 - (x - z**2) ** 2 / 0.02) / (0.1 * 2 * np.pi)
    log_px = np.log(np.trapezoid(density, z, axis=1))
    table = score(fit, x, temperatures=16, particles=256, start="prior")
    assert (np.abs(table["log_px"] - log_px) < 4 * table["se"]).all() and (table["khat"] < 0.7).all()
    with pytest.warns(RuntimeWarning, match=r"wider proposal finds more .* start='prior'"):
        table = score(fit, x, particles=64, refine="flagged")
    assert (log_px - table["log_px"]).median() == pytest.approx(np.log(2), abs=0.1)


def test_numbers_depend_on_the_key_and_not_on_the_chunk(gaussian):
    form, x, _ = gaussian
    whole, some = (
        score(form.fit, data, method="smc", start="prior", temperatures=3, chunk=chunk)["log_px"]
        for data, chunk in ((x[:12], None), (x[:7], 10))
    )
    np.testing.assert_allclose(whole[:7], some, atol=1e-3)


# --------------------------------------------------------------------------------------------------- sandwich
def test_the_sandwich_with_one_temperature_has_the_two_divergences_as_its_slices(gaussian):
    form, *_ = gaussian
    found = sandwich(
        form.fit, 400, key=KEY, exact=form.log_px, temperatures=1, particles=2, refine="none", progress=False
    )
    above = found.table["upper"] - found.table["reference"]
    slack = D * (np.log(WIDE) + (1 + SPOIL**2) / (2 * WIDE**2) - 0.5)  # KL(p || q)
    assert abs(above.mean() - slack) < 4 * above.std() / np.sqrt(400)
    np.testing.assert_allclose(form.log_px(found.x), found.table["reference"])
    assert found.latents["z"].shape == (400, D) and found.table.attrs["reference"] == "exact"


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_the_bounds_hold_in_expectation_and_meet(start):
    form = linear_gaussian_hierarchy(levels=2, spoil=0.8)
    few, many = (
        sandwich(
            form.fit, 100, key=KEY, exact=form.log_px, temperatures=K, particles=16, refine="none", start=start,
            progress=False,
        ).table
        for K in (3, 32)
    )  # fmt: skip
    for table in (few, many):
        lower, upper = table["lower"] - table["reference"], table["upper"] - table["reference"]
        assert lower.mean() < 2 * lower.std() / 10 and upper.mean() > -2 * upper.std() / 10
    assert few["gap"].mean() > 2 * abs(many["gap"].mean())
    assert many["within"].mean() >= 0.98


def test_the_sandwich_of_a_conditional_program_and_its_reference():
    form = random_coefficients(spoil=0.4)
    with pytest.raises(ValueError, match="conditional on t; pass like="):
        sandwich(form.fit, 4, key=KEY)
    like = form.sample(jax.random.key(5), 12)
    with pytest.raises(ValueError, match="like holds 12 data, expected at least n=20"):
        sandwich(form.fit, 20, key=KEY, like=like)
    found = sandwich(form.fit, 12, key=KEY, like=like, temperatures=16, progress=False)
    np.testing.assert_array_equal(found.x["t"], like["t"])
    assert found.table.attrs["reference"] == "importance" and found.table["within"].all() and rows(found.x) == 12
    error = np.abs(found.table["reference"] - form.log_px(found.x))
    assert (error < 4 * found.table["reference_se"]).all()


# ----------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "nuts"}, "method must be one of importance, ais, smc, got 'nuts'"),
        ({"method": "importance", "temperatures": 8}, "temperatures belongs to annealing.*method='ais'"),
        ({"temperatures": 0}, "temperatures must be an integer of at least 1"),
        ({"leapfrog": 0}, "leapfrog must be an integer"),
        ({"transitions": 0}, "transitions must be an integer"),
        ({"start": "zero"}, "start must be one of posterior, prior, got 'zero'"),
        ({"particles": 1}, "particles must be an integer of at least 2"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(gaussian, arguments, message):
    form, x, _ = gaussian
    with pytest.raises(ValueError, match=message):
        score(form.fit, x, **arguments)


def test_what_cannot_be_annealed_is_said_at_once(gaussian):
    form = mixture_program()
    x = form.sample(KEY, 4)
    with pytest.raises(ValueError, match="latent z cannot be annealed.*mixture"):
        score(form.fit, x)
    with pytest.raises(ValueError, match="latent z cannot be annealed"):
        sandwich(form.fit, 4, key=KEY)
    known = gaussian[0]
    program = dataclasses.replace(known.program, posterior=None, latents=())
    with pytest.raises(ValueError, match="no latents"):
        sandwich(dataclasses.replace(known.fit, program=program), 4, key=KEY)


def test_transitions_that_hardly_move_are_reported():
    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(jnp.sin(1e6 * z)[:, None], 0.01).to_event(1), obs=x)

    guide = lambda x: lambda site, ctx: dist.Normal(jnp.zeros(len(x)), 1.0)  # noqa: E731
    fit = Fit(Program(None, model, guide, ("z",), (1,)), {}, {}, None, {})
    with pytest.warns(RuntimeWarning, match="Hamiltonian transitions of 2 of 2 data .* are mostly refused"):
        score(fit, np.array([[0.5], [1.0]]), temperatures=6)


def test_annealed_evidence_does_not_judge_the_posterior(gaussian):
    form, x, _ = gaussian
    table = score(form.fit, x[:4], temperatures=1)
    with pytest.raises(ValueError, match="table is of annealed evidence.*method='importance'"):
        diagnose(form.fit, x[:4], table=table, key=KEY)
