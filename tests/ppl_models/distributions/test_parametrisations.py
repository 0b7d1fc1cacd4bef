"""Schedules and predictions against the closed forms of Gaussian data, and the bound against the density."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_models.distributions import (
    EDM,
    PREDICTIONS,
    RK4,
    SCHEDULES,
    Cosine,
    Denoiser,
    DiffusionPrior,
    Flow,
    FlowMatching,
    Moments,
    Noise,
    Preconditioned,
    Score,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
    Velocity,
    convert,
    path_bound,
    preconditioning,
)
from ppl_models.distributions.analytic import IsotropicMixture, MixtureDenoiser
from tests.ppl_models.distributions.mixtures import mixture

NEW = (VarianceExploding(), Cosine(), FlowMatching())
ALL = tuple(VariancePreserving(start=1e-3) if name == "vp" else make() for name, make in SCHEDULES.items())
KEY = jax.random.key(0)
M, SD = jnp.asarray([[0.7], [-0.4]]), 0.6


def name(schedule):
    return schedule.kind


def gaussian(kind, schedule):
    """What a network of this kind predicts, in closed form, for data N(M, SD^2 I)."""

    def moments(t):
        a, s = schedule.alpha(t), schedule.sigma(t)
        return a, s, a**2 * SD**2 + s**2

    def denoised(x, t):
        a, _, total = moments(t)
        return M + a * SD**2 / total * (x - a * M)

    def noise(x, t):
        a, s, total = moments(t)
        return s / total * (x - a * M)

    def flow(x, t):
        (a_rate, s_rate) = schedule.rates(t)
        return a_rate * denoised(x, t) + s_rate * noise(x, t)

    functions = {
        Score: lambda p, x, t: -(x - moments(t)[0] * M) / moments(t)[2],
        Noise: lambda p, x, t: noise(x, t),
        Denoiser: lambda p, x, t: denoised(x, t),
        Velocity: lambda p, x, t: moments(t)[0] * noise(x, t) - moments(t)[1] * denoised(x, t),
        Flow: lambda p, x, t: flow(x, t),
    }
    return kind(functions[kind])


@pytest.mark.parametrize("schedule", NEW, ids=name)
def test_new_schedules_are_consistent(schedule):
    t = jnp.linspace(max(schedule.start, 0.01), 0.95, 40)
    a, s = schedule.alpha(t), schedule.sigma(t)
    a_rate, s_rate = schedule.rates(t)
    np.testing.assert_allclose(a_rate, jax.vmap(jax.grad(schedule.alpha))(t), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(s_rate, jax.vmap(jax.grad(schedule.sigma))(t), rtol=2e-5, atol=1e-5)
    f, g2 = schedule.sde(t)
    np.testing.assert_allclose(f, a_rate / a, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(g2, 2 * s * (s_rate - f * s), rtol=1e-4)
    np.testing.assert_allclose(schedule.log_snr(t), 2 * (jnp.log(a) - jnp.log(s)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-4, atol=1e-6)
    assert float(schedule.sigma(schedule.time(jnp.inf))) == 0.0
    again = type(schedule)(**json.loads(json.dumps(dataclasses.asdict(schedule))))
    assert again == schedule and hash(again) == hash(schedule)


def test_known_values_of_the_new_schedules():
    ve = VarianceExploding()
    np.testing.assert_allclose(ve.sigma(jnp.asarray([0.0, 0.5, 1.0])), [0.01, np.sqrt(0.5), 50.0], rtol=1e-5)
    # Nichol & Dhariwal: alpha-bar = alpha^2 = cos^2(u) / cos^2(u_0).
    u = lambda t: np.pi / 2 * (t + 0.008) / 1.008  # noqa: E731
    np.testing.assert_allclose(Cosine().alpha(0.3) ** 2, np.cos(u(0.3)) ** 2 / np.cos(u(0.0)) ** 2, rtol=1e-5)
    np.testing.assert_allclose(Cosine().sigma(1e-4) ** 2, 1 - (np.cos(u(1e-4)) / np.cos(u(0.0))) ** 2, rtol=1e-4)
    assert float(Cosine().alpha(1.0)) < 1e-7 and float(FlowMatching().alpha(1.0)) == 0.0
    assert float(FlowMatching().log_snr(0.5)) == 0.0


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_every_prediction_becomes_every_other(schedule):
    x = jnp.tile(jax.random.normal(KEY, (2, 1)) * 1.5, (1, 3))
    kinds = (Score, Noise, Denoiser, Velocity, Flow)
    t = schedule.start + jnp.asarray([0.2, 0.5, 0.8]) * (schedule.T - schedule.start)
    truths = {kind: gaussian(kind, schedule).fn(None, x, t) for kind in kinds}
    for source in kinds:
        given = gaussian(source, schedule)
        np.testing.assert_allclose(given.drift(schedule, None, x, t), truths[Flow], rtol=1e-3, atol=1e-4)
        for to in kinds:
            found, scale = convert(given, schedule, to).fn(None, x, t), jnp.abs(truths[to]).max(0)
            np.testing.assert_allclose(found / scale, truths[to] / scale, atol=2e-3)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_preconditioning_has_unit_input_and_target(schedule):
    t = schedule.start + 0.4 * (schedule.T - schedule.start)
    c = preconditioning(schedule, t, SD)
    a, s = schedule.alpha(t), schedule.sigma(t)
    np.testing.assert_allclose(c.into**2 * (a**2 * SD**2 + s**2), 1.0, rtol=1e-5)
    # The target (x_0 - c_skip x) / c_out: of variance one, and uncorrelated with x.
    weight = jnp.asarray([1 - c.skip * a, -c.skip * s]) / c.out  # on x_0 and eps
    np.testing.assert_allclose(weight[0] ** 2 * SD**2 + weight[1] ** 2, 1.0, rtol=1e-4)
    assert abs(float(weight[0] * a * SD**2 + weight[1] * s)) < 1e-4 * float(a**2 * SD**2 + s**2)
    # The raw network that makes the exact denoiser, and back.
    zero_mean = Denoiser(lambda p, x, t: schedule.alpha(t) * 0.25 / (schedule.alpha(t) ** 2 * 0.25 + s**2) * x)
    silent = Preconditioned(lambda p, x, level: jnp.zeros_like(x), sd=0.5)  # D of N(0, .5^2 I), exactly
    x = jnp.asarray([0.4, -1.0])
    np.testing.assert_allclose(silent.denoise(schedule, None, x, t), zero_mean.denoise(schedule, None, x, t), rtol=1e-4)
    np.testing.assert_allclose(convert(silent, schedule, Denoiser).fn(None, x, t), zero_mean.fn(None, x, t), rtol=1e-4)


def test_edm_constants_and_the_velocity_as_a_special_case():
    sigma, sd = 1.7, 0.5
    c = preconditioning(EDM(), sigma, sd)
    total = sigma**2 + sd**2
    expected = [sd**2 / total, sigma * sd / np.sqrt(total), 1 / np.sqrt(total), np.log(sigma) / 4]
    np.testing.assert_allclose(jnp.stack(c), expected, rtol=1e-5)
    trig, x = Trigonometric(), jnp.asarray([0.3, -0.8])
    raw = Preconditioned(lambda p, x, level: -(x**3), sd=1.0)
    v = Velocity(lambda p, x, t: x**3)
    np.testing.assert_allclose(raw.denoise(trig, None, x, 0.9), v.denoise(trig, None, x, 0.9), rtol=1e-5)
    np.testing.assert_allclose(raw.drift(trig, None, x, 0.9), x**3, rtol=1e-4)
    assert set(PREDICTIONS) == {"score", "eps", "x", "v", "flow", "edm"}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """The exact denoiser of a mixture, drawn towards 0 where there is noise."""

    schedule: object

    def __call__(self, params, x, t):
        m, factor = params
        s = self.schedule.sigma(t) / jnp.hypot(self.schedule.sigma(t), self.schedule.alpha(t))
        return (1 - factor * s**2) * MixtureDenoiser(self.schedule)(m, x, t)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_the_bound_is_at_most_the_density_of_the_ode_for_an_exact_score_and_the_entropy_for_any(schedule):
    m = mixture(2)
    solver = RK4(30, {"edm": 7.0, "ve": 1.0}.get(schedule.kind, 1.5))
    noised = m.noised(schedule, schedule.start)
    x = noised.sample(jax.random.key(1), 64)
    truth = float(noised.log_prob(x).mean())

    @jax.jit
    def both(factor, keys):
        law = DiffusionPrior(
            Denoiser(Wrong(schedule)), schedule, (2,), params=(m, factor), base=m.moments(), solver=solver
        )
        bound, se = jax.vmap(lambda key: path_bound(law, x, key=key, draws=128))(keys)
        return bound.mean(), jnp.sqrt((se**2).sum() / (se.size) ** 2), law.log_prob(x).mean()

    keys = jax.random.split(KEY, 4)
    bound, se, density = (float(v) for v in both(0.0, keys))
    assert density == pytest.approx(truth, abs=4e-3)
    assert abs(bound - density) < 3 * se + 4e-3 and se < 0.1
    # A wrong score: the two belong to different laws (of the SDE, and of the ODE), which may come in either order; both
    # lie below minus the entropy, and neither depends on the schedule, which is a clock and a scale of one process.
    bound, se, density = (float(v) for v in both(0.7, keys))
    assert density < truth - 0.1 and bound < truth - 3 * se
    assert density == pytest.approx(-2.114, abs=5e-3) and bound == pytest.approx(-2.05, abs=4 * se)


def test_the_bound_of_a_gaussian_is_its_density():
    one = IsotropicMixture(jnp.zeros(1), jnp.zeros((1, 3)), jnp.ones(1))  # the reference itself: no error at all
    law = DiffusionPrior(Denoiser(MixtureDenoiser(Trigonometric())), Trigonometric(), (3,), params=one)
    x = jax.random.normal(KEY, (5, 3))
    found, se = path_bound(law, x, key=KEY, draws=8)
    np.testing.assert_allclose(found, one.log_prob(x), atol=2e-3)
    assert float(se.max()) < 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VarianceExploding(low=2.0, high=1.0), "0 < low < high"),
        (lambda: Cosine(offset=-0.1), "offset must be"),
        (lambda: Cosine(T=1.2), "T <= 1"),
        (lambda: FlowMatching(start=0.5, T=0.2), "start < T"),
        (lambda: Preconditioned(lambda p, x, t: x, sd=0.0), "standard deviation of the data"),
        (lambda: convert(Denoiser(lambda p, x, t: x), EDM(), Preconditioned), "to must be"),
        (lambda: Moments.of(np.zeros((1, 2))), "at least two"),
        (
            lambda: path_bound(
                DiffusionPrior(Flow(lambda p, x, t: x), FlowMatching(), (2,)), jnp.zeros((1, 2)), key=KEY, draws=1
            ),
            "at least 2 draws",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
