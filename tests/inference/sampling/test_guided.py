"""Guidance on a mixture whose denoisers are known: the guided score is that of the densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference.sampling import Guided, draw
from ppl_models.distributions import Trigonometric

TRIG = Trigonometric()
MEANS, SD = jnp.asarray([-1.0, 1.0]), 0.5


def log_marginal(x, t, c=None):
    """log p_t(x | c), or of the even mixture of both."""
    a, s = TRIG.alpha(t), TRIG.sigma(t)
    var = a**2 * SD**2 + s**2
    each = -0.5 * (x - a * MEANS) ** 2 / var
    return each[c] if c is not None else jax.scipy.special.logsumexp(each)


def denoiser(c):
    """E[x_0 | x_t] by Tweedie's formula."""

    def denoise(x, t):
        score = jax.vmap(jax.grad(lambda x: log_marginal(x, t, c)))(x[:, 0])[:, None]
        return (x + TRIG.sigma(t) ** 2 * score) / jnp.maximum(TRIG.alpha(t), 1e-6)

    return denoise


def test_the_guided_score_raises_the_probability_of_the_class_to_a_power():
    x = jnp.linspace(-2, 2, 9)[:, None]
    for w in (0.0, 0.5, 2.0):
        guided = Guided(denoiser(1), denoiser(None), w)
        for t in (0.3, 0.9, 1.4):
            a, s = TRIG.alpha(t), TRIG.sigma(t)
            score = (a * guided(x, jnp.asarray(t)) - x) / s**2

            def log(x, t=t, w=w):  # p(x | c) p(c | x)^w, the class even
                return log_marginal(x, t, 1) + w * (log_marginal(x, t, 1) - log_marginal(x, t))

            np.testing.assert_allclose(score[:, 0], jax.vmap(jax.grad(log))(x[:, 0]), rtol=2e-3, atol=2e-3)


def test_it_is_a_denoiser_for_every_sampler_and_moves_away_from_the_other_class():
    z = jax.random.normal(jax.random.key(0), (500, 1))
    flow = Trigonometric(T=1.57)  # a little of the data left: Tweedie's formula divides by alpha
    drawn = [
        np.asarray(draw(Guided(denoiser(1), denoiser(None), w), flow, z, method="ddim", steps=24)) for w in (0.0, 2.0)
    ]
    np.testing.assert_allclose([drawn[0].mean(), drawn[0].std()], [1.0, SD], atol=0.08)
    assert drawn[1].mean() > drawn[0].mean() + 0.05 and (drawn[1] < 0).mean() < (drawn[0] < 0).mean()


@pytest.mark.parametrize("w", [-0.5, float("inf"), float("nan")])
def test_a_weight_that_cannot_be_meant_is_refused(w):
    with pytest.raises(ValueError, match="at least 0"):
        Guided(denoiser(0), denoiser(None), w)
