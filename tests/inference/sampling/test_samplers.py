import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference.sampling import ancestral, ancestral_kernel, ddim_step, heun, time_grid
from ppl_models.distributions import EDM, RK4, Denoiser, DiffusionPrior, Trigonometric, VariancePreserving
from ppl_models.distributions.analytic import MixtureDenoiser
from tests.ppl_models.distributions.mixtures import mixture

SCHEDULES = {"vp": VariancePreserving(start=1e-3), "trigonometric": Trigonometric(), "edm": EDM()}


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def gaussian(schedule, s=0.5):
    """The exact denoiser of N(0, s^2 I): every sampler's law is then Gaussian, with a variance worked out by hand."""

    def D(x, t):
        a = schedule.alpha(t)
        return a * s**2 / (a**2 * s**2 + schedule.sigma(t) ** 2) * x

    return D


def order(errors, steps):
    return np.log(np.abs(errors[0] / errors[1])) / np.log(steps[1] / steps[0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_heun_is_second_order_and_ddim_first(name):
    schedule = SCHEDULES[name]
    warp = 7.0 if name == "edm" else 1.5
    D, steps = gaussian(schedule), (40, 80)
    end = schedule.start
    start = jnp.asarray([[schedule.sigma(schedule.T)]])
    total = lambda t: jnp.sqrt(schedule.alpha(t) ** 2 * 0.25 + schedule.sigma(t) ** 2)  # noqa: E731
    exact = start[0, 0] * total(end) / total(schedule.T)

    def by_ddim(grid):
        return jax.lax.scan(lambda x, e: (ddim_step(D, schedule, x, *e), None), start, (grid[:-1], grid[1:]))[0]

    grids = [time_grid(schedule, n, warp=warp, to_data=False) for n in steps]
    errors = np.array([float(heun(D, schedule, start, grid)[0, 0] - exact) for grid in grids])
    rough = np.array([float(by_ddim(grid)[0, 0] - exact) for grid in grids])
    assert 1.6 < order(errors, steps) < 2.6
    assert 0.8 < order(rough, steps) < 1.2
    assert abs(errors[0]) < abs(rough[0]) / 5


@pytest.mark.parametrize(("variance", "low", "high"), [("large", 0.8, 1.2), ("small", 0.8, 1.2)])
def test_ancestral_variance_converges_at_first_order(variance, low, high):
    schedule, s = SCHEDULES["vp"], 0.5
    D, one = gaussian(schedule, s), jnp.ones((1, 1))

    def final_variance(steps):
        times = time_grid(schedule, steps)
        # The kernel's mean is linear in x here, so the law is propagated exactly, without a random number.
        var = schedule.alpha(schedule.T) ** 2 * s**2 + schedule.sigma(schedule.T) ** 2
        for i in range(steps):
            mean, std = ancestral_kernel(D, schedule, one, times[i], times[i + 1], variance=variance)
            var = mean[0, 0] ** 2 * var + (std**2 if i < steps - 1 else jnp.asarray(0.0))
        return float(var)

    steps = (30, 60)
    errors = np.array([final_variance(n) - s**2 for n in steps])
    assert low < order(errors, steps) < high
    assert (errors[0] > 0) == (variance == "large")


def test_samplers_reach_the_mixture():
    schedule, m = SCHEDULES["trigonometric"], mixture(2)
    D = jax.vmap(lambda x, t: MixtureDenoiser(schedule)(m, x, t), in_axes=(0, None))
    z = jax.random.normal(jax.random.key(0), (4000, 2))
    moments = m.moments()
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        drawn = jax.jit(lambda z: ancestral(D, schedule, z, time_grid(schedule, 100), key=jax.random.key(1)))(z)
        solved = jax.jit(lambda z: heun(D, schedule, z, time_grid(schedule, 40)))(z)
        prior = DiffusionPrior(Denoiser(MixtureDenoiser(schedule)), schedule, (2,), params=m, solver=RK4(40))
        np.testing.assert_allclose(solved, jax.jit(prior.from_noise)(z), atol=0.02)
    for x in (drawn, solved):
        np.testing.assert_allclose(x.mean(0), moments.mean, atol=0.06)
        np.testing.assert_allclose(jnp.cov(x.T), moments.cov, atol=0.08)


def test_time_grid_ends():
    grid = time_grid(EDM(), 18, warp=7.0)
    np.testing.assert_allclose(grid[jnp.asarray([0, -2, -1])], [80.0, 0.002, 0.0], rtol=1e-4)
    assert len(grid) == 19 and np.all(np.diff(grid) < 0)
    assert float(time_grid(VariancePreserving(), 10)[-1]) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: time_grid(EDM(), 1), "at least 2 steps"),
        (lambda: time_grid(EDM(), 9, warp=0.0), "warp must be positive"),
    ],
)
def test_bad_grids_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
