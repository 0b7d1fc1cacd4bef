"""Particles against exact Bayes: conjugate programs, a quadrature, and the martingale within its error."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import betaln

from inference.coherence import one_step_gap
from ppl_models.in_context import BetaBernoulli, NormalNormal, conjugate, particles

N = 40


def coin(a=1.0, b=1.0):
    theta = numpyro.sample("theta", dist.Beta(a, b))
    with numpyro.plate("t", 3):
        numpyro.sample("z", dist.Bernoulli(theta))


def logit_coin():
    u = numpyro.sample("u", dist.Normal(0.5, 1.5))
    numpyro.sample("z", dist.Bernoulli(logits=u))


def bell(loc=0.0, scale=1.0):
    theta = numpyro.sample("theta", dist.Normal(loc, scale))
    numpyro.sample("z", dist.Normal(theta, 0.5).expand([1, 4]).to_event(1))


def two_latents():
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    sd = numpyro.sample("sd", dist.LogNormal(0.0, 0.5))
    numpyro.sample("z", dist.Normal(mean, sd))


@jax.jit
def _read(rule, z):
    """The states after 0..n symbols."""
    step = lambda state, z: (rule.update(state, z), state)  # noqa: E731
    last, states = jax.lax.scan(step, rule.init(z[:0]), z)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), states, last)


def _kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_beta_bernoulli():
    z = np.random.default_rng(0).binomial(1, 0.2, N)
    states = _read(particles(coin, 2.0, 1.0), z)
    rule = particles(coin, 2.0, 1.0)
    p = np.asarray(jax.vmap(lambda s: rule.predict(s).probs)(states))
    exact = (2 + np.append(0, z.cumsum())) / (3 + np.arange(N + 1))
    assert _kl(exact, p).max() <= 1e-3
    error = np.asarray(jax.vmap(rule.error)(states))
    assert (np.abs(p - exact) <= 4 * error + 1e-3).all() and error.max() < 0.02
    log_evidence = betaln(2 + z.sum(), 1 + N - z.sum()) - betaln(2, 1)
    assert float(states.log_evidence[-1]) == pytest.approx(log_evidence, abs=0.2)


@pytest.mark.slow
def test_normal_normal():
    z = np.random.default_rng(1).normal(0.8, 0.5, 12).astype("float32")
    rule, exact = particles(bell, capacity=16), NormalNormal(0.0, 1.0, 0.5)
    assert conjugate(bell) == exact
    states = _read(rule, z)
    grid = jnp.linspace(-12, 12, 801)
    said = np.asarray(jax.vmap(lambda s: rule.predict(s).log_prob(grid))(states), float)
    for n in range(13):
        fn = exact.predict(exact.init(jnp.asarray(z[:n])))
        log_p = stats.norm.logpdf(grid, float(fn.loc), float(fn.scale))
        p = np.exp(log_p)
        weight = p > 1e-12
        kl = np.sum((p * (log_p - said[n]))[weight]) * (grid[1] - grid[0])
        assert kl <= 1e-3
    fn = rule.predict(jax.tree.map(lambda a: a[-1], states))
    draws = fn.sample(jax.random.key(0), (500,))
    assert float(fn.mean) == pytest.approx(float(draws.mean()), abs=0.1)
    assert float(fn.cdf(fn.mean)) == pytest.approx(0.5, abs=0.02)


def test_a_program_without_closed_form_against_quadrature():
    z = np.random.default_rng(2).binomial(1, 0.9, N)
    rule = particles(logit_coin)
    p = np.asarray(jax.vmap(lambda s: rule.predict(s).probs)(_read(rule, z)))
    u = np.linspace(-9, 10, 4001)
    log_post = stats.norm.logpdf(u, 0.5, 1.5)
    for n in range(N + 1):
        weight = np.exp(log_post - log_post.max())
        exact = weight @ (1 / (1 + np.exp(-u))) / weight.sum()
        assert _kl(exact, p[n]) <= 1e-3
        if n < N:
            log_post += -np.logaddexp(0, -u if z[n] else u)


@pytest.mark.slow
def test_the_martingale_within_its_error():
    z = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1, 1])
    rule = particles(coin, capacity=12)
    gap = one_step_gap(rule, np.zeros((1, 0), int), z[None, None])[0, 0]
    error = np.asarray(jax.vmap(rule.error)(_read(rule, z)))[:-1]
    assert (gap <= 4 * error).all() and gap.max() > 1e-6
    assert gap[0] < 1e-12  # no move is due: exact Bayes under the discrete prior on the particles


@pytest.mark.slow
def test_several_latents_and_real_symbols():
    rule = particles(two_latents, size=300, capacity=8)
    state = jax.tree.map(lambda a: a[-1], _read(rule, np.array([0.3, -0.4, 1.0, 0.2], "float32")))
    assert state.theta.shape == (300, 2) and float(rule.effective(state)) >= 150
    assert 0.3 < float(rule.predict(state).variance) < 5


def test_errors():
    def discrete():
        k = numpyro.sample("k", dist.Categorical(jnp.ones(2) / 2))
        numpyro.sample("z", dist.Normal(k, 1.0))

    def regression():
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        numpyro.sample("z", dist.Normal(slope * jnp.arange(3.0), 1.0))

    with pytest.raises(ValueError, match=r"latent sites \['k'\] are discrete"):
        particles(discrete)
    with pytest.raises(ValueError, match="different laws"):
        particles(regression)
    with pytest.raises(ValueError, match="draw theta and then symbols"):
        particles(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)))
    with pytest.raises(ValueError, match="size of 10"):
        particles(coin, size=2)
    with pytest.raises(ValueError, match="exceeds the capacity of 3"):
        particles(coin, capacity=3).init(jnp.zeros(4, int))
    assert conjugate(coin) == BetaBernoulli()
