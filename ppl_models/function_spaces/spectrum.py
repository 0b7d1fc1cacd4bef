"""What noise does to the levels of a pyramid, and what is lost by looking at a truncated input.

For ``x_t = alpha x_0 + sigma eps`` an orthonormal Haar transform leaves noise N(0, sigma^2) in every coefficient, so

    SNR_j(t) = (alpha / sigma)^2 E d_j^2          d_j: detail coefficients of level j (0 the coarsest)

With ``l = log(sigma / alpha)`` the noise drowns level j (SNR_j = 1) at ``l_j = log(E d_j^2) / 2``.  Where the energies
fall geometrically, ``E d_j^2 ~ 2^(-2 b j)``, the l_j fall linearly, by ``b log 2`` a level: fine levels first.

Williams et al., NeurIPS 2023, arXiv 2305.19638 (high frequencies are lost to noise exponentially faster, and average
pooling drops just those).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ppl_models.function_spaces.images import analyse_image


def level_energies(x: Float[Array, "n height width channel"], levels: int) -> Float[Array, " levels"]:
    """``E d_j^2`` a coefficient, coarse to fine, of images whose mean image the caller has removed, or not."""
    _, bands = analyse_image(x, levels)
    return jnp.stack([jnp.mean(jnp.square(band)) for band in bands])


def level_snr(
    energies: Float[Array, " levels"], alpha: Float[Array, ""] | float, sigma: Float[Array, ""] | float
) -> Float[Array, " levels"]:
    """``(alpha / sigma)^2 E d_j^2`` of each level."""
    return energies * (alpha / sigma) ** 2


def crossing(energies: Float[Array, " levels"]) -> Float[Array, " levels"]:
    """``l_j = log(sigma / alpha)`` where the SNR of level j is one: ``log(E d_j^2) / 2``."""
    return 0.5 * jnp.log(energies)


class Slope(NamedTuple):
    """A least-squares slope with a 95 % interval, and the share of variance that the line explains."""

    value: float
    low: float
    high: float
    r_squared: float


def slope(crossings: Float[np.ndarray, "draws levels"]) -> Slope:
    """The slope of ``l_j`` over j: of the first row, with the central 95 % of the other rows (a bootstrap) around it.

    ``r_squared`` is that of the first row; 1 is a geometric decay.
    """
    rows = np.asarray(crossings, float)
    j = np.arange(rows.shape[1]) - (rows.shape[1] - 1) / 2
    slopes = rows @ j / (j @ j)
    centred = rows[0] - rows[0].mean()
    total = float(centred @ centred)
    r_squared = 1.0 if total == 0 else float(slopes[0] ** 2 * (j @ j) / total)
    low, high = np.quantile(slopes[1:], [0.025, 0.975]) if len(rows) > 2 else (math.nan, math.nan)
    return Slope(float(slopes[0]), float(low), float(high), r_squared)


def pooled_noise(alpha: float, sigma: float, times: int, axes: int = 2) -> tuple[float, float]:
    """``(alpha', sigma')`` of ``alpha x_0 + sigma eps`` after ``times`` poolings, scaled back to variance preserving.

    Pooling k times over 2^axes pixels leaves noise of standard deviation ``2^(-axes k / 2) sigma``; divided by
    ``c = sqrt(alpha^2 + 2^(-axes k) sigma^2)`` the pair is again on the circle: a smaller noise level, log-SNR higher
    by ``axes k log 2``.
    """
    if times < 0:
        raise ValueError(f"times counts the poolings, at least 0, got {times}")
    left = sigma * 2.0 ** (-axes * times / 2)
    c = math.hypot(alpha, left)
    return alpha / c, left / c


def conditional_loss(
    covariance: Float[Array, "n n"], target: Float[Array, "m n"], seen: Float[Array, "k n"]
) -> Float[Array, ""]:
    """``E |w - E[w | v]|^2`` for Gaussian u of this covariance, w = ``target u``, v = ``seen u``.

    With v = P_i u, i growing, it falls to ``E |w - E[w | u]|^2`` (tower property): what a U-Net loses by truncation.
    Directions of v without variance count as known.
    """
    joint = target @ covariance @ seen.T
    within = seen @ covariance @ seen.T
    values, vectors = jnp.linalg.eigh(within)
    keep = values > values.max() * len(values) * jnp.finfo(values.dtype).eps
    inverse = jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)
    rotated = joint @ vectors
    known = jnp.sum(jax.lax.square(rotated) * inverse[None])
    return jnp.trace(target @ covariance @ target.T) - known
