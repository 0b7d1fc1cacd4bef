"""The clock of each datum: when its bound no longer rises, what it then does, and who takes its place."""

import numpy as np
import pytest

from inference.checking.optimise import BLOCK, FIRST, SETTLE, Clocks, Settings, gain


def test_gain_is_the_rise_of_the_bound_and_its_error() -> None:
    rng = np.random.default_rng(0)
    before, noise = rng.normal(size=(500, 8)), rng.normal(size=(500, 8))
    rise, error = gain(before, before + 0.3 + 0.1 * noise, "elbo")
    np.testing.assert_allclose(rise, 0.3 + 0.1 * noise.mean(1))
    np.testing.assert_allclose(error, 0.1 * noise.std(1, ddof=1) / np.sqrt(8))
    assert ((rise - 0.3) / error).std() == pytest.approx(np.sqrt(7 / 5), abs=0.15)  # Student's t with 7 degrees
    # log mean w of weights that all grow by one factor grows by its log, without error.
    rise, error = gain(before, before + 0.3, "dreg")
    np.testing.assert_allclose(rise, 0.3)
    np.testing.assert_allclose(error, 0.0, atol=1e-12)
    rise, _ = gain(before, before + 0.1 * noise, "dreg")
    np.testing.assert_allclose(rise, np.log(np.exp(before + 0.1 * noise).mean(1) / np.exp(before).mean(1)))


def run(clocks: Clocks, bound) -> list[np.ndarray]:
    """Let clocks run on bounds ``bound(datum, steps)``; the rates of every step by place."""
    rates = []
    while clocks.busy:
        wobble = np.linspace(-1, 1, clocks.settings.draws)  # what draws differ in cancels before and after
        if clocks.stops:
            clocks.look(np.stack([bound(d, c) + wobble for d, c in zip(clocks.at, clocks.clock, strict=True)]))
        rates += [clocks.rates(ahead)[1] for ahead in range(BLOCK)]
        clocks.refill(clocks.advance())
    return rates


def rises_until(end):
    return lambda datum, clock: 0.1 * min(clock, end[datum])


def test_a_datum_settles_once_its_bound_no_longer_rises_and_the_next_takes_its_place() -> None:
    end = [0, 35, 70, 1000, 20]
    clocks = Clocks(5, 2, Settings(steps=200))
    rates = run(clocks, rises_until(end))
    # Flat from ``end`` on, which two looks show; certain, for all draws agree.
    assert clocks.steps.tolist() == [20, 50, 80, 200, 30]
    assert max(rate.max() for rate in rates) == pytest.approx(Settings.learning_rate)
    slow = Clocks(5, 3, Settings(steps=200))
    run(slow, rises_until(end))
    assert slow.steps.tolist() == clocks.steps.tolist()  # whoever shares the batch


def test_noise_that_hides_the_rise_lets_it_settle_for_ninety_steps() -> None:
    rng = np.random.default_rng(0)
    clocks = Clocks(40, 40, Settings(steps=200))
    run(clocks, lambda datum, clock: rng.normal(size=8) + 0.05 * (clock > 0))
    assert (clocks.steps >= FIRST + SETTLE).all() and np.median(clocks.steps) <= FIRST + 2 * BLOCK + SETTLE


@pytest.mark.parametrize("settings", [Settings(steps=25, tolerance=0.0), Settings(steps=25, draws=2)])
def test_without_a_tolerance_every_step_is_taken_along_one_cosine(settings: Settings) -> None:
    clocks = Clocks(3, 2, settings)
    rates = np.stack(run(clocks, lambda datum, clock: 0.0))
    assert clocks.steps.tolist() == [25, 25, 25]
    t = np.arange(25) / 25
    np.testing.assert_allclose(rates[:25, 0], 0.05 * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * t))), rtol=1e-6)
    assert (rates[25:30] == 0).all() and (rates[30:55, 1] == 0).all()  # nothing moves after its end


def test_a_bound_that_is_no_number_stops_nothing() -> None:
    clocks = Clocks(1, 1, Settings(steps=120))
    run(clocks, lambda datum, clock: np.nan)
    assert clocks.steps.tolist() == [120]
