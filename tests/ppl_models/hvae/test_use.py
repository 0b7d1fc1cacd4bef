"""Draws below levels held fixed, and images on the way between two data."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

from inference.fitting.objectives import init_params
from ppl_models.hvae import HVAE
from ppl_models.hvae.use import interpolated, shared, truncated

KEY = jax.random.key(0)
SPEC = HVAE(enc="1x1", dec="1x2", shape=(3, 3), levels=17, width=8, zdim=2, mid_ratio=0.5)


def fitted(by):
    """The program with its parameters ``by`` off their start, at which every prior is N(0, I)."""
    program = SPEC.build(KEY)
    params = init_params(program, KEY, jnp.zeros((1, 3, 3)))[0]
    wave = lambda leaf: by * jnp.cos(jnp.arange(leaf.size, dtype="float32")).reshape(leaf.shape)  # noqa: E731
    return SimpleNamespace(model=handlers.substitute(program.model, data=jax.tree.map(lambda a: a + wave(a), params)))


@pytest.fixture(scope="module")
def start():
    return fitted(0.0)


@pytest.fixture(scope="module")
def moved():
    return fitted(0.3)


def latents(seed, n=1):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(n, 1, 1, 2)).astype("float32") for name in SPEC.latents}


def test_the_way_between_two_data_starts_and_ends_there(moved):
    a, b = latents(0, 3), latents(1, 3)
    images = interpolated(SPEC, moved, a, b, 3)
    assert images.shape == (3, 3, 3, 3)
    np.testing.assert_allclose(images[0], truncated(SPEC, moved, a, [2])[0], atol=1e-5)
    np.testing.assert_allclose(images[2], truncated(SPEC, moved, b, [2])[0], atol=1e-5)


def test_the_middle_keeps_the_length_of_the_noise(start):
    """Where every prior is N(0, I), z is its own noise, and the middle is (a + b) / sqrt(2)."""
    a, b = latents(0, 2), latents(1, 2)
    middle = {name: (a[name] + b[name]) / np.sqrt(2) for name in a}
    images = interpolated(SPEC, start, a, b, 3)
    np.testing.assert_allclose(images[1], truncated(SPEC, start, middle, [2])[0], atol=1e-6)


def test_draws_share_the_levels_of_a_datum(moved):
    z = latents(2)
    images = shared(SPEC, moved, [0, 1, 2], 5, key=KEY, z=z)
    np.testing.assert_allclose(images[2], truncated(SPEC, moved, z, [2])[0].repeat(5, 0), atol=1e-6)
    assert (np.abs(images[:2] - images[:2, :1]).max((1, 2, 3)) > 1e-3).all()
    cold = shared(SPEC, moved, [0, 1, 2], 5, key=KEY, z=z, temperature=0.0)
    np.testing.assert_allclose(cold, truncated(SPEC, moved, z, [0, 1, 2]).repeat(5, 1), atol=1e-6)


def test_wrong_arguments(start):
    z = latents(0)
    for call, message in (
        (lambda: truncated(SPEC, start, {"z_00": z["z_00"]}, [1]), "lacks the level 'z_01'"),
        (
            lambda: truncated(SPEC, start, {**z, "z_01": z["z_01"][0]}, [1]),
            r"'z_01' of z must have shape \(n, 1",
        ),
        (lambda: shared(SPEC, start, [3], 2, key=KEY), "expected 0 to 2, got 3"),
        (lambda: shared(SPEC, start, [1], 2, key=KEY, z=latents(0, 2)), "one datum"),
        (lambda: shared(SPEC, start, [1], 2, key=KEY, temperature=-1.0), "expected >= 0, got -1"),
        (lambda: interpolated(SPEC, start, z, z, 1), "at least 2, got 1"),
        (lambda: interpolated(SPEC, start, z, latents(0, 2), 3), "got 1 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
