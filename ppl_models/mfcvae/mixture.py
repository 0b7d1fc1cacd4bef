"""The prior of one facet as trainable arrays: how they start, and how they map to a mixture of Gaussians.

Variances are kept positive by ``v(u) = log(1 + exp(10 u)) / 10``, the map of the paper's code: near zero it turns a
step of ``u`` into a step of the variance (an exponential map would turn it into a relative one), and it has a floor
of 1e-6 here.  ``diag``: the map gives the variances.  ``full``: it gives the diagonal of the Cholesky factor, the
entries below it are free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ppl_models.distributions import MixtureOfGaussians

SHARPNESS = 10.0
FLOOR = 1e-6


def positive(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``1e-6 + log(1 + exp(10 u)) / 10``."""
    return FLOOR + jax.nn.softplus(SHARPNESS * u) / SHARPNESS


def unconstrained(v: float) -> float:
    """The ``u`` with ``positive(u) = v``, for v > 1e-6: -0.2252 for 0.01, 0.0541 for 0.1."""
    scaled = SHARPNESS * (v - FLOOR)
    # log(expm1(s)) without overflow for large s.
    return (scaled + math.log(-math.expm1(-scaled))) / SHARPNESS


def initial(
    key: Key[Array, ""],
    *,
    dim: int,
    clusters: int,
    covariance: Literal["diag", "full"],
    scale: float,
    spread: float,
    learn_weights: bool = True,
) -> dict[str, Array]:
    """Starting values: uniform weights, means from N(0, spread^2 I), every component with covariance scale^2 I.

    Without ``learn_weights`` there are no ``logits``: the weights stay uniform.
    """
    start = {"means": spread * jax.random.normal(key, (clusters, dim))}
    if learn_weights:
        start["logits"] = jnp.zeros(clusters)
    if covariance == "diag":
        return {**start, "variance": jnp.full((clusters, dim), unconstrained(scale**2))}
    return {
        **start,
        "diagonal": jnp.full((clusters, dim), unconstrained(scale)),
        "lower": jnp.zeros((clusters, dim * (dim - 1) // 2)),
    }


def mixture(parameters: Mapping[str, Array]) -> MixtureOfGaussians:
    """The mixture that a facet's parameters describe."""
    means = parameters["means"]
    logits = parameters.get("logits", jnp.zeros(means.shape[0]))
    if "variance" in parameters:
        return MixtureOfGaussians(logits, means, jnp.sqrt(positive(parameters["variance"])))
    diagonal, lower = positive(parameters["diagonal"]), parameters["lower"]
    clusters, dim = diagonal.shape
    rows, columns = np.tril_indices(dim, -1)
    tril = jnp.zeros((clusters, dim, dim)).at[:, rows, columns].set(lower)
    tril = tril.at[:, np.arange(dim), np.arange(dim)].set(diagonal)
    return MixtureOfGaussians(logits, means, scale_tril=tril)
