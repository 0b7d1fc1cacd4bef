"""Missing pixels, known clusters, categorical levels, pruning weights, layers and views."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from flax import nnx
from numpyro.handlers import seed, substitute, trace
from scipy import stats
from scipy.special import logsumexp

from inference import fit
from inference.fitting.objectives import fused_elbo, init_params, joint_draw
from inference.fitting.sources import stored
from ppl_models.distributions import GreyLevels
from ppl_models.mfcvae import MFCVAE, MLP, Categorical, Dirichlet, Facet, Layers, LogisticMixture, Normal, pack
from ppl_models.mfcvae.mixture import mixture
from ppl_models.mfcvae.views import coarse, contrast
from ppl_models.networks.layers import LayersDecoder, start_colours

KEY = jax.random.key(0)
FACETS = (Facet("a", 1, 2), Facet("b", 2, 3, labelled=True))
X = np.random.default_rng(0).integers(0, 17, (6, 2, 3)).astype("uint8")


def spec_of(**more):
    return MFCVAE(**{"facets": FACETS, "shape": (2, 3), "levels": 17, "network": MLP((4,)), **more})


def drawn(spec, x):
    program = spec.build(KEY)
    program.observation.check(x)
    ready = program.observation.prepare(jax.tree.map(jnp.asarray, x), KEY, False)
    params, _, _ = init_params(program, KEY, ready)
    return program, params, ready, joint_draw(program, params, KEY, ready)


def test_a_known_cluster_is_scored_by_its_responsibility_and_an_unknown_one_by_nothing():
    """p(z) p(c | z) = p(c) p(z | c): the label's site adds log p(c | z), exactly."""
    spec = spec_of()
    c = np.array([0, 1, 2, -1, -1, 0])
    program, params, _, draw = drawn(spec, pack(spec, X, {"b": c}))
    assert program.shape == {"x": (2, 3), "c_b": ()} and program.observed == ("x", "c_b")
    resp = np.asarray(mixture(params["mixture_b"]).responsibilities(draw.latents["z_b"]))
    expected = np.where(c < 0, 0.0, np.log(resp[np.arange(6), np.maximum(c, 0)]))
    np.testing.assert_allclose(draw.log_lik["c_b"], expected, atol=1e-5)
    plain = dataclasses.replace(spec, facets=(FACETS[0], dataclasses.replace(FACETS[1], labelled=False)))
    without = joint_draw(plain.build(KEY), params, KEY, jnp.asarray(X, "float32") / 16)
    np.testing.assert_allclose(draw.log_lik["x"], without.log_lik["x"], rtol=1e-5)
    assert "known clusters of b" in program.observation.line and program.observation.bits_offset is None


def test_labels_pull_their_facet():
    """Ten labels a class suffice to name the clusters of well separated data."""
    rng = np.random.default_rng(0)
    c = np.repeat([0, 1], 100)
    x = np.clip(rng.normal(np.where(c, 12, 4)[:, None, None], 1, (200, 2, 3)), 0, 16).round().astype("uint8")
    spec = spec_of(facets=(Facet("b", 2, 2, labelled=True, refit=(100,)),), likelihood=Normal(0.1))
    labels = np.where(np.arange(200) % 10 == 0, 1 - c, -1)  # named the other way round than anyone would
    fitted = fit(
        spec.build(KEY), pack(spec, x, {"b": labels}), steps=300, batch_size=50, learning_rate=1e-2, key=KEY,
        progress=False,
    )  # fmt: skip
    unknown = fitted.prepare(pack(spec, x), KEY)
    resp = joint_draw(fitted.program, fitted.params, KEY, unknown).deterministic["resp_b"]
    assert (np.asarray(resp).argmax(1) == 1 - c).mean() > 0.95


def test_a_missing_pixel_is_summed_out_and_cannot_be_read():
    spec = spec_of(facets=FACETS[:1], missing=True, likelihood=Normal(0.2))
    gone = np.zeros(X.shape, bool)
    gone[0, 1, 2] = gone[1] = True
    program, params, ready, draw = drawn(spec, pack(spec, X, missing=gone))
    sites = trace(seed(substitute(program.model, data={**params, **draw.latents}), KEY)).get_trace(size=6)
    mean = np.asarray(sites["x"]["fn"].mean)
    by_hand = np.where(gone, 0.0, stats.norm(mean, 0.2).logpdf(X / 16)).sum((1, 2))
    np.testing.assert_allclose(draw.log_lik["x"], by_hand, rtol=1e-4)
    other = {"x": np.where(gone, 16 - X, X), "there": ~gone}  # what lies under the mask does not matter
    again = program.observation.prepare(jax.tree.map(jnp.asarray, other), KEY, False)
    jax.tree.map(np.testing.assert_array_equal, ready, again)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pack(spec_of(), X, {"c": np.zeros(6, int)}), "facet 'c' takes no labels.*labelled: b"),
        (lambda: pack(spec_of(), X, {"b": np.zeros(5, int)}), r"shape \(6,\), got \(5,\)"),
        (lambda: pack(spec_of(), X, missing=X > 3), "set missing=True"),
        (lambda: pack(spec_of(missing=True), X, missing=X[0] > 3), "shape of x"),
        (lambda: spec_of().build(KEY).observation.check(pack(spec_of(), X, {"b": np.full(6, 3)})), r"0\.\.2, or -1"),
        (lambda: stored(spec_of().build(KEY), X), r"'c_b' \(n\), 'x' \(n, 2, 3\), got one ndarray"),
        (lambda: stored(spec_of().build(KEY), {"x": X}), r"got leaves \['x'\]"),
        (lambda: stored(spec_of().build(KEY), {"x": X, "c_b": np.zeros(5)}), "differ in length"),
        (lambda: spec_of(facets=FACETS[:1]).build(KEY).observation.check(X.astype("int16") - 5), "from -5"),
        (lambda: spec_of(network=Layers((4,)), missing=True), "got Layers"),
        (lambda: spec_of(dirichlet=Dirichlet(0.5, 10), learn_weights=False), "learnt weights"),
        (lambda: Dirichlet(-1.0, 10), "concentration"),
        (lambda: spec_of(bound="tight"), "'tight'"),
        (lambda: spec_of(bound="sampled", bound_draws=0), "bound_draws"),
        (lambda: Facet("a", 2, 3, "low_rank", rank=2), "rank < dim"),
        (lambda: Facet("a", 2, 3, refit=(0,)), "refit"),
        (lambda: spec_of(facets=(Facet("a", 2, 3, view="coarse"),)), "encoder of its own"),
        (lambda: spec_of(facets=(Facet("a", 2, 3, view="coarse"),), network=MLP((4,), separate=True)), "multiples of"),
        (lambda: spec_of(likelihood=LogisticMixture(), network=Layers((4,))), "need MLP or MLPLadder, got Layers"),
        (lambda: spec_of(likelihood=LogisticMixture(), shape=(2, 2, 3), missing=True), "ties the channels of a colour"),
        (lambda: spec_of(facets=FACETS[:1], network=Layers((4,))), "got 1"),
        (lambda: spec_of(shape=(6,), network=Layers((4,))), "composes images"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_a_reason(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


# ---------------------------------------------------------------------------------------------- levels
def test_categorical_levels_are_a_probability_mass_on_the_unit_scale():
    law = GreyLevels(jnp.array([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]))
    every = jnp.linspace(0, 1, 3)[:, None] * jnp.ones(2)
    np.testing.assert_allclose(jnp.exp(law.log_prob(every)).sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(law.mean, (jnp.exp(law.log_prob(every)) * every).sum(0), rtol=1e-6)
    draws = law.sample(KEY, (20_000,))
    np.testing.assert_allclose(draws.mean(0), law.mean, atol=0.01)
    program, _, _, draw = drawn(spec_of(facets=FACETS[:1], likelihood=Categorical()), X)
    assert np.isfinite(draw.log_lik["x"]).all() and draw.mean["x"].shape == (6, 2, 3)
    assert program.observation.bits_offset == 0 and "17 levels" in program.observation.line


# --------------------------------------------------------------------------------------------- pruning
def test_the_dirichlet_prior_enters_training_only_and_prunes():
    spec = spec_of(facets=FACETS[:1], dirichlet=Dirichlet(0.5, 6))
    program, params, ready, draw = drawn(spec, X)
    loss = jax.jit(lambda p, w: fused_elbo(program, p, KEY, ready, weights={"dirichlet": w})[0])
    log_pi = jax.nn.log_softmax(params["mixture_a"]["logits"]).sum()
    np.testing.assert_allclose(loss(params, 1.0) - loss(params, 0.0), 0.5 / 6 * log_pi, rtol=1e-4)
    assert set(draw.log_lik) == {"x"} and float(program.training.weights["dirichlet"](0)) == 1
    moved = {**params, "mixture_a": {**params["mixture_a"], "logits": jnp.array([0.0, -3.0])}}
    slope = lambda w: jax.grad(loss)(moved, w)["mixture_a"]["logits"][1]  # noqa: E731
    assert slope(1.0) > slope(0.0)  # below one, the prior takes weight from a light cluster


# ------------------------------------------------------------------------------------- layers and views
def test_layers_compose_an_object_over_a_background():
    decoder = LayersDecoder((4, 4, 3), (8,), (1, 1, 2), jax.nn.relu, rngs=nnx.Rngs(0))
    zs = [jax.random.normal(k, (5, d)) for k, d in zip(jax.random.split(KEY, 3), (1, 1, 2), strict=True)]
    f = decoder(zs, [1.0] * 3)
    b, o = decoder.background(zs[0])[:, 0, 0], decoder.colour(zs[1])[:, 0, 0]
    # Every pixel lies on the segment between the two colours, at the same place in all channels.
    a = (f - b[:, None, None]) / (o - b)[:, None, None]
    np.testing.assert_allclose(a.max(-1), a.min(-1), atol=1e-4)
    assert (a > 0).all() and (a < 1).all()
    np.testing.assert_allclose(decoder(zs, [1.0, 0.0, 1.0]), decoder([zs[0], 0 * zs[1], zs[2]], [1.0] * 3))


def test_layers_start_in_the_colours_of_the_data():
    red, grey = jnp.array([0.9, 0.1, 0.1]), jnp.array([0.4, 0.4, 0.5])
    image = jnp.broadcast_to(grey, (10, 10, 3)).at[4:7, 4:6].set(red)
    for dims in ((1, 2), (1, 1, 2)):
        module = LayersDecoder((10, 10, 3), (8,), dims, jax.nn.relu, rngs=nnx.Rngs(0))
        params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        started = start_colours(params, image[None].repeat(3, 0), lambda colour: colour)
        colour = started["colour"] if len(dims) == 2 else started["colour"]["out"]["bias"]
        np.testing.assert_allclose(colour, red, atol=1e-6)
        np.testing.assert_allclose(started["background"]["out"]["bias"], grey, atol=1e-6)
        assert jax.tree.structure(started) == jax.tree.structure(params)


def test_views_show_what_they_say_and_the_encoder_of_a_facet_sees_no_more():
    x = jax.random.uniform(KEY, (2, 8, 8, 3))
    np.testing.assert_allclose(contrast(x)[0, 3, 4], np.linalg.norm(x[0, 3, 4] - x[0].mean((0, 1))), rtol=1e-5)
    np.testing.assert_allclose(coarse(x)[1, 2, 3], x[1, 4:6, 6:8].mean((0, 1)), rtol=1e-5)
    facets = (Facet("floor", 1, 2, view="coarse"), Facet("shape", 1, 2, view="contrast"))
    program = MFCVAE(facets, (8, 8, 3), network=MLP((4,), separate=True)).build(KEY)
    swapped = x.at[0, 0, 0].set(x[0, 1, 1]).at[0, 1, 1].set(x[0, 0, 0])  # within one block
    params, _, _ = init_params(program, KEY, x)
    run = jax.jit(
        lambda x: [substitute(program.posterior, data=params)(x)(f"z_{n}", None).mean for n in ("floor", "shape")]
    )
    (floor, shape), (floor_too, shape_too) = run(x), run(swapped)
    np.testing.assert_allclose(floor, floor_too, atol=1e-5)
    assert float(jnp.abs(shape - shape_too).max()) > 1e-4


def test_layers_and_their_start_reach_the_fit():
    x = np.full((20, 4, 4, 3), 100, "uint8")
    x[:, 1:3, 1:3] = (250, 20, 20)
    spec = MFCVAE((Facet("floor", 1, 2), Facet("shape", 1, 2)), (4, 4, 3), network=Layers((4,)))
    fitted = fit(spec.build(KEY), x, steps=1, batch_size=20, learning_rate=1e-6, key=KEY, progress=False)
    colour = jax.nn.sigmoid(fitted.params["decoder$params"]["colour"])
    np.testing.assert_allclose(colour, np.array([250, 20, 20]) / 255, atol=0.02)


def test_stock_predictive_draws_labels_and_pixels():
    program = spec_of(missing=True).build(KEY)
    drawn = numpyro.infer.Predictive(program.model, num_samples=2)(KEY, size=3)
    assert drawn["x"].shape == (2, 3, 2, 3) and drawn["c_b"].shape == (2, 3)
    assert logsumexp(np.log(drawn["resp_b"]), axis=-1) == pytest.approx(np.zeros((2, 3)), abs=1e-5)
