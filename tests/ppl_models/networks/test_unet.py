"""The U-Net as an object of six parts: its recursion, its presets' sizes, and the small network as one of them."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ppl_models.function_spaces import hats
from ppl_models.networks.pure import pure
from ppl_models.networks.separable import pool, upsample
from ppl_models.networks.unet import (
    SCORE,
    TABLE_1,
    Attention,
    GroupNorm,
    GuidedBlock,
    HatHead,
    Identity,
    Join,
    OperatorUNet,
    Pool,
    Preconditioned,
    ScoreUNet,
    Space,
    Stride,
    Tile,
    UNet,
    UNetOperator,
    parameter_count,
    precondition,
    resnet_form,
)  # fmt: skip


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def warmed(module, start=None):
    """Weights moved away from their zero starts, so that every path shows in the output."""
    graph, params = nnx.split(module)
    leaves, tree = jax.tree.flatten(params)
    moved = [
        (leaf if start is None else start / max(1, np.prod(leaf.shape[:-1])) ** 0.5)
        + 0.1 * np.random.default_rng(i).normal(size=leaf.shape).astype("f4")
        for i, leaf in enumerate(leaves)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, [jnp.asarray(leaf, "float32") for leaf in moved]))


def random(net):
    """A network of ``net``'s structure with random weights, none of them drawn by JAX: no compilation."""
    return warmed(nnx.eval_shape(lambda: net.build(nnx.Rngs(0))), 0.0)


def compiled(module, *args):
    apply, params = pure(module)
    return jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})(params, *args)


def images(*shape):
    return jnp.asarray(np.random.default_rng(7).normal(size=shape).astype("f4"))


ANY = Space((None, None, 1))


def letters(depth):
    """A U-Net whose answer spells the recursion: parts are functions without parameters."""
    return UNetOperator(
        [ANY] * (depth + 1),
        [ANY] * (depth + 1),
        [lambda v, c, i=i: (i + 2.0) * v for i in range(depth + 1)],
        [lambda w, e, c, i=i: upsample(w) - (i + 3.0) * e for i in range(depth)],
        [pool] * depth,
        lambda e, c: e * e,
    )


# ------------------------------------------------------------------------------------------- the object
def test_the_recursion_is_the_definition():
    unet, v = letters(2), images(2, 8, 8, 1)

    def by_hand(i, v):
        e = (i + 2.0) * v
        return e * e if i == 0 else upsample(by_hand(i - 1, pool(e))) - (i - 1 + 3.0) * e

    np.testing.assert_allclose(unet(v), by_hand(2, v), rtol=1e-5, atol=1e-5)
    inner = pool(3.0 * pool(4.0 * v))
    for i, w in enumerate(unet.answers(v)):
        assert w.shape == (2, 2 * 2**i, 2 * 2**i, 1)
    np.testing.assert_array_equal(unet.answers(v)[0], unet.at(0)(inner))
    np.testing.assert_array_equal(unet.answers(v)[1], unet.at(1)(pool(4.0 * v)))


def test_parts_are_swapped_and_shared():
    net = random(ScoreUNet(base=4, multipliers=(2, 2), heads=0))
    other = net.unet.replace(projections=[lambda e: pool(e[-1])])
    assert other.decoders[0] is net.unet.decoders[0] and net.unet.at(0).bottleneck is net.unet.bottleneck
    assert parameter_count(other.projections) == 0 < parameter_count(net.unet.projections)
    with pytest.raises(ValueError, match="encoderz"):
        net.unet.replace(encoderz=[])


def test_a_new_level_leaves_the_network_below_bitwise_as_it_is():
    small = random(ScoreUNet(base=4, multipliers=(1,), down="none", heads=0, blocks=1))
    full = random(ScoreUNet(base=4, multipliers=(1, 1), down="none", heads=0, blocks=1))
    top = full.unet
    grown = small.grow(
        full.lifts[-1],
        full.heads[-1],
        (top.encoder_spaces[-1], top.decoder_spaces[-1]),
        encoder=top.encoders[-1],
        decoder=top.decoders[-1],
        projection=top.projections[-1],
        embedding=top.embeddings[-1],
    )
    x, level = images(2, 8, 8, 1), jnp.asarray([-1.0, 1.0])
    before = compiled(small, pool(x), level)
    np.testing.assert_array_equal(compiled(grown.at(0), pool(x), level), before)
    assert jax.eval_shape(grown, x, level).shape == (2, 8, 8, 1)
    old = {path for path, _ in nnx.to_flat_state(nnx.state(small))}
    assert old < {path for path, _ in nnx.to_flat_state(nnx.state(grown))}
    with pytest.raises(ValueError, match="embedding"):
        small.grow(full.lifts[-1], full.heads[-1], (ANY, ANY), encoder=pool, decoder=pool, projection=pool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNetOperator([ANY], [ANY], [Identity()], [pool], [], Identity()), "decoders has 1 of 0"),
        (lambda: UNetOperator([], [], [], [], [], Identity()), "at least the encoder E_0"),
        (lambda: letters(1).at(2), "levels 0..1"),
        (lambda: letters(1)(images(1, 4, 4, 2)), r"encoder space V_1 expects arrays \(batch, any, any, 1\)"),
        (lambda: resnet_form(letters(1)), "precondition"),
        (lambda: random(OperatorUNet(1, 1, 4, 2)).at(0), "level 0 has no lift and no head"),
        (lambda: random(OperatorUNet(1, 1, 4, 2))(images(1, 5, 4, 1)), "5 x 4 pixels"),
        (lambda: OperatorUNet(1, 1, 4, 3).check(6, 8), "multiples of 4"),
        (lambda: ScoreUNet().check(30, 28), "multiples of 4"),
        (lambda: OperatorUNet(0, 1), "c_in must be at least 1"),
        (lambda: OperatorUNet(1, 1, attention=(5,)), "levels 0..4"),
        (lambda: ScoreUNet(multipliers=()), "one a level"),
        (lambda: ScoreUNet(base=3), "even"),
        (lambda: ScoreUNet(heads=5), "heads"),
        (lambda: Attention(8, 3, groups=1, rngs=nnx.Rngs(0)), "heads must divide"),
        (lambda: GroupNorm(8, 3), "groups must divide"),
        (
            lambda: random(ScoreUNet(base=4, multipliers=(1,), heads=0))(images(1, 2, 2, 1)),
            "call it as unet",
        ),
    ],
)
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -------------------------------------------------------------------------------------------- presets
TABLE = {
    "navier_stokes": (34_531_971, 15_719_811, 34_537_731),
    "shallow_water": (34_528_515, 15_716_355, 34_534_275),
    "wmh": (2_161_633, 983_713, 2_163_073),
}
COUNTS = {
    f"{task}_{kind}": count
    for task, counts in TABLE.items()
    for kind, count in zip(("residual", "multi_resnet", "multi_resnet_saved"), counts, strict=True)
}
SCORES = {
    "residual": 2_175_107,
    "pooled": 2_027_395,
    "multi_resnet": 1_557_507,
    "residual_4": 2_858_756,
    "multi_resnet_4": 2_022_980,
}


def test_score_nets_start_as_the_zero_function():
    net = ScoreUNet(base=4, multipliers=(1,), blocks=1, heads=0).build(nnx.Rngs(0))
    assert float(jnp.abs(compiled(net, images(2, 4, 4, 1), jnp.zeros(2))).max()) == 0.0


def test_published_parameter_counts():
    assert {name: net.parameter_count for name, net in TABLE_1.items()} == COUNTS
    assert {name: net.parameter_count for name, net in SCORE.items()} == SCORES


@pytest.mark.parametrize("net", [TABLE_1["wmh_multi_resnet_saved"], SCORE["multi_resnet"]])
def test_a_multi_resnet_has_no_parameter_in_its_encoder(net):
    counts = nnx.eval_shape(lambda: net.build(nnx.Rngs(0))).parameter_counts()
    assert counts["encoders"] == counts["projections"] == 0
    assert sum(count for name, count in counts.items() if name != "total") == counts["total"] == net.parameter_count


def test_the_skip_of_a_multi_resnet_is_the_tiled_mean_of_the_lifted_image():
    net = random(OperatorUNet(2, 1, 4, 3, encoder="pool"))
    lifted = images(1, 8, 8, 4)
    twice = net.unet.projections[0](net.unet.projections[1](lifted))
    np.testing.assert_allclose(twice, jnp.tile(pool(pool(lifted)), (1, 1, 1, 4)), atol=1e-6)


@pytest.mark.parametrize(
    "net",
    [
        OperatorUNet(2, 3, 4, 2, n_extra=1, attention=(1,)),
        OperatorUNet(2, 3, 4, 2, encoder="pool", pass_details=True, embedding=8),
    ],
)
def test_operator_nets_map_images_of_any_size(net):
    apply, params = pure(random(net))
    run = jax.jit(apply)
    condition = None if net.embedding is None else jnp.asarray([0.0, 1.0])
    out = run(params, images(2, 4, 6, 2), condition)
    assert out.shape == (2, 4, 6, 3) and bool(jnp.isfinite(out).all())
    if condition is not None:
        other = run(params, images(2, 4, 6, 2), jnp.asarray([0.0, -1.0]))
        np.testing.assert_array_equal(out[0], other[0])
        assert float(jnp.abs(out[1] - other[1]).max()) > 1e-4


@pytest.mark.parametrize("down", ["stride", "none"])
def test_rows_of_score_nets_do_not_mix(down):
    net = ScoreUNet(2, 3, base=4, multipliers=(1, 2), down=down, blocks=1, heads=2)
    x, level = images(3, 4, 4, 2), jnp.asarray([-1.0, 0.0, 30.0])
    apply, params = pure(random(net))
    run = jax.jit(apply)
    out = run(params, x, level)
    other = run(params, x.at[0].set(0.0), level.at[0].set(1.0))
    assert out.shape == (3, 4, 4, 3)
    np.testing.assert_allclose(out[1:], other[1:], atol=1e-6)
    assert float(jnp.abs(out[0] - other[0]).max()) > 1e-3
    assert "conv_general_dilated" not in str(jax.make_jaxpr(apply)(params, x, level))
    assert apply == pure(random(net))[0] and hash(apply) == hash(pure(random(net))[0])


def test_details_reach_the_decoder_that_lost_them():
    net = random(OperatorUNet(1, 1, 4, 2, encoder="pool", pass_details=True))
    join = net.unet.decoders[0]
    w, v = images(1, 2, 2, 8), images(1, 4, 4, 4)
    flat = jnp.broadcast_to(v.mean((1, 2), keepdims=True), v.shape)
    seen = []
    probe = Join(nnx.Module(), [], 4)
    probe.narrow = Probe(seen, join.narrow)
    probe(w, v), probe(w, flat)
    assert seen[0].shape == (1, 2, 2, 8 + 12)
    np.testing.assert_array_equal(seen[0][..., :8], w)
    block = v[0, :2, :2, 0]
    np.testing.assert_allclose(seen[0][0, 0, 0, 8], (block[:, 0] - block[:, 1]).sum() / 2, atol=1e-6)
    np.testing.assert_allclose(seen[1][..., 8:], 0.0, atol=1e-6)


class Probe(nnx.Module):
    def __init__(self, seen, inner):
        self.seen, self.inner = nnx.static(Held(seen)), inner

    def __call__(self, w):
        self.seen.seen.append(w)
        return self.inner(w)


class Held:
    def __init__(self, seen):
        self.seen = seen


# --------------------------------------------------------------------------------------------- blocks
def test_group_norm_and_attention_are_those_of_the_library():
    x = images(2, 4, 6, 8)
    theirs = nnx.GroupNorm(8, num_groups=4, epsilon=1e-5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(GroupNorm(8, 4)(x), theirs(x), atol=2e-6)
    attention = warmed(Attention(8, 2, groups=2, rngs=nnx.Rngs(0)), 0.0)
    q, k, v = jnp.split(attention.qkv(attention.norm(x)).reshape(2, 24, 2, 12), 3, axis=-1)
    mixed = jax.nn.dot_product_attention(q, k, v).reshape(2, 4, 6, 8)
    np.testing.assert_allclose(attention(x), x + attention.out(mixed), atol=1e-5)


def test_strided_convolution_is_the_library_one():
    stride, x = Stride(3, rngs=nnx.Rngs(0)), images(2, 6, 4, 3)
    expected = jax.lax.conv_general_dilated(
        x, stride.conv.kernel[...], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(stride(x), expected, atol=1e-5)


def test_both_ways_to_convolve_are_the_same_function():
    product = random(ScoreUNet(base=4, multipliers=(1, 1), blocks=1, heads=0))
    lax = random(ScoreUNet(base=4, multipliers=(1, 1), blocks=1, heads=0, convolution="lax"))
    x, level = images(2, 4, 4, 1), jnp.zeros(2)
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda x: lax(x, level))(x))
    np.testing.assert_allclose(compiled(product, x, level), compiled(lax, x, level), rtol=1e-4, atol=1e-5)


def test_guided_block_is_its_formula():
    block = warmed(GuidedBlock(4, 8, 6, groups=2, rngs=nnx.Rngs(0)))
    h, c = images(2, 4, 4, 4), images(2, 6)
    a, b = jnp.split(block.modulate(c)[:, None, None, :], 2, axis=-1)
    r = block.first(jax.nn.silu(block.first_norm(h)))
    r = block.second(jax.nn.silu((1 + a) * block.second_norm(r) + b))
    np.testing.assert_allclose(block(h, c), block.skip(h) + r, atol=1e-5)


# ---------------------------------------------------------------------------------------- preconditioning
@pytest.mark.parametrize("down", ["stride", "none"])
def test_a_preconditioned_u_net_is_a_resnet_after_its_encoder(down):
    """U_L = R_L o E_L with R_L(e) = pre(U_{L-1}(P e)) + D(U_{L-1}(P e) | e), random weights."""
    net = random(ScoreUNet(base=4, multipliers=(1, 1), down=down, heads=0, blocks=1))
    unet = precondition(net.unet)
    v, level = net.lifts[-1](images(2, 4, 4, 1)), jnp.asarray([0.3, -1.0])
    form = resnet_form(unet)

    @jax.jit
    def sides(v):
        e = unet.encoders[-1](v, unet.context(1, level))
        coarse = unet.at(0)(unet.projections[-1](e), level)
        return unet(v, level), form(e, level), form.first_guess(e, level), upsample(coarse), form.correction(e, level)

    whole, resnet, guess, coarse, correction = sides(v)
    scale = float(jnp.abs(whole).max())
    np.testing.assert_allclose(whole / scale, resnet / scale, atol=1e-6)
    np.testing.assert_allclose(guess / scale, coarse / scale, atol=1e-6)
    assert float(jnp.abs(correction).max()) > 1e-3
    assert precondition(unet).decoders[0] is unet.decoders[0]


def test_a_silent_correction_leaves_the_coarse_answer():
    net = letters(2)
    silent = precondition(net.replace(decoders=[lambda w, e, c: 0.0 * e] * 2))
    v = images(1, 8, 8, 1)
    np.testing.assert_allclose(silent(v), upsample(upsample(silent.answers(v)[0])), atol=1e-6)
    assert isinstance(silent.decoders[0], Preconditioned)


# ------------------------------------------------------------------------------------------ the small net
def test_the_small_network_is_what_it_was():
    """Reference values, names and starts of the network before it became a preset."""
    net = UNet((8, 4, 2), 3, widths=(4, 6, 10), blocks=2, embedding=8, rngs=nnx.Rngs(0))
    names = sorted(".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(net, nnx.Param)))
    assert (len(names), parameter_count(net)) == (102, 10_009)
    assert zlib.crc32("\n".join(names).encode()) == 3_047_765_358
    # The start draws from the same keys in the same order.
    np.testing.assert_allclose(float(jnp.abs(net.lift.kernel[...]).sum()), 13.137953758239746, rtol=1e-5)
    np.testing.assert_allclose(float(jnp.abs(net.up[1][0].first.kernel[...]).sum()), 50.94755554199219, rtol=1e-5)
    out = compiled(warmed(net), images(2, 8, 4, 2), jnp.asarray([-1.0, 0.5]))
    first = [0.014329405501484871, -0.048321522772312164, 0.19884735345840454]
    last = [0.04564351588487625, -0.05668453499674797, 0.14952239394187927]
    np.testing.assert_allclose(out[0, 0, 0], first, atol=2e-6)
    np.testing.assert_allclose(out[1, 5, 3], last, atol=2e-6)
    np.testing.assert_allclose(float(jnp.abs(out).sum()), 12.406225204467773, rtol=1e-5)


def test_the_small_network_shows_its_parts():
    net = nnx.eval_shape(lambda: UNet((8, 8, 1), 2, widths=(4, 6), embedding=8, rngs=nnx.Rngs(0)))
    unet = net.operator
    assert unet.depth == 1 and unet.encoders[1].blocks[0] is net.down[0][0]
    assert isinstance(unet.projections[0], Pool) and unet.projections[0].change is net.widen[0]
    assert unet.at(0).bottleneck.blocks[0] is net.middle[0]


def test_a_hat_head_is_zero_on_the_boundary_and_spans_the_inside():
    head = HatHead(2, 1, rngs=nnx.Rngs(0))
    head.conv.kernel[...] = jnp.full((1, 1, 2, 1), 3.0)
    w = images(2, 4, 4, 2)
    out = np.asarray(compiled(head, w))
    assert out.shape == (2, 5, 5, 1)
    assert not (out[:, [0, -1]].any() or out[:, :, [0, -1]].any())
    nodes = hats(2, np.linspace(0, 1, 5))
    coefficients = 3 * np.asarray(w)[:, 1:, 1:].sum(-1)
    np.testing.assert_allclose(out[..., 0], np.einsum("bij,ix,jy->bxy", coefficients, nodes, nodes), atol=1e-5)


def test_tiles_repeat_channels():
    np.testing.assert_array_equal(Tile(5)(images(1, 1, 1, 2))[0, 0, 0], images(1, 1, 1, 2)[0, 0, 0, [0, 1, 0, 1, 0]])
