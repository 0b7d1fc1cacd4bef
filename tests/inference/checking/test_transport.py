"""Maps from noise: exact where they claim to be, and Gaussians over the noise against NumPyro's densities."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from inference.checking.gaussians import Gaussian, start
from inference.checking.transport import reference, transport

rng = np.random.default_rng(0)
ROOT = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.5]], "float32")
EXACT = {
    "normal": dist.Normal(jnp.array([[0.5, -1.0, 2.0]]), 0.7).to_event(1),
    "expanded": dist.Normal(0.5, 0.7).expand([3]).to_event(1).expand([1]),
    "masked": dist.Normal(jnp.ones((1, 3)), 2.0).to_event(1).mask(True),
    "lognormal": dist.LogNormal(jnp.zeros((1, 3)), 0.4).to_event(1),
    "multivariate": dist.MultivariateNormal(jnp.ones((1, 3)), scale_tril=ROOT),
    "low rank": dist.LowRankMultivariateNormal(jnp.ones((1, 3)), jnp.asarray(ROOT[:, :1]), jnp.array([0.3, 0.4, 0.5])),
    "laplace": dist.Laplace(jnp.ones((1, 3)), 2.0).to_event(1),
    "flow": dist.TransformedDistribution(
        dist.Normal(jnp.zeros((1, 3)), 1.0).to_event(1),
        [dist.transforms.LowerCholeskyAffine(jnp.ones(3), jnp.asarray(ROOT)), dist.transforms.ExpTransform()],
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_pushed_noise_has_the_density_of_the_distribution(name):
    d = EXACT[name]
    way = transport(reference(d))
    assert way.shape == (1, 3)
    for _ in range(3):
        eps = jnp.asarray(rng.normal(size=(1, 3)), "float32")
        z = way.to(eps)
        np.testing.assert_allclose(way.back(z), eps, atol=2e-3)
        jacobian = jax.jacobian(lambda e: way.to(e).reshape(-1))(eps).reshape(3, 3)
        pushed = dist.Normal(0, 1).log_prob(eps).sum() - jnp.linalg.slogdet(jacobian)[1]
        np.testing.assert_allclose(d.log_prob(z)[0], pushed, atol=2e-3)


@pytest.mark.parametrize(
    "d",
    [
        dist.Beta(jnp.array([[2.0, 30.0]]), 4.0).to_event(1),
        dist.Gamma(jnp.array([[10.0, 50.0]]), 2.0).to_event(1),
        dist.Dirichlet(jnp.array([[4.0, 9.0, 20.0]])),
        dist.Beta(8.0, 40.0).expand([1, 2]).to_event(1),
    ],
    ids=["beta", "gamma", "dirichlet", "expanded"],
)
def test_a_stand_in_has_the_moments_of_what_it_stands_for(d):
    near = reference(d)
    way = transport(near)
    z = jax.vmap(way.to)(jax.random.normal(jax.random.key(0), (20_000, *way.shape)))
    assert near.batch_shape == d.batch_shape and near.event_shape == d.event_shape
    np.testing.assert_allclose(z.mean(0), jnp.broadcast_to(d.mean, z.shape[1:]), rtol=0.05)
    np.testing.assert_allclose(z.std(0), jnp.broadcast_to(jnp.sqrt(d.variance), z.shape[1:]), rtol=0.15)


def test_counts_and_mixtures_have_no_map():
    parts = dist.Normal(jnp.zeros((1, 3)), 1.0)
    for d in (dist.Poisson(2.0), dist.MixtureSameFamily(dist.Categorical(probs=jnp.ones(3) / 3), parts)):
        assert transport(reference(d)) is None


@pytest.mark.parametrize("covariance", ["diag", "full", "low_rank"])
def test_densities_of_the_first_sites_are_marginals(covariance):
    begin = jax.tree.map(lambda a: a[0], start(1, 5, covariance, 2, jax.random.key(0)))
    q = jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape).astype("float32"), begin)
    D, square = np.diag(np.exp(q.log_scale)), np.eye(5)
    if covariance == "full":
        root = np.eye(5) + np.tril(q.lower, -1)
        square = root @ root.T
    elif covariance == "low_rank":
        square = np.eye(5) + q.factor @ q.factor.T
    S = np.asarray(D @ square @ D)
    eps, ends = jnp.asarray(rng.normal(size=5), "float32"), (2, 2, 4, 5)
    found = q.log_prob(eps, ends)
    for value, end in zip(found, ends, strict=True):
        law = dist.MultivariateNormal(q.loc[:end], S[:end, :end])
        np.testing.assert_allclose(value, law.log_prob(eps[:end]), rtol=2e-4, atol=2e-4)
    draws = q.draw(jax.random.key(1), 40_000)
    np.testing.assert_allclose(np.cov(draws.T), S, atol=0.05 * S.max())
    np.testing.assert_allclose(draws.mean(0), q.loc, atol=0.02)


def test_widening_keeps_correlations():
    q = Gaussian(jnp.zeros(3), jnp.zeros(3), lower=jnp.asarray(ROOT))
    draws = [np.cov(g.draw(jax.random.key(0), 200).T) for g in (q, q.widened(1.5))]
    np.testing.assert_allclose(draws[1], 1.5**2 * draws[0], rtol=1e-4)
