"""A diffusion as the prior of a latent: with a known denoiser the evidence is known."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro import handlers

import inference
from inference.fitting import Fit
from inference.fitting.objectives import per_datum_elbo
from ppl_models.diffusion import (
    MLP,
    RK4,
    Diffusion,
    fit_joint_latent_prior,
    fit_latent_prior,
    with_joint_latent_prior,
    with_latent_prior,
)
from ppl_models.program import Program

KEY = jax.random.key(0)
A, NOISE = np.array([[1.0, 0.5], [0.0, 1.0], [0.3, -0.4]], "f4"), 0.5
SPEC = Diffusion((2,), network=MLP(width=8, depth=1, embedding=4), centre=0.5, scale=1.5, solver=RK4(8, 1.75))


def model(x=None, *, size=None):
    with numpyro.plate("data", size or x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1), infer={"ctx": None})
        numpyro.sample("x", dist.Normal(z @ A.T, NOISE).to_event(1), obs=x)


def exact_posterior(mean, sd):
    """q(z | x) of the linear Gaussian model with prior N(mean, sd^2 I)."""
    precision = A.T @ A / NOISE**2 + np.eye(2) / sd**2
    cov = np.linalg.inv(precision)
    return lambda x: (
        lambda site, ctx: dist.MultivariateNormal(
            (x @ A / NOISE**2 + mean / sd**2) @ cov, covariance_matrix=jnp.asarray(cov)
        )
    )


def program(mean=0.0, sd=1.0):
    return Program(None, model, exact_posterior(mean, sd), ("z",), (3,))


def test_a_silent_denoiser_is_a_gaussian_prior_and_the_evidence_is_known():
    # v = 0: z ~ N(.5, 1.5^2 I); with the exact posterior under that prior every importance weight is p(x).
    both = with_latent_prior(program(0.5, 1.5), "z", SPEC.build(KEY))
    sites = handlers.trace(handlers.seed(both.model, KEY)).get_trace(jnp.zeros((1, 3)))
    params = {"latent_prior$params": sites["latent_prior$params"]["value"]}
    x = np.random.default_rng(0).normal(size=(12, 3)).astype("f4")
    table = inference.evidence(Fit(both, params, {}, None, {}), x, particles=32, key=KEY, progress=False)
    cov = 1.5**2 * A @ A.T + NOISE**2 * np.eye(3)
    exact = dist.MultivariateNormal(0.5 * A.sum(1), covariance_matrix=cov).log_prob(x)
    np.testing.assert_allclose(table["log_px"], exact, atol=2e-3)
    assert (table["se"] < 1e-3).all()
    drawn = handlers.seed(handlers.substitute(both.model, data=params), KEY)
    z = handlers.trace(drawn).get_trace(size=2000)["z"]["value"]
    np.testing.assert_allclose([z.mean(), z.std()], [0.5, 1.5], atol=0.1)


@pytest.mark.slow
def test_it_learns_the_law_of_the_posterior_draws_and_predicts_better():
    # Data whose z come from two corners: with N(0, I) as the prior, log p(x) falls short by a known amount.
    rng = np.random.default_rng(1)
    z = rng.choice([-1.5, 1.5], (1200, 1)) + 0.2 * rng.normal(size=(1200, 2))
    x = (z @ A.T + NOISE * rng.normal(size=(1200, 3))).astype("f4")
    plain = Fit(program(), {}, {}, None, {})
    better, _ = fit_latent_prior(
        inference.fit, plain, x[:1000], steps=600, batch_size=256, learning_rate=3e-3, average=0.98, key=KEY,
        spec=dataclasses.replace(SPEC, network=MLP(width=32, depth=1, embedding=16), centre=0.0), progress=False,
    )  # fmt: skip
    log_px = [
        inference.evidence(f, x[1000:], particles=256, key=KEY, progress=False)["log_px"].mean()
        for f in (plain, better)
    ]
    parts = [
        dist.MultivariateNormal(c * A.sum(1), covariance_matrix=0.04 * A @ A.T + NOISE**2 * np.eye(3))
        for c in (-1.5, 1.5)
    ]
    truth = np.logaddexp(*(np.asarray(p.log_prob(x[1000:])) for p in parts)).mean() - math.log(2)
    assert log_px[0] < log_px[1] - 0.2 and log_px[1] < truth + 0.02


@pytest.mark.parametrize(
    ("site", "spec", "message"),
    [("y", SPEC, "no latent site"), ("z", dataclasses.replace(SPEC, shape=(3,)), "shape is")],
)
def test_what_cannot_work_is_refused(site, spec, message):
    with pytest.raises(ValueError, match=message):
        found = with_latent_prior(program(), site, spec.build(KEY))
        jax.eval_shape(lambda: handlers.seed(found.model, 0)(size=1))


class Exact(nnx.Module):
    """The denoiser of N(0, SD^2), with a weight that does nothing."""

    def __init__(self):
        self.weight = nnx.Param(jnp.zeros(()))

    def __call__(self, x, phi):
        a, s = jnp.cos(phi)[:, None], jnp.sin(phi)[:, None]
        return a * SD**2 / (a**2 * SD**2 + s**2) * x + self.weight[...]


SD = 0.6


def test_with_an_exact_denoiser_the_joint_elbo_is_that_of_the_gaussian_prior():
    spec = dataclasses.replace(SPEC, centre=0.5, scale=1.0, level_mean=-0.3, level_spread=1.6)
    diffusion = spec.build(KEY)
    diffusion = dataclasses.replace(
        diffusion, views=dataclasses.replace(diffusion.views, modules={"denoiser": Exact()})
    )
    plain = program(0.5, SD)
    joint = with_joint_latent_prior(plain, "z", diffusion)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), "float32")
    params = {"latent_prior$params": {"weight": jnp.zeros(())}}
    elbos = np.asarray(jax.jit(jax.vmap(lambda key: per_datum_elbo(joint, params, key, x)))(jax.random.split(KEY, 300)))
    # q is exact under N(.5, SD^2), so that the Gaussian ELBO is log p(x) itself.
    cov = SD**2 * A @ A.T + NOISE**2 * np.eye(3)
    exact = np.asarray(dist.MultivariateNormal(0.5 * A.sum(1), covariance_matrix=cov).log_prob(x)).mean()
    means = elbos.mean(1)
    assert abs(means.mean() - exact) < 4 * means.std() / np.sqrt(300) < 0.3
    slope = jax.grad(lambda w: per_datum_elbo(joint, {"latent_prior$params": {"weight": w}}, KEY, x).mean())
    assert np.isfinite(slope(jnp.zeros(()))) and float(slope(jnp.zeros(()))) != 0.0


def test_a_joint_fit_is_scored_by_the_ode():
    x = np.random.default_rng(1).normal(size=(40, 3)).astype("f4")
    fitted = fit_joint_latent_prior(
        inference.fit, program(0.5, 1.5), x, spec=SPEC, steps=2, batch_size=20, learning_rate=1e-9, key=KEY,
        progress=False,
    )  # fmt: skip
    table = inference.evidence(fitted, x[:4], particles=32, key=KEY, progress=False)
    cov = 1.5**2 * A @ A.T + NOISE**2 * np.eye(3)  # the silent denoiser of SPEC is N(.5, 1.5^2)
    exact = dist.MultivariateNormal(0.5 * A.sum(1), covariance_matrix=cov).log_prob(x[:4])
    np.testing.assert_allclose(table["log_px"], exact, atol=2e-3)
    assert "log p(z): ODE by RK4 with 8 steps, exact trace" in table.attrs["solver"]
    assert set(fitted.params) == {"latent_prior$params"} and len(fitted.history)


def test_the_prior_of_a_latent_is_given_no_class():
    with pytest.raises(ValueError, match="given no class"):
        with_latent_prior(program(), "z", dataclasses.replace(SPEC, classes=2).build(KEY))
