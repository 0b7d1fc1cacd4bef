import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference.sampling import (
    SAMPLERS,
    ancestral,
    ancestral_kernel,
    ddim,
    ddim_step,
    dpm_solver_2m,
    draw,
    euler_maruyama,
    heun,
    reverse_sde,
    time_grid,
)
from ppl_models.distributions import (
    EDM,
    RK4,
    Cosine,
    Denoiser,
    DiffusionPrior,
    FlowMatching,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
)
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


MORE = {**SCHEDULES, "ve": VarianceExploding(), "cosine": Cosine(), "flow": FlowMatching()}


@pytest.mark.parametrize("name", MORE)
def test_dpm_solver_is_second_order_from_any_end(name):
    schedule, steps = MORE[name], (40, 80)
    D = gaussian(schedule)
    start = jnp.asarray([[schedule.sigma(schedule.T)]])
    total = lambda t: jnp.sqrt(schedule.alpha(t) ** 2 * 0.25 + schedule.sigma(t) ** 2)  # noqa: E731
    exact = start[0, 0] * total(schedule.start) / total(schedule.T)
    grids = [time_grid(schedule, n, warp={"edm": 7.0, "ve": 1.0}.get(name, 1.5), to_data=False) for n in steps]
    errors = [float(dpm_solver_2m(D, schedule, start, grid)[0, 0] - exact) for grid in grids]
    rough = float(ddim(D, schedule, start, grids[1])[0, 0] - exact)
    assert 1.6 < order(np.array(errors), steps) < 2.6
    assert abs(errors[1]) < abs(rough) / 5


def test_euler_maruyama_variance_converges_at_first_order():
    schedule, s = SCHEDULES["vp"], 0.5
    D, one = gaussian(schedule, s), jnp.ones((1, 1))

    def final_variance(steps):
        times = time_grid(schedule, steps)
        var = schedule.alpha(schedule.T) ** 2 * s**2 + schedule.sigma(schedule.T) ** 2
        for t, u in zip(times[:-2], times[1:-1], strict=True):  # linear in x: the law is propagated exactly
            drift, g = reverse_sde(D, schedule, one, t)
            var = (1 + (u - t) * drift[0, 0]) ** 2 * var + g**2 * (t - u)
        return float(ddim_step(D, schedule, one, times[-2], times[-1])[0, 0] ** 2 * var)

    steps = (40, 80)
    assert 0.8 < order(np.array([final_variance(n) - s**2 for n in steps]), steps) < 1.25


def test_ddim_with_all_the_noise_is_ancestral_sampling_with_the_small_variance():
    schedule, z = SCHEDULES["vp"], jax.random.normal(jax.random.key(0), (50, 1))
    D, times, key = gaussian(schedule), time_grid(schedule, 8), jax.random.key(1)
    full = ddim(D, schedule, z, times, key=key, eta=1.0)
    np.testing.assert_allclose(full, ancestral(D, schedule, z, times, key=key, variance="small"), atol=1e-5)


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_every_sampler_draws_a_gaussian_on_every_end(method, name):
    schedule = MORE[name]
    if method == "euler_maruyama" and name == "flow":
        schedule = FlowMatching(T=0.99)
    D = DENOISERS.setdefault(schedule, gaussian(schedule))
    total = jnp.sqrt(schedule.alpha(schedule.T) ** 2 * 0.25 + schedule.sigma(schedule.T) ** 2)
    x_T = total * jax.random.normal(jax.random.key(0), (4000, 1))
    warp, options = {"ve": 1.0}.get(name, 1.5), {"churn": 5.0} if method == "heun" else {}
    x = draw(D, schedule, x_T, method=method, steps=60, warp=warp, key=jax.random.key(1), **options)
    assert abs(float(x.mean())) < 0.03 and float(x.std()) == pytest.approx(0.5, rel=0.09)
    again = draw(D, schedule, x_T, method=method, steps=60, warp=warp, key=jax.random.key(1), **options)
    np.testing.assert_array_equal(x, again)


DENOISERS = {}


def test_churn_keeps_the_law_and_forgets_the_start():
    schedule = EDM()
    D, times = gaussian(schedule), time_grid(schedule, 40, warp=7.0)
    z = 80 * jax.random.normal(jax.random.key(0), (4000, 1))
    still = heun(D, schedule, z, times)
    stirred = heun(D, schedule, z, times, key=jax.random.key(1), churn=40.0, churn_between=(0.05, 50.0))
    assert float(stirred.std()) == pytest.approx(0.5, rel=0.05)
    corr = lambda a: float(jnp.corrcoef(a[:, 0], z[:, 0])[0, 1])  # noqa: E731
    assert corr(still) > 0.999 and abs(corr(stirred)) < 0.2


def test_the_exploding_grid_ends_where_there_is_no_noise():
    grid = time_grid(VarianceExploding(), 10, warp=1.0)
    assert len(grid) == 11 and float(grid[-1]) == -np.inf and float(grid[-2]) == 0.0


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
        (lambda: draw(gaussian(EDM()), EDM(), jnp.ones((1, 1)), method="huen"), "did you mean 'heun'"),
        (lambda: draw(gaussian(EDM()), EDM(), jnp.ones((1, 1)), method="ancestral"), "draws noise"),
        (lambda: draw(gaussian(EDM()), EDM(), jnp.ones((1, 1)), method="ddim", eta=2.0), "share of fresh noise"),
        (lambda: heun(gaussian(EDM()), EDM(), jnp.ones((1, 1)), jnp.ones(3), churn=-1.0), "0 or more"),
        (
            lambda: euler_maruyama(
                gaussian(EDM()), Trigonometric(), jnp.ones((1, 1)), jnp.ones(3), key=jax.random.key(0)
            ),
            "no finite drift",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
