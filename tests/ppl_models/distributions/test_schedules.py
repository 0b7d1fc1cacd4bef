import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_models.distributions.schedules import EDM, Trigonometric, VariancePreserving

SCHEDULES = (VariancePreserving(), VariancePreserving(T=1.5), EDM(), Trigonometric())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.T:.2g}")
def test_rates_sde_and_inverse_agree_with_alpha_and_sigma(schedule):
    low = max(schedule.start, 0.01 * schedule.T)
    t = jnp.linspace(low, 0.95 * schedule.T, 40)
    a, s = schedule.alpha(t), schedule.sigma(t)
    a_rate, s_rate = schedule.rates(t)
    np.testing.assert_allclose(a_rate, jax.vmap(jax.grad(schedule.alpha))(t), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(s_rate, jax.vmap(jax.grad(schedule.sigma))(t), rtol=2e-5, atol=1e-5)
    f, g2 = schedule.sde(t)
    np.testing.assert_allclose(f, a_rate / a, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(g2, 2 * s * (s_rate - f * s), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(schedule.log_snr(t), 2 * (jnp.log(a) - jnp.log(s)), rtol=1e-4, atol=1e-4)
    assert np.all(np.diff(schedule.log_snr(t)) < 0)
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-3)


def test_known_values():
    np.testing.assert_allclose(VariancePreserving().alpha(1.0), 6.57e-3, rtol=1e-3)
    np.testing.assert_allclose(VariancePreserving(T=1.5).alpha(1.5), 1.28e-5, rtol=5e-3)
    trig = Trigonometric()
    assert abs(float(trig.alpha(trig.T))) < 1e-7 and float(trig.sigma(trig.T)) == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.T:.2g}")
def test_hashable_and_json(schedule):
    again = type(schedule)(**json.loads(json.dumps(dataclasses.asdict(schedule))))
    assert again == schedule and hash(again) == hash(schedule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VariancePreserving(b0=0.0), "0 < b0 <= b1"),
        (lambda: VariancePreserving(start=1.0), "start < T"),
        (lambda: EDM(T=0.001), "start < T"),
        (lambda: Trigonometric(T=2.0), "T <= 1.57"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
