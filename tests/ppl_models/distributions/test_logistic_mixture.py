"""Discretised logistics: masses that sum to one, an independent float64 implementation, gradients at the extremes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp

from ppl_models.distributions import Categorical, LogisticMixture
from ppl_models.distributions.logistic_mixture import DiscretisedLogistics, log_mass

KEY = jax.random.key(0)


def head(shape, key=KEY, spread=1.0):
    return spread * jax.random.normal(key, shape)


def reference(decoded, k, levels, components):
    """log P of levels ``k`` (B, H, W[, 3]) in float64: plain differences of the distribution function, in [-1, 1]."""
    d, K = np.asarray(decoded, np.float64), components
    edge = (2 * np.arange(levels + 1) - 1) / (levels - 1) - 1  # levels - 1 inner boundaries
    edge[0], edge[-1] = -np.inf, np.inf
    log_pi = d[..., :K] - logsumexp(d[..., :K], -1, keepdims=True)
    colour = d.shape[-1] == 10 * K
    rest = d[..., K:].reshape(*d.shape[:-1], 3 if colour else 1, -1)
    v = (2 * k / (levels - 1) - 1).reshape(*d.shape[:-1], -1, 1)
    k = k.reshape(*d.shape[:-1], -1, 1)
    means, scales = rest[..., :K].copy(), np.exp(np.clip(rest[..., K : 2 * K], -7, 7))
    if colour:
        c = np.tanh(rest[..., 2 * K :])
        means[..., 1, :] += c[..., 0, :] * v[..., 0, :]
        means[..., 2, :] += c[..., 1, :] * v[..., 0, :] + c[..., 2, :] * v[..., 1, :]
    high, low = (edge[k + 1] - means) / scales, (edge[k] - means) / scales
    # The tail with the smaller numbers: differences near one lose all digits even in float64.
    mass = np.where(low > 0, expit(-low) - expit(-high), expit(high) - expit(low))
    return logsumexp(log_pi + np.log(mass).sum(-2), -1)


@pytest.mark.parametrize(("levels", "spread"), [(17, 1.0), (256, 1.0), (256, 3.0), (2, 1.0)])
def test_grey_masses_sum_to_one(levels, spread):
    likelihood = LogisticMixture(components=5)
    decoded = head((4, 3, *likelihood.decoded_shape((2,), levels)[1:]), spread=spread)
    law = likelihood.distribution(decoded, {}, levels).base_dist
    values = jnp.arange(levels)[:, None, None] / (levels - 1)
    np.testing.assert_allclose(jnp.exp(law.log_prob(values)).sum(0), 1, atol=1e-5)


def test_colour_masses_sum_to_one_over_all_colours():
    levels, likelihood = 7, LogisticMixture(components=3)
    assert likelihood.decoded_shape((1, 2, 3), levels) == (1, 2, 30)
    law = likelihood.distribution(head((2, 1, 2, 30)), {}, levels).base_dist
    colours = jnp.array(list(itertools.product(range(levels), repeat=3))) / (levels - 1)
    log_p = law.log_prob(colours[:, None, None, None])
    assert log_p.shape == (levels**3, 2, 1, 2)
    np.testing.assert_allclose(jnp.exp(log_p).sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_equal_to_an_independent_float64_implementation(shape, levels):
    likelihood = LogisticMixture(components=4)
    decoded = head((6, *likelihood.decoded_shape(shape, levels)), spread=1.5)
    k = np.random.default_rng(0).integers(0, levels, (6, *shape))
    k[0], k[1] = 0, levels - 1
    x = likelihood.prepare(jnp.asarray(k, "uint8"), KEY, True, levels)
    law = likelihood.distribution(decoded, {}, levels)
    log_p = law.log_prob(x)
    assert log_p.shape == (6,) and law.event_shape == shape
    want = reference(decoded, k, levels, 4).reshape(6, -1).sum(1)
    np.testing.assert_allclose(log_p, want, rtol=1e-5)


def test_far_tails_keep_the_mass_that_a_difference_of_float32_loses():
    """At 60 scales from the mean: log P = log F'(t) * width to first order, about -60, not log 0."""
    v, scale, h = jnp.float32(0.5), 0.01, 1 / 255
    got = float(log_mass(jnp.round(v * 127.5 + 127.5) / 127.5 - 1, jnp.float32(-0.1), jnp.log(jnp.float32(scale)), 256))
    at = (round(0.5 * 127.5 + 127.5) / 127.5 - 1 + 0.1) / scale
    np.testing.assert_allclose(got, np.log(np.exp(-(at - h / scale)) - np.exp(-(at + h / scale))), rtol=1e-5)


@pytest.mark.parametrize("levels", [17, 256])
def test_values_and_gradients_are_finite_at_the_extremes(levels):
    v, mean, log_scale = (
        jnp.asarray(grid, "float32").reshape(-1)
        for grid in np.meshgrid([-1.0, 1.0, 2 / (levels - 1) - 1, 0.0], [-1e4, -1.0, 0.3, 1.0, 1e4], [-7.0, 0.0, 7.0])
    )
    found = jax.vmap(jax.value_and_grad(log_mass, argnums=(1, 2)), in_axes=(0, 0, 0, None))(v, mean, log_scale, levels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    likelihood = LogisticMixture(components=2)
    for extreme in (-1e4, -7.0, 7.0, 1e4):
        for x in (0.0, 1.0):

            def loss(decoded, x=x):
                return likelihood.distribution(decoded, {}, levels).log_prob(jnp.full((1, 1, 1, 3), x)).sum()

            value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1, 1, 20), extreme))
            assert np.isfinite(value) and np.isfinite(gradient).all()


def test_draws_are_levels_with_the_masses_as_frequencies():
    levels, n = 5, 40_000
    law = LogisticMixture(components=3).distribution(head((1, 1, 9)), {}, levels)
    k = np.asarray(law.sample(KEY, (n,))).reshape(-1) * (levels - 1)
    np.testing.assert_array_equal(k, np.round(k))
    p = np.exp(law.log_prob(jnp.arange(levels)[:, None, None] / (levels - 1))).reshape(-1)
    np.testing.assert_allclose(np.bincount(k.astype(int), minlength=levels) / n, p, atol=5 * np.sqrt(0.25 / n))
    np.testing.assert_allclose(law.mean.reshape(()), p @ np.arange(levels) / (levels - 1), rtol=1e-5)


def test_drawn_colours_follow_the_joint_mass():
    levels, n = 3, 40_000
    law = LogisticMixture(components=2).distribution(head((1, 1, 1, 20), spread=2.0), {}, levels)
    x = np.asarray(law.sample(KEY, (n,))).reshape(n, 3)
    k = np.round(x * (levels - 1)).astype(int)
    np.testing.assert_array_equal(k / np.float32(levels - 1), x)
    colours = np.array(list(itertools.product(range(levels), repeat=3)))
    p = np.exp(law.log_prob(jnp.asarray(colours / (levels - 1), "float32").reshape(-1, 1, 1, 1, 3))).reshape(-1)
    got = np.bincount(k @ [9, 3, 1], minlength=27) / n
    np.testing.assert_allclose(got, p, atol=5 * np.sqrt(0.25 / n))


def test_mean_of_colours_without_coefficients_is_that_of_each_channel():
    levels, K = 17, 3
    logits, means, scales = head((2, K)), head((2, 3, K), jax.random.key(1)), head((2, 3, K), jax.random.key(2))
    colour = DiscretisedLogistics(logits, means, scales, jnp.zeros((2, 3, K)), levels=levels).mean
    for channel in range(3):
        grey = DiscretisedLogistics(logits, means[:, channel], scales[:, channel], levels=levels)
        np.testing.assert_allclose(colour[:, channel], grey.mean, rtol=1e-6)


@pytest.mark.parametrize("levels", [17, 256])
def test_mean_is_that_of_the_masses(levels):
    """Summed for few levels; for many, within half a level of it (here far less: scales above a level's width)."""
    logits, means, scales = (head((5, 3), jax.random.key(i)) for i in range(3))
    law = DiscretisedLogistics(logits, means, scales - 1, levels=levels)
    values = np.arange(levels) / (levels - 1)
    want = values @ np.exp(law.log_prob(jnp.asarray(values, "float32")[:, None]))
    np.testing.assert_allclose(law.mean, want, rtol=1e-5 if levels == 17 else 1e-3)


def test_scores_compare_with_the_categorical_law_and_bad_settings_are_refused():
    mixture = LogisticMixture()
    assert mixture.observation((8, 8), 17) == Categorical().observation((8, 8), 17)
    assert mixture.bits_offset(17) == 0.0
    with pytest.raises(ValueError, match="components must be a whole number .* got 0"):
        LogisticMixture(components=0)
    with pytest.raises(ValueError, match="means must have shape"):
        DiscretisedLogistics(jnp.zeros((2, 3)), jnp.zeros((2, 3, 3)), jnp.zeros((2, 3, 3)), levels=17)
    with pytest.raises(ValueError, match="whole grey levels"):
        mixture.check(np.full((2, 8, 8), 7.5), (8, 8), 17)
