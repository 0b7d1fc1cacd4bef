"""Fully connected parts: sizes, who sees whom, and starting weights; strict promotion throughout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ppl_models.networks import mlp


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


MERGES = {
    "gated": lambda w, rngs: mlp.GatedAdd(w, 0.1, learned=False),
    "learnt": lambda w, rngs: mlp.GatedAdd(w, 0.5, learned=True),
    "concat": lambda w, rngs: mlp.Concat(w),
    "norm": lambda w, rngs: mlp.NormAdd(w, rngs=rngs),
}
SHAPE, WIDTHS, DIMS = (3, 4), (5, 6, 7), (2, 3, 4)


def size(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def draws(dims, batch=3):
    return [jnp.full((batch, d), 0.5 + j, "float32") for j, d in enumerate(dims)]


def decoder(kind, J=3, merge="gated"):
    if kind == "ladder":
        return mlp.LadderDecoder(SHAPE, WIDTHS[:J], DIMS[:J], nnx.elu, MERGES[merge], rngs=nnx.Rngs(0))
    return mlp.ConcatDecoder(SHAPE, WIDTHS, DIMS[:J], nnx.elu, rngs=nnx.Rngs(0))


def encoder(kind, J=3):
    rngs = nnx.Rngs(0)
    if kind == "ladder":
        return mlp.LadderEncoder(SHAPE, WIDTHS[:J], DIMS[:J], nnx.elu, rngs=rngs)
    make = mlp.SharedEncoder if kind == "shared" else mlp.SeparateEncoders
    return make(SHAPE, WIDTHS, DIMS[:J], nnx.elu, rngs=rngs)


@pytest.mark.parametrize("J", [1, 2, 3])
@pytest.mark.parametrize("kind", ["ladder", "shared", "separate"])
def test_encoders_give_one_gaussian_a_block(kind, J):
    heads = encoder(kind, J)(jnp.ones((2, *SHAPE)))
    assert [h[0].shape for h in heads] == [h[1].shape for h in heads] == [(2, d) for d in DIMS[:J]]


@pytest.mark.parametrize("J", [1, 3])
@pytest.mark.parametrize(("kind", "merge"), [*(("ladder", m) for m in MERGES), ("concat", "gated")])
def test_a_fade_of_zero_hides_a_block_and_stops_its_gradient(kind, merge, J):
    net, zs = decoder(kind, J, merge), draws(DIMS[:J])

    def total(zs, fades):
        return (net(zs, fades) ** 2).sum()

    assert net(zs, [1.0] * J).shape == (3, *SHAPE)
    for j in range(J):
        fades = [jnp.asarray(0.0 if k == j else 1.0) for k in range(J)]
        gradients = jax.grad(total)(zs, fades)
        assert [bool(jnp.any(g != 0)) for g in gradients] == [k != j for k in range(J)]


def test_gated_add_is_the_formula():
    b, r = jnp.ones((1, 4)), jnp.full((1, 4), 3.0)
    np.testing.assert_allclose(mlp.GatedAdd(4, 0.1, learned=False)(b, r, 0.5), 1 + 0.1 * 0.5 * 3, rtol=1e-6)
    assert size(mlp.GatedAdd(4, 0.1, learned=False)) == 0
    assert size(mlp.GatedAdd(4, 0.1, learned=True)) == 1


def test_norm_add_ignores_the_scale_of_a_rung():
    merge = mlp.NormAdd(4, rngs=nnx.Rngs(0))
    b, r = jnp.ones((1, 4)), jnp.array([[1.0, 2.0, -3.0, 4.0]])
    np.testing.assert_allclose(merge(b, 100.0 * r, 1.0), merge(b, r, 1.0), atol=1e-3)


def test_shallow_heads_do_not_see_deep_blocks():
    net = encoder("ladder")
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    def shallow(params):
        (loc, log_scale), *_ = nnx.merge(graph, params, rest)(jnp.ones((2, *SHAPE)))
        return (loc + log_scale).sum()

    gradients = jax.grad(shallow)(params)
    touched = [bool(jnp.any(gradients["blocks"][j]["linear"]["kernel"][...] != 0)) for j in range(3)]
    assert touched == [True, False, False]


def test_log_scales_are_bounded_and_their_gradient_lives():
    head = mlp.GaussianHead(4, 2, rngs=nnx.Rngs(0))
    h = jnp.full((1, 4), 1e4)
    assert float(jnp.abs(head(h)[1]).max()) <= mlp.LOG_SCALE_BOUND
    assert float(jnp.abs(jax.grad(lambda v: head(v)[1].sum())(h / 1e4)).max()) > 0


def test_weights_start_at_lecun_normal_and_zero_bias():
    linear = mlp.Dense(400, 300, nnx.relu, rngs=nnx.Rngs(0)).linear
    np.testing.assert_allclose(float(linear.kernel[...].std()) * math.sqrt(400), 1, rtol=0.02)
    assert float(jnp.abs(linear.bias[...]).max()) == 0


def test_published_mnist_sizes():
    """784-500-2000 with two heads of 5, and back: the counts of the paper's network, part by part."""
    layout = (28, 28), (500, 2000), (5, 5), nnx.relu
    enc = nnx.eval_shape(lambda: mlp.LadderEncoder(*layout, rngs=nnx.Rngs(0)))
    dec = nnx.eval_shape(lambda: mlp.LadderDecoder(*layout, MERGES["gated"], rngs=nnx.Rngs(0)))
    assert size(enc.blocks) == 1_394_500
    assert size(enc.heads) == 25_020
    assert size(dec.out) == 392_784
    assert size(dec) - size(dec.out) == 1_266_000
