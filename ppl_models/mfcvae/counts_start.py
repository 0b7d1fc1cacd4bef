"""Where a multi-facet model of counts starts: at the shares of its columns; additive layouts at a factor analysis.

The log shares and concentrations of the columns are set for every layout.  An additive one starts at principal
directions ``U`` of ``h = log1p(x L / l)``, L the typical library size l: ``h = h_0 + U z / c + noise``, z of total
variance 1 a dimension on average, the noise isotropic (probabilistic principal components); each facet takes the next
directions.  A Gaussian mixture of the scores, less their noise, is its prior.  The decoder's linear path is the Poisson
regression of the counts on the scores of all facets, ``E[x_d | z] = l exp(b_d + W_d z)``; the encoder starts at the
posterior of the linear Gaussian model under one Gaussian prior.  Hidden layers start silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from ppl_models.distributions.library_counts import concentrations
from ppl_models.distributions.mixed_factors import Block
from ppl_models.mfcvae.mixture import from_moments
from ppl_models.mfcvae.networks import Additive
from ppl_models.mfcvae.refit import em

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE

NEWTON, STEP, RIDGE = 12, 2.0, 1.0
"""Newton steps of the Poisson regression, the most that a coefficient moves in one, and its prior precision."""
COLUMNS = 256
"""Columns that are regressed at once."""
LEAST_SHARE = -20.0
"""Least log share of a mean."""


def counts_start(spec: MFCVAE) -> Any:
    """``apply`` of the event that sets shares, and for additive layouts networks and mixtures, before any update."""

    def apply(params: Mapping[str, Any], x: Any, key: Key[Array, ""]) -> dict[str, Any]:
        likelihood: Any = spec.likelihood
        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        found: dict[str, Any] = {"likelihood": likelihood.start(x)}
        if isinstance(spec.network, Additive) and spec.network.start == "classical":
            found = _factors(spec, params, x, found["likelihood"], seed)
        return jax.tree.map(lambda new, old: np.asarray(new, old.dtype), found, {name: params[name] for name in found})

    return apply


def _factors(spec: MFCVAE, params: Mapping[str, Any], x: Any, likelihood: dict[str, Any], seed: int) -> dict[str, Any]:
    """Parameters at the factor analysis, ``likelihood`` being those at which the decoder says nothing."""
    law: Any = spec.likelihood
    h = np.asarray(law.shares(jax.tree.map(jax.numpy.asarray, x)), np.float32)
    dims = [facet.dim for facet in spec.facets]
    centre, U, variances, s2 = principal(h, sum(dims), seed)
    encoder, decoder = (_copied(params[f"{name}$params"]) for name in ("encoder", "decoder"))
    found, scores, first = {}, [], 0
    for j, facet in enumerate(spec.facets):
        at = slice(first, min(first + facet.dim, len(variances)))
        first += facet.dim
        d = max(0, at.stop - at.start)
        block = Block(np.zeros((len(h), facet.dim)), np.full(facet.dim, np.inf), np.zeros((facet.dim, 0)))
        kernel, bias = np.zeros((h.shape[1] + 1, facet.dim)), np.zeros(facet.dim)
        if d:
            c = 1 / np.sqrt(variances[at].mean())
            block.score[:, :d], block.noise[:d] = c * ((h - centre) @ U[:, at]), c * c * s2
            kernel[:-1, :d], bias[:d] = c * U[:, at], -c * (centre @ U[:, at])
        weights, means, spread = em(block.score, facet.clusters, facet.covariance, seed + j)
        spread = block.deflated(spread)
        name = f"mixture_{facet.name}"
        found[name] = from_moments(params[name], weights, means, spread)
        total = np.einsum("k,kde->de", weights, spread) + np.cov(means.T, aweights=weights, bias=True).reshape(
            facet.dim, -1
        )
        noise = np.where(np.isfinite(block.noise), 1 / block.noise, 0.0)
        covariance = np.linalg.inv(np.linalg.inv(total) + np.diag(noise))
        gain = (covariance * noise).T  # mean = score @ gain
        encoder["linear"][j] = {"kernel": kernel @ gain, "bias": bias @ gain}
        root = np.linalg.cholesky(covariance)
        scale = np.diag(root)
        encoder["log_scale"][j] = {**encoder["log_scale"][j], "bias": 6 * np.arctanh(np.log(scale) / 6)}
        encoder["mixing"][j] = (root / scale[:, None])[np.tril_indices(len(scale), -1)]
        scores.append(block.score)
    counts, library = np.asarray(x["x"], np.float64), np.asarray(x["library"], np.float64)
    z = np.concatenate(scores, 1)
    base, W = poisson_regression(z, counts, library, likelihood["log_share"])
    decoder["bias"] = base - likelihood["log_share"]
    ends = np.cumsum([0, *dims])
    for j in range(len(dims)):
        decoder["linear"][j]["kernel"] = W[ends[j] : ends[j + 1]]
    if "log_concentration" in likelihood:
        logits = base + z @ W
        shares = np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None])
        likelihood["log_concentration"] = np.log(concentrations(counts, library[:, None] * shares))
    return {**found, "likelihood": likelihood, "encoder$params": encoder, "decoder$params": decoder}


def principal(
    h: Float[np.ndarray, "n D"], dim: int, seed: int
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D d"], Float[np.ndarray, " d"], float]:
    """Mean, leading directions, their variances and the noise of probabilistic PCA.

    d counts the directions, at most ``dim`` and at least one, whose variance is above the largest that is left when
    every column is shuffled by itself (parallel analysis, Horn 1965): further ones are noise, and regressions on them
    fit it.  Many columns are decomposed by a randomised method.
    """
    from sklearn.decomposition import PCA

    solver = {"svd_solver": "full" if h.shape[1] <= 200 else "randomized", "random_state": seed}
    most = min(dim, h.shape[1] - 1, len(h) - 1)
    found = PCA(most, **solver).fit(h)
    shuffled = np.random.default_rng(seed).permuted(h, axis=0)
    chance = float(PCA(1, **solver).fit(shuffled).explained_variance_[0])
    d = max(1, int((found.explained_variance_ > chance).sum()))
    variances = np.maximum(found.explained_variance_[:d], 1e-6)
    left = found.explained_variance_[d:].sum() + found.noise_variance_ * (min(h.shape) - most)
    noise = min(float(left) / max(1, min(h.shape) - d), 0.5 * float(variances[-1]))
    return found.mean_, found.components_[:d].T, variances, max(noise, 0.02 * float(variances.mean()))


def poisson_regression(
    z: Float[np.ndarray, "n d"],
    counts: Float[np.ndarray, "n D"],
    library: Float[np.ndarray, " n"],
    start: Float[np.ndarray, " D"],
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "d D"]]:
    """``(b, W)`` of ``x_d ~ Poisson(l exp(b_d + W_d z))``, W under a prior N(0, I): damped Newton steps, all columns
    alike, from W = 0 and ``start``.  Large counts are weighed down as for a variance ``m + m^2``."""
    n, d = z.shape
    design = np.concatenate([np.ones((n, 1)), z], 1)
    ridge = RIDGE * np.eye(d + 1)
    ridge[0, 0] = 1e-3
    found = np.zeros((d + 1, counts.shape[1]))
    found[0] = start
    for first in range(0, counts.shape[1], COLUMNS):
        at = slice(first, first + COLUMNS)
        beta, x = found[:, at], counts[:, at]
        centre = np.zeros_like(beta)
        centre[0] = start[at]
        for _ in range(NEWTON):
            m = library[:, None] * np.exp(np.clip(design @ beta, LEAST_SHARE, 0.0))
            weight = m / (1 + m)
            gradient = design.T @ ((x - m) / (1 + m)) - ridge @ (beta - centre)
            hessian = np.einsum("ni,nd,nj->dij", design, weight, design, optimize=True) + ridge
            step = np.linalg.solve(hessian, gradient.T[..., None])[..., 0].T
            beta = beta + np.clip(step, -STEP, STEP)
            if np.abs(step).max() < 1e-3:
                break
        found[:, at] = beta
    return found[0], found[1:]


def _copied(tree: Any) -> Any:
    """A copy of nested dicts, leaves shared."""
    return {name: _copied(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree
