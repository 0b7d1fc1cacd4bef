"""Martingale posteriors: what the rule believes about the long run, read off its own predictive paths.

Draw path j, theta_j = functional(z_{1:n} and path j), j = 1..J (Fong, Holmes and Walker, JRSS-B 2023, arXiv
2103.15671).  For Beta-Bernoulli updating and the mean this is the Beta posterior as N grows; for the Polya urn it is
the Bayesian bootstrap.  A rule that is not a martingale still gives draws: check coherence before reading them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Key, Num

from inference.coherence.paths import paths_tree, predictive_paths
from ppl_models.program import Predictor

Functional = Callable[[Num[Array, " sequence"]], Float[Array, "*theta"]]


def mean(sequence: Num[Array, " sequence"]) -> Float[Array, ""]:
    """The mean of a sequence: the long-run frequency of a binary one."""
    return jax.numpy.mean(sequence.astype(float))


def martingale_posterior(
    predictor: Predictor,
    context: Any,
    *,
    key: Key[Array, ""],
    steps: int = 1000,
    draws: int = 1000,
    functional: Functional = mean,
    part: Literal["full", "imputed"] = "full",
    chains: int = 4,
) -> Any:
    """Martingale posterior of a functional of the whole population, as an ArviZ DataTree.

    ``functional``  of one sequence (n + steps,), or of the imputed part (steps,) with ``part="imputed"``.
    ``steps``       N: theta_j still carries the noise of a finite path, of variance about Var(z)/(n + N).
    ``chains``      draws are i.i.d.; cut into four pseudo-chains so that ArviZ's R-hat and ESS mean something.

    Groups: posterior/theta; posterior_predictive/z, sample_stats/p and log_p, observed_data/z_context.

    >>> tree = martingale_posterior(BetaBernoulli(), np.array([1, 0, 1]), steps=500, key=jax.random.key(0))
    >>> tree["posterior"]["theta"].shape
    (4, 250)
    """
    if part not in ("full", "imputed"):
        raise ValueError(f"part must be 'full' (context and path) or 'imputed' (path only), got {part!r}")
    if draws % chains:
        raise ValueError(f"draws must be a multiple of chains={chains}, got {draws}")
    paths = predictive_paths(predictor, context, steps=steps, paths=draws, key=key, others=0)
    sequence = paths.z
    if part == "full":
        sequence = np.concatenate([np.broadcast_to(paths.context, (draws, len(paths.context))), paths.z], 1)
    theta = np.asarray(jax.jit(jax.vmap(functional))(sequence))
    import xarray as xr

    tree = paths_tree(paths, chains=chains)
    dims = ["chain", "draw", *(f"theta_{i}" for i in range(theta.ndim - 1))]
    cut = theta.reshape(chains, draws // chains, *theta.shape[1:])
    coords = {"chain": np.arange(chains), "draw": np.arange(draws // chains)}
    tree["posterior"] = xr.DataTree(xr.Dataset({"theta": (dims, cut)}, coords=coords))
    tree.attrs.update(steps=steps, n=len(paths.context), part=part)
    return tree
