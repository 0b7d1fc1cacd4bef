"""Where a hierarchy of a table starts: at a factor analysis of mixed data, its directions spread over the levels.

    z ~ N(0, I),   f(z) = b + W z,   q(z | x) = N(A h(x) + c, diag l^2)

with the leading principal directions of the features in the last level and the next ones above, ``zdim`` a level
(Tipping & Bishop 1999, eq. 7-8; :mod:`ppl_models.distributions.mixed_factors`): the prior of the leading ones can then
take any shape, clusters say, that the levels above give it.  With them on top, where the prior stays Gaussian, wine and
diabetes were predicted worse.  The noise of the real and positive columns is what W leaves over: where it is correlated
the program is one Gaussian of them, whatever W.  The priors of all levels and the state's read-out start silent, so the
program *is* that model until the first update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ppl_models.distributions.mixed_factors import linear_map, mixed_factors, noise_parameters

if TYPE_CHECKING:
    from ppl_models.hvae.spec import HVAE

START_SIZE = 20_000
"""Rows that the start is fitted to at most."""


def table_start(spec: HVAE) -> Any:
    """``apply`` of the event that sets linear paths and noise before the first update."""

    def apply(params: Mapping[str, Any], x: Any, key: Key[Array, ""]) -> dict[str, Any]:
        del key
        likelihood: Any = spec.likelihood
        dim, columns = len(spec.latents) * spec.zdim, len(likelihood.columns)
        features = np.asarray(likelihood.encode(jax.tree.map(jnp.asarray, x)), np.float64)
        x = {name: np.asarray(leaf) for name, leaf in x.items()}
        (block,), bias = mixed_factors(likelihood, x, [dim], np.zeros(columns, int))
        # Scores are v^(1/2) z + noise, direction by direction: v is their variance less that of the noise.
        used = np.isfinite(block.noise)
        noise = np.where(used, block.noise, 1.0)
        v = np.where(used, np.maximum(block.score.var(0) - noise, 0.01 * block.score.var(0)), 0.0)
        precision = 1 + v / noise
        A, b = linear_map(features, block.score * np.sqrt(v) / noise / precision)
        encoder, decoder = (_copied(params[f"{name}$params"]) for name in ("encoder", "decoder"))
        levels = len(spec.latents)
        order = np.arange(dim).reshape(levels, spec.zdim)[::-1]
        decoder["direct"] = {"kernel": (np.sqrt(v)[:, None] * block.decode)[order.ravel()], "bias": bias}
        for level, at in enumerate(order):
            encoder["direct"][level] = {"kernel": A[:, at], "bias": b[at]}
            encoder["log_sd"][level] = -0.5 * np.log(precision[at])
        found: dict[str, Any] = {"encoder$params": encoder, "decoder$params": decoder}
        if "likelihood" in params:
            rest = noise_parameters(likelihood, x, [block], [np.diag(v)])
            found["likelihood"] = {**params["likelihood"], **rest}
        return jax.tree.map(lambda new, old: np.asarray(new, old.dtype), found, {name: params[name] for name in found})

    return apply


def _copied(tree: Any) -> Any:
    """A copy of nested dicts, leaves shared."""
    return {name: _copied(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree
