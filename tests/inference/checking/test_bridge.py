"""Bridge sampling against normalising constants that are known."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t as student

from inference.checking.bridge import bridge


def estimates(scale, shift, n, seeds, log_z=2.0):
    law, proposal = norm(), norm(shift, scale)
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        first, second = law.rvs(n, random_state=rng), proposal.rvs(n, random_state=rng)
        ratio = lambda v: log_z + law.logpdf(v) - proposal.logpdf(v)  # noqa: E731
        found.append(bridge(ratio(first), ratio(second)))
    return np.array(found)


def test_unbiased_and_its_error_is_the_spread():
    found = estimates(scale=0.7, shift=0.5, n=400, seeds=200)
    spread = found[:, 0].std()
    assert abs(found[:, 0].mean() - 2.0) < 4 * spread / np.sqrt(200)
    assert found[:, 1].mean() == pytest.approx(spread, rel=0.2)


def test_the_same_law_is_exact():
    value, error = bridge(np.full(50, 1.5), np.full(80, 1.5))
    assert value == pytest.approx(1.5) and error == pytest.approx(0)


def test_a_proposal_with_lighter_tails_will_do():
    """Importance sampling of a t with 3 degrees of freedom by a Normal has infinite variance; a bridge has not."""
    rng = np.random.default_rng(0)
    law, n = student(3), 20_000
    first, second = law.rvs(n, random_state=rng), rng.normal(size=n)
    value, error = bridge(*(law.logpdf(v) - norm.logpdf(v) for v in (first, second)))
    assert abs(value) < 4 * error and error < 0.02


def test_fewer_effective_draws_are_a_larger_error():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 1000))
    ratio = lambda v: norm.logpdf(v) - norm(0.3, 1.2).logpdf(v)  # noqa: E731
    second = 0.3 + 1.2 * second
    whole, part = bridge(ratio(first), ratio(second)), bridge(ratio(first), ratio(second), effective=50)
    assert part[1] > whole[1] and abs(part[0] - whole[0]) < 4 * part[1]


def test_no_number_from_densities_that_are_none():
    assert all(math.isnan(v) for v in bridge(np.array([0.0, np.nan]), np.zeros(3)))
    assert all(math.isnan(v) for v in bridge(np.zeros(3), np.array([0.0, np.inf])))
