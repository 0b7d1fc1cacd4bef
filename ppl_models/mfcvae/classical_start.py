"""Where a multi-facet model of a table starts: at a mixture of factor analysers, fitted in closed form and by EM.

Each facet takes the columns that depend on each other (all of them, where it is the only one), the leading directions
of their factor analysis of mixed data as its linear path, and a Gaussian mixture of the scores as its prior (with
covariance S_c less the noise of the scores: a mixture of common factor analysers, Baek, McLachlan & Flack 2010).  The
encoder starts at the posterior of that model under one Gaussian prior.  Hidden layers start silent, so the program *is*
the classical model until the first update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Key

from ppl_models.distributions.mixed_factors import Block, linear_map, mixed_factors, noise_parameters, partition
from ppl_models.mfcvae.mixture import from_moments
from ppl_models.mfcvae.refit import em

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE


def classical_start(spec: MFCVAE) -> Any:
    """``apply`` of the event that sets networks, mixtures and noise before the first update."""

    def apply(params: Mapping[str, Any], x: Any, key: Key[Array, ""]) -> dict[str, Any]:
        likelihood: Any = spec.likelihood
        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        x = {name: np.asarray(leaf) for name, leaf in x.items() if name in ("x", "there")}
        group = partition(likelihood, x, len(spec.facets), seed)
        blocks, bias = mixed_factors(likelihood, x, [facet.dim for facet in spec.facets], group)
        found: dict[str, Any] = {}
        encoder, decoder = (_copied(params[f"{name}$params"]) for name in ("encoder", "decoder"))
        decoder["bias"] = bias
        features, covariances = np.asarray(likelihood.encode(jax.tree.map(jax.numpy.asarray, x)), np.float64), []
        for j, (facet, block) in enumerate(zip(spec.facets, blocks, strict=True)):
            weights, means, spread = em(block.score, facet.clusters, facet.covariance, seed + j)
            spread = block.deflated(spread)
            name = f"mixture_{facet.name}"
            found[name] = from_moments(params[name], weights, means, spread)
            total = np.einsum("k,kde->de", weights, spread) + np.cov(means.T, aweights=weights, bias=True).reshape(
                facet.dim, -1
            )
            covariances.append(total)
            decoder["linear"][j]["kernel"] = block.decode
            _set_encoder(encoder, j, block, total, features)
        noise = noise_parameters(likelihood, x, blocks, covariances)
        if "likelihood" in params:
            found["likelihood"] = {**params["likelihood"], **noise}
        found |= {"encoder$params": encoder, "decoder$params": decoder}
        return jax.tree.map(lambda new, old: np.asarray(new, old.dtype), found, {name: params[name] for name in found})

    return apply


def _copied(tree: Any) -> Any:
    """A copy of nested dicts, leaves shared."""
    return {name: _copied(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


def _set_encoder(encoder: dict[str, Any], j: int, block: Block, prior: np.ndarray, features: np.ndarray) -> None:
    """The posterior of z under N(0, prior) given scores with their noise, as a linear map of the features."""
    precision = np.linalg.inv(prior) + np.diag(np.where(np.isfinite(block.noise), 1 / block.noise, 0.0))
    covariance = np.linalg.inv(precision)
    gain = covariance / np.where(np.isfinite(block.noise), block.noise, np.inf)
    target = block.score @ gain.T
    A, b = linear_map(features, target)
    encoder["linear"][j] = {"kernel": A, "bias": b}
    root = np.linalg.cholesky(covariance)
    scale = np.diag(root)
    # 6 tanh(raw / 6) = log scale; T = diag(scale)^-1 L has a unit diagonal.
    encoder["log_scale"][j] = {**encoder["log_scale"][j], "bias": 6 * np.arctanh(np.log(scale) / 6)}
    encoder["mixing"][j] = (root / scale[:, None])[np.tril_indices(len(scale), -1)]
