"""Why average pooling is the right encoder of a diffusion model: its theory on Gaussian data, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_models.function_spaces import (
    analyse_image,
    conditional_loss,
    crossing,
    haar_matrix,
    level_energies,
    level_snr,
    pooled_noise,
    project_image,
    slope,
    synthesise_image,
)  # fmt: skip

loss_given = jax.jit(conditional_loss)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("f4")


def test_white_noise_is_white_in_every_band():
    """The transform is an isometry, so noise N(0, s^2) has variance s^2 in every coefficient of every level."""
    coarse, bands = analyse_image(jnp.asarray(0.5 * noise(400, 16, 16, 1)), 4)
    for band in (coarse, *bands):
        count = band.size
        assert float(jnp.mean(jnp.square(band))) == pytest.approx(0.25, abs=4 * 0.25 * (2 / count) ** 0.5)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_pooled_noise_has_scale_two_to_the_minus_k(k):
    pooled = np.asarray(project_image(jnp.asarray(noise(200, 16, 16, 1)), k))
    assert pooled.std() == pytest.approx(2.0**-k, rel=4 * (2 * pooled.size) ** -0.5)
    alpha, sigma = pooled_noise(0.6, 0.8, k)
    assert alpha**2 + sigma**2 == pytest.approx(1.0)
    shift = 2 * np.log(alpha / sigma) - 2 * np.log(0.6 / 0.8)
    assert shift == pytest.approx(2 * k * np.log(2))  # log-SNR gained by pooling
    with pytest.raises(ValueError, match="at least 0"):
        pooled_noise(0.6, 0.8, -1)


def test_energies_and_crossings_of_a_known_field():
    """Independent details of variance 4^-j: the crossings fall by log 2 a level; noise drowns fine levels first."""
    shapes = [(4000, 2**j, 2**j, 3) for j in range(3)]
    rng = np.random.default_rng(1)
    bands = [2.0**-j * rng.normal(size=shape).astype("f4") for j, shape in enumerate(shapes)]
    x = synthesise_image(jnp.zeros((4000, 1, 1, 1)), tuple(map(jnp.asarray, bands)))
    energies = level_energies(x, 3)
    np.testing.assert_allclose(energies, [1, 1 / 4, 1 / 16], rtol=0.06)
    at = crossing(energies)
    np.testing.assert_allclose(np.diff(at), -np.log(2), atol=0.05)
    for j in range(3):  # at l_j level j has SNR one, coarser levels more, finer ones less
        snr = np.asarray(level_snr(energies, 1.0, jnp.exp(at[j])))
        assert snr[j] == pytest.approx(1.0, rel=1e-5)
        assert (snr[:j] > 1).all() and (snr[j + 1 :] < 1).all()


def test_noise_and_signal_add_up_level_by_level():
    """E d_j(x_t)^2 = alpha^2 E d_j(x_0)^2 + sigma^2, so the SNR law is what a network's input shows."""
    x = 2.0 * np.repeat(np.repeat(noise(2000, 2, 2, 1), 2, 1), 2, 2)  # no detail at the finest level
    eps = np.random.default_rng(5).normal(size=x.shape).astype("f4")
    seen = level_energies(jnp.asarray(0.6 * x + 0.8 * eps), 2)
    # Blocks of equal pixels double the coefficient of the level above: variance 4 * 2^2.
    np.testing.assert_allclose(seen, [0.36 * 16 + 0.64, 0.64], rtol=0.05)


def test_slope_is_least_squares():
    line = -0.7 * np.arange(4) + 2
    found = slope(np.stack([line, line - 0.1 * np.arange(4), line + 0.1 * np.arange(4)]))
    assert found.value == pytest.approx(-0.7) and found.r_squared == pytest.approx(1.0)
    assert -0.81 < found.low < -0.7 < found.high < -0.59
    bent = slope(np.array([[0.0, 1.0, 0.0]]))
    assert bent.value == pytest.approx(0.0) and bent.r_squared == pytest.approx(0.0) and np.isnan(bent.low)


# --------------------------------------------------------------------------------- the high-resolution limit
def pooling(depth, level):
    """The matrix of P_level on 2^depth points of the interval."""
    return np.kron(np.eye(2**level), np.full((1, 2 ** (depth - level)), 2.0 ** (level - depth)))


def brownian(n):
    t = (np.arange(n) + 0.5) / n
    return np.minimum(t[:, None], t[None])


def test_loss_by_truncation_falls_to_its_limit():
    """L_{i|j} = E|w_j - E[w_j | P_i v]|^2 is non-increasing in i and ends at E|w_j - E[w_j | v]|^2 (tower property).

    u = (clean v_0, noise), v = v_0 + s eps, w_j = P_j v_0 with v_0 Brownian motion at 2^6 points.
    """
    depth, n, s = 6, 64, 0.3
    covariance = np.block([[brownian(n), np.zeros((n, n))], [np.zeros((n, n)), s**2 * np.eye(n)]])
    seen, target = np.hstack([np.eye(n), np.eye(n)]), np.hstack([pooling(depth, 2), np.zeros((4, n))])
    losses = [
        float(loss_given(*(jnp.asarray(m, "float32") for m in (covariance, target, pooling(depth, i) @ seen))))
        for i in (0, 1, 2, 3, depth)
    ]
    assert (np.diff(losses) <= 1e-6).all()
    noisy = brownian(n) + s**2 * np.eye(n)
    gain = pooling(depth, 2) @ brownian(n)
    limit = np.trace(pooling(depth, 2) @ brownian(n) @ pooling(depth, 2).T) - np.trace(
        gain @ np.linalg.solve(noisy, gain.T)
    )
    assert losses[-1] == pytest.approx(limit, rel=1e-4)
    # What finer levels than the target's add is little: the reason to truncate.
    assert losses[0] - losses[2] > 50 * (losses[2] - losses[-1]) > 0


def test_independent_levels_need_no_finer_input():
    """Independent Haar coefficients under white noise: E[w_j | v] = E[w_j | P_j v], and the loss is Wiener's."""
    n, s = 4, 0.5
    step = haar_matrix(2)
    haar = np.vstack([np.kron(step[:1], step[:1]), np.kron(step[1:], step[:1]), np.kron(np.eye(2), step[1:])])
    variances = np.array([4.0, 1.0, 0.25, 0.25])
    clean = haar.T @ np.diag(variances) @ haar
    covariance = np.block([[clean, np.zeros((n, n))], [np.zeros((n, n)), s**2 * np.eye(n)]])
    seen = np.hstack([np.eye(n), np.eye(n)])
    target = np.hstack([haar[:2], np.zeros((2, n))])
    wiener = sum(v * s**2 / (v + s**2) for v in variances[:2])
    for i in (1, 2):
        args = (jnp.asarray(m, "float32") for m in (covariance, target, pooling(2, i) @ seen))
        assert float(loss_given(*args)) == pytest.approx(wiener, rel=1e-5)


def test_what_is_seen_without_noise_is_known():
    covariance = jnp.asarray(brownian(4), "float32")
    full = jnp.eye(4)
    assert float(loss_given(covariance, full, full)) == pytest.approx(0.0, abs=1e-5)
    double = jnp.concatenate([full, full])  # a singular covariance of what is seen
    assert float(loss_given(covariance, full, double)) == pytest.approx(0.0, abs=1e-5)
    assert float(loss_given(covariance, full, jnp.zeros((1, 4)))) == pytest.approx(float(jnp.trace(covariance)))
