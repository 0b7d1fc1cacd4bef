"""The cells against their definitions; strict promotion throughout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ppl_models.hvae import HVAE
from ppl_models.hvae.networks import Decoder, Encoder
from ppl_models.hvae.parts import Block, Conv, pool, rms, upsample
from ppl_models.networks.activations import gelu
from ppl_models.networks.dropout import Dropout

SPEC = HVAE(enc="4x2,4d4,1x1", dec="1x1,4m1,4x1", shape=(4, 4), levels=17, width=8, zdim=2, mid_ratio=0.5)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def encoder():
    return Encoder(SPEC, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def decoder():
    return Decoder(SPEC, rng=np.random.default_rng(1))


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


def test_gelu_and_its_derivative_are_exact():
    x = jnp.linspace(-6.0, 6.0, 101)
    exact = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
    np.testing.assert_allclose(gelu(x), exact(x), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), jax.vmap(jax.grad(exact))(x), atol=1e-6)


def test_pooling_undoes_upsampling_and_upsampling_keeps_the_root_mean_square():
    x = normal((2, 3, 3, 4))
    np.testing.assert_allclose(pool(upsample(x, 4), 4), x, rtol=1e-6)
    np.testing.assert_allclose(rms(upsample(x, 4)), rms(x), rtol=1e-5)


def test_convolution_of_parts_is_that_of_their_concatenation():
    x, y = normal((2, 4, 4, 3)), normal((2, 4, 4, 3), 1)
    conv = Conv(6, 5, 3, rng=np.random.default_rng(0))
    both = jnp.concatenate([x, y], -1)
    stock = jax.lax.conv_general_dilated(
        both, conv.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(conv(x, y), stock, atol=1e-5)


@pytest.mark.parametrize(("res", "k"), [(1, 1), (2, 1), (3, 3)])
def test_blocks_convolve_3x3_above_2x2_only(res, k):
    block = Block(6, 4, 5, res, rng=np.random.default_rng(0))
    assert block.c2.kernel.shape == block.c3.kernel.shape == (k, k, 4, 4)
    assert block.c1.kernel.shape == (1, 1, 6, 4) and block.c4.kernel.shape == (1, 1, 4, 5)


def test_initial_weights(encoder, decoder):
    """U(-b, b) with b = 1/sqrt(fan in); the branches that add up scaled by 1/sqrt(cells); biases and prior at zero."""

    def spread(kernel):
        return float(np.abs(kernel[...]).max()) * math.sqrt(math.prod(kernel.shape[:3]))

    assert 0.8 < spread(encoder.in_conv.kernel) <= 1
    assert 0.5 < spread(encoder.blocks[0].c4.kernel) * math.sqrt(4) <= 1
    assert 0.5 < spread(decoder.cells[0].resnet.c4.kernel) * math.sqrt(3) <= 1
    assert 0.5 < spread(decoder.cells[0].z_proj.kernel) * math.sqrt(3) <= 1
    assert not np.any(decoder.cells[0].prior.c4.kernel[...])
    assert not any(np.any(block.c2.bias[...]) for block in encoder.blocks)


def test_at_the_start_the_prior_is_standard_and_the_state_a_constant(decoder):
    Z = decoder.enter(0, {}, 3)
    assert Z.shape == (3, 1, 1, 8) and not np.any(Z)
    pm, pv, drift = decoder.prior(1, normal((3, 4, 4, 8)))
    assert not np.any(pm) and not np.any(pv) and not np.any(drift)


def test_a_new_resolution_starts_from_its_constant_plus_the_coarser_state(decoder):
    coarse = normal((2, 1, 1, 8))
    other = nnx.clone(decoder)
    other.start["at_4"][...] = normal((4, 4, 8), 1)
    np.testing.assert_allclose(
        other.enter(1, {1: coarse}, 2), other.start["at_4"][...][None] + jnp.tile(coarse, (1, 4, 4, 1)), rtol=1e-6
    )
    fine = normal((2, 4, 4, 8))
    np.testing.assert_array_equal(other.enter(2, {1: coarse, 4: fine}, 2), fine)


def test_the_encoder_keeps_the_last_activation_of_each_resolution(encoder):
    x = jnp.abs(normal((2, 4, 4)))
    found = encoder(x)
    h = encoder.in_conv(2 * x[..., None] - 1)
    for block in list(encoder.blocks)[:2]:
        h = h + block(h)
    np.testing.assert_allclose(found[4], h, rtol=1e-5)  # not the down cell's: it stores at 1x1 only
    h = pool(h + encoder.blocks[2](h), 4)
    np.testing.assert_allclose(found[1], h + encoder.blocks[3](h), rtol=1e-5, atol=1e-6)


def test_the_pooling_encoder_is_an_average_of_the_first_layer():
    spec = HVAE(enc="4x2,4d4,1x1", dec="1x1,4m1", shape=(4, 4), width=8, zdim=2, encoder="pool")
    net = Encoder(spec, rng=np.random.default_rng(0))
    found = net(jnp.abs(normal((2, 4, 4))))
    np.testing.assert_allclose(found[1][:, 0, 0], found[4].mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert not net.blocks


def test_log_standard_deviations_are_cut_before_they_overflow(decoder, encoder):
    wild = nnx.clone(decoder)
    wild.cells[0].prior.c4.bias[...] = jnp.full(12, 1e4, "float32")
    assert float(wild.prior(0, wild.enter(0, {}, 1))[1].max()) == 20.0
    wild = nnx.clone(encoder)
    wild.posteriors[0].c4.bias[...] = jnp.full(4, -1e4, "float32")
    assert float(wild.posterior(0, jnp.zeros((1, 1, 1, 8)), jnp.zeros((1, 1, 1, 8)))[1].min()) == -20.0


def test_dropout_keeps_the_mean_and_makes_another_mask_at_each_call():
    drop = Dropout(0.25, jax.random.key(0))
    h = jnp.ones(40_000)
    first, second = drop(h), drop(h)
    assert abs(float(first.mean()) - 1) < 0.02 and abs(float((first == 0).mean()) - 0.25) < 0.01
    assert bool((first != second).any())
    np.testing.assert_array_equal(Dropout(0.25, jax.random.key(0))(h), first)


def test_dropout_takes_a_traced_rate():
    out = jax.jit(lambda rate: Dropout(rate, jax.random.key(0))(jnp.ones(8)))(jnp.asarray(0.0))
    np.testing.assert_array_equal(out, np.ones(8))
