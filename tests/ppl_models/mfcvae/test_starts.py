"""What happens between updates: the published starts, and the statistics of batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference import evidence, fit
from ppl_models.mfcvae import MFCVAE, PRESETS, ConvLadder, Facet, Normal

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype("uint8")


@pytest.fixture(scope="module")
def trained(images):
    """A convolutional ladder with batch statistics, started from data, for three updates that change nothing else."""
    network = ConvLadder((4,), norm="batch", weight_norm=True, data_init=True)
    spec = MFCVAE((Facet("a", 2, 3, refit=(2,)),), (8, 8, 1), likelihood=Normal(0.3), network=network)
    return fit(spec.build(KEY), images, steps=3, batch_size=20, learning_rate=1e-9, key=KEY, progress=False)


def test_running_statistics_are_trained_and_evaluation_leaves_them(trained, images):
    before = jax.tree.map(np.array, trained.mutable)
    variance = trained.mutable["encoder$state"]["state"]["blocks"][0]["norm"]["var"]
    # From 1, three steps of momentum .9 towards the variance of an activation that was scaled to deviation .1.
    np.testing.assert_allclose(variance, 0.9**3 + (1 - 0.9**3) * 0.01, atol=0.003)
    evidence(trained, images[:4], particles=2, key=KEY, progress=False)
    jax.tree.map(np.testing.assert_array_equal, before, trained.mutable)


def test_the_start_from_data_gives_every_map_mean_0_and_deviation_a_tenth(trained, images):
    from flax import nnx

    encoder = trained.program.views.modules["encoder"]
    graph, _, rest = nnx.split(encoder, nnx.Param, nnx.Not(nnx.Param))
    params = nnx.state(encoder, nnx.Param)
    nnx.replace_by_pure_dict(params, trained.params["encoder$params"])
    first = nnx.merge(graph, params, rest).blocks[0].linear
    out = first(trained.prepare(images, KEY))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=0.01)
    np.testing.assert_allclose(out.std((0, 1, 2)), 0.1, atol=0.01)


def test_the_published_start_moves_the_means_alone():
    spec = dataclasses.replace(PRESETS["tiny"], published_start=True, prior_scale=0.1)
    x = np.random.default_rng(0).integers(0, 17, (64, 8, 8)).astype("uint8")
    program = spec.build(KEY)
    fitted = fit(program, x, steps=1, batch_size=32, learning_rate=1e-9, key=KEY, progress=False)
    before = dataclasses.replace(spec, published_start=False).build(KEY)
    plain = fit(before, x, steps=1, batch_size=32, learning_rate=1e-9, key=KEY, progress=False)
    found, start = fitted.params["mixture_style"], plain.params["mixture_style"]
    assert float(jnp.abs(found["means"] - start["means"]).max()) > 0.1
    np.testing.assert_allclose(found["variance"], start["variance"], atol=1e-6)
    from ppl_models.mfcvae import encode

    m = encode(fitted, x)["style"]
    # They lie within the cloud of the posterior means, which they are means of.
    assert (found["means"] >= m.min(0) - 1e-3).all() and (found["means"] <= m.max(0) + 1e-3).all()
