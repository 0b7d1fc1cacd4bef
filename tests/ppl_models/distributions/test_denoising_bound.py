import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_models.distributions import DenoisingBound, Trigonometric
from ppl_models.distributions.analytic import MixtureDenoiser
from tests.ppl_models.distributions.mixtures import mixture

ONE = MixtureDenoiser(Trigonometric())
KEY = jax.random.key(0)


def scaled(params, x, phi):
    """The exact denoiser of the mixture times a factor that fades with the noise: right at 1, wrong elsewhere."""
    factor, m = params
    blend = 1 + (factor - 1) * jnp.sin(phi)[:, None] ** 2
    return blend * jax.vmap(lambda x, phi: ONE(m, x, phi))(x, phi)


def estimate(factor, x, key, **options):
    return DenoisingBound(scaled, scaled, (2,), params=(factor, mixture(2)), key=key, **options).log_prob(x)


def test_the_exact_denoiser_makes_the_bound_tight_and_a_wrong_one_makes_it_lower():
    x = mixture(2).sample(jax.random.key(1), 256)
    exact = mixture(2).log_prob(x).mean()
    keys = jax.random.split(KEY, 200)
    means = {f: jax.jit(jax.vmap(lambda key, f=f: estimate(f, x, key).mean()))(keys) for f in (1.0, 0.5)}
    errors = {f: float(value.mean() - exact) for f, value in means.items()}
    assert abs(errors[1.0]) < 4 * float(means[1.0].std()) / math.sqrt(200)
    assert errors[0.5] < -4 * float(means[0.5].std()) / math.sqrt(200)


def test_the_cap_changes_the_gradient_and_never_the_value():
    x = mixture(2).sample(jax.random.key(1), 64)

    @partial(jax.jit, static_argnums=1)
    def value_and_slope(factor, cap):
        return jax.value_and_grad(lambda f: estimate(f, x, KEY, cap=cap).sum())(factor)

    (free, slope), (capped, capped_slope) = value_and_slope(0.5, math.inf), value_and_slope(0.5, 1.0)
    assert float(free) == pytest.approx(float(capped), rel=1e-5)
    step = 1e-2
    difference = (value_and_slope(0.5 + step, 1.0)[0] - value_and_slope(0.5 - step, 1.0)[0]) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=2e-3)
    assert abs(float(capped_slope)) < 0.8 * abs(float(slope))


def test_batches_and_a_fixed_key():
    x = mixture(2).sample(jax.random.key(1), 6).reshape(2, 3, 2)
    run = jax.jit(lambda x: estimate(1.0, x, KEY))
    assert run(x).shape == (2, 3)
    np.testing.assert_array_equal(run(x), run(x))
