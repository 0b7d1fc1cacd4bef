"""The analytic test bed: a mixture of three isotropic Gaussians whose posterior under one observation is known."""

import jax.numpy as jnp
import numpy as np

from ppl_models.distributions.analytic import IsotropicMixture


def mixture(d):
    means = 2 * np.random.default_rng(0).normal(size=(3, d))
    return IsotropicMixture(
        jnp.log(jnp.asarray([0.5, 0.3, 0.2])), jnp.asarray(means, "float32"), jnp.asarray([0.3, 0.5, 0.7])
    )
