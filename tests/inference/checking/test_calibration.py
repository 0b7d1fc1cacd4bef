"""Simulation-based calibration and the forward KL of amortised posteriors."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from inference import fit
from inference.checking.calibration import calibrate
from inference.fitting.forward import forward_kl, simulator
from inference.fitting.objectives import fused_elbo, init_params
from ppl_models.program import resolve

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def coin():
    return resolve("in_context:tiny").build(KEY)


def guided(program, spread, shift=0.0):
    """The program with its exact Beta posterior, standard deviation times ``spread``, logit-shifted mean."""

    def posterior(x=None, *, size=None):
        wide, off = numpyro.param("spread", jnp.ones(())), numpyro.param("shift", jnp.zeros(()))
        s, n = x.sum(-1), x.shape[-1]
        mass = (n + 3) / wide**2 - 1
        mean = jax.nn.sigmoid(jnp.log((1 + s) / (1 + n - s)) + off)
        return lambda site, ctx: dist.Beta(mean * mass, (1 - mean) * mass)

    params = {"spread": jnp.asarray(spread), "shift": jnp.asarray(shift)}
    return SimpleNamespace(program=dataclasses.replace(program, posterior=posterior), params=params, mutable={})


def test_the_exact_posterior_is_calibrated_and_wrong_ones_are_not(coin):
    exact = calibrate(guided(coin, 1.0), simulations=1000, draws=50, key=KEY)
    assert exact.table["p_holm"].min() > 0.01
    assert exact.table.loc["theta", "coverage_90"] == pytest.approx(0.9, abs=0.03)
    narrow = calibrate(guided(coin, 0.7), simulations=1000, draws=50, key=KEY).table.loc["theta"]
    assert narrow.p_value < 1e-4 and narrow.coverage_90 < 0.85 and narrow["mean"] == pytest.approx(0.5, abs=0.03)
    high = calibrate(guided(coin, 1.0, shift=0.5), simulations=1000, draws=50, key=KEY).table.loc["theta"]
    assert high.p_value < 1e-4 and high["mean"] < 0.42


def test_a_guide_that_returns_the_prior_is_seen_by_the_likelihood_only(coin):
    prior = dataclasses.replace(coin, posterior=lambda x=None, *, size=None: lambda site, ctx: dist.Beta(1.0, 1.0))
    fitted = SimpleNamespace(program=prior, params={}, mutable={})
    found = calibrate(fitted, simulations=500, draws=50, key=KEY)
    assert found.table.loc["theta", "p_value"] > 0.01 and found.table.loc["log_lik", "p_value"] < 1e-6
    tree = found.tree()
    assert tree["prior_sbc"]["theta"].shape == (1, 500)


def test_forward_kl_scores_the_latents_under_the_guide(coin):
    program, pairs = forward_kl(coin), simulator(coin)(KEY, 5)
    assert program.shape == {"x": (8,), "latents": {"theta": ()}} and program.observed == ("theta",)
    params, _, _ = init_params(program, KEY, program.observation.prepare(pairs, KEY, False))
    loss, terms = fused_elbo(program, params, KEY, program.observation.prepare(pairs, KEY, False))
    q = _posterior(coin, params, pairs["x"])
    assert float(loss) == pytest.approx(-float(q.log_prob(pairs["latents"]["theta"]).mean()), rel=1e-5)
    assert set(terms.log_lik) == {"theta"} and not terms.kl
    trained = fit(program, simulator(coin), steps=3, batch_size=4, key=KEY, progress=False)
    again = dataclasses.replace(trained, program=coin)
    table = calibrate(again, simulations=20, draws=5, chunk=10, key=KEY).table
    assert list(table.index) == ["theta", "log_lik", "log_q", "log_weight", "tarp"]


def _posterior(program, params, x):
    from numpyro.handlers import seed, substitute

    with seed(rng_seed=0), substitute(data=params):
        return program.posterior(x)("theta", None)


def test_errors(coin):
    no_latent = resolve("in_context:tiny_transformer").build(KEY)
    fitted = SimpleNamespace(program=no_latent, params={}, mutable={})
    with pytest.raises(ValueError, match="program with latents"):
        calibrate(fitted, key=KEY)
    with pytest.raises(ValueError, match="program with latents"):
        forward_kl(no_latent)
    with pytest.raises(ValueError, match="at least 10 simulations"):
        calibrate(guided(coin, 1.0), simulations=5, key=KEY)
    with pytest.raises(ValueError, match="simulated pairs only"):
        forward_kl(coin).model(size=3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(simulator(coin)(KEY, 2)))
