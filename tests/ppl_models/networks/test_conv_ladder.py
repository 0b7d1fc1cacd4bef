"""The convolutional ladder: its linear maps against other formulas, its sizes against the published ones, its fades."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ppl_models.networks import conv_ladder
from ppl_models.networks.conv_ladder import ConvLadderDecoder, ConvLadderEncoder, data_init

WIDTHS, DIMS, SIDE = (2, 3, 4), (2, 3, 1), {1: 8, 2: 16, 3: 32}


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def size(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def filled(make):
    """A module with numbers in place of its starting weights, which would compile one draw for each shape."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(make))
    draw = lambda a: (rng.normal if len(a.shape) > 1 else rng.random)(size=a.shape) / math.prod(a.shape[:-1]) ** 0.5  # noqa: E731
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(draw(a), "float32"), state))


def encoder(J, norm="layer", shape=None, weight_norm=False):
    make = partial(ConvLadderEncoder, shape or (SIDE[J], SIDE[J], 3), WIDTHS[:J], DIMS[:J], nnx.elu, norm=norm)
    return filled(lambda: make(weight_norm=weight_norm, rngs=nnx.Rngs(0)))


def decoder(J, norm="layer", shape=None):
    make = partial(ConvLadderDecoder, shape or (SIDE[J], SIDE[J], 3), WIDTHS[:J], DIMS[:J], nnx.elu, norm=norm)
    return filled(lambda: make(rngs=nnx.Rngs(1)))


def draws(J, batch=3):
    return [jax.random.normal(jax.random.key(j), (batch, d)) for j, d in enumerate(DIMS[:J])]


# -------------------------------------------------------------------------------------------- linear maps
def looped(x, kernel, stride, transposed):
    """Both convolutions by their definition, one output or input pixel at a time, on numpy arrays."""
    (B, H, W, _), k = x.shape, len(kernel)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    if not transposed:
        out = np.zeros((B, (H + 2 - k) // stride + 1, (W + 2 - k) // stride + 1, kernel.shape[3]))
        for i, j in np.ndindex(out.shape[1:3]):
            window = padded[:, stride * i : stride * i + k, stride * j : stride * j + k]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
        return out
    out = np.zeros((B, stride * (H - 1) + k, stride * (W - 1) + k, kernel.shape[3]))
    for i, j in np.ndindex(H, W):
        out[:, stride * i : stride * i + k, stride * j : stride * j + k] += np.einsum(
            "bc,hwco->bhwo", x[:, i, j], kernel
        )
    return out[:, 1:-1, 1:-1]


@pytest.mark.parametrize(
    ("k", "stride", "shape"),
    [(4, 2, (8, 10)), (4, 2, (7, 9)), (4, 2, (4, 6)), (4, 1, (8, 7)), (4, 1, (4, 4)), (3, 1, (6, 5))],
)
def test_convolution_is_its_definition_on_both_sides_of_the_size_of_the_kernel(k, stride, shape):
    x, kernel = np.random.default_rng(0).normal(size=(2, *shape, 3)), np.random.default_rng(1).normal(size=(k, k, 3, 2))
    ours = conv_ladder.convolution(jnp.asarray(x, "float32"), jnp.asarray(kernel, "float32"), stride)
    np.testing.assert_allclose(ours, looped(x, kernel, stride, transposed=False), atol=2e-5)


@pytest.mark.parametrize(("k", "stride"), [(4, 2), (3, 1)])
def test_transposed_convolution_is_its_definition_and_that_of_jax_with_its_gradients(k, stride):
    x, kernel = np.random.default_rng(0).normal(size=(2, 4, 5, 3)), np.random.default_rng(1).normal(size=(k, k, 3, 2))
    expected = looped(x, kernel, stride, transposed=True)
    x, kernel = jnp.asarray(x, "float32"), jnp.asarray(kernel, "float32")

    def ours(x, kernel):
        return conv_ladder.transposed_convolution(x, kernel, stride)

    def stock(x, kernel):  # jax's transposed convolution does not turn the kernel round
        return jax.lax.conv_transpose(x, kernel[::-1, ::-1], (stride, stride), ((k - 2, k - 2),) * 2)

    assert expected.shape == (2, 4 * stride, 5 * stride, 2)
    np.testing.assert_allclose(ours(x, kernel), expected, atol=2e-5)
    np.testing.assert_allclose(stock(x, kernel), expected, atol=2e-5)
    pulled = [jax.vjp(f, x, kernel)[1](jnp.asarray(expected, "float32")) for f in (ours, stock)]
    for a, b in zip(*pulled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_layer_norm_is_over_the_whole_map():
    h = 3.0 + 2.0 * np.random.default_rng(0).normal(size=(2, 4, 4, 6))
    mean, sd = (f(h, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(conv_ladder.LayerNorm(6)(jnp.asarray(h, "float32")), (h - mean) / sd, atol=1e-4)


def test_weight_norm_starts_where_the_plain_map_does_and_frees_the_length_of_each_output():
    plain, normed = (conv_ladder.Linear((4, 4, 3, 2), 2, weight_norm=w, rngs=nnx.Rngs(0)) for w in (False, True))
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    np.testing.assert_allclose(plain(x), normed(x), rtol=1e-4, atol=1e-6)
    before = normed(x)
    normed.kernel[...] = 3.0 * normed.kernel[...]
    np.testing.assert_allclose(normed(x), before, rtol=1e-4, atol=1e-6)
    normed.gain[...] = 2.0 * normed.gain[...]
    np.testing.assert_allclose(normed(x), 2.0 * before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "fan_in"), [((4, 4, 16, 64), 2, 256), ((4, 4, 64, 64), -2, 256), ((50, 999), 1, 50)]
)
def test_weights_start_with_unit_output_variance_and_zero_bias(kernel, stride, fan_in):
    linear = conv_ladder.Linear(kernel, stride, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(float(linear.kernel[...].std()) * math.sqrt(fan_in), 1, rtol=0.02)
    assert not linear.bias[...].any()


# ------------------------------------------------------------------------------------------------ ladders
@pytest.mark.parametrize("J", [1, 2, 3])
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_one_gaussian_a_block_and_images_back(norm, J):
    for shape in ((SIDE[J], 2 * SIDE[J], 3), (SIDE[J], SIDE[J])):
        both = encoder(J, norm, shape), decoder(J, norm, shape)
        heads = jax.eval_shape(lambda e, x: e(x), both[0], jnp.zeros((5, *shape)))
        assert (
            [loc.shape for loc, _ in heads] == [log_scale.shape for _, log_scale in heads] == [(5, d) for d in DIMS[:J]]
        )
        out = jax.eval_shape(lambda d, zs: d(zs, [1.0] * J), both[1], draws(J, 5))
        assert out.shape == (5, *shape)


def test_mnist_fits_two_facets():
    """28 halves to 14 and 7; the deep rung goes on to 3 and 1."""
    made = encoder(2, shape=(28, 28))
    features = jax.eval_shape(lambda e, x: e.features(x), made, jnp.zeros((1, 28, 28)))
    assert [f.shape for f in features] == [(1, 6 * 6 * 2), (1, 1 * 1 * 6)]


@pytest.mark.parametrize(("J", "norm"), [(1, "batch"), (2, "layer"), (3, "none")])
def test_a_fade_of_zero_hides_a_block_exactly(J, norm):
    zs, graph = draws(J), nnx.split(decoder(J, norm))
    run = jax.jit(lambda zs, fades: nnx.merge(*graph)(zs, list(fades)))
    whole = run(zs, jnp.ones(J))
    for j in range(J):
        fades = jnp.ones(J).at[j].set(0.0)
        out = run(zs, fades)
        np.testing.assert_array_equal(out, run([z + 1.0 if i == j else z for i, z in enumerate(zs)], fades))
        assert float(jnp.abs(whole - out).max()) > 1e-3


def test_a_block_that_is_hidden_gets_no_gradient():
    graph, params = nnx.split(decoder(2, "none"))
    gradients = jax.jit(
        jax.grad(lambda p, zs, fades: (nnx.merge(graph, p)(zs, list(fades)) ** 2).sum(), argnums=(0, 1)),
    )
    for j in range(2):
        weights, latents = gradients(params, draws(2), jnp.ones(2).at[j].set(0.0))
        assert [bool(g.any()) for g in latents] == [i != j for i in range(2)]
        touched = [[bool(leaf.any()) for leaf in jax.tree.leaves(weights["rungs"][i])] for i in range(2)]
        assert touched == [[i != j] * 2 for i in range(2)]


def test_shallow_heads_do_not_see_deep_blocks():
    graph, params = nnx.split(encoder(2, "none"))
    gradients = jax.jit(jax.grad(lambda p: nnx.merge(graph, p)(jnp.ones((1, 16, 16, 3)))[0][0].sum()))(params)
    assert [bool(gradients["blocks"][j]["linear"]["kernel"][...].any()) for j in range(2)] == [True, False]
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["rungs"][1]))


@pytest.mark.parametrize(
    ("shape", "J", "message"),
    [
        ((16,), 1, r"needs images.*got \(16,\)"),
        ((8, 8), 2, "multiples of 4 and at least 16, got 8 x 8; use fewer facets"),
        ((30, 32, 3), 2, "got 30 x 32"),
        ((28, 28), 3, "multiples of 8 and at least 32"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, J, message):
    for make in (ConvLadderEncoder, ConvLadderDecoder):
        with pytest.raises(ValueError, match=message):
            make(shape, WIDTHS[:J], DIMS[:J], nnx.elu, rngs=nnx.Rngs(0))


# -------------------------------------------------------------------------------------- batch statistics
def test_batch_statistics_come_after_the_activation_and_move_in_training_alone():
    layer = conv_ladder.Layer((4, 4, 3, 2), 2, nnx.elu, "batch", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
    h = np.asarray(nnx.elu(layer.linear(x)))
    np.testing.assert_allclose(layer(x), h, rtol=1e-4, atol=1e-5)  # of mean 0 and variance 1 until trained
    assert not layer.norm.mean[...].any()
    layer.train()
    mean, var = h.mean((0, 1, 2)), h.var((0, 1, 2))
    np.testing.assert_allclose(layer(x), (h - mean) / np.sqrt(var + 1e-5), atol=1e-4)
    np.testing.assert_allclose(layer.norm.mean[...], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(layer.norm.var[...], 0.9 + 0.1 * var, rtol=1e-4)
    layer.eval()
    np.testing.assert_allclose(layer(x[:1]), layer(x)[:1], atol=1e-5)


def test_data_init_gives_every_linear_map_outputs_of_mean_zero_and_the_target_deviation(monkeypatch):
    up, down = encoder(1, "batch", weight_norm=True), decoder(1, "batch")
    x = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
    data_init(up, down, x, jax.random.key(1))
    seen = []

    def call(self, h, before=conv_ladder.Linear.__call__):
        seen.append(before(self, h))
        return seen[-1]

    monkeypatch.setattr(conv_ladder.Linear, "__call__", call)
    up.train()

    @nnx.jit
    def outputs(up):
        heads = [head.loc(h) for head, h in zip(up.heads, up.features(x), strict=True)]
        return [*seen, *heads]

    found = outputs(up)
    assert len(found) == 1 + 2 + 1
    for out in found:
        axes = tuple(range(out.ndim - 1))
        np.testing.assert_allclose(np.asarray(out).mean(axes), 0.0, atol=1e-4)
        np.testing.assert_allclose(np.asarray(out).std(axes), 0.1, rtol=0.05)
    assert all(m.target is None for _, m in nnx.iter_modules(down) if isinstance(m, conv_ladder.Linear))
