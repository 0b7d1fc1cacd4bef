"""The schedule of the paper's code at known points, and how it reaches a fit."""

import dataclasses

import jax
import numpy as np
import pytest

from inference import fit
from ppl_models.mfcvae import PRESETS, Progressive

MNIST = Progressive((201, 201), batches=118, fade_in=15_000)
SHAPES = Progressive((101, 301), batches=26, fade_in=2_000)
SVHN = Progressive((101, 301), batches=489, fade_in=15_000)


def published(epochs, n_b, T_f, g0, epoch, batch):
    """The rule as its code states it: (alpha, gamma) by facet, shallow to deep, from epoch and batch."""
    J = len(epochs)
    s = next((i for i in range(J) if epoch < np.cumsum(epochs)[i]), J - 1)
    t = batch + n_b * (epoch - int(np.sum(epochs[:s])))
    a, g = (1.0, 1.0) if s == 0 else (min(t / T_f, 1.0), min(t / T_f * (1 - g0) + g0, 1.0))
    found = []
    for j in range(J):
        r = J - 1 - j
        found.append((1.0, 1.0) if r < s else (a, g) if r == s else (0.0, g0))
    return found


@pytest.mark.parametrize(
    ("schedule", "epoch", "batch", "alpha"),
    [(MNIST, 200, 117, 0), (MNIST, 201, 0, 0), (MNIST, 201, 50, 1 / 300), (MNIST, 300, 0, 0.7788), (MNIST, 328, 14, 1),
     (SHAPES, 177, 24, 1), (SHAPES, 177, 23, 1999 / 2000)],
)  # fmt: skip
def test_published_points(schedule, epoch, batch, alpha):
    found, gamma = schedule.coefficients(epoch * schedule.batches + batch, 0)
    assert float(found) == pytest.approx(alpha, abs=1e-4)
    assert float(gamma) == float(found)  # g0 = 0 in all published recipes
    assert [float(v) for v in schedule.coefficients(epoch * schedule.batches + batch, 1)] == [1, 1]


def test_fifty_points_of_each_schedule_are_those_of_the_published_rule():
    rng = np.random.default_rng(0)
    three = Progressive((5, 7, 9), batches=11, fade_in=40, pretrain=0.25)
    for schedule in (MNIST, SHAPES, SVHN, three):
        J = len(schedule.epochs)
        epochs, batches = rng.integers(0, sum(schedule.epochs), 50), rng.integers(0, schedule.batches, 50)
        run = jax.jit(lambda step, s=schedule: [s.coefficients(step, j) for j in range(len(s.epochs))])
        for epoch, batch in zip(epochs, batches, strict=True):
            ours = np.array(run(int(epoch * schedule.batches + batch)), float)
            theirs = published(schedule.epochs, schedule.batches, schedule.fade_in, schedule.pretrain, epoch, batch)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            assert ours.shape == (J, 2)


def test_a_fit_follows_the_schedule_and_compiles_once():
    schedule = Progressive((1, 1), batches=4, fade_in=4)
    program = dataclasses.replace(PRESETS["tiny"], progressive=schedule).build(jax.random.key(0))
    assert set(program.training.weights) == {"fade_style", "z_style", "fade_digit", "z_digit"}
    x = np.random.default_rng(0).integers(0, 17, (16, 8, 8)).astype("uint8")
    with pytest.warns(UserWarning, match="'fade_style' is 0 after 4 updates, 1 at its end"):
        fitted = fit(program, x, steps=4, batch_size=4, key=jax.random.key(1), progress=False)
    # While the facet is out nothing pulls on its rung or on its prior.
    before = program.views.modules["decoder"].rungs[0].linear.kernel[...]
    np.testing.assert_array_equal(fitted.params["decoder$params"]["rungs"][0]["linear"]["kernel"], before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(dict(epochs=(), batches=1, fade_in=1), "epochs"), (dict(epochs=(1, 0), batches=1, fade_in=1), "epochs"),
     (dict(epochs=(1,), batches=0, fade_in=1), "batches"),
     (dict(epochs=(1,), batches=1, fade_in=1, pretrain=2.0), "pretrain")],
)  # fmt: skip
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Progressive(**arguments)


def test_one_stage_a_facet():
    with pytest.raises(ValueError, match="3 stages for 2 facets"):
        dataclasses.replace(PRESETS["tiny"], progressive=Progressive((1, 1, 1), 1, 1))
