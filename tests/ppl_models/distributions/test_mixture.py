"""The mixture against closed forms, SciPy, scikit-learn and NumPyro's own mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from ppl_models.distributions import MixtureOfGaussians

K, D = 4, 3


def parameters(full):
    rng = np.random.default_rng(1)
    logits, means = rng.normal(size=K), rng.normal(size=(K, D))
    tril = np.tril(rng.normal(size=(K, D, D)), -1) + np.einsum("kd,de->kde", rng.uniform(0.3, 2, (K, D)), np.eye(D))
    tril = tril if full else tril * np.eye(D)
    return logits, means, tril


def build(full):
    logits, means, tril = (jnp.asarray(a, "float32") for a in parameters(full))
    if full:
        return MixtureOfGaussians(logits, means, scale_tril=tril)
    return MixtureOfGaussians(logits, means, jnp.diagonal(tril, axis1=1, axis2=2))


@pytest.fixture(params=[False, True], ids=["diag", "full"])
def full(request):
    return request.param


@pytest.fixture
def z():
    return jnp.asarray(np.random.default_rng(2).normal(size=(7, D)) * 2, "float32")


def scipy_component_log_probs(full, z):
    logits, means, tril = parameters(full)
    columns = [multivariate_normal(m, L @ L.T).logpdf(z) for m, L in zip(means, tril, strict=True)]
    return np.stack(columns, -1) + logits - logsumexp(logits)


def test_log_prob_and_responsibilities_agree_with_scipy(full, z):
    want = scipy_component_log_probs(full, np.asarray(z, float))
    mixture = build(full)
    np.testing.assert_allclose(mixture.component_log_probs(z), want, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(mixture.log_prob(z), logsumexp(want, -1), rtol=2e-5, atol=2e-5)
    bayes = np.exp(want - logsumexp(want, -1, keepdims=True))
    np.testing.assert_allclose(mixture.responsibilities(z), bayes, atol=2e-5)


def test_agrees_with_sklearn(full, z):
    logits, means, tril = parameters(full)
    peer = GaussianMixture(K, covariance_type="full")
    peer.weights_, peer.means_ = np.exp(logits - logsumexp(logits)), means
    peer.covariances_ = tril @ tril.transpose(0, 2, 1)
    peer.precisions_cholesky_ = np.linalg.inv(tril).transpose(0, 2, 1)
    np.testing.assert_allclose(build(full).log_prob(z), peer.score_samples(np.asarray(z, float)), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(build(full).responsibilities(z), peer.predict_proba(np.asarray(z, float)), atol=2e-5)


def test_agrees_with_numpyro_mixtures(full, z):
    mixture = build(full)
    tril = mixture.scale_tril if full else mixture.scales[..., None] * jnp.eye(mixture.means.shape[-1])
    components = dist.MultivariateNormal(mixture.means, scale_tril=tril)
    peer = dist.MixtureSameFamily(dist.Categorical(logits=mixture.logits), components)
    np.testing.assert_allclose(mixture.log_prob(z), peer.log_prob(z), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mixture.mean, peer.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixture.variance, peer.variance, rtol=1e-5)


def test_full_of_a_diagonal_is_the_diagonal(z):
    logits, means, tril = (jnp.asarray(a, "float32") for a in parameters(False))
    full = MixtureOfGaussians(logits, means, scale_tril=tril)
    np.testing.assert_allclose(full.log_prob(z), build(False).log_prob(z), rtol=1e-6, atol=1e-6)


def test_sample_moments(full):
    mixture, n = build(full), 40_000
    draws = np.asarray(jax.jit(lambda key: mixture.sample(key, (n,)))(jax.random.key(0)), float)
    standard_error = np.sqrt(np.asarray(mixture.variance) / n)
    assert np.all(np.abs(draws.mean(0) - mixture.mean) < 5 * standard_error)
    np.testing.assert_allclose(draws.var(0), mixture.variance, rtol=0.05)
    if full:
        logits, means, tril = parameters(True)
        pi = np.exp(logits - logsumexp(logits))
        centred = means - pi @ means
        covariance = np.einsum("k,kij->ij", pi, tril @ tril.transpose(0, 2, 1) + centred[:, :, None] * centred[:, None])
        np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.12)


def test_gradients_stay_finite_where_components_underflow(full):
    base = build(full)
    far = jnp.full((D,), 1e6, "float32")

    def loss(logits, means, z):
        args = {"scale_tril": base.scale_tril} if full else {"scales": base.scales}
        mixture = MixtureOfGaussians(logits.at[0].set(-jnp.inf), means, **args)
        return mixture.log_prob(z) + mixture.responsibilities(z)[1]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(base.logits, base.means, far)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
    assert np.all(gradients[1][0] == 0), "a component that is switched off gets no gradient"
    np.testing.assert_allclose(base.responsibilities(far).sum(), 1, rtol=1e-6)


def test_shapes_under_expand_vmap_jit_and_plate(full, z):
    mixture = build(full)
    assert (mixture.batch_shape, mixture.event_shape) == ((), (D,))
    expanded = mixture.expand((5, 7))
    assert expanded.sample(jax.random.key(0), (2,)).shape == (2, 5, 7, D)
    np.testing.assert_allclose(expanded.log_prob(z), jnp.tile(mixture.log_prob(z), (5, 1)), rtol=1e-6)
    # A distribution is a pytree: through jit as an argument, and a batch of mixtures through vmap.
    np.testing.assert_allclose(jax.jit(lambda m, v: m.log_prob(v))(mixture, z), mixture.log_prob(z), rtol=1e-5)
    by_datum = jax.vmap(lambda v: build(full).log_prob(v))(z)
    np.testing.assert_allclose(by_datum, mixture.log_prob(z), rtol=1e-5, atol=1e-5)
    many = jax.vmap(
        lambda shift: MixtureOfGaussians(
            mixture.logits, mixture.means + shift, mixture.scales, mixture.scale_tril
        ).log_prob(z[0] + shift)
    )(jnp.arange(3.0))
    np.testing.assert_allclose(many, jnp.full(3, mixture.log_prob(z[0])), rtol=1e-4)

    def model():
        with numpyro.plate("data", 7):
            numpyro.sample("z", mixture)

    site = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace()["z"]
    assert site["value"].shape == (7, D)
    assert site["fn"].log_prob(site["value"]).shape == (7,)


def test_batches_of_mixtures():
    means = jnp.zeros((2, 1, K, D)) + jnp.arange(5.0)[:, None, None]
    mixture = MixtureOfGaussians(jnp.zeros(K), means, jnp.ones((K, D)))
    assert mixture.batch_shape == (2, 5)
    assert mixture.sample(jax.random.key(0), (3,)).shape == (3, 2, 5, D)
    assert mixture.log_prob(jnp.zeros(D)).shape == (2, 5)
    assert mixture.mean.shape == mixture.variance.shape == (2, 5, D)
    np.testing.assert_allclose(mixture.mean[1, :, 0], jnp.arange(5.0), atol=1e-6)
    np.testing.assert_allclose(mixture.variance, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of scales"),
        ({"scales": jnp.ones((K, D)), "scale_tril": jnp.ones((K, D, D))}, "got both"),
        ({"scales": jnp.ones((K, 1))}, r"expected scales \(..., 4, 3\)"),
        ({"scale_tril": jnp.ones((K, D, 2))}, r"expected scale_tril \(..., 4, 3, 3\)"),
        ({"scales": jnp.zeros((K, D))}, "scales must be positive, got a smallest value of 0"),
        ({"scale_tril": -jnp.broadcast_to(jnp.eye(D), (K, D, D))}, "diagonal of scale_tril must be positive"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    # Shapes are checked here in code, not by the type hints, which are off outside the tests.
    build = MixtureOfGaussians.__init__
    build = getattr(build, "__wrapped__", build)
    mixture = object.__new__(MixtureOfGaussians)
    with pytest.raises(ValueError, match=message):
        build(mixture, jnp.zeros(K), jnp.zeros((K, D)), **arguments, validate_args=True)


def test_logits_and_means_must_agree():
    with pytest.raises(ValueError, match="expected logits"):
        init = MixtureOfGaussians.__init__
        getattr(init, "__wrapped__", init)(
            object.__new__(MixtureOfGaussians), jnp.zeros(3), jnp.zeros((K, D)), jnp.ones((K, D))
        )
