import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Predictive

from ppl_models.distributions import (
    EDM,
    RK4,
    Adaptive,
    Denoiser,
    DiffusionPrior,
    Exact,
    Hutchinson,
    Moments,
    Noise,
    Trigonometric,
    VariancePreserving,
    Velocity,
)
from ppl_models.distributions.analytic import IsotropicMixture, MixtureDenoiser, MixtureScore, linear_posterior
from tests.ppl_models.distributions.mixtures import mixture

VP, TRIG = VariancePreserving(), Trigonometric()
score_prior = jax.jit(lambda prior, x: prior.log_prob(x))


def vp_prior(d, *, fitted=True, **options):
    m = mixture(d)
    return DiffusionPrior(MixtureScore(VP), VP, (d,), params=m, base=m.moments() if fitted else None, **options)


def trig_prior(d=2, **options):
    return DiffusionPrior(Denoiser(MixtureDenoiser(TRIG)), TRIG, (d,), params=mixture(d), **options)


def rms_error(prior, d, n=64):
    m = mixture(d)
    x = m.sample(jax.random.key(1), n)
    return float(jnp.sqrt(((score_prior(prior, x) - m.log_prob(x)) ** 2).mean()))


@pytest.mark.parametrize("d", [2, 16, 64])
def test_log_prob_of_an_exact_score_is_the_mixture_density(d):
    assert rms_error(vp_prior(d, solver=RK4(n=40 if d == 2 else 80)), d) < 1e-3


def test_trigonometric_and_edm_schedules_agree_with_the_mixture_density():
    edm = DiffusionPrior(
        Denoiser(MixtureDenoiser(EDM())), EDM(), (2,), params=mixture(2), base=mixture(2).moments(), solver=RK4(40, 7.0)
    )
    assert rms_error(trig_prior(solver=RK4(n=40)), 2) < 1e-3
    assert rms_error(edm, 2) < 1e-3


def test_density_integrates_to_one():
    axis = jnp.linspace(-5, 5, 81)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1)
    mass = jnp.exp(score_prior(trig_prior(solver=RK4(n=40)), grid)).sum() * (10 / 80) ** 2
    assert abs(float(mass) - 1) < 1e-3


def test_the_unfitted_base_is_biased_and_warned_of():
    with pytest.warns(UserWarning, match=r"not the law of x_T.*Moments\.of\(data\)"):
        prior = vp_prior(16, fitted=False)
    assert rms_error(prior, 16, 256) > 2e-2
    with pytest.warns(UserWarning, match="is not the law"):
        DiffusionPrior(Denoiser(MixtureDenoiser(EDM())), EDM(), (2,), params=mixture(2))
    trig_prior(16)  # exact, so silent: warnings are errors here


def test_samples_have_the_moments_of_the_mixture_and_jit_takes_the_prior_as_an_argument():
    traces = []

    def draw(prior, key):
        traces.append(None)
        return prior.sample(key, (4000,))

    compiled = jax.jit(draw)
    x = compiled(trig_prior(solver=RK4(n=20)), jax.random.key(2))
    m = mixture(2).moments()
    np.testing.assert_allclose(x.mean(0), m.mean, atol=0.06)
    np.testing.assert_allclose(jnp.cov(x.T), m.cov, atol=0.08)
    compiled(trig_prior(solver=RK4(n=20)), jax.random.key(3))
    assert len(traces) == 1


def test_batches_expand_and_plates():
    prior = trig_prior(solver=RK4(n=2))
    x = jax.random.normal(jax.random.key(0), (3, 5, 2))

    @jax.jit
    def densities(x):
        expanded = prior.expand([3, 5])
        return prior.log_prob(x), prior.log_prob(x[1, 2]), jax.vmap(prior.log_prob)(x), expanded.log_prob(x)

    whole, one, mapped, expanded = densities(x)
    assert whole.shape == (3, 5) and one.shape == () and prior.expand([3, 5]).batch_shape == (3, 5)
    np.testing.assert_allclose(one, whole[1, 2], rtol=1e-5)
    np.testing.assert_allclose(mapped, whole, rtol=1e-5)
    np.testing.assert_allclose(expanded, whole, rtol=1e-5)
    drawn = jax.jit(lambda key: prior.expand([3, 5]).sample(key, (2,)))(jax.random.key(0))
    assert drawn.shape == (2, 3, 5, 2)

    def model(y=None):
        with numpyro.plate("data", 4):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    drawn = Predictive(model, num_samples=3)(jax.random.key(0))
    assert drawn["x"].shape == (3, 4, 2) and drawn["y"].shape == (3, 4, 2)


def test_image_shapes():
    prior = DiffusionPrior(Velocity(lambda p, x, t: p * x), TRIG, (2, 3), params=jnp.asarray(0.0), solver=RK4(n=3))
    x = jax.random.normal(jax.random.key(0), (4, 2, 3))
    np.testing.assert_allclose(prior.log_prob(x), dist.Normal().log_prob(x).sum((1, 2)), rtol=1e-4)
    assert prior.support(x).shape == (4,)
    gradient = jax.grad(lambda p: DiffusionPrior(prior.prediction, TRIG, (2, 3), params=p).log_prob(x).sum())(0.0)
    assert np.isfinite(gradient) and gradient != 0


def test_gradient_of_the_density_is_the_score():
    prior, x = vp_prior(2, solver=RK4(n=40)), jnp.asarray([0.3, -0.4])
    np.testing.assert_allclose(jax.grad(prior.log_prob)(x), MixtureScore(VP)(mixture(2), x, 0.0), rtol=1e-3)


def test_hutchinson_is_fixed_unbiased_and_exact_for_a_diagonal_jacobian():
    x = mixture(16).sample(jax.random.key(1), 32)
    exact = score_prior(trig_prior(16, solver=RK4(n=20)), x)
    one = trig_prior(16, solver=RK4(n=20), trace=Hutchinson(1))
    assert bool((score_prior(one, x) == score_prior(one, x)).all())
    keys = jax.random.split(jax.random.key(5), 32)
    errors = one.log_prob(x, keys=keys) - exact
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(32)
    linear = Velocity(lambda p, x, t: p * x)
    priors = [DiffusionPrior(linear, TRIG, (5,), params=jnp.arange(5.0), trace=t) for t in (Exact(), Hutchinson(1))]
    np.testing.assert_allclose(*[p.log_prob(jnp.ones(5)) for p in priors], rtol=1e-5)


def test_the_standard_error_of_a_hutchinson_density_covers_the_exact_trace():
    x = mixture(16).sample(jax.random.key(1), 400)
    run = jax.jit(lambda prior, x, keys: prior.log_prob_and_se(x, keys=keys))
    solver, keys = RK4(n=80), jax.random.split(jax.random.key(6), 400)
    exact, none = run(trig_prior(16, solver=solver), x, keys)
    assert float(none.max()) == 0.0
    found, se = run(trig_prior(16, solver=solver, trace=Hutchinson(4)), x, keys)
    inside = jnp.abs(found - exact) <= 3.1824 * se  # Student's law with 3 degrees of freedom
    assert 0.92 <= float(inside.mean()) <= 0.98
    # The variance is unbiased, with a long tail over data.
    assert float(((found - exact) ** 2).mean() / (se**2).mean()) == pytest.approx(1.0, abs=0.3)
    one, unknown = trig_prior(16, solver=solver, trace=Hutchinson(1)).log_prob_and_se(x[:2])
    assert one.shape == (2,) and bool(jnp.isnan(unknown).all())


def test_the_standard_error_of_an_adaptive_density_is_that_of_its_solver():
    pytest.importorskip("diffrax")
    x = mixture(2).sample(jax.random.key(1), 8)
    found, se = jax.jit(lambda p, x: p.log_prob_and_se(x))(trig_prior(solver=Adaptive(rtol=1e-3, atol=1e-3)), x)
    errors = jnp.abs(found - mixture(2).log_prob(x))
    assert float(se.max()) > 1e-5
    assert float(jnp.sqrt((errors**2).mean())) < 3 * float(jnp.sqrt((se**2).mean()))


def test_adaptive_solver_agrees():
    pytest.importorskip("diffrax")
    x = mixture(2).sample(jax.random.key(1), 16)
    adaptive = trig_prior(solver=Adaptive())
    np.testing.assert_allclose(score_prior(adaptive, x), mixture(2).log_prob(x), atol=1e-3)
    z = jax.random.normal(jax.random.key(0), (4, 2))
    np.testing.assert_allclose(adaptive.from_noise(z), trig_prior().from_noise(z), atol=1e-3)


def test_moments_of_data_full_and_diagonal():
    x = np.random.default_rng(0).normal(size=(50, 2, 3)) + 1
    full, diagonal = Moments.of(x), Moments.of(x, diagonal=True)
    np.testing.assert_allclose(jnp.diagonal(full.cov), diagonal.cov, rtol=1e-5)
    np.testing.assert_allclose(full.mean, x.reshape(50, 6).mean(0), rtol=1e-5)
    zero = Velocity(lambda p, x, t: jnp.zeros_like(x))
    priors = [DiffusionPrior(zero, VariancePreserving(start=1e-3), (2, 3), base=b) for b in (full, diagonal)]
    # One Gaussian of variance near 1: the two bases differ by order alpha^2 only.
    np.testing.assert_allclose(*[p.log_prob(x[:3]) for p in priors], atol=1e-3)
    assert priors[0].sample(jax.random.key(0), (2,)).shape == (2, 2, 3)


def test_nuts_through_the_ode():
    one = IsotropicMixture(jnp.zeros(1), jnp.asarray([[1.0, -1.0]]), jnp.asarray([0.5]))
    prior = DiffusionPrior(Denoiser(MixtureDenoiser(TRIG)), TRIG, (2,), params=one, solver=RK4(n=8))
    A, y = jnp.asarray([[1.0, 0.5]]), jnp.asarray([0.0])

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(A @ x, 0.3).to_event(1), obs=y)

    kernel = NUTS(model, max_tree_depth=4)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=200, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), y)
    exact = linear_posterior(one, A, y, 0.3).moments()
    x = mcmc.get_samples()["x"]
    np.testing.assert_allclose(x.mean(0), exact.mean, atol=0.08)
    np.testing.assert_allclose(x.std(0), jnp.sqrt(jnp.diagonal(exact.cov)), rtol=0.15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionPrior("net", TRIG, (2,)), "score must be a function"),
        (lambda: DiffusionPrior(Denoiser(MixtureDenoiser(TRIG)), TRIG, ()), "shape is that of one datum"),
        (lambda: DiffusionPrior(Velocity(lambda p, x, t: x[None]), TRIG, (2,)), "without a batch axis"),
        (lambda: DiffusionPrior(MixtureScore(TRIG), TRIG, (2,), params=mixture(2)), "alpha = 0"),
        (lambda: DiffusionPrior(Noise(lambda p, x, t: x), VP, (2,)), "small positive start"),
        (lambda: DiffusionPrior(Denoiser(lambda p, x, t: x), VP, (2,)), "small positive start"),
        (lambda: DiffusionPrior(Velocity(lambda p, x, t: x), VP, (2,)), "small positive start"),
        (lambda: vp_prior(2).log_prob(jnp.zeros((4, 3))), "expected data of shape"),
        (lambda: DiffusionPrior(MixtureScore(VP), VP, (2,), params=mixture(2), base=mixture(3).moments()), "2 values"),
        (lambda: Moments.of(np.zeros((1, 2))), "at least two"),
        (lambda: RK4(n=0), "whole number"),
        (lambda: Hutchinson(0), "n >= 1"),
        (lambda: Adaptive(rtol=0.0), "positive"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(make, message):
    with pytest.raises(ValueError, match=message):
        make()
