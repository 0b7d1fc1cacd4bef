"""VDVAE's training rules without the rule that locks a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inference import fit
from ppl_models.hvae import PRESETS
from ppl_models.hvae.training import clip_to_running_norm, vdvae_training


def run(norms, multiple=4.0):
    """Norms of the updates that come out of gradients with the given norms."""
    guard = clip_to_running_norm(multiple)

    def step(state, norm):
        out, state = guard.update({"a": norm * jnp.array([0.6, 0.8])}, state)
        return state, optax.tree.norm(out)

    return np.asarray(jax.lax.scan(step, guard.init({}), jnp.asarray(norms, "float32"))[1])


def test_norms_that_settle_high_are_not_locked_out():
    """The original skips every update above 400: at 450 for good, it never moves again."""
    norms = [100.0] * 50 + [450.0] * 200
    passed = run(norms)
    assert (passed > 0).all()
    np.testing.assert_allclose(passed[-100:], 450.0, rtol=1e-3)
    np.testing.assert_allclose(run([1e-3] * 20 + [1e3] * 600)[-1], 1e3, rtol=1e-3)


def test_a_wild_gradient_is_cut_and_soon_forgotten():
    passed = run([10.0] * 50 + [1e6] + [10.0] * 50)
    np.testing.assert_allclose(passed[50], 40.0, rtol=1e-3)
    np.testing.assert_allclose(np.delete(passed, 50), 10.0, rtol=1e-4)


def test_rate_warms_up_and_falls():
    adamw = vdvae_training(1000, learning_rate=1e-2, weight_decay=0.0, average=0.99)
    assert adamw["average"] == 0.99
    state = adamw["optimizer"].init({"a": jnp.ones(())})
    step = jax.jit(adamw["optimizer"].update)
    sizes = []
    for _ in range(120):
        out, state = step({"a": jnp.ones(())}, state, {"a": jnp.ones(())})
        sizes.append(-float(out["a"]))
    # With a constant gradient, Adam's step is the rate.
    np.testing.assert_allclose([sizes[0], sizes[50], sizes[100]], [1e-4, 5.05e-3, 1e-2], rtol=1e-2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clip_to_running_norm(1.0), "above 1"),
        (lambda: clip_to_running_norm(4.0, 1.0), "between 0 and 1"),
        (lambda: vdvae_training(50), "100 steps of warm-up"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_fit_takes_the_rules_and_does_not_warn_of_dropout():
    """Warnings are errors here: evaluation without the dropout of training is what is meant."""
    program = dataclasses.replace(PRESETS["tiny"], dropout=0.5).build()
    x = np.random.default_rng(0).integers(0, 17, (8, 8, 8)).astype("uint8")
    fitted = fit(
        program, x, steps=3, batch_size=4, key=jax.random.key(0), progress=False, **vdvae_training(3, warmup=1)
    )
    assert np.isfinite(fitted.history["loss"]).all() and fitted.info["skipped"] == 0
