"""The network that ``unet_speed`` compares with computes the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks._plain_unet import Net, copy_weights
from ppl_models.networks.time_embedding import fourier_features
from ppl_models.networks.unet import ScoreUNet


@pytest.mark.parametrize("down", ["stride", "none"])
def test_plain_network_is_the_same_function(down):
    spec = ScoreUNet(base=16, multipliers=(2, 2), blocks=1, down=down)
    graph, params = nnx.split(nnx.eval_shape(lambda: spec.build(nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(0.2 * rng.normal(size=leaf.shape), "float32") for leaf in leaves]
    ours, plain = nnx.merge(graph, jax.tree.unflatten(tree, drawn)), Net(spec)
    copy_weights(ours, plain)
    x, level = jnp.asarray(rng.normal(size=(2, 4, 4, 1)), "float32"), jnp.asarray([-1.0, 0.5])
    one, other = jax.jit(ours)(x, level), jax.jit(plain)(x, fourier_features(level, spec.base))
    scale = float(jnp.abs(one).max())
    assert scale > 0.1
    np.testing.assert_allclose(one / scale, other / scale, atol=1e-5)
