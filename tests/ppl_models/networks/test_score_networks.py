import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ppl_models.networks.pure import pure
from ppl_models.networks.score_mlp import ScoreMLP
from ppl_models.networks.separable import pool, separable_convolution, upsample
from ppl_models.networks.time_embedding import TimeEmbedding, fourier_features
from ppl_models.networks.unet import UNet


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def warmed(module):
    """Weights moved away from their zero starts, so that every path shows in the output."""
    graph, params = nnx.split(module)
    leaves, tree = jax.tree.flatten(params)
    moved = [
        leaf + 0.1 * np.random.default_rng(i).normal(size=leaf.shape).astype("f4") for i, leaf in enumerate(leaves)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved))


NETWORKS = {
    "mlp": lambda: ScoreMLP((4, 4, 1), 3, width=16, depth=1, embedding=8, rngs=nnx.Rngs(0)),
    "unet": lambda: UNet((4, 4, 1), 3, widths=(4, 6), embedding=8, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_output_starts_at_zero_and_rows_do_not_mix(name):
    module = NETWORKS[name]()
    x, level = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), jnp.asarray([-1.0, 0.0, 30.0])
    assert float(jnp.abs(jax.jit(module)(x, level)).max()) == 0.0
    apply, params = pure(warmed(module))
    run = jax.jit(apply)
    out = run(params, x, level)
    assert out.shape == ((3, 4, 4, 1, 3) if name == "mlp" else (3, 4, 4, 3)) and float(jnp.abs(out).min()) > 0
    other = run(params, x.at[0].set(0.0), level.at[0].set(1.0))
    np.testing.assert_array_equal(out[1:], other[1:])
    assert float(jnp.abs(out[0] - other[0]).max()) > 1e-3
    np.testing.assert_allclose(out[2], run(params, x, level.at[2].set(8.0))[2], rtol=1e-5, atol=1e-5)
    assert apply == pure(NETWORKS[name]())[0] and hash(apply) == hash(pure(NETWORKS[name]())[0])


def test_no_convolution_primitive_so_that_scans_stay_fast():
    apply, params = pure(NETWORKS["unet"]())
    loss = lambda p: apply(p, jnp.ones((2, 4, 4, 1)), jnp.zeros(2)).sum()  # noqa: E731
    assert "conv_general_dilated" not in str(jax.make_jaxpr(jax.grad(loss))(params))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_separable_convolution_is_the_same_convolution(k):
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    kernel = jax.random.normal(jax.random.key(1), (k, k, 3, 5))
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(separable_convolution(x, kernel), expected, atol=2e-5)


def test_pool_and_upsample_are_a_projection():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    once = upsample(pool(x))
    np.testing.assert_allclose(upsample(pool(once)), once, atol=1e-6)
    np.testing.assert_allclose(pool(x)[0, 0, 0], x[0, :2, :2].mean((0, 1)), rtol=1e-5)


def test_time_embedding_tells_levels_apart():
    features = fourier_features(jnp.linspace(-8.0, 8.0, 65), 16)
    distance = jnp.linalg.norm(features[:, None] - features[None], axis=-1) + 10 * jnp.eye(65)
    assert features.shape == (65, 16) and float(distance.min()) > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet((6, 4, 1), widths=(4, 4, 4), rngs=nnx.Rngs(0)), "multiples of 4"),
        (lambda: TimeEmbedding(4, features=3, rngs=nnx.Rngs(0)), "even number"),
        (lambda: pure(nnx.BatchNorm(2, rngs=nnx.Rngs(0))), "carries state"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
