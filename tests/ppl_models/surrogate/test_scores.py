"""Scores, conformal intervals and bars against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, norm

from ppl_models.surrogate import (
    PCARegression,
    Persistence,
    conformal,
    coverage,
    dice,
    interval,
    mse,
    relative_l2,
    reliability,
    soft_dice,
)  # fmt: skip


def test_errors_and_overlap_by_hand():
    y = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(mse(y, y + [[1, 0], [0, 2]]), [0.5, 2.0])
    np.testing.assert_allclose(relative_l2(y, y + [[0, 1], [0, 2]]), [0.2, np.inf])
    mask, p = np.array([[1, 1, 0, 0], [0, 0, 0, 0]]), np.array([[0.9, 0.4, 0.5, 0.1], [0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(dice(mask, p), [2 * 1 / (2 + 2), 1.0])
    np.testing.assert_allclose(soft_dice(mask, p), [(2 * 1.3 + 1) / (2 + 1.9 + 1), 1 / (1.0 + 1)])


def test_reliability_by_hand_and_of_a_true_probability():
    found = reliability(np.array([[1, 0, 1, 1]]), np.array([[0.1, 0.3, 0.9, 1.0]]), bins=2)
    np.testing.assert_allclose(found["probability"], [0.2, 0.95])
    np.testing.assert_allclose(found["frequency"], [0.5, 1.0])
    assert found["ece"] == pytest.approx(0.5 * 0.3 + 0.5 * 0.05)
    rng = np.random.default_rng(0)
    p = rng.random((200, 500))
    assert reliability(rng.random(p.shape) < p, p)["ece"] < 0.01
    assert reliability(rng.random(p.shape) < p**2, p)["ece"] == pytest.approx(1 / 6, abs=0.01)  # E(p - p^2)


# -------------------------------------------------------------------------------------------------- conformal
def test_coverage_of_the_normal_law_and_of_a_scale_that_is_too_small():
    rng = np.random.default_rng(0)
    y = 2 + 3 * rng.normal(size=(400, 250))
    assert coverage(y, np.full_like(y, 2), 3.0).mean() == pytest.approx(0.9, abs=0.005)
    assert coverage(y, np.full_like(y, 2), 1.0, 0.5).mean() == pytest.approx(
        1 - 2 * norm.sf(norm.ppf(0.75) / 3), abs=0.005
    )
    low, high = interval(np.zeros(2), np.array([1.0, 2.0]), 0.95)
    np.testing.assert_allclose(high, norm.ppf(0.975) * np.array([1, 2]))
    np.testing.assert_allclose(low, -high)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_pixels_are_covered_as_split_conformal_promises(level):
    """Of n scores the k-th smallest covers Beta(k, n + 1 - k) of a continuous law, k = ceil((n + 1) level)."""
    rng, n, pixels = np.random.default_rng(1), 19, 4000
    y = np.exp(rng.normal(size=(n, pixels)))  # any law, and a useless mean and sd
    band = conformal(y, np.zeros_like(y), np.full_like(y, 7.0), level=level, by="pixel")
    assert band.factor.shape == (pixels,) and band.n == n
    covered = 2 * norm.cdf(np.log(7.0 * band.factor)) / 2  # P(y <= 7 q), exactly
    law = beta(np.ceil((n + 1) * level), n + 1 - np.ceil((n + 1) * level))
    assert covered.mean() == pytest.approx(law.mean(), abs=4 * law.std() / pixels**0.5)
    assert covered.std() == pytest.approx(law.std(), rel=0.1)


def test_fields_miss_at_most_alpha_of_their_pixels_and_whole_fields_are_covered():
    """Over many calibrations, fields whose pixels share one random size; the level holds on average."""
    rng, n, runs, pixels = np.random.default_rng(2), 30, 400, 25
    missed, whole = [], []
    for _ in range(runs):
        size = rng.gamma(2.0, size=(n + 1, 1))
        y = size * rng.normal(size=(n + 1, pixels))
        fitted, new = y[:n], y[n:]
        zero, one = np.zeros_like(fitted), np.ones_like(fitted)
        missed.append(1 - coverage(new, 0 * new, 1.0, conformal(fitted, zero, one, by="field"))[0])
        whole.append(coverage(new, 0 * new, 1.0, conformal(fitted, zero, one, by="whole"))[0] == 1)
    error = np.std(missed) / runs**0.5
    assert 0.1 - 1 / (n + 1) - 3 * error < np.mean(missed) < 0.1 + 3 * error
    assert np.mean(whole) > 0.9 - 3 * 0.3 / runs**0.5
    # By hand: 9 fields of one pixel at level .9 take the largest score.
    y = np.arange(1.0, 10)[:, None]
    assert conformal(y, 0 * y, 1.0 + 0 * y).factor == 9 == conformal(y, 0 * y, 1.0 + 0 * y, by="pixel").factor[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1.0}, "level must lie between 0 and 1"),
        ({"level": 0.95}, "needs at least 19 validation data, got 9"),
        ({"by": "step"}, "by is one of pixel, field, whole"),
        ({"sd": np.zeros((9, 2))}, "sd must be positive"),
        ({"mean": np.zeros((9, 3))}, "one shape"),
    ],
)
def test_bad_calibrations(change, message):
    given = {"truth": np.ones((9, 2)), "mean": np.zeros((9, 2)), "sd": np.ones((9, 2)), "by": "pixel"} | change
    with pytest.raises((ValueError, TypeError)) as caught:
        conformal(given.pop("truth"), given.pop("mean"), given.pop("sd"), **given)
    assert isinstance(caught.value, TypeError) or message in str(caught.value)


# ------------------------------------------------------------------------------------------------------- bars
def test_pca_regression_is_least_squares_where_nothing_is_cut():
    rng = np.random.default_rng(0)
    x, B = rng.normal(size=(60, 2, 2, 2)), rng.normal(size=(8, 4))
    y = (x.reshape(60, 8) @ B + 3).reshape(60, 2, 2, 1) + 0.1 * rng.normal(size=(60, 2, 2, 1))
    bar = PCARegression.fit(x[:40], y[:40], x[40:], y[40:], ranks=(8,), ridges=(0.0,))
    design = np.concatenate([x.reshape(60, 8), np.ones((60, 1))], 1)
    exact = design @ np.linalg.lstsq(design[:40], y[:40].reshape(40, 4), rcond=None)[0]
    np.testing.assert_allclose(bar.predict(x).mean.reshape(60, 4), exact, atol=1e-8)
    np.testing.assert_allclose(bar.sd.ravel(), np.sqrt(((exact - y.reshape(60, 4))[40:] ** 2).mean(0)), atol=1e-8)


def test_pca_regression_with_more_numbers_than_data_reads_a_field_of_low_rank():
    rng = np.random.default_rng(1)
    codes, shapes = rng.normal(size=(30, 3)), rng.normal(size=(3, 100))
    x = (codes @ shapes).reshape(30, 10, 10, 1)
    y = 2 * x - 1
    bar = PCARegression.fit(x[:20], y[:20], x[20:], y[20:], ridges=(1e-9, 1.0))
    np.testing.assert_allclose(bar.predict(x).mean, y, atol=1e-5)


def test_persistence():
    x, y = np.ones((3, 2, 2, 2)), np.full((3, 2, 2, 1), 3.0)
    found = Persistence.fit(x, y).predict(x[:1])
    np.testing.assert_array_equal(found.mean, 1)
    np.testing.assert_array_equal(found.sd, 2)


@pytest.mark.data
def test_pca_regression_on_the_published_darcy_fields():
    """Known answers: the median relative L2 of the mean field is .49, of ridge regression on the coefficients .24."""
    from ppl_models.datasets import DataMissingError, load

    try:
        (data, _), (test, _) = load("neuralop_darcy"), load("neuralop_darcy", "test")
    except DataMissingError:
        pytest.skip("pde_small.npz is not in PPL_MODELS_DATA")
    x, y = data["x"], data["y"]
    bar = PCARegression.fit(x[:900], y[:900], x[900:], y[900:])
    assert np.median(relative_l2(test["y"], bar.predict(test["x"]).mean)) == pytest.approx(0.24, abs=0.02)
    mean = np.broadcast_to(y.mean(0), test["y"].shape)
    assert np.median(relative_l2(test["y"], mean)) == pytest.approx(0.49, abs=0.01)
