"""Simultaneous bands of an ECDF: against enumeration, against simulation, and against the p-value they belong to."""

import itertools
import math

import numpy as np
import pytest

from inference.checking.column_checks import holm
from inference.checking.ecdf_bands import band, counts, ecdf, outside, p_values, points


def test_the_recursion_is_the_sum_over_all_multinomials():
    from scipy.stats import binom

    n = 6
    at = points(n)
    np.testing.assert_allclose(at, np.arange(1, n) / n)
    table = {}
    for cells in itertools.product(range(n + 1), repeat=n):
        if sum(cells) == n:
            c = np.cumsum(cells)[:-1]
            least = (2 * np.minimum(binom.cdf(c, n, at), binom.sf(c - 1, n, at))).min()
            p = math.factorial(n) / math.prod(math.factorial(k) for k in cells) / n**n
            table[cells] = (min(least, 1.0), p)
    assert sum(p for _, p in table.values()) == pytest.approx(1)
    for gamma in (0.001, 0.05, 0.3, 0.9):
        exact = sum(p for least, p in table.values() if least <= gamma)
        assert outside(n, math.log(gamma)) == pytest.approx(exact, rel=1e-9)
    # The p-value of one sample is the chance of a least local p-value as small as its own.
    pit = np.array([0.05, 0.1, 0.2, 0.3, 0.6, 0.65])
    own = table[tuple(np.diff([0, *counts(pit), n]))][0]
    assert p_values(pit[:, None])[0] == pytest.approx(
        sum(p for least, p in table.values() if least <= own * (1 + 1e-9))
    )


@pytest.mark.parametrize(("n", "level"), [(50, 0.05), (300, 0.05), (300, 0.2)])
def test_the_band_holds_the_whole_ecdf_as_often_as_it_says(n, level):
    pit = np.random.default_rng(0).random((n, 8000))
    held, found = band(n, level), counts(pit) / n
    left = ((found < held.low[:, None] - 1e-9) | (found > held.high[:, None] + 1e-9)).any(0)
    assert left.mean() == pytest.approx(level, abs=0.15 * level)  # 3 standard errors, and counts are whole numbers
    assert left.mean() < level + 3 * math.sqrt(level * (1 - level) / 8000)


def test_the_p_value_is_below_the_level_where_the_ecdf_leaves_the_band():
    rng = np.random.default_rng(1)
    for power in (1.0, 1.05, 1.1, 1.2):
        pit = rng.random(400) ** power
        held, found = band(400), ecdf(pit)
        left = bool(((found < held.low - 1e-9) | (found > held.high + 1e-9)).any())
        assert (float(p_values(pit[:, None])[0]) <= 0.05) == left


def test_p_values_are_uniform_and_interpolation_changes_them_little():
    pit = np.random.default_rng(2).random((200, 3000))
    many = p_values(pit)
    few = np.concatenate([p_values(part) for part in np.array_split(pit[:, :300], 10, axis=1)])
    np.testing.assert_allclose(many[:300], few, rtol=0.08)
    for level in (0.01, 0.05, 0.5):
        assert (many <= level).mean() == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 3000))
    extreme = p_values(np.stack([np.full(200, 0.5), np.full(200, 1e-6)], axis=1))
    assert (extreme < 1e-20).all()
    assert p_values(np.array([0.5] * 9 + [np.nan])[:, None])[0] == 0


def test_holm_and_bad_input():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.5])), [1.0, 1.0])
    with pytest.raises(ValueError, match="at least 2 values"):
        band(1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        band(100, 1.5)
