"""Unknown variance, counts and mixtures, against the joint density by quadrature and the evidence in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import integrate, special, stats

from ppl_models.in_context.exact import GammaPoisson, Mixture, NormalInverseGamma
from ppl_models.in_context.predictors import BetaBernoulli, DirichletCategorical, NormalNormal, conjugate
from ppl_models.program import Predictor

REAL = np.array([0.3, -1.0, 2.0, 0.4])
COUNTS = np.array([3, 0, 5, 2])
BITS = np.array([1, 1, 0, 1, 1, 1])


def _said(rule, context, z):
    return float(jnp.exp(rule.predict(rule.init(jnp.asarray(context))).log_prob(z)))


def test_unknown_variance_against_quadrature_over_the_variance():
    loc, count, shape, rate = 0.5, 0.7, 1.5, 2.0
    rule = NormalInverseGamma(loc, count, shape, rate)

    def evidence(z):
        # Given v the symbols are jointly Gaussian: v (I + 11' / count); what is left is one integral over v.
        cov = np.eye(len(z)) + 1 / count

        def at(log_v):
            v = np.exp(log_v)
            normal = stats.multivariate_normal(np.full(len(z), loc), v * cov).pdf(z)
            return normal * stats.invgamma(shape, scale=rate).pdf(v) * v

        return integrate.quad(at, -8, 10, epsabs=1e-14, limit=200)[0]

    for z in (-2.0, 0.1, 1.7):
        want = evidence(np.append(REAL, z)) / evidence(REAL)
        assert _said(rule, REAL, z) == pytest.approx(want, rel=1e-5)


def test_counts_against_the_gamma_poisson_evidence():
    rule, (a, b) = GammaPoisson(2.0, 0.5), (2.0, 0.5)

    def log_evidence(z):
        s, n = z.sum(), len(z)
        constant = a * np.log(b) - special.gammaln(a) - special.gammaln(z + 1).sum()
        return constant + special.gammaln(a + s) - (a + s) * np.log(b + n)

    for z in (0, 3, 9):
        want = np.exp(log_evidence(np.append(COUNTS, z)) - log_evidence(COUNTS))
        assert _said(rule, COUNTS, z) == pytest.approx(want, rel=1e-4)
        theirs = stats.nbinom(a + COUNTS.sum(), (b + 4) / (b + 5)).pmf(z)
        assert _said(rule, COUNTS, z) == pytest.approx(theirs, rel=1e-4)


def test_mixture_of_betas_against_beta_functions():
    parts, weights = ((6.0, 2.0), (1.0, 5.0)), np.array([0.3, 0.7])
    rule = Mixture(tuple(BetaBernoulli(a, b) for a, b in parts), tuple(weights))

    def evidence(s, f):
        return sum(
            w * special.beta(a + s, b + f) / special.beta(a, b) for w, (a, b) in zip(weights, parts, strict=True)
        )

    state = rule.init(jnp.asarray(BITS))
    assert float(rule.predict(state).probs) == pytest.approx(evidence(6, 1) / evidence(5, 1), rel=1e-5)
    theta = np.linspace(0.01, 0.99, 5)
    prior = sum(w * stats.beta(a, b).pdf(theta) for w, (a, b) in zip(weights, parts, strict=True))
    want = prior * theta**5 * (1 - theta) / evidence(5, 1)
    np.testing.assert_allclose(jnp.exp(rule.posterior(state).log_prob(theta)), want, rtol=1e-4)


def test_mixture_of_normals_and_of_dice():
    parts, weights = (NormalNormal(-1.0, 0.5), NormalNormal(2.0, 0.3)), (2.0, 2.0)  # weights need not sum to one
    rule = Mixture(parts, weights)

    def evidence(z):
        size = len(z)
        return sum(
            0.5 * stats.multivariate_normal(np.full(size, p.loc), np.eye(size) + p.scale**2).pdf(z) for p in parts
        )

    assert _said(rule, REAL, 0.7) == pytest.approx(evidence(np.append(REAL, 0.7)) / evidence(REAL), rel=1e-4)
    dice = Mixture((DirichletCategorical((1.0, 2.0, 3.0)), DirichletCategorical((1.0, 2.0, 3.0))))
    alone = DirichletCategorical((1.0, 2.0, 3.0))
    rolled = jnp.array([0, 2, 2])
    np.testing.assert_allclose(
        dice.predict(dice.init(rolled)).probs, alone.predict(alone.init(rolled)).probs, rtol=1e-5
    )


@pytest.mark.parametrize(
    "rule, z",
    [
        (NormalInverseGamma(0.5, 0.7, 1.5, 2.0), REAL),
        (GammaPoisson(2.0, 0.5), COUNTS),
        (Mixture((BetaBernoulli(6.0, 2.0), BetaBernoulli()), (0.3, 0.7)), BITS),
    ],
    ids=repr,
)
def test_reading_on_is_reading_more(rule, z):
    assert isinstance(rule, Predictor)
    state = rule.init(jnp.asarray(z[:0]))
    for symbol in jnp.asarray(z):
        state = rule.update(state, symbol)
    whole = rule.init(jnp.asarray(z))
    for on, more in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(on, more, rtol=2e-5)


# ------------------------------------------------------------------------------------------------- by tracing
def _coin(prior):
    def program():
        theta = numpyro.sample("theta", prior)
        with numpyro.plate("t", 4):
            numpyro.sample("z", dist.Bernoulli(theta))

    return program


def _normal(scale_of_mean, scale=jnp.sqrt):
    def program():
        v = numpyro.sample("v", dist.InverseGamma(3.0, 1.5))
        m = numpyro.sample("m", dist.Normal(0.5, scale_of_mean(v)))
        with numpyro.plate("t", 4):
            numpyro.sample("z", dist.Normal(m, scale(v)))

    return program


def test_programs_are_recognised():
    def counts():
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
        numpyro.sample("z", dist.Poisson(rate).expand([4]).to_event(1))

    assert conjugate(counts) == GammaPoisson(2.0, 0.5)
    assert conjugate(_normal(lambda v: jnp.sqrt(v / 4))) == NormalInverseGamma(0.5, 4.0, 3.0, 1.5)
    mixing = dist.Categorical(probs=jnp.array([0.25, 0.75]))
    want = Mixture((BetaBernoulli(2.0, 5.0), BetaBernoulli(5.0, 1.0)), (0.25, 0.75))
    same = dist.MixtureSameFamily(mixing, dist.Beta(jnp.array([2.0, 5.0]), jnp.array([5.0, 1.0])))
    assert conjugate(_coin(same)) == want
    assert conjugate(_coin(dist.MixtureGeneral(mixing, [dist.Beta(2.0, 5.0), dist.Beta(5.0, 1.0)]))) == want


@pytest.mark.parametrize(
    "program", [_normal(lambda v: 2.0 + 0 * v), _normal(jnp.sqrt, lambda v: v)], ids=["independent mean", "scale v"]
)
def test_a_variance_used_otherwise_is_refused(program):
    with pytest.raises(ValueError, match="three sample sites is v ~ InverseGamma"):
        conjugate(program)


def test_errors():
    with pytest.raises(ValueError, match="count must be positive"):
        NormalInverseGamma(0.0, -1.0)
    with pytest.raises(ValueError, match="one number for each of 2 parts"):
        Mixture((BetaBernoulli(), BetaBernoulli()), (1.0,))
