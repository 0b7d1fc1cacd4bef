"""Exact predictors against closed forms, found by tracing, and the named rules."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from ppl_models.in_context import rules
from ppl_models.in_context.predictors import BetaBernoulli, DirichletCategorical, NormalNormal, conjugate
from ppl_models.program import Predictor

BITS = jnp.array([1, 0, 0, 1, 1, 1, 0])
ALL_RULES = [
    BetaBernoulli(2.0, 0.5),
    NormalNormal(1.0, 2.0, 0.5),
    rules.Tempered(1.3),
    rules.Sticky(0.2),
    rules.Alternate(0.2),
    rules.Drift(0.0),  # a positive rate tells its own symbols from the context on purpose
    rules.Window(3),
    rules.Window(20),
    rules.Discounted(0.9),
    rules.Discounted(0.9, discount_prior=False),
    rules.Urn(),
]


@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_reading_on_is_reading_more(rule):
    assert isinstance(rule, Predictor)
    state = rule.init(BITS[:3])
    for z in BITS[3:]:
        state = rule.update(state, z)
    whole = rule.predict(rule.init(BITS))
    np.testing.assert_allclose(rule.predict(state).mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(rule.predict(state).variance, whole.variance, rtol=1e-5)


def test_closed_forms():
    assert float(BetaBernoulli(2.0, 0.5).predict(BetaBernoulli(2.0, 0.5).init(BITS)).probs) == pytest.approx(6 / 9.5)
    dice = DirichletCategorical((1.0, 2.0, 0.5))
    np.testing.assert_allclose(
        dice.predict(dice.init(jnp.array([2, 2, 0]))).probs, np.array([2.0, 2.0, 2.5]) / 6.5, rtol=1e-6
    )
    z = np.array([0.3, -1.0, 2.0])
    rule = NormalNormal(1.0, 2.0, 0.5)
    # The joint of (z_1..z_3, z_4) is Gaussian with covariance 4 + .25 [i = j]; condition it.
    cov = 4.0 * np.ones((4, 4)) + 0.25 * np.eye(4)
    gain = np.linalg.solve(cov[:3, :3], cov[:3, 3])
    predictive = rule.predict(rule.init(jnp.asarray(z)))
    assert float(predictive.loc) == pytest.approx(1 + gain @ (z - 1), rel=1e-5)
    assert float(predictive.scale) ** 2 == pytest.approx(4.25 - gain @ cov[:3, 3], rel=1e-5)


def test_normal_predictive_is_a_martingale():
    # The mean is linear in the next symbol, so its expectation is its value at the predictive mean.
    rule = NormalNormal(1.0, 2.0, 0.5)
    state = rule.init(jnp.array([0.3, -1.0]))
    fn = rule.predict(state)
    low, high = (rule.predict(rule.update(state, fn.loc + d)).loc for d in (-1.0, 1.0))
    assert float(low + high) / 2 == pytest.approx(float(fn.loc), rel=1e-6)
    # Law of total variance: Var z_{n+2} given z_{1:n} is that of z_{n+1}.
    after = rule.predict(rule.update(state, fn.loc)).variance
    assert float(after + ((high - low) / 2) ** 2 * fn.variance) == pytest.approx(float(fn.variance), rel=1e-5)


# ------------------------------------------------------------------------------------------------- by tracing
def _program(prior, likelihood, plate=True, name="z"):
    def program():
        theta = numpyro.sample("theta", prior)
        if plate:
            with numpyro.plate("t", 4):
                numpyro.sample(name, likelihood(theta))
        else:
            numpyro.sample(name, likelihood(theta).expand([4]).to_event(1))

    return program


@pytest.mark.parametrize("plate", [True, False])
def test_programs_are_recognised(plate):
    assert conjugate(_program(dist.Beta(0.1, 3.0), dist.Bernoulli, plate)) == BetaBernoulli(0.1, 3.0)
    logits = _program(dist.Beta(0.1, 3.0), lambda t: dist.Bernoulli(logits=jnp.log(t / (1 - t))), plate)
    assert conjugate(logits) == BetaBernoulli(0.1, 3.0)
    dice = _program(dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])), dist.Categorical, plate)
    assert conjugate(dice) == DirichletCategorical((1.0, 2.0, 3.0))
    real = _program(dist.Normal(1.0, 2.0), lambda t: dist.Normal(t, 0.3), plate)
    assert conjugate(real) == NormalNormal(1.0, 2.0, 0.3)


@pytest.mark.parametrize(
    "program, message",
    [
        (
            _program(dist.Gamma(1.0, 2.0), dist.Exponential),
            "no conjugate rule for a Gamma prior .* prior-fitted network",
        ),
        (_program(dist.Beta(1.0, 1.0), lambda t: dist.Bernoulli(t**2)), "transformation of 'theta'"),
        (_program(dist.Normal(0.0, 1.0), lambda t: dist.Normal(t, jnp.exp(t))), "scale of 'z' depends on 'theta'"),
        (
            _program(dist.Normal(0.0, 1.0), lambda t: dist.Normal(t, jnp.array([1.0, 1.0, 1.0, 2.0]))),
            "differs between elements",
        ),
        (_program(dist.Beta(1.0, 1.0).expand([3]).to_event(1), lambda t: dist.Bernoulli(t[0])), "one theta for one"),
        (lambda: numpyro.sample("theta", dist.Beta(1.0, 1.0)), r"two sample sites.*got \['theta'\]"),
    ],
)
def test_other_programs_are_refused_with_a_reason(program, message):
    with pytest.raises(ValueError, match=message):
        conjugate(program)


# ------------------------------------------------------------------------------------------------- named rules
def test_every_named_rule_is_written_as_its_help_says():
    for name, (_, how) in rules.RULES.items():
        assert how.startswith(name)
        takes = how.partition(" ")[0].partition(":")[2]
        values = {"A,B": "2,3", "W": "3", "": ""}.get(takes, "0.5")
        rule = rules.parse_rule(f"{name}:{values}" if values else name)
        assert 0 < float(rule.predict(rule.init(BITS)).mean) < 1
        assert jax.tree.unflatten(*reversed(jax.tree.flatten(rule))) == rule


@pytest.mark.parametrize(
    "text, message",
    [
        ("wndow:3", r"did you mean 'window'"),
        ("tempered", "wrong number of values; write tempered:T"),
        ("tempered:-1", "power must be positive"),
        ("ewma:2", "rate must be between 0 and 1"),
        ("window:0", "width must be a whole number >= 1"),
        ("sticky:x", "a value is a finite number"),
    ],
)
def test_misspelt_rules(text, message):
    with pytest.raises(ValueError, match=message):
        rules.parse_rule(text)


def test_rules_over_three_symbols_and_edges():
    dice = DirichletCategorical((1.0, 1.0, 1.0))
    sticky = rules.Sticky(0.5, dice)
    np.testing.assert_allclose(
        sticky.predict(sticky.init(jnp.array([2]))).probs, 0.5 * np.array([1, 1, 2]) / 4 + 0.5 * np.array([0, 0, 1])
    )
    empty = sticky.predict(sticky.init(jnp.zeros(0, int)))
    np.testing.assert_allclose(empty.probs, np.ones(3) / 3, rtol=1e-6)  # nothing to repeat yet
    with pytest.raises(ValueError, match="divides by the length of the context"):
        rules.Urn().init(jnp.zeros(0, int))
    with pytest.raises(ValueError, match="finite sets of symbols"):
        rules.Tempered(1.2, NormalNormal()).predict(NormalNormal().init(jnp.zeros(1)))
    assert stats.beta(3, 4).mean() == pytest.approx(float(BetaBernoulli().predict(BetaBernoulli().init(
        jnp.array([1, 0, 0, 1, 0]))).probs))  # fmt: skip
