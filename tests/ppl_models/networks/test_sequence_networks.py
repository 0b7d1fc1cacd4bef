"""The causal transformer and the deep set, under strict promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ppl_models.networks.set_encoder import DeepSet
from ppl_models.networks.transformer import CausalTransformer, extend


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def transformer(positions):
    return CausalTransformer(
        width=8, layers=2, heads=2, hidden=12, out=3, positions=positions, rngs=nnx.Rngs(jax.random.key(0))
    )


@pytest.mark.parametrize("positions", [None, 9])
def test_one_step_at_a_time_is_the_parallel_pass(positions):
    net, x = transformer(positions), jax.random.normal(jax.random.key(1), (9, 8))
    whole = net(x)
    out, cache = net.read(x[:4])
    np.testing.assert_allclose(out, whole[:4], atol=1e-6)
    cache = extend(cache, 9)
    step = jax.jit(lambda x, cache, t: net.step(x, cache, t))
    for t in range(4, 9):
        out, cache = step(x[t], cache, jnp.asarray(t))
        np.testing.assert_allclose(out, whole[t], atol=1e-6)


def test_a_row_reads_no_later_input():
    net, x = transformer(None), jax.random.normal(jax.random.key(1), (6, 8))
    np.testing.assert_allclose(net(x.at[4:].set(9.0))[:4], net(x)[:4], atol=1e-6)


def test_the_deep_set_forgets_order_and_masks_and_adds():
    net = DeepSet(inputs=2, width=6, out=3, rngs=nnx.Rngs(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (5, 2))
    seen = jnp.array([True, True, False, True, False])
    kept = x[np.array([3, 0, 1])]
    np.testing.assert_allclose(net(x, seen), net(kept, jnp.ones(3, bool)), atol=1e-6)
    summary = net.summary(kept[:2], jnp.ones(2, bool))
    np.testing.assert_allclose(net.read(net.add(summary, kept[2])), net(x, seen), atol=1e-6)
    assert np.isfinite(net(x, jnp.zeros(5, bool))).all()  # the empty set
