import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_models.distributions.analytic import MixtureDenoiser, MixtureScore, linear_posterior
from ppl_models.distributions.predictions import Denoiser, Noise, Score, Velocity
from ppl_models.distributions.schedules import Trigonometric, VariancePreserving
from tests.ppl_models.distributions.mixtures import mixture


def test_score_is_the_gradient_of_the_noised_density_and_tweedie_gives_the_denoiser():
    schedule, m = VariancePreserving(), mixture(2)

    @jax.jit
    def at(x, t):
        gradient = jax.grad(lambda x: m.noised(schedule, t).log_prob(x))(x)
        score, denoised = MixtureScore(schedule)(m, x, t), MixtureDenoiser(schedule)(m, x, t)
        return score, gradient, denoised, (x + schedule.sigma(t) ** 2 * score) / schedule.alpha(t)

    for t in (0.05, 0.4, 0.9):
        score, gradient, denoised, tweedie = at(jnp.asarray([0.3, -0.8]), t)
        np.testing.assert_allclose(score, gradient, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(denoised, tweedie, rtol=1e-3, atol=1e-4)


def test_all_predictions_give_one_drift_and_one_denoiser():
    schedule, m = Trigonometric(), mixture(2)
    D, t, x = MixtureDenoiser(schedule), jnp.asarray(0.7), jnp.asarray([0.4, -1.2])

    def eps(m, x, t):
        return (x - schedule.alpha(t) * D(m, x, t)) / schedule.sigma(t)

    forms = (
        Score(MixtureScore(schedule)),
        Denoiser(D),
        Noise(eps),
        Velocity(lambda m, x, t: schedule.alpha(t) * eps(m, x, t) - schedule.sigma(t) * D(m, x, t)),
    )
    drifts = jnp.stack([form.drift(schedule, m, x, t) for form in forms])
    means = jnp.stack([form.denoise(schedule, m, x, t) for form in forms])
    np.testing.assert_allclose(drifts, jnp.broadcast_to(drifts[0], drifts.shape), rtol=1e-4)
    np.testing.assert_allclose(means, jnp.broadcast_to(means[0], means.shape), rtol=1e-4)


@jax.jit
def posterior_and_moments(noise):
    post = linear_posterior(mixture(2), jnp.asarray([[1.0, 0.5]]), jnp.asarray([0.5]), noise)
    return post, post.moments()


@pytest.mark.parametrize(
    ("noise", "weights", "mean", "std", "corr", "evidence"),
    [
        (0.3, (0.74736, 0.17164, 0.08100), (0.42135, -0.05270), (0.34082, 0.50703), -0.6115, -0.88012),
        (0.05, (0.77235, 0.15133, 0.07632), (0.50354, -0.01849), (0.24793, 0.48988), -0.9796, -0.90232),
    ],
)
def test_linear_posterior_against_numbers_worked_out_elsewhere(noise, weights, mean, std, corr, evidence):
    post, m = posterior_and_moments(noise)
    np.testing.assert_allclose(jnp.exp(post.log_weights), weights, atol=2e-5)
    np.testing.assert_allclose(m.mean, mean, atol=2e-5)
    np.testing.assert_allclose(jnp.sqrt(jnp.diagonal(m.cov)), std, atol=2e-5)
    np.testing.assert_allclose(m.cov[0, 1] / jnp.sqrt(m.cov[0, 0] * m.cov[1, 1]), corr, atol=2e-4)
    np.testing.assert_allclose(post.log_evidence, evidence, atol=2e-5)
