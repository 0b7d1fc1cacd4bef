"""Conditional flows: exact both ways, with the density of the autodiff Jacobian, and able to bend into a banana."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.transforms import ReshapeTransform, SigmoidTransform
from scipy.special import logsumexp

from inference.checking.transport import reference, transport
from ppl_models.distributions import (
    ConditionalFlow,
    MeanFieldMixture,
    MixtureOfGaussians,
    SampledMixture,
    ShapedGaussian,
)
from ppl_models.distributions.conditional_flow import unit_lower
from ppl_models.distributions.mixture import component_divergences
from ppl_models.networks.flow import BOX, CouplingFlow, inverse_spline, knots, spline

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers():
    """The numbers of a test do not depend on which tests ran before."""
    global rng
    rng = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * rng.normal(size=shape), "float32")


def bent(dim, context=2, scale=0.25):
    """Couplings whose weights all moved: far from the identity."""
    flow = CouplingFlow(dim, context, hidden=8, bins=4, rngs=nnx.Rngs(0))
    state = nnx.state(flow, nnx.Param)
    nnx.update(flow, jax.tree.map(lambda leaf: leaf + normal(*leaf.shape, scale=scale), state))
    return flow


def conditional(dim, batch=3, flow=None, **more):
    lower = unit_lower(normal(batch, dim * (dim - 1) // 2), dim)
    flow = flow or bent(dim)
    return ConditionalFlow(flow, normal(batch, 2), normal(batch, dim), jnp.exp(normal(batch, dim)), lower, **more)


def test_a_spline_is_monotone_continuous_and_inverts():
    k = jax.tree.map(lambda leaf: leaf[None], knots(normal(3 * 6 - 1, scale=2.0)))
    x = jnp.linspace(-BOX - 1, BOX + 1, 401)
    y, log_slope = spline(x, k)
    assert (jnp.diff(y) > 0).all() and (y[x <= -BOX] == x[x <= -BOX]).all()
    back, again = inverse_spline(y, k)
    np.testing.assert_allclose(back, x, atol=2e-4)
    np.testing.assert_allclose(again, log_slope, atol=5e-3)
    slope = jax.vmap(jax.grad(lambda at: spline(at[None], k)[0][0]))(x)
    np.testing.assert_allclose(jnp.log(slope), log_slope, atol=2e-4)
    np.testing.assert_allclose(spline(x, knots(jnp.zeros((1, 17))))[0], x, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_density_is_that_of_the_jacobian_at_own_draws_and_at_any_value(dim):
    q = conditional(dim)
    z = q.sample(jax.random.key(0))
    own, fresh = q.log_prob(z), q.log_prob(jnp.array(z))  # the first from the draw itself, the second by the inverse
    np.testing.assert_allclose(own, fresh, atol=1e-3)
    way = transport(reference(q))
    assert way.shape == (3, dim)
    for scale in (1.0, 4.0):
        z = normal(3, dim, scale=scale)  # as a prior draws them
        eps = way.back(z)
        np.testing.assert_allclose(way.to(eps), z, atol=1e-3)
        jacobian = jax.jacobian(way.to)(eps)
        log_det = [jnp.linalg.slogdet(jacobian[i, :, i])[1] for i in range(3)]
        pushed = dist.Normal(0, 1).log_prob(eps).sum(-1) - jnp.stack(log_det)
        np.testing.assert_allclose(q.log_prob(z), pushed, atol=5e-3)


def test_density_integrates_to_one_and_gradients_reach_both_directions():
    q = conditional(2, batch=1)
    # On a grid of the noise's base: z = loc + scale T u, u in a square.
    step, root = q.transforms[0], q.transforms[0].lower[0] * q.transforms[0].scale[0][:, None]
    grid = jnp.linspace(-8, 8, 401)
    u = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 1, 2)
    mass = jnp.exp(jax.jit(q.log_prob)(step.loc + u @ root.T)).sum() * 0.04**2 * jnp.prod(step.scale)
    assert abs(float(mass) - 1) < 5e-3
    flow, at = bent(2), normal(3, 2)

    def both(loc):
        q = ConditionalFlow(flow, at, loc, jnp.ones((3, 2)))
        return q.log_prob(at).sum() + q.log_prob(q.sample(jax.random.key(0))).sum()

    assert jnp.isfinite(jax.grad(both)(jnp.zeros((3, 2)))).all()


def test_it_starts_at_the_gaussian_without_couplings():
    flow, context, loc, scale = CouplingFlow(4, 2, rngs=nnx.Rngs(0)), normal(3, 2), normal(3, 4), jnp.exp(normal(3, 4))
    q, z = ConditionalFlow(flow, context, loc, scale), normal(3, 4, scale=3.0)
    np.testing.assert_allclose(q.log_prob(z), dist.Normal(loc, scale).to_event(1).log_prob(z), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        q.sample(jax.random.key(1)), dist.Normal(loc, scale).to_event(1).sample(jax.random.key(1)), atol=1e-5
    )


def test_further_maps_and_pytrees_keep_the_density():
    q = conditional(1, then=[ReshapeTransform((), (1,)), SigmoidTransform()])
    theta = q.sample(jax.random.key(0))
    assert theta.shape == (3,) and q.event_shape == () and ((theta > 0) & (theta < 1)).all()
    np.testing.assert_allclose(q.log_prob(theta), q.log_prob(jnp.array(theta)), atol=1e-3)
    grid = jnp.linspace(1e-4, 1 - 1e-4, 20_001)[:, None]
    np.testing.assert_allclose(jnp.exp(q.log_prob(grid)).sum(0) * (grid[1] - grid[0]), 1, atol=5e-3)
    leaves, tree = jax.tree.flatten(q)
    np.testing.assert_allclose(
        jax.tree.unflatten(tree, leaves).log_prob(jnp.array(theta)), q.log_prob(theta), atol=1e-3
    )


# --------------------------------------------------------------------------------------- closed forms and bounds
def mixture(kind=MixtureOfGaussians, full=True, **more):
    root = unit_lower(normal(4, 3, scale=0.4), 3) * jnp.exp(normal(4, 1, 3, scale=0.3))
    spread = {"scale_tril": root} if full else {"scales": jnp.exp(normal(4, 3, scale=0.3))}
    return kind(normal(4), normal(4, 3), **spread, **more)


@pytest.mark.parametrize("full", [True, False])
def test_divergences_of_a_full_gaussian_from_components_are_numpyros(full):
    p = mixture(full=full)
    q = dist.MultivariateNormal(normal(2, 3), scale_tril=unit_lower(normal(2, 3), 3) * 0.7)
    S = p.scale_tril if full else p.scales[:, :, None] * jnp.eye(3)
    for c in range(4):
        expected = kl_divergence(q, dist.MultivariateNormal(p.means[c], scale_tril=S[c]).expand([2]))
        np.testing.assert_allclose(component_divergences(q, p)[:, c], expected, rtol=1e-4)
    bound = MeanFieldMixture(p.logits, p.means, p.scales, p.scale_tril)
    expected = -jax.nn.logsumexp(jax.nn.log_softmax(p.logits) - component_divergences(q, p), -1)
    np.testing.assert_allclose(kl_divergence(q, bound), expected, rtol=1e-5)


def test_bounds_with_draws_of_a_flow_rise_with_their_number_from_the_divergence():
    flow, context = bent(3), normal(2, 2)
    p = MixtureOfGaussians(jnp.zeros(2), jnp.array([[-1.0, 0, 0], [1.0, 0, 0]]), jnp.ones((2, 3)))

    @jax.jit
    def excess(noise):
        q = ConditionalFlow(flow, context, jnp.zeros((2, 3)), jnp.ones((2, 3)))
        z = q.at(noise)
        found = kl_divergence(q, SampledMixture(p.logits, p.means, p.scales, noise=noise))
        return (found - (q.log_prob(1.0 * z) - p.log_prob(z)).mean(0)).mean()

    noise = jax.random.normal(jax.random.key(0), (64, 2, 3))
    one, few = (np.mean([excess(part) for part in noise.reshape(-1, L, 2, 3)]) for L in (1, 4))
    np.testing.assert_allclose(one, 0, atol=1e-3)
    assert 0.02 < few < excess(noise)


def test_the_sampled_bound_of_a_full_gaussian_is_that_of_a_flow_at_its_start():
    loc, scale, p = normal(2, 3), jnp.exp(normal(2, 3)), mixture()
    lower, noise = unit_lower(normal(2, 3), 3), normal(5, 2, 3)
    bound = SampledMixture(p.logits, p.means, scale_tril=p.scale_tril, noise=noise)
    full = dist.MultivariateNormal(loc, scale_tril=scale[..., None] * lower)
    flow = ConditionalFlow(CouplingFlow(3, 2, rngs=nnx.Rngs(0)), normal(2, 2), loc, scale, lower)
    np.testing.assert_allclose(kl_divergence(flow, bound), kl_divergence(full, bound), atol=1e-3)


def test_a_shaped_gaussian_has_the_closed_form_of_the_vector():
    full = dist.MultivariateNormal(normal(2, 3), scale_tril=unit_lower(normal(2, 3), 3) * 0.7)
    loc, scale = normal(2, 1, 1, 3), jnp.exp(normal(2, 1, 1, 3))
    q, prior = ShapedGaussian(full, (1, 1, 3)), dist.Normal(loc, scale).to_event(3)
    root = scale[:, 0, 0, :, None] * jnp.eye(3)
    expected = kl_divergence(full, dist.MultivariateNormal(loc[:, 0, 0], scale_tril=root))
    np.testing.assert_allclose(kl_divergence(q, prior), expected, rtol=1e-4)
    z = q.sample(jax.random.key(0))
    assert z.shape == (2, 1, 1, 3)
    np.testing.assert_allclose(q.log_prob(z), full.log_prob(z[:, 0, 0]), rtol=1e-5)


# ------------------------------------------------------------------------------------------------- a known posterior
def log_joint(z):
    """z ~ N(0, I), 1 | z ~ N(z_1 - z_0^2, .3^2): a banana."""
    return dist.Normal(0, 1).log_prob(z).sum(-1) + dist.Normal(z[..., 1] - z[..., 0] ** 2, 0.3).log_prob(1.0)


def test_a_flow_recovers_a_banana_that_no_gaussian_does():
    """KL(q || p(z | x)) = E_q[log q - log p(x, z)] + log p(x), log p(x) by quadrature."""
    grid = np.linspace(-6, 6, 601)
    z = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1), "float32")
    log_px = logsumexp(np.asarray(log_joint(z), float)) + 2 * np.log(grid[1] - grid[0])

    def divergence(make, params, key, n):
        q = make(params)
        z = q.sample(key, (n,))
        return (q.log_prob(z) - log_joint(z)).mean() + log_px

    def fitted(make, params, steps=700):
        optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

        def step(carry, key):
            params, state = carry
            grads = jax.grad(lambda p: divergence(make, p, key, 64))(params)
            moves, state = optimiser.update(grads, state)
            return (optax.apply_updates(params, moves), state), None

        keys = jax.random.split(jax.random.key(0), steps)
        start = (params, optimiser.init(params))
        (params, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, keys))(start)
        return float(divergence(make, params, jax.random.key(1), 20_000))

    graph, weights = nnx.split(CouplingFlow(2, 1, hidden=16, rngs=nnx.Rngs(0)))

    def flow(params):
        return ConditionalFlow(nnx.merge(graph, params[0]), jnp.ones(1), params[1], jnp.exp(params[2]))

    def full(params):
        return dist.MultivariateNormal(params[0], scale_tril=unit_lower(params[2], 2) * jnp.exp(params[1])[:, None])

    start = jnp.zeros(2), -jnp.ones(2)
    assert fitted(flow, (weights, *start)) < 0.03
    assert fitted(full, (*start, jnp.zeros(1))) > 0.15
