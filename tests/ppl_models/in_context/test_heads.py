"""Prior-fitted networks of real symbols, of rows and of sets: densities, exact regression, two ways of reading."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, trace
from scipy import integrate, stats

from inference.coherence import exact_tree, one_step_gap, prequential
from ppl_models.in_context import Bars, Coin, Dice, Gaussian, InContext, LinearRegression, PriorFitted, Regression
from ppl_models.in_context.checks import exact_log_prob
from ppl_models.in_context.networks import rows_begun
from ppl_models.in_context.spec import SetEncoder

KEY = jax.random.key(0)


def test_bars_are_a_density_with_these_moments():
    logits = jnp.array([0.3, -1.0, 0.5, 1.2, -0.4])
    fn = Bars(logits, -1.0, 1.5, 0.7)
    z = np.linspace(-6.0, 6.5, 100_001)
    p = np.exp(np.asarray(fn.log_prob(z), float))
    total, mean, square = (integrate.trapezoid(z**k * p, z) for k in range(3))
    assert total == pytest.approx(1, abs=1e-4)
    assert float(fn.mean) == pytest.approx(mean, abs=2e-4)
    assert float(fn.variance) == pytest.approx(square - mean**2, abs=5e-4)
    edge = np.exp(fn.log_prob(np.array([-1 - 1e-6, -1 + 1e-6])))
    assert edge[0] == pytest.approx(edge[1], rel=1e-4)  # no step at the outer edges
    below = integrate.cumulative_trapezoid(p, z, initial=0.0)
    np.testing.assert_allclose(fn.cdf(z[::5000]), below[::5000], atol=1e-4)
    draws = np.asarray(fn.sample(KEY, (4000,)))
    assert stats.kstest(draws, lambda z: np.asarray(fn.cdf(jnp.asarray(z)))).pvalue > 0.01
    batch = Bars(jnp.stack([logits, -logits]), -1.0, 1.5, 0.7)
    np.testing.assert_allclose(batch.log_prob(jnp.array([0.1, 2.0]))[0], fn.log_prob(0.1), rtol=1e-6)


def test_a_silent_bar_head_says_the_prior_predictive():
    spoken = PriorFitted(head="bar").spoken(Gaussian(1.0, 2.0, 0.5))
    fn = spoken.predictive(jnp.zeros(spoken.predictive_width))
    z = np.linspace(-12, 14, 8001)
    law = stats.norm(1.0, np.sqrt(4.25))
    kl = integrate.trapezoid(law.pdf(z) * (law.logpdf(z) - np.asarray(fn.log_prob(jnp.asarray(z)), float)), z)
    assert abs(kl) < 1e-3


def test_regression_is_exact_bayes():
    rng = np.random.default_rng(0)
    D, rows, scale, noise = 2, 4, 1.5, 0.4
    z = np.concatenate([rng.normal(size=(rows, D)), rng.normal(size=(rows, 1))], 1)
    x, y = z[:, :D], z[:, D]
    law = stats.multivariate_normal(np.zeros(rows), scale**2 * x @ x.T + noise**2 * np.eye(rows))
    spec = InContext(Regression(D, scale, noise), PriorFitted(), shape=(rows * (D + 1),))
    said = exact_log_prob(spec, z.reshape(1, -1).astype("float32"))[0].reshape(rows, D + 1)
    assert said[:, D].sum() == pytest.approx(law.logpdf(y), rel=1e-4)
    np.testing.assert_allclose(said[:, :D], stats.norm.logpdf(x), rtol=1e-4)
    frame = prequential(LinearRegression(D, scale, noise), z.ravel()[D + 1 :], context=z.ravel()[: D + 1], key=KEY)
    np.testing.assert_allclose(frame["log_p"], said.ravel()[D + 1 :], rtol=1e-4)
    with pytest.raises(ValueError, match="numbers of rows in turn"):
        one_step_gap(LinearRegression(D), z[:1], np.zeros((1, 1, 3)))


def test_rows_begun():
    found = rows_begun(jnp.array([1.0, 2.0, 3.0]), 2)
    np.testing.assert_array_equal(found, [[1, 0, 1, 0], [1, 2, 0, 1], [3, 0, 1, 0]])


SMALL = {"width": 8, "layers": 2, "heads": 2, "hidden": 8}
CASES = {
    "bars": InContext(Gaussian(), PriorFitted(head="bar", parts=12, **SMALL), shape=(9,)),
    "mixture": InContext(Gaussian(), PriorFitted(head="mixture", parts=3, **SMALL), shape=(9,)),
    "rows": InContext(Regression(2), PriorFitted(**SMALL), shape=(9,)),
    "set": InContext(Dice(), PriorFitted(invariant=True, **SMALL), shape=(9,)),
    "set_of_rows": InContext(Regression(2), PriorFitted(invariant=True, **SMALL), shape=(9,)),
}


@pytest.mark.parametrize("name", CASES)
def test_read_at_once_and_one_symbol_at_a_time(name):
    spec = CASES[name]
    program = spec.build(KEY)
    x = program.observation.sampler(KEY, 2)
    with trace() as sites, seed(rng_seed=0):
        program.model(x)
    whole = np.asarray(sites["x"]["fn"].log_prob(sites["x"]["value"]))
    params = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    rule = program.exact.predictor(params, capacity=10)
    z = jnp.asarray(x[0]).astype("float32" if spec.task.symbols is None else "int32")

    @jax.jit
    def follow(z):
        step = lambda state, z: (rule.update(state, z), rule.predict(state).log_prob(z))  # noqa: E731
        state, said = jax.lax.scan(step, rule.init(z[:0]), z)
        state = rule.update(state, z[0])
        at_once = rule.update(rule.init(z), z[0])
        return said.sum(), jax.tree.leaves(rule.predict(at_once)), jax.tree.leaves(rule.predict(state))

    total, at_once, stepped = follow(z)
    assert float(total) == pytest.approx(float(whole[0]), abs=1e-4)
    for one, other in zip(at_once, stepped, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_network_of_sets_is_exchangeable():
    program = InContext(Coin(), PriorFitted(invariant=True, **SMALL), shape=(16,)).build(KEY)
    with trace() as sites, seed(rng_seed=0):
        program.model(size=1)
    params = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    rule = program.exact.predictor(params)
    z = np.random.default_rng(0).integers(0, 2, 14)
    p = jax.jit(lambda z: rule.predict(rule.init(z)).probs)
    orders = [float(p(jnp.asarray(np.random.default_rng(i).permutation(z)))) for i in range(20)]
    assert np.ptp(orders) <= 1e-6
    assert exact_tree(rule, z[:4], depth=4).row()["order_ratio"] >= 1  # it runs in double precision as others do


def test_errors():
    with pytest.raises(ValueError, match="rows of 3 numbers, got a length of 8"):
        InContext(Regression(2), PriorFitted(), shape=(8,))
    with pytest.raises(ValueError, match="learnt by a PriorFitted"):
        InContext(Regression(), SetEncoder(), shape=(8,))
    with pytest.raises(ValueError, match="bar head is of real symbols"):
        InContext(Coin(), PriorFitted(head="bar"), shape=(8,))
    with pytest.raises(ValueError, match="leave one out"):
        PriorFitted(invariant=True, positions=True)
