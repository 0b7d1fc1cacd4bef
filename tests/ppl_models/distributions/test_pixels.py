"""Grey levels to observations: values, closed forms, and the errors a person meets first."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ppl_models.distributions import Bernoulli, GreyBernoulli, Normal
from ppl_models.distributions.pixels import check_grey

GREY = jnp.arange(17, dtype="uint8")[None]
KEY = jax.random.key(0)


def test_threshold_is_a_fraction_of_the_brightest_level():
    x = Bernoulli(threshold=7.5 / 16).prepare(GREY, KEY, False, 17)
    np.testing.assert_array_equal(x[0], np.arange(17) > 7.5)
    assert x.dtype == "float32"


def test_threshold_noise_is_redrawn_in_training_only():
    likelihood = Bernoulli(threshold=7.5 / 16, noise=1.0)
    x = jnp.full((4000,), 7, "uint8")
    np.testing.assert_array_equal(likelihood.prepare(x, KEY, False, 17), 0)
    share = float(likelihood.prepare(x, KEY, True, 17).mean())
    assert abs(share - stats.norm.sf(0.5)) < 5 * np.sqrt(0.25 / 4000)
    other = likelihood.prepare(x, jax.random.key(1), True, 17)
    assert (np.asarray(other) != np.asarray(likelihood.prepare(x, KEY, True, 17))).any()


def test_stochastic_pixels_are_on_as_often_as_they_are_bright():
    likelihood, images = Bernoulli(stochastic=True), jnp.broadcast_to(jnp.arange(256, dtype="uint8"), (400, 256))
    want, error = np.arange(256) / 255, 5 * np.sqrt(0.25 / 400) + 1e-9
    drawn = likelihood.prepare(images, KEY, True, 256)
    assert set(np.unique(drawn)) == {0, 1} and np.abs(drawn.mean(0) - want).max() < error
    assert (np.asarray(drawn) != np.asarray(likelihood.prepare(images, jax.random.key(1), True, 256))).any()
    np.testing.assert_array_equal(drawn[:, [0, 255]], [[0, 1]] * 400)  # never against a pixel that is sure


def test_evaluation_draws_an_image_by_its_own_grey_levels():
    """The same image gives the same bits in any batch and under any key; other images give independent ones."""
    likelihood = Bernoulli(stochastic=True)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (600, 4, 4)), "uint8").at[:, 0, 0].set(51)
    drawn = likelihood.prepare(images, KEY, False, 256)
    np.testing.assert_array_equal(likelihood.prepare(images[7:9], jax.random.key(3), False, 256), drawn[7:9])
    assert abs(float(drawn[:, 0, 0].mean()) - 0.2) < 5 * np.sqrt(0.16 / 600)
    pairs = jnp.cov(drawn.reshape(600, -1).T)[0, 1:]
    assert float(jnp.abs(pairs).max()) < 5 * 0.2 / np.sqrt(600)
    assert "1 with probability grey / 255" in likelihood.observation((4, 4), 256)


def test_bernoulli_masses_sum_to_one():
    decoded = jnp.array([[0.3, -2.0, 1.5]])
    images = jnp.array(list(itertools.product([0.0, 1.0], repeat=3)))
    log_p = Bernoulli().distribution(decoded, {}, 17).log_prob(images)
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1, rtol=1e-6)


def test_grey_bernoulli_is_the_cross_entropy_and_is_labelled_so():
    x, logits = GreyBernoulli().prepare(GREY, KEY, True, 17), jnp.linspace(-3, 3, 17)[None]
    f = jax.nn.sigmoid(logits)
    want = (x * jnp.log(f) + (1 - x) * jnp.log1p(-f)).sum()
    np.testing.assert_allclose(GreyBernoulli().distribution(logits, {}, 17).log_prob(x)[0], want, rtol=1e-5)
    assert "UNNORMALISED" in GreyBernoulli().observation((8, 8), 17)


@pytest.mark.parametrize("link", ["sigmoid", "identity"])
@pytest.mark.parametrize("learned", [False, True])
def test_normal_is_the_normal_density(link, learned):
    likelihood = Normal(sigma=0.2, learned=learned, link=link)
    decoded, x = jnp.array([[0.3, -2.0]]), jnp.array([[0.5, 0.1]])
    loc = 1 / (1 + np.exp(-np.asarray(decoded))) if link == "sigmoid" else np.asarray(decoded)
    got = likelihood.distribution(decoded, likelihood.parameters((2,)), 17).log_prob(x)[0]
    np.testing.assert_allclose(got, stats.norm(loc, 0.2).logpdf(np.asarray(x)).sum(), rtol=1e-5)
    assert bool(likelihood.parameters((2,))) == learned


def test_normal_with_a_scale_a_pixel_is_the_product_of_their_densities():
    likelihood = Normal(sigma=0.2, learned=True, per_pixel=True)
    start = likelihood.parameters((2, 3))["log_sigma"]
    np.testing.assert_allclose(1e-3 + jnp.exp(start), np.full((2, 3), 0.2), rtol=1e-6)
    sigma, x = np.arange(1, 7).reshape(2, 3) / 10, np.linspace(0, 1, 24).reshape(4, 2, 3)
    decoded = jnp.asarray(np.linspace(-2, 2, 24).reshape(4, 2, 3), "float32")
    parameters = {"log_sigma": jnp.log(jnp.asarray(sigma - 1e-3, "float32"))}
    law = likelihood.distribution(decoded, parameters, 17)
    want = stats.norm(1 / (1 + np.exp(-np.asarray(decoded))), sigma).logpdf(x).sum((1, 2))
    np.testing.assert_allclose(law.log_prob(jnp.asarray(x, "float32")), want, rtol=1e-5)
    assert likelihood.observation((2, 3), 17) == Normal().observation((2, 3), 17)


def test_normal_scales_and_dequantises():
    np.testing.assert_allclose(Normal().prepare(GREY, KEY, True, 17)[0], np.arange(17) / 16, rtol=1e-6)
    x = np.asarray(Normal(dequantise=True).prepare(jnp.tile(GREY, (500, 1)), KEY, False, 17))
    np.testing.assert_array_equal(np.floor(x * 17).clip(0, 16), np.tile(np.arange(17), (500, 1)))
    np.testing.assert_allclose(x.mean(0), (np.arange(17) + 0.5) / 17, atol=0.01)


def test_dequantised_density_bounds_the_mass_of_a_level():
    """E_u log p((k + u) / L) - log L <= log P(k): what the bits/dim of the docstring rests on."""
    likelihood, k = Normal(sigma=0.1, dequantise=True, link="identity"), 6
    x = likelihood.prepare(jnp.full((20_000, 1), k, "uint8"), KEY, False, 17)
    log_p = np.asarray(likelihood.distribution(jnp.array([[0.5]]), {}, 17).log_prob(x))
    bound = log_p.mean() - np.log(17)
    mass = np.log(np.diff(stats.norm(0.5, 0.1).cdf([k / 17, (k + 1) / 17]))[0])
    assert bound <= mass + 3 * log_p.std() / np.sqrt(len(log_p))
    assert mass - bound < 0.1


def test_each_way_of_scoring_has_its_own_line():
    ways = [
        Bernoulli(), Bernoulli(threshold=0.3), GreyBernoulli(), Normal(), Normal(dequantise=True)
    ]  # fmt: skip
    assert len({w.observation((8, 8), 17) for w in ways}) == len(ways)
    assert Bernoulli(noise=1.0).observation((8, 8), 17) == Bernoulli().observation((8, 8), 17)
    assert Normal(sigma=0.1).observation((8, 8), 17) == Normal(learned=True).observation((8, 8), 17)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((3, 7, 7), "uint8"), "must have shape \\(N, 8, 8\\), got \\(3, 7, 7\\); or change the spec"),
        (np.zeros((3, 64), "uint8"), "try x.reshape\\(-1, 8, 8\\)"),
        (np.zeros((8, 8), "uint8"), "add a leading axis"),
        (np.zeros((0, 8, 8), "uint8"), "data are empty"),
        (np.full((3, 8, 8), 200, "uint8"), "grey levels 0..16, got values from 200 to 200"),
        (np.full((3, 8, 8), -1), "got values from -1"),
        (np.full((3, 8, 8), np.nan), "192 NaN or infinite"),
        (np.full((3, 8, 8), np.inf), "infinite"),
        (np.full((3, 8, 8), 0.7), "scaled to \\[0, 1\\] already .* multiply by 16"),
        (np.full((3, 8, 8), "a"), "got dtype <U1"),
        (np.full((3, 8, 8), 1j), "got dtype complex128"),
    ],
)
def test_bad_data_are_refused_with_a_remedy(data, message):
    with pytest.raises(ValueError, match=message):
        check_grey(data, (8, 8), 17)


def test_good_data_pass():
    for data in (np.zeros((1, 8, 8), "uint8"), np.full((2, 8, 8), 16.0), np.full((2, 8, 8), 7.5), jnp.zeros((2, 8, 8))):
        check_grey(data, (8, 8), 17)
    check_grey(np.ones((2, 8, 8), bool), (8, 8), 2)
    with pytest.raises(ValueError, match="whole grey levels"):
        Normal(dequantise=True).check(np.full((2, 8, 8), 7.5), (8, 8), 17)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bernoulli(threshold=7.5), "0 < threshold < 1, got 7.5; divide"),
        (lambda: Bernoulli(noise=-1.0), "noise .* got -1.0"),
        (lambda: Bernoulli(noise=1.0, stochastic=True), "got threshold=0.5 and noise=1.0 beside it"),
        (lambda: Normal(sigma=0.0), "sigma .* got 0.0"),
        (lambda: Normal(sigma=float("nan")), "got nan"),
        (lambda: Normal(sigma=1e-4, learned=True), "floor"),
        (lambda: Normal(per_pixel=True), "got learned=False; set learned=True"),
    ],
)
def test_bad_likelihoods_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
