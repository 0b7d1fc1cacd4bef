"""Pareto k-hat: theory on Gaussian proposals, agreement with ArviZ, and every degenerate case named."""

import numpy as np
import pytest

from inference.checking.psis import pareto_k, psis


def gaussian_log_weights(scale, draws, data, seed=0):
    """Log weights of z ~ N(0, scale^2) proposing for N(0, 1); theory: k = 1 - scale^2 for scale < 1, else no tail."""
    z = scale * np.random.default_rng(seed).normal(size=(draws, data))
    return -0.5 * z**2 + 0.5 * (z / scale) ** 2 + np.log(scale)


# At scale 0.3 the estimator itself has mean 0.820 (2,000 replications), 0.09 below theory: the weak prior towards
# 1/2 and the finite tail both pull it down.
@pytest.mark.parametrize("scale", [0.3, 0.5])
def test_khat_is_near_theory_for_narrow_proposals(scale):
    assert abs(pareto_k(gaussian_log_weights(scale, 4000, 50)).mean() - (1 - scale**2)) < 0.1


@pytest.mark.parametrize("scale", [0.9, 1.5])
def test_khat_is_small_for_good_proposals(scale):
    assert pareto_k(gaussian_log_weights(scale, 4000, 50)).mean() < 0.3


def test_the_sign_is_that_of_log_weights_not_of_log_likelihoods():
    log_weight = gaussian_log_weights(0.3, 1000, 20)
    assert pareto_k(log_weight).mean() > 0.6 and pareto_k(-log_weight).mean() < 0


def test_agrees_with_the_accessor_of_arviz():
    import xarray as xr

    log_weight = np.random.default_rng(1).normal(size=(300, 7)) * np.linspace(0.3, 4, 7)
    array = xr.DataArray(log_weight[None], dims=("chain", "draw", "datum"))
    smooth, khat = (-array).azstats.psislw(dim=["chain", "draw"])
    ours, k = psis(log_weight)
    np.testing.assert_allclose(k, khat.to_numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours, smooth.transpose("chain", "draw", "datum").to_numpy()[0], rtol=1e-12)


def test_smoothed_weights_are_normalised_and_order_preserving():
    log_weight = gaussian_log_weights(0.3, 500, 5)
    smooth, _ = psis(log_weight)
    np.testing.assert_allclose(np.exp(smooth).sum(0), 1, rtol=1e-12)
    for before, after in zip(log_weight.T, smooth.T, strict=True):
        assert (np.diff(after[np.argsort(before)]) >= -1e-12).all()


def test_a_constant_added_to_the_log_weights_changes_nothing():
    log_weight = gaussian_log_weights(0.5, 400, 3)
    np.testing.assert_allclose(pareto_k(log_weight - 1e3), pareto_k(log_weight), atol=1e-8)


NOISE = np.random.default_rng(0).normal(size=400)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        pytest.param(np.full(400, -3.0), -np.inf, id="all equal"),
        pytest.param(np.where(np.arange(400) < 5, -np.inf, 1.0), -np.inf, id="equal but for impossible draws"),
        pytest.param((-50 + 1e-5 * NOISE).astype("float32"), -np.inf, id="equal up to single precision"),
        pytest.param(np.where(np.arange(400) == 3, np.nan, NOISE), np.nan, id="a nan"),
        pytest.param(np.where(np.arange(400) == 3, np.inf, NOISE), np.nan, id="an infinite weight"),
        pytest.param(np.full(400, -np.inf), np.nan, id="all zero"),
        pytest.param(np.where(np.arange(400) < 395, -np.inf, NOISE), np.nan, id="hardly any weight"),
        pytest.param(NOISE[:24], np.nan, id="too few draws"),
    ],
)
def test_degenerate_weights_have_a_documented_value_beside_good_ones(column, expected):
    log_weight = np.stack([column, NOISE[: len(column)].astype(column.dtype)], axis=1)
    smooth, khat = psis(log_weight)
    np.testing.assert_equal(khat[0], expected)
    assert np.isfinite(khat[1]) == (len(column) >= 25)
    np.testing.assert_allclose(np.exp(smooth[:, 1]).sum(), 1, rtol=1e-6)


def test_one_dominant_weight_is_far_above_the_threshold():
    assert pareto_k(np.linspace(0, 3000, 512)[:, None])[0] > 1


@pytest.mark.parametrize("shape", [(400,), (2, 3, 4), (1, 5)])
def test_wrong_axes_are_refused(shape):
    with pytest.raises((ValueError, TypeError), match="draws"):
        psis.__wrapped__(np.zeros(shape)) if hasattr(psis, "__wrapped__") else psis(np.zeros(shape))
