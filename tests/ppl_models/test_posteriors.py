"""Every family with richer posteriors: all of them start at the same place, and do what the contract asks."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, substitute, trace

from inference import Fit, refine
from inference.checking.semi_amortised import Local, refined_draw
from inference.checking.transport import reference, transport
from inference.fitting.objectives import fused_elbo, init_params, joint_draw, trace_posterior
from ppl_models.hvae import HVAE
from ppl_models.in_context.spec import Coin, Dice, Gaussian, InContext, SetEncoder
from ppl_models.mfcvae import MFCVAE, MLP, Facet
from ppl_models.mfcvae.guides import means
from ppl_models.program import resolve, spec_from_json, spec_to_json, take

KEY = jax.random.key(0)
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles much, runs once
TINY = resolve("mfcvae:tiny")
VIEWED = (dataclasses.replace(TINY.facets[0], view="contrast"), TINY.facets[1])
SPECS = {
    "mfcvae, ladder": TINY,
    "mfcvae, separate": dataclasses.replace(TINY, shape=(8, 8, 1), facets=VIEWED, network=MLP((8,), separate=True)),
    "mfcvae, table": resolve("mfcvae:table_two"),
    "hvae": dataclasses.replace(resolve("hvae:tiny"), enc="8x1,8d8,1x1", dec="1x1,8m1", width=8),
    "in_context, dice": InContext(Dice(), SetEncoder(width=8), shape=(6,)),
}


SLOW = ("mfcvae, ladder", "mfcvae, separate", "mfcvae, table")


def with_posterior(spec, posterior):
    if isinstance(spec, InContext):
        return dataclasses.replace(spec, network=dataclasses.replace(spec.network, posterior=posterior))
    return dataclasses.replace(spec, posterior=posterior)


def stored(program, n=6):
    if isinstance(program.shape, tuple) and getattr(program.spec, "levels", None) is not None:
        levels = program.spec.levels
        return np.random.default_rng(0).integers(0, levels, (n, *program.shape)).astype("uint8")
    drawn = trace(seed(program.model, KEY)).get_trace(size=n)
    return jax.tree.map(np.asarray, program.from_draw({name: drawn[name]["value"] for name in program.observed}))


def moved(program, x, by=0.05):
    params, transforms, mutable = init_params(program, KEY, x)
    params = jax.tree.map(lambda leaf: leaf + by * jax.random.normal(KEY, leaf.shape), params)
    values = {name: value if isinstance(value, dict) else transforms[name](value) for name, value in params.items()}
    return values, mutable


@pytest.mark.parametrize(
    "name, posterior",
    [
        # The flows of the larger networks compile for 20 s each.
        *(pytest.param(name, "flow", marks=pytest.mark.slow if name in SLOW else ()) for name in SPECS),
        ("mfcvae, ladder", "full"),
        ("hvae", "full"),
    ],
)
def test_draws_densities_noise_and_refinement(name, posterior):
    spec = with_posterior(SPECS[name], posterior)
    assert spec_from_json(spec_to_json(spec)) == spec
    program = spec.build(KEY)
    data = stored(program)
    x = program.observation.prepare(jax.tree.map(jnp.asarray, data), KEY, False)
    params, mutable = moved(program, x)

    @quick
    def both_ways(params):
        found = {}
        for name, site in trace_posterior(program, params, KEY, x, mutable=mutable).items():
            if "prior" not in site.get("infer", {}):
                continue
            q, z, way = site["fn"], site["value"], transport(reference(site["fn"]))
            prior = site["infer"]["prior"].sample(jax.random.key(1))
            finite = jnp.isfinite(q.log_prob(prior)).all() & jnp.isfinite(way.back(prior)).all()
            found[name] = z, way.to(way.back(z)), q.log_prob(z), q.log_prob(1.0 * z), finite
        return found, jax.value_and_grad(lambda p: fused_elbo(program, p, KEY, x, mutable=mutable)[0])(params)

    found, gradient = both_ways(params)
    assert list(found) == sorted(program.latents)
    for z, again, own, fresh, finite in found.values():
        np.testing.assert_allclose(again, z, atol=2e-3)
        np.testing.assert_allclose(own, fresh, atol=5e-3)
        assert finite
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_refinement_starts_from_a_flow():
    program = dataclasses.replace(TINY, posterior="flow").build(KEY)
    data = stored(program, 2)
    params, mutable = moved(program, program.observation.prepare(jnp.asarray(data), KEY, False))
    refined = refine(
        Fit(program, params, mutable, None, {}), data, steps=2, draws=2, particles=32, key=KEY, progress=False
    )
    assert refined.kept == () and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(refined.locals.q))
    # Without a step the refined posterior is the guide: same density of the same draw.
    local = take(refined.locals, 0)
    zero = jax.tree.map(jnp.zeros_like, local.q)
    x = program.observation.prepare(jnp.asarray(data[:1]), KEY, False)
    shares = jnp.array([1.0, 0.0, 0.0])
    draw = quick(lambda key: refined_draw(program, params, key, x, Local(local.noise, zero, shares)))(KEY)
    q = substitute(program.posterior, data=params)(x)
    first, second = (draw.latents[name] for name in program.latents)
    np.testing.assert_allclose(draw.log_q["z_style"], q("z_style", ()).log_prob(jnp.array(first)), atol=2e-3)
    np.testing.assert_allclose(draw.log_q["z_digit"], q("z_digit", (first,)).log_prob(jnp.array(second)), atol=2e-3)


@pytest.mark.parametrize("name", ["mfcvae, ladder", "hvae"])
def test_richer_posteriors_start_at_the_normal_one(name):
    found = {}
    for posterior in ("normal", "full", "flow"):
        program = with_posterior(SPECS[name], posterior).build(KEY)
        x = program.observation.prepare(jnp.asarray(stored(program)), KEY, False)
        q = trace_posterior(program, {}, KEY, x)[program.latents[0]]["fn"]
        found[posterior] = q.log_prob(0.3 * jnp.ones(q.shape()))
    np.testing.assert_allclose(found["full"], found["normal"], atol=1e-3)
    np.testing.assert_allclose(found["flow"], found["normal"], atol=1e-3)


@pytest.mark.parametrize("first", [1, 2])
def test_a_full_posterior_is_one_gaussian_of_all_facets(first):
    spec = MFCVAE(
        (Facet("a", first, 2), Facet("b", 5 - first, 2)), (4,), levels=17, network=MLP((8,)), posterior="full"
    )
    program = spec.build(KEY)
    x = program.observation.prepare(jnp.arange(4, dtype="uint8")[None], KEY, False)
    params, _ = moved(program, x, by=0.4)

    def joint(z):
        q = substitute(program.posterior, data=params)(x)
        return (q("z_a", ()).log_prob(z[None, :first]) + q("z_b", (z[None, :first],)).log_prob(z[None, first:]))[0]

    hessian = jax.hessian(joint)
    S = jnp.linalg.inv(-hessian(jnp.zeros(5)))
    np.testing.assert_allclose(hessian(jnp.ones(5)), hessian(jnp.zeros(5)), rtol=1e-3, atol=1e-4)  # quadratic
    assert jnp.abs(S[:first, first:]).max() > 1e-3  # correlated across facets
    mean = S @ jax.grad(joint)(jnp.zeros(5))
    np.testing.assert_allclose(joint(mean), -0.5 * jnp.linalg.slogdet(2 * jnp.pi * S)[1], atol=1e-3)
    found = means(substitute(program.posterior, data=params)(x), ("a", "b"), KEY)
    np.testing.assert_allclose(jnp.concatenate([found["a"][0], found["b"][0]]), mean, atol=1e-3)


@pytest.mark.parametrize("bound, posterior", [("meanfield", "full"), ("sampled", "full"), ("sampled", "flow")])
def test_bounds_stay_below_the_marginal_one(bound, posterior):
    spec = dataclasses.replace(TINY, posterior=posterior)
    program = dataclasses.replace(spec, bound=bound, bound_draws=8).build(KEY)
    x = program.observation.prepare(jnp.asarray(stored(program)), KEY, False)
    params, _ = moved(program, x, by=0.03)

    def divergence(program):
        kl = lambda key: sum(fused_elbo(program, params, key, x)[1].kl.values())  # noqa: E731
        return jax.jit(lambda keys: jax.lax.map(kl, keys))(jax.random.split(KEY, 100))

    # The bound is on log p(x), so its divergence is at least the marginal one's, but for the noise of the draws.
    more = divergence(program) - divergence(spec.build(KEY))
    assert more.mean() > -4 * more.std() / 10 and abs(more.mean()) < 5


def test_old_and_wrong_names():
    assert dataclasses.replace(TINY, posterior="diag") == TINY
    for family, posterior in (("mfcvae", "flows"), ("hvae", "wide")):  # from a file; in Python the types refuse it
        with pytest.raises(ValueError, match=f"posterior: .*'normal', 'full'.*'flow'.*got '{posterior}'"):
            spec_from_json({"family": family, "preset": "tiny", "spec": {"posterior": posterior}})
    with pytest.raises(ValueError, match="with a flow use 'marginal', or 'sampled'"):
        dataclasses.replace(TINY, posterior="flow", bound="meanfield")
    with pytest.raises(ValueError, match="levels at resolution 1, dec '8x1' has none"):
        HVAE(enc="8x1", dec="8x1", shape=(8, 8), posterior="full")
    with pytest.raises(ValueError, match="theta of Coin is one number"):
        InContext(Coin(), SetEncoder(posterior="full"), shape=(4,))
    q = dataclasses.replace(TINY, posterior="full").build(KEY)
    x = q.observation.prepare(jnp.asarray(stored(q)), KEY, False)
    with pytest.raises(ValueError, match="reads the 1 facets before it"):
        q.posterior(x)("z_digit", None)


def test_the_predictive_of_a_mapped_gaussian_is_the_integral():
    """E_q p(z | theta) of theta ~ N(m, s^2): closed for the Gaussian task; for a coin against many draws."""
    spec = InContext(Gaussian(noise=0.5), SetEncoder(width=8, posterior="normal"), shape=(6,))
    rule = spec.build(KEY).exact.predictor(None)
    q, p = (f(rule.init(jnp.array([0.1, -0.3, 0.2]))) for f in (rule.posterior, rule.predict))
    step = q.transforms[0]
    np.testing.assert_allclose(p.mean, step.loc[0], rtol=1e-4)
    np.testing.assert_allclose(p.variance, step.scale[0] ** 2 + 0.25, rtol=1e-3)
    for task in (Coin(), Dice()):
        rule = InContext(task, SetEncoder(width=8, posterior="flow"), shape=(6,)).build(KEY).exact.predictor(None)
        state = rule.init(jnp.array([0, 1, 1]))
        draws = rule.posterior(state).sample(KEY, (20_000,)).mean(0)
        np.testing.assert_allclose(rule.predict(state).probs, draws, atol=0.015)


def test_joint_draw_of_a_chain_is_that_of_its_guide():
    program = dataclasses.replace(TINY, posterior="flow").build(KEY)
    x = program.observation.prepare(jnp.asarray(stored(program)), KEY, False)
    params, _ = moved(program, x, by=0.2)
    draw = joint_draw(program, params, KEY, x)
    q = substitute(program.posterior, data=params)(x)
    z = [draw.latents[name] for name in program.latents]
    again = [q(name, tuple(z[:j])).log_prob(jnp.array(z[j])) for j, name in enumerate(program.latents)]
    np.testing.assert_allclose(jnp.stack(list(draw.log_q.values())), jnp.stack(again), atol=5e-3)
