"""Sequences and paths as ArviZ DataTrees that its plots read as they are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from inference.coherence._call import call
from inference.coherence._symbols import outcomes, probabilities
from inference.coherence.paths import Paths, fitting_context
from inference.coherence.published import BernoulliReference, GaussianReference
from ppl_models.program import Predictor


def _pit(predictor: Predictor, contexts: Array, v: Float[Array, "sequence T"]) -> Float[Array, "sequence T"]:
    def step(state: Any, item: tuple[Array, Array]) -> tuple[Any, Array]:
        z, v = item
        fn = predictor.predict(state)
        if outcomes(fn) is None:
            u = fn.cdf(z)
        else:
            p = probabilities(fn)
            u = jnp.cumsum(p)[z] - p[z] + v * p[z]
        return predictor.update(state, z), u

    def one(z: Array, v: Array) -> Array:
        return jax.lax.scan(step, predictor.init(z[:0]), (z, v))[1]

    return jax.vmap(one)(contexts, v)


def pit_tree(predictor: Predictor, sequences: Any, *, key: Key[Array, ""]) -> Any:
    """One-step PIT values of whole sequences (sequences, T), for ``az.plot_ecdf_pit``.

    ``u = F(z_t - 1 | z_{1:t-1}) + v p(z_t | z_{1:t-1})``, v uniform (discrete symbols), or ``F(z_t | z_{1:t-1})``:
    independent and uniform where the sequences come from the rule itself (Rosenblatt, Ann. Math. Statist. 23, 1952).
    On draws of the task it was trained on this is simulation-based calibration of a predictor.

    Group: ``prior_sbc/u`` (chain = 1, draw = sequences T).
    """
    import arviz as az

    given, _ = fitting_context(predictor, sequences, ndim=2)
    u = np.asarray(call(_pit, predictor, given, jax.random.uniform(key, given.shape)), float)
    return az.from_dict({"prior_sbc": {"u": u.reshape(1, -1)}})


def reference_tree(paths: Paths, *, key: Key[Array, ""], replicates: int = 100) -> Any:
    """Paths beside replicates of the published reference Bayes model, for ``az.plot_ppc_tstat``.

    Groups: ``posterior_predictive/z`` (chain = 1, draw = replicates, path, step), matched to the mean of the context;
    ``observed_data/z`` (path, step), the rule's own paths.  A statistic is a callable of one (path, step) array.
    ``ValueError`` for more than two symbols or an empty context, which have no published reference.
    """
    import arviz as az

    n = len(paths.context)
    if n == 0 or len(paths.names) > 2:
        raise ValueError(
            f"the published reference is for binary or real symbols after a context, got {len(paths.names)} features "
            f"and {n} symbols"
        )
    reference = BernoulliReference() if len(paths.names) == 1 else GaussianReference()
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    z = reference.draw(rng, float(np.mean(paths.context)), n, (replicates, *paths.z.shape))
    return az.from_dict(
        {"posterior_predictive": {"z": z[None]}, "observed_data": {"z": np.asarray(paths.z, float)}},
        dims={"z": ["path", "step"]},
    )
