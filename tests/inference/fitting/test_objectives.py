"""The fused objective against NumPyro's own estimators and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import condition, seed, substitute, trace
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

from inference.fitting.objectives import fused_elbo, joint_draw, per_datum_elbo
from ppl_models.program import Posterior, Program, amortise
from tests.toy import PPCA, toy_data

KEY = jax.random.key(0)
PARAMS = {"W": jnp.asarray([[1.0, 0.2], [0.3, -1.0], [0.5, 0.5], [-0.4, 0.9]]), "b": jnp.ones(4), "s": jnp.asarray(0.7)}


@pytest.fixture(scope="module")
def program() -> Program:
    return PPCA().build(KEY)


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jnp.asarray(toy_data(64))


def log_px(x: jax.Array) -> np.ndarray:
    covariance = PARAMS["W"] @ PARAMS["W"].T + PARAMS["s"] ** 2 * jnp.eye(4)
    return np.asarray(dist.MultivariateNormal(PARAMS["b"], covariance).log_prob(x))


def test_with_the_exact_posterior_every_draw_gives_log_px(program: Program, x: jax.Array) -> None:
    loss, terms = fused_elbo(program, PARAMS, KEY, x)
    assert -float(loss) == pytest.approx(log_px(x).mean(), abs=1e-4) and float(terms.elbo) == pytest.approx(
        -float(loss)
    )
    np.testing.assert_allclose(per_datum_elbo(program, PARAMS, KEY, x), log_px(x), atol=1e-4)
    np.testing.assert_allclose(joint_draw(program, PARAMS, KEY, x).log_weight, log_px(x), atol=1e-4)


def test_free_bits_are_a_floor_under_each_kl(program: Program, x: jax.Array) -> None:
    _, terms = fused_elbo(program, PARAMS, KEY, x)
    likelihood, kl = sum(terms.log_lik.values()), float(terms.kl["z"])
    for free in (0.5 * kl, 2.0 * kl):
        loss, same = fused_elbo(program, PARAMS, KEY, x, weights={"free_bits": free, "kl": 0.5})
        assert float(loss) == pytest.approx(-float(likelihood) + 0.5 * max(kl, free), rel=1e-5)
        assert float(same.elbo) == pytest.approx(float(terms.elbo))  # what is reported stays the ELBO
    bounded = lambda p: fused_elbo(program, p, KEY, x, weights={"free_bits": 2.0 * kl})[0]  # noqa: E731
    bare = lambda p: -sum(fused_elbo(program, p, KEY, x)[1].log_lik.values())  # noqa: E731
    for a, b in zip(jax.tree.leaves(jax.grad(bounded)(PARAMS)), jax.tree.leaves(jax.grad(bare)(PARAMS)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def two_sites() -> Program:
    """``a, b ~ N(0, 1)``, ``x ~ N(a + b, 1)``; q is N(m_a, 1) and N(m_b, 1), so KL_a = m_a^2 / 2."""

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        with numpyro.plate("data", int(size or 0) if x is None else x.shape[0]):
            a = numpyro.sample("a", dist.Normal(0, 1), infer={"ctx": None})
            b = numpyro.sample("b", dist.Normal(0, 1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(a + b, 1), obs=x)

    def posterior(x: jax.Array) -> Posterior:
        means = {name: numpyro.param(f"mean_{name}", jnp.asarray(start)) for name, start in (("a", 2.0), ("b", 1.0))}
        return lambda site, ctx: dist.Normal(jnp.broadcast_to(means[site], x.shape), 1)

    return Program(None, model, posterior, ("a", "b"), ())


def test_free_bits_of_one_site_and_balanced_prices() -> None:
    """KL_a = 2, KL_b = 1/2: the floor of one site leaves the other alone; prices are proportional to KL + .01."""
    program, x, params = two_sites(), jnp.zeros(3), {"mean_a": jnp.asarray(2.0), "mean_b": jnp.asarray(1.0)}

    def loss(weights: dict[str, float], params: dict[str, jax.Array] = params) -> jax.Array:
        value, terms = fused_elbo(program, params, KEY, x, weights=weights)
        return value + terms.log_lik["x"]  # what is paid for the latents

    assert float(loss({})) == pytest.approx(2.5)
    assert float(loss({"free_bits/b": 0.7})) == pytest.approx(2.7)
    assert float(loss({"free_bits": 1.0, "free_bits/b": 0.1})) == pytest.approx(2.5)
    prices = np.array([2.01, 0.51]) / 1.26
    assert prices.mean() == pytest.approx(1)
    for gamma in (0.0, 0.3, 1.0):
        want = (1 - gamma + gamma * prices) @ [2.0, 0.5]
        assert float(loss({"balance": gamma})) == pytest.approx(want, rel=1e-5)
    slope = jax.grad(lambda p: loss({"balance": 1.0}, p))(params)  # d KL / d m = m; the price is a constant
    assert float(slope["mean_a"]) == pytest.approx(2.0 * prices[0], rel=1e-5)
    assert float(slope["mean_b"]) == pytest.approx(1.0 * prices[1], rel=1e-5)


def test_joint_draw_holds_the_densities_of_its_own_sample(program: Program, x: jax.Array) -> None:
    draw = joint_draw(program, PARAMS, KEY, x)
    z = draw.latents["z"]
    np.testing.assert_allclose(draw.log_prior["z"], dist.Normal(0, 1).log_prob(z).sum(-1), rtol=1e-5)
    mean = z @ PARAMS["W"].T + PARAMS["b"]
    np.testing.assert_allclose(draw.mean["x"], mean, rtol=1e-5)
    np.testing.assert_allclose(draw.log_lik["x"], dist.Normal(mean, 0.7).log_prob(x).sum(-1), rtol=1e-5)


def test_derived_guide_in_stock_numpyro(program: Program, x: jax.Array) -> None:
    svi = SVI(program.model, program.guide, numpyro.optim.Adam(1e-2), TraceMeanField_ELBO())
    state = jax.jit(svi.init)(KEY, x)
    for loss in (Trace_ELBO(), TraceMeanField_ELBO()):
        value = loss.loss(KEY, PARAMS, program.model, program.guide, x)
        assert float(value) == pytest.approx(-log_px(x).sum(), rel=1e-4)
    assert svi.get_params(state)["W"].shape == (4, 2)
    draws = Predictive(program.guide, params=PARAMS, num_samples=3)(KEY, x)
    assert draws["z"].shape == (3, 64, 2) and set(draws) == {"z"}
    prior = Predictive(substitute(program.model, data=PARAMS), num_samples=2)(KEY, size=5)
    assert prior["x"].shape == (2, 5, 4)


def test_conditioned_inside_the_handler_is_scored_under_the_prior(program: Program, x: jax.Array) -> None:
    z = jnp.zeros((64, 2))
    inside = condition(program.model, {"z": z})
    with seed(rng_seed=0), substitute(data=PARAMS), trace() as sites, amortise(q=program.posterior(x)):
        inside(x)
    np.testing.assert_allclose(sites["z"]["fn"].log_prob(z), dist.Normal(0, 1).log_prob(z).sum(-1))


def test_masked_prior_masks_the_kl(x: jax.Array) -> None:
    mask = jnp.arange(64) < 16

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        with numpyro.plate("data", 64), numpyro.handlers.mask(mask=mask):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(z.sum(-1, keepdims=True), 1.0).expand([64, 4]).to_event(1), obs=x)

    masked = Program(None, model, lambda x: lambda name, ctx: dist.Normal(x[:, :2], 0.5).to_event(1), ("z",), (4,))
    expected = dist.kl_divergence(dist.Normal(x[:, :2], 0.5).to_event(1), dist.Normal(0, 1).expand([2]).to_event(1))
    assert float(fused_elbo(masked, {}, KEY, x)[1].kl["z"]) == pytest.approx(float(expected[:16].sum()) / 64, rel=1e-5)


def test_errors_name_the_site_and_the_remedy(x: jax.Array) -> None:
    def no_context(x: jax.Array | None = None, *, size: int | None = None) -> None:
        with numpyro.plate("data", 64):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("x", dist.Normal(z[:, None], 1.0).expand([64, 4]).to_event(1), obs=x)

    def no_plate(x: jax.Array | None = None, *, size: int | None = None) -> None:
        z = numpyro.sample("z", dist.Normal(0, 1).expand([64, 2]).to_event(2), infer={"ctx": None})
        numpyro.sample("x", dist.Normal(z.sum(-1, keepdims=True), 1.0).expand([64, 4]).to_event(2), obs=x)

    q = lambda x: lambda name, ctx: dist.Normal(x[:, :2], 1.0).to_event(2)  # noqa: E731
    with pytest.raises(ValueError, match="'z' carries no context"):
        fused_elbo(Program(None, no_context, q, ("z",), (4,)), {}, KEY, x)
    with pytest.raises(ValueError, match="one value a datum"):
        joint_draw(Program(None, no_plate, q, ("z",), (4,)), {}, KEY, x)
    wrong = lambda x: lambda name, ctx: dist.Normal(x, 1.0).to_event(1)  # noqa: E731
    with pytest.raises(ValueError, match="event shape"):
        fused_elbo(Program(None, no_plate, wrong, ("z",), (4,)), {}, KEY, x)
