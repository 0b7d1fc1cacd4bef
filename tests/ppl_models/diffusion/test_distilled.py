"""Distillation: of a Gaussian everything is linear, so that the student is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import inference
from inference.sampling import draw
from ppl_models.diffusion import MLP, RK4, Diffusion, distil, standard_prior
from ppl_models.diffusion.distilled import Distilled, ddim_to, halving_loss, two_steps_as_one
from ppl_models.distributions import Trigonometric
from ppl_models.distributions.ode import warped_grid

KEY, TRIG, SD, MEAN = jax.random.key(0), Trigonometric(), 0.4, 1.5


def gaussian(x, t):
    """E[x_0 | x_t] of N(MEAN, SD^2)."""
    a, s = (jnp.asarray(v)[:, None] for v in (TRIG.alpha(t), TRIG.sigma(t)))
    return MEAN + a * SD**2 / (a**2 * SD**2 + s**2) * (x - a * MEAN)


def test_one_step_of_the_target_is_two_of_the_teacher():
    x = jax.random.normal(KEY, (5, 2))
    t, mid, u = (jnp.full(5, v) for v in (1.5, 0.9, 0.3))
    between = ddim_to(TRIG, gaussian(x, t), x, t, mid)
    end = ddim_to(TRIG, gaussian(between, mid), between, mid, u)
    target = two_steps_as_one(gaussian, TRIG, x, t, mid, u)
    np.testing.assert_allclose(ddim_to(TRIG, target, x, t, u), end, atol=1e-5)


def test_a_linear_student_of_a_gaussian_learns_the_map_of_its_teacher():
    steps = 4
    grid = warped_grid(TRIG, 2 * steps, 1.5)[::-1]

    def student(params, x, t):
        at = jnp.argmin(jnp.abs(t[:, None] - grid[::2]), 1)
        return params[0][at][:, None] + params[1][at][:, None] * x

    @jax.jit
    def trained(params):
        rule = optax.adam(optax.cosine_decay_schedule(0.05, 1500))

        def update(carry, key):
            params, state = carry
            draw_key, loss_key = jax.random.split(key)
            x_0 = MEAN + SD * jax.random.normal(draw_key, (64, 1))
            loss = lambda p: halving_loss(  # noqa: E731
                lambda x, t: student(p, x, t), gaussian, TRIG, grid, x_0, loss_key
            ).mean()
            change, state = rule.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, change), state), None

        return jax.lax.scan(update, (params, rule.init(params)), jax.random.split(KEY, 1500))[0][0]

    params = trained((jnp.zeros(steps), jnp.zeros(steps)))
    z = jnp.linspace(-2, 2, 9)[:, None]
    few = many = z
    for i in range(2 * steps):
        t, u = jnp.full(9, grid[i]), jnp.full(9, grid[i + 1])
        many = ddim_to(TRIG, gaussian(many, t), many, t, u)
    for i in range(steps):
        t, u = jnp.full(9, grid[2 * i]), jnp.full(9, grid[2 * i + 2])
        few = ddim_to(TRIG, student(params, few, t), few, t, u)
    np.testing.assert_allclose(few, many, atol=0.02)
    coarse = z  # and its four steps without a teacher are elsewhere
    for i in range(steps):
        t, u = jnp.full(9, grid[2 * i]), jnp.full(9, grid[2 * i + 2])
        coarse = ddim_to(TRIG, gaussian(coarse, t), coarse, t, u)
    assert float(jnp.abs(coarse - many).max()) > 0.05


@pytest.fixture(scope="module")
def silent():
    """An untrained diffusion: N(1, 2^2), a map that any number of steps knows."""
    spec = Diffusion(
        (2,), network=MLP(width=8, depth=1, embedding=4), centre=1.0, scale=2.0, solver=RK4(4, 1.75)
    )  # fmt: skip
    x = (1 + 2 * np.random.default_rng(0).normal(size=(64, 2))).astype("f4")
    fitted = inference.fit(
        spec.build(KEY), x, steps=1, learning_rate=1e-12, batch_size=32, key=KEY, progress=False
    )  # fmt: skip
    return fitted, x


def test_a_student_begins_as_its_teacher_and_draws_like_ddim(silent):
    fitted, x = silent
    student = distil(
        inference.fit, fitted, x, teacher_steps=4, steps=2, updates=2, learning_rate=1e-12, batch_size=32, key=KEY,
        progress=False,
    )  # fmt: skip
    assert isinstance(student, Distilled) and student.steps == 2
    z = jax.random.normal(KEY, (6, 2))
    grid = np.asarray(warped_grid(TRIG, 2, student.warp))
    # D = cos(t) x: a step of DDIM from t to u shrinks by cos(t - u), which the steps of the ODE would not.
    np.testing.assert_allclose(student.from_noise(z), 1 + 2 * np.cos(np.diff(grid)).prod() * z, atol=1e-3)
    law = standard_prior(student.program, student.params)
    denoise = jax.vmap(lambda x, t: law.prediction.denoise(law.schedule, law.params, x, t), in_axes=(0, None))
    same = draw(denoise, law.schedule, z, method="ddim", steps=2, warp=student.warp, to_data=False)
    np.testing.assert_allclose(student.from_noise(z), 1 + 2 * same, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"), [({"teacher_steps": 6, "steps": 4}, "halves the steps"), ({"steps": 0}, "halves the steps")]
)
def test_what_cannot_be_halved_is_refused(silent, change, message):
    fitted, x = silent
    with pytest.raises(ValueError, match=message):
        distil(inference.fit, fitted, x, key=KEY, **change)
    classes = dataclasses.replace(fitted.program.spec, classes=2)
    with pytest.raises(ValueError, match="classes"):
        distil(
            inference.fit,
            dataclasses.replace(fitted, program=dataclasses.replace(fitted.program, spec=classes)),
            x,
            key=KEY,
        )
