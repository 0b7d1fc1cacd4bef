"""The prior of one facet as trainable arrays: how they start, how they map to a mixture, how EM sets them.

Variances are kept positive by ``v(u) = log(1 + exp(10 u)) / 10``, the map of the paper's code: near zero it turns a
step of ``u`` into a step of the variance (an exponential map would turn it into a relative one), and it has a floor
of 1e-6 here.

    spherical   S_c = v_c I                      ``variance`` (K,)
    diag        S_c = diag(v_c)                  ``variance`` (K, d)
    low_rank    S_c = diag(v_c) + W_c W_c^T      ``variance`` (K, d), ``factor`` (K, d, rank)
    full        S_c = L_c L_c^T                  ``diagonal`` (K, d) of L through v, ``lower`` (K, d (d - 1) / 2) free;
                                                 or both in one ``square`` (K, d, d), whose upper triangle is not read
    tied        S_c = L L^T, the same for all    ``diagonal`` (d,), ``lower`` (d (d - 1) / 2,)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ppl_models.distributions import MixtureOfGaussians

Covariance = Literal["diag", "full", "tied", "spherical", "low_rank"]
SHARPNESS = 10.0
FLOOR = 1e-6


def positive(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``1e-6 + log(1 + exp(10 u)) / 10``."""
    return FLOOR + jax.nn.softplus(SHARPNESS * u) / SHARPNESS


def unconstrained(v: Any) -> Any:
    """The ``u`` with ``positive(u) = v``, for v > 1e-6: -0.2252 for 0.01, 0.0541 for 0.1."""
    scaled = SHARPNESS * (np.asarray(v, float) - FLOOR)
    # log(expm1(s)) without overflow for large s.
    return (scaled + np.log(-np.expm1(-scaled))) / SHARPNESS


def initial(
    key: Key[Array, ""],
    *,
    dim: int,
    clusters: int,
    covariance: Covariance,
    scale: float,
    spread: float,
    learn_weights: bool = True,
    rank: int = 1,
    square: bool = False,
) -> dict[str, Array]:
    """Starting values: uniform weights, means from N(0, spread^2 I), every component with covariance scale^2 I.

    With ``low_rank`` the factor starts at .01 N(0, 1) and the covariance is scale^2 I but for that.  Without
    ``learn_weights`` there are no ``logits``: the weights stay uniform.
    """
    mean_key, factor_key = key, jax.random.fold_in(key, 1)
    start = {"means": spread * jax.random.normal(mean_key, (clusters, dim))}
    if learn_weights:
        start["logits"] = jnp.zeros(clusters)
    if covariance == "full" and square:
        return {**start, "square": jnp.zeros((clusters, dim, dim)) + unconstrained(scale) * jnp.eye(dim)}
    if covariance == "full":
        start["diagonal"] = jnp.full((clusters, dim), unconstrained(scale))
        return {**start, "lower": jnp.zeros((clusters, dim * (dim - 1) // 2))}
    if covariance == "tied":
        return {**start, "diagonal": jnp.full(dim, unconstrained(scale)), "lower": jnp.zeros(dim * (dim - 1) // 2)}
    start["variance"] = jnp.full((clusters,) if covariance == "spherical" else (clusters, dim), unconstrained(scale**2))
    if covariance == "low_rank":
        start["factor"] = 0.01 * jax.random.normal(factor_key, (clusters, dim, rank))
    return start


def mixture(
    parameters: Mapping[str, Array], kind: type[MixtureOfGaussians] = MixtureOfGaussians, **more: Any
) -> MixtureOfGaussians:
    """The mixture that a facet's parameters describe."""
    means = parameters["means"]
    logits = parameters.get("logits", jnp.zeros(means.shape[0]))
    clusters, dim = means.shape
    if "factor" in parameters:
        W, v = parameters["factor"], positive(parameters["variance"])
        tril = jnp.linalg.cholesky(W @ W.mT + v[..., None] * jnp.eye(dim))
        return kind(logits, means, scale_tril=tril, **more)
    if "variance" in parameters:
        scales = jnp.sqrt(positive(parameters["variance"]))
        scales = jnp.broadcast_to(scales.reshape(clusters, -1), (clusters, dim))
        return kind(logits, means, scales, **more)
    if "square" in parameters:
        square = parameters["square"]
        tril = jnp.where(jnp.eye(dim, dtype=bool), positive(square), jnp.tril(square, -1))
        return kind(logits, means, scale_tril=tril, **more)
    diagonal, lower = positive(parameters["diagonal"]), parameters["lower"]
    rows, columns = np.tril_indices(dim, -1)
    tril = jnp.zeros((clusters, dim, dim)).at[:, rows, columns].set(lower)  # one for all where they are tied
    tril = tril.at[:, np.arange(dim), np.arange(dim)].set(diagonal)
    return kind(logits, means, scale_tril=tril, **more)


def from_moments(
    like: Mapping[str, Array],
    weights: Float[np.ndarray, " K"],
    means: Float[np.ndarray, "K d"],
    covariances: Float[np.ndarray, "K d d"],
) -> dict[str, Array]:
    """Parameters of the same form as ``like`` for a mixture with these moments; the inverse of :func:`mixture`.

    What the form cannot hold is projected: covariances are averaged by weight (tied), off-diagonal entries dropped
    (diag), variances averaged (spherical), the smaller eigenvalues of the correlations averaged into the diagonal
    (low_rank).  Variances are at least 1e-5.
    """
    least = 10 * FLOOR
    found: dict[str, Any] = {"means": means}
    if "logits" in like:
        found["logits"] = np.log(np.maximum(weights, 1e-6))
    if like.get("diagonal", means).ndim == 1:
        pooled = np.einsum("k,kde->de", weights / np.sum(weights), covariances)
        covariances = np.broadcast_to(pooled, covariances.shape)
    diagonal = np.maximum(np.diagonal(covariances, axis1=1, axis2=2), least)
    tril = np.linalg.cholesky(covariances + least * np.eye(means.shape[1]))
    if "square" in like:
        eye = np.eye(means.shape[1], dtype=bool)
        found["square"] = np.where(eye, unconstrained(np.where(eye, tril, 1.0)), tril)
    elif "lower" in like:
        rows, columns = np.tril_indices(means.shape[1], -1)
        found["diagonal"] = unconstrained(np.diagonal(tril, axis1=1, axis2=2))
        found["lower"] = tril[:, rows, columns]
        if like["diagonal"].ndim == 1:
            found |= {"diagonal": found["diagonal"][0], "lower": found["lower"][0]}
    elif "factor" in like:
        rank = like["factor"].shape[-1]
        values, vectors = np.linalg.eigh(covariances)
        rest = np.maximum(values[:, :-rank].mean(1, keepdims=True), least)
        top = np.sqrt(np.maximum(values[:, -rank:] - rest, 0.0))
        found["factor"] = vectors[:, :, -rank:] * top[:, None, :]
        found["variance"] = unconstrained(np.broadcast_to(rest, means.shape))
    elif like["variance"].ndim == 1:
        found["variance"] = unconstrained(diagonal.mean(1))
    else:
        found["variance"] = unconstrained(diagonal)
    return {name: jnp.asarray(found[name], like[name].dtype) for name in like}
