"""Staged training: what a coarse level reads, growth bit for bit, and what does not fit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpyro.handlers import substitute

from inference import fit
from ppl_models.datasets import load
from ppl_models.diffusion import (
    MLP,
    PRESETS,
    RK4,
    Diffusion,
    GuidedUNet,
    coarsen,
    fit_stages,
    grow,
    inside,
    learning,
    sample_stages,
    stages,
)
from ppl_models.function_spaces import SQUARE, TRIANGLE, from_square, pooled_noise, project, to_square
from ppl_models.networks.separable import pool
from ppl_models.networks.unet import PoolNoise, ScoreUNet, map_levels, resnet_form
from ppl_models.program import bind, spec_from_json, spec_to_json

KEY = jax.random.key(0)
NETWORK = GuidedUNet(2, (1, 1), groups=1, preconditioned=True)
SPEC = Diffusion((4, 4), network=NETWORK, solver=RK4(1, 1.75), probes=1)


@pytest.fixture(scope="module")
def net():
    """A network with a head at each level and weights away from their zero starts."""
    graph, params = nnx.split(dataclasses.replace(NETWORK, coarse_heads=True).score(1, 1).build(nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(params)
    moved = [
        leaf + 0.3 * np.random.default_rng(i).normal(size=leaf.shape).astype("f4") for i, leaf in enumerate(leaves)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved))


def bind_with(program, params):
    """The denoiser of a program with its fitted parameters."""
    with substitute(data=params):
        return bind("denoiser", program.views.modules["denoiser"])


def test_pooled_noise_is_noise_at_a_lower_level():
    x, eps = (jax.random.normal(jax.random.key(i), (3, 4, 4, 1)) for i in range(2))
    phi = jnp.asarray([0.2, 0.8, 1.5])
    wide = (-1, 1, 1, 1)
    noisy = jnp.cos(phi).reshape(wide) * x + jnp.sin(phi).reshape(wide) * eps
    pooled, level = PoolNoise().carry(noisy, jnp.log(jnp.tan(phi)))
    for i, angle in enumerate(np.asarray(phi, float)):
        alpha, sigma = pooled_noise(math.cos(angle), math.sin(angle), 1)
        np.testing.assert_allclose(level[i], math.log(sigma / alpha), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pooled[i], (alpha * pool(x) + sigma * 2 * pool(eps))[i], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs the noise level"):
        PoolNoise()(x)


def test_a_level_reads_inside_what_it_reads_alone(net):
    x, level = jax.random.normal(KEY, (2, 4, 4, 1)), jnp.asarray([-1.0, 0.5])

    @jax.jit
    def both(x, level):
        alone = net.at(0)(*PoolNoise().carry(x, level))
        form = resnet_form(net.unet)
        lifted = net.lifts[-1](x)
        return net.answers(x, level), alone, net.unet(lifted, level), form(net.unet.encoders[-1](lifted), level)

    answers, alone, whole, conjugate = both(x, level)
    np.testing.assert_allclose(answers[0], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole, conjugate, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(answers[0]).min()) > 0 and answers[0].shape == (2, 2, 2, 1)


def test_held_levels_have_the_same_answer_and_no_gradient(net):
    x, level = jax.random.normal(KEY, (2, 4, 4, 1)), jnp.asarray([-1.0, 0.5])
    graph, params = nnx.split(net)

    @jax.jit
    def run(params):
        loss = lambda p: (nnx.merge(graph, p).hold(1)(x, level) ** 2).sum()  # noqa: E731
        return loss(params), (nnx.merge(graph, params)(x, level) ** 2).sum(), jax.grad(loss)(params)

    held, free, gradient = run(params)
    assert held == free
    sizes = {0: [], 1: []}
    map_levels(lambda i, leaf: sizes[i].append(float(jnp.abs(leaf).max())), nnx.to_pure_dict(gradient))
    assert max(sizes[0]) == 0.0 and min(sizes[1]) > 0.0


def test_levels_of_parameters_add_up(net):
    sizes = {0: 0, 1: 0}

    def count(i, leaf):
        sizes[i] += leaf.size

    map_levels(count, nnx.to_pure_dict(nnx.state(net, nnx.Param)))
    assert sizes[0] == net.at(0).parameter_counts()["total"]
    assert sum(sizes.values()) == net.parameter_counts()["total"]


def test_staged_fit_keeps_the_coarse_model_bit_for_bit_and_samples_at_every_resolution():
    data = np.random.default_rng(0).normal(size=(32, 4, 4)).astype("f4")
    fits = fit_stages(
        fit, SPEC, data, steps=(3, 3), key=KEY, batch_size=8, average=0.9, progress=False,
        optimizer=lambda count: optax.adamw(1e-2, weight_decay=0.1),
    )  # fmt: skip
    first, last = fits
    program, params = inside(last.program, last.params, 0)
    assert program.spec == first.program.spec == stages(SPEC)[0]
    jax.tree.map(np.testing.assert_array_equal, params, first.params)
    x, phi = jax.random.normal(KEY, (5, 2, 2)), jnp.linspace(0.1, 1.5, 5)
    run = jax.jit(lambda params: bind_with(program, params)(x, phi))
    np.testing.assert_array_equal(run(params), run(first.params))
    drawn = sample_stages(last.program, last.params, KEY, 2)
    assert [d.shape for d in drawn] == [(2, 2, 2), (2, 4, 4)] and all(np.isfinite(d).all() for d in drawn)
    # The new level, and it alone, has learned.
    new = grow(first.program, first.params, stages(SPEC)[1], jax.random.split(jax.random.fold_in(KEY, 1), 3)[0])
    before = nnx.to_pure_dict(nnx.state(new.views.modules["denoiser"], nnx.Param))["net"]["net"]
    moved = {0: [], 1: []}
    after = last.params["denoiser$params"]["net"]["net"]
    change = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), before, after)
    map_levels(lambda i, leaf: moved[i].append(leaf), change)
    assert max(moved[0]) == 0.0 and max(moved[1]) > 1e-3


def test_a_masked_optimizer_leaves_frozen_levels_to_weight_decay_no_more():
    spec = stages(SPEC)[1]
    module = spec.build(KEY).views.modules["denoiser"]
    params = {"denoiser$params": nnx.to_pure_dict(nnx.state(module, nnx.Param))}
    optimizer = learning(optax.sgd(1.0), spec)
    ones = jax.tree.map(np.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    found = {0: set(), 1: set()}
    map_levels(lambda i, leaf: found[i].add(float(np.max(leaf))), updates["denoiser$params"]["net"]["net"])
    assert found == {0: {0.0}, 1: {-1.0}}


def test_stages_are_specs_of_every_resolution():
    whole = dataclasses.replace(PRESETS["triangle_digits"], network=GuidedUNet(16, (1, 2, 2)))
    found = stages(whole)
    assert [s.shape for s in found] == [(4, 4), (8, 8), (16, 16)]
    assert [s.levels for s in found] == [None, None, 17]
    assert [s.network.multipliers for s in found] == [(2,), (2, 2), (1, 2, 2)]
    assert [s.network.frozen for s in found] == [0, 1, 2]
    assert [s.network.frozen for s in stages(whole, freeze=False)] == [0, 0, 0]
    assert spec_from_json(spec_to_json(found[1])) == found[1]


def test_coarse_data_are_means_in_the_units_of_the_whole():
    spec = PRESETS["digits_multi_resnet"]
    grey = np.random.default_rng(0).integers(0, 17, (500, 8, 8)).astype(np.uint8)
    coarse = coarsen(spec, grey, (4, 4), KEY)
    expected = (grey + 0.5) / 17
    error = coarse - expected.reshape(500, 4, 2, 4, 2).mean((2, 4))
    assert np.abs(error).max() <= 0.5 / 17 and abs(error.std() * 17 - math.sqrt(1 / 48)) < 0.005
    assert coarsen(spec, grey, (8, 8), KEY) is grey
    for shape in ((3, 3), (4, 8), (16, 16), (0, 0)):
        with pytest.raises(ValueError, match="halved some times"):
            coarsen(spec, grey, shape, KEY)
    with pytest.raises(ValueError, match="data must have the shape"):
        coarsen(spec, grey[:, :4], (4, 4), KEY)


def test_what_does_not_fit_is_refused():
    first, last = stages(SPEC)
    program = first.build(KEY)
    other = dataclasses.replace(last, scale=2.0, network=dataclasses.replace(last.network, base=4))
    with pytest.raises(ValueError, match="base, scale do not fit"):
        grow(program, {}, other, KEY)
    with pytest.raises(ValueError, match="multipliers, shape do not fit"):
        grow(program, {}, first, KEY)
    with pytest.raises(ValueError, match=r"down='none'.*got mlp"):
        stages(dataclasses.replace(SPEC, network=MLP(8)))
    with pytest.raises(ValueError, match="down='pool'"):
        stages(dataclasses.replace(SPEC, network=GuidedUNet(2, (1, 1), down="pool")))
    with pytest.raises(ValueError, match="stages 0..0, got 1"):
        inside(program, {}, 1)
    with pytest.raises(ValueError, match="no heads"):
        inside(SPEC.build(KEY), {}, 0)
    with pytest.raises(ValueError, match="each of 2 stages"):
        fit_stages(fit, SPEC, None, steps=(3,), key=KEY)
    with pytest.raises(ValueError, match="no out, validation"):
        fit_stages(fit, SPEC, None, steps=(3, 3), key=KEY, out="x", validation=1)
    with pytest.raises(ValueError, match="all multipliers must be equal"):
        GuidedUNet(2, (1, 2), preconditioned=True)
    with pytest.raises(ValueError, match="frozen counts levels"):
        GuidedUNet(2, (1, 2), frozen=3)
    with pytest.raises(ValueError, match="use down='none'"):
        ScoreUNet(down="pool", pool_noise=True)
    with pytest.raises(ValueError, match="multiples of 2"):
        dataclasses.replace(SPEC, shape=(5, 4))


def test_triangle_digits_are_the_digits():
    x, factors = load("triangle_digits", n=20, seed=3)
    digits, same = load("digits", n=20, seed=3)
    assert x.dtype == np.uint8 and x.shape == (20, 16, 16)
    np.testing.assert_array_equal(factors["digit"], same["digit"])
    np.testing.assert_array_equal(from_square(TRIANGLE, jnp.asarray(x))[:, :8, :8], digits)
    # A 2 x 2 mean on the square is the mean over the parent cell of the triangle.
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8)).astype("f4"))
    by_square = pool(to_square(TRIANGLE, image)[..., None])[..., 0]
    parents = project(TRIANGLE.to_field(image), 4)
    np.testing.assert_allclose(SQUARE.to_field(by_square), parents, rtol=1e-5, atol=1e-6)
