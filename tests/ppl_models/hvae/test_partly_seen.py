"""Images partly seen: what is missing drops out of the sum, exactly, and nothing else changes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, substitute, trace

from inference.fitting.objectives import init_params, joint_draw
from inference.fitting.sources import stored
from ppl_models.distributions import LogisticMixture
from ppl_models.hvae import HVAE, PRESETS, partly_seen
from ppl_models.hvae.partly_seen import seen

KEY = jax.random.key(0)
SPEC = HVAE(enc="1x1", dec="1x2", shape=(2, 3), levels=17, width=8, zdim=2, mid_ratio=0.5)
X = np.random.default_rng(0).integers(0, 17, (3, 2, 3)).astype("uint8")
THERE = np.array([[[1, 0, 1], [1, 1, 0]], [[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 1, 0]]], bool)


def quick(function):
    """``jax.jit`` that compiles fast rather than well: each of these programs runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def whole():
    program = SPEC.build(KEY)
    params = init_params(program, KEY, jnp.zeros((1, 2, 3)))[0]
    wave = lambda leaf: 0.3 * jnp.cos(jnp.arange(leaf.size, dtype="float32")).reshape(leaf.shape)  # noqa: E731
    return program, jax.tree.map(lambda leaf: leaf + wave(leaf), params)


def prepared(program, x):
    return program.observation.prepare(jax.tree.map(jnp.asarray, stored(program, x)), KEY, False)


def test_missing_pixels_are_summed_out(whole):
    """p(x_there | z) = sum over all fillings of the missing pixels of p(x | z), at the same z."""
    program, params = whole
    part = partly_seen(program)
    z = {name: jax.random.normal(jax.random.key(i), (3, 1, 1, 2)) for i, name in enumerate(program.latents)}

    @quick
    def log_lik(model_params, x):
        with substitute(data={**model_params, **z}), seed(rng_seed=0), trace() as sites:
            (part if isinstance(x, dict) else program).model(x)
        return sites["x"]["fn"].log_prob(sites["x"]["value"])

    x = prepared(part, {"x": X, "there": THERE})
    found = log_lik(params, x)
    row, missing = 0, np.argwhere(~THERE[0])
    total = -np.inf
    for values in itertools.product([0.0, 1.0], repeat=len(missing)):
        full = np.array(x["x"])
        for (i, j), value in zip(missing, values, strict=True):
            full[row, i, j] = value
        total = np.logaddexp(total, float(log_lik(params, jnp.asarray(full))[row]))
    assert float(found[0]) == pytest.approx(total, rel=1e-5)
    assert float(found[1]) == pytest.approx(float(log_lik(params, x["x"])[1]), rel=1e-5)  # nothing missing


def test_what_lies_under_the_mask_does_not_matter(whole):
    program, params = whole
    part = partly_seen(program, fill=X.mean(0))
    other = np.where(THERE, X, 16 - X)
    draw = quick(lambda x: joint_draw(part, params, KEY, x).log_weight)
    a, b = (np.asarray(draw(prepared(part, {"x": x, "there": THERE}))) for x in (X, other))
    np.testing.assert_array_equal(a, b)
    mine = prepared(part, {"x": X, "there": THERE})
    everything = quick(lambda x: joint_draw(program, params, KEY, x).log_weight)(mine["x"])
    np.testing.assert_allclose(a[1], everything[1], rtol=1e-5)
    assert abs(float(a[0]) - float(everything[0])) > 1e-3


def test_the_parts_of_a_colour_are_one_value():
    law = LogisticMixture(components=2).distribution(jax.random.normal(KEY, (1, 2, 2, 20)), {}, 4)
    x = jnp.asarray(np.random.default_rng(1).integers(0, 4, (1, 2, 2, 3)) / 3, "float32")
    there = jnp.asarray([[[True, False], [True, True]]])[..., None].repeat(3, -1)
    pixels = law.base_dist.log_prob(x)
    assert float(seen(law, there).log_prob(x)[0]) == pytest.approx(
        float(pixels[0, 0, 0] + pixels[0, 1].sum()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": X, "there": THERE.astype("uint8")}, "bool of shape"),
        ({"x": X, "there": np.zeros_like(THERE)}, "image 0 has no pixel that is there"),
        (X, "must hold the arrays"),
    ],
)
def test_wrong_masks_are_refused(whole, data, message):
    with pytest.raises(ValueError, match=message):
        stored(partly_seen(whole[0]), data)


def test_wrong_programs_and_fills_are_refused(whole):
    with pytest.raises(ValueError, match=r"expected shape \(2, 3\), got \(4,\)"):
        partly_seen(whole[0], fill=np.zeros(4))
    with pytest.raises(ValueError, match="programs of one image"):
        partly_seen(PRESETS["table"].build(KEY))
    colour = dataclasses.replace(SPEC, shape=(2, 2, 3), likelihood=LogisticMixture(components=2)).build(KEY)
    there = np.ones((1, 2, 2, 3), bool)
    there[0, 0, 0, 1] = False
    with pytest.raises(ValueError, match="same for the three channels"):
        stored(partly_seen(colour), {"x": np.zeros((1, 2, 2, 3), "uint8"), "there": there})
