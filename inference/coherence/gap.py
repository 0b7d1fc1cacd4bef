"""The one-step gap along paths: how far a rule's next prediction is from the mean of those after it, without sampling.

At a path u of draws so far, with p(.|u) the rule's predictive and p(.|uz) the one after another symbol z,

    D(u) = sum_z p(z|u) p(.|uz) - p(.|u),

zero everywhere if and only if the rule is a martingale.  For finite symbols the gap is the total variation of D,
``sum_k |D(u)(k)| / 2``, which is |D(u)(1)| for two.  For real symbols the sum is an integral and D is taken of the mean
and of the second moment about the present mean m, in units of the present standard deviation s:

    max( |E m(uz) - m| / s,  |E[v(uz) + (m(uz) - m)^2] / s^2 - 1| ),   m(uz) and v(uz) the mean and variance after z.

The integral is a trapezoidal sum at ``z = m + s sinh(pi/2 sinh t)`` (Takahasi and Mori, Publ. RIMS 9, 1974), which
needs nothing but the density and follows the tails of Student's t; counts are summed one by one.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference.coherence._call import call, double
from inference.coherence._symbols import outcomes, probabilities
from inference.coherence.paths import fitting_context
from ppl_models.program import Predictor

NODES, REACH = 65, 3.2
"""Nodes t of the integral over real symbols, on -REACH..REACH."""
COUNTS = 256
"""Values of a count that are summed: around its mean, from 0 on."""
TOLERANCE = 1e-4
"""Largest error of total mass, mean (in s) or variance (in s^2) of an integral that is believed."""


def nodes_of(fn: Any, m: Array, s: Array, nodes: int = NODES) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
    """Symbols and their weights; negligible ones are put at the mean, so that a rule is asked nothing absurd."""
    if fn.is_discrete:
        z = jnp.maximum(jnp.floor(m) - COUNTS // 2, 0.0) + jnp.arange(COUNTS)
        weights = jnp.exp(fn.log_prob(z))
    else:
        t = jnp.linspace(-REACH, REACH, nodes)
        inner = math.pi / 2 * jnp.sinh(t)
        z = m + s * jnp.sinh(inner)
        slope = s * jnp.cosh(inner) * math.pi / 2 * jnp.cosh(t) * 2 * REACH / (nodes - 1)
        weights = jnp.exp(fn.log_prob(z)) * slope
    kept = weights > 1e-25
    return jnp.where(kept, z, jnp.floor(m) if fn.is_discrete else m), jnp.where(kept, weights, 0.0)


def _real_gap(predictor: Predictor, state: Any, fn: Any) -> Float[Array, ""]:
    m, s = fn.mean, jnp.sqrt(fn.variance)
    z, weights = nodes_of(fn, m, s)

    def after(z: Array) -> tuple[Array, Array]:
        following = predictor.predict(predictor.update(state, z))
        u = (following.mean - m) / s
        return u, following.variance / s**2 + u**2

    first, second = jax.vmap(after)(z)
    u = (z - m) / s
    error = jnp.abs(jnp.stack([weights.sum() - 1, weights @ u, weights @ u**2 - 1])).max()
    gap = jnp.maximum(jnp.abs(weights @ first), jnp.abs(weights @ second - 1))
    return jnp.where(error <= TOLERANCE, gap, jnp.nan)


def _finite_gap(predictor: Predictor, state: Any, fn: Any, K: int) -> Float[Array, ""]:
    p = probabilities(fn)
    after = jax.vmap(lambda z: probabilities(predictor.predict(predictor.update(state, z))))(jnp.arange(K))
    return jnp.abs(p @ after - p).sum() / 2


def _along(predictor: Predictor, context: Array, z: Array) -> Float[Array, "path step"]:
    def step(state: Any, symbol: Array) -> tuple[Any, Array]:
        fn = predictor.predict(state)
        K = outcomes(fn)
        gap = _real_gap(predictor, state, fn) if K is None else _finite_gap(predictor, state, fn, K)
        return predictor.update(state, symbol), gap

    state = predictor.init(context)
    return jax.vmap(lambda path: jax.lax.scan(step, state, path)[1])(z)


def _every(predictor: Predictor, contexts: Array, z: Array) -> Float[Array, "context path step"]:
    return jax.lax.map(lambda item: _along(predictor, *item), (contexts, z))


def one_step_gap(predictor: Predictor, contexts: Any, z: Any) -> Float[np.ndarray, "context path step"]:
    """The gap before each draw of paths z (context, path, step) after contexts (context, n), in double precision.

    A probability for finite symbols, predictive standard deviations for real ones; NaN where the integral over real
    symbols misses the rule's own mass, mean or variance by more than 1e-4 (a density with narrow peaks, or tails
    without a variance).  Costs one evaluation of the rule a symbol and step, 65 for real symbols, 256 for counts.

    >>> paths = predictive_paths(BetaBernoulli(), np.array([1, 0, 1]), steps=20, key=jax.random.key(0))
    >>> bool(one_step_gap(BetaBernoulli(), paths.context[None], paths.z[None]).max() < 1e-12)
    True
    """
    contexts, fn = fitting_context(predictor, contexts, ndim=2, ahead=np.shape(z)[-1])
    z = np.asarray(z)
    if z.ndim != 3 or len(z) != len(contexts):
        raise ValueError(f"z must have shape ({len(contexts)}, path, step), paths of each context, got {z.shape}")
    with jax.enable_x64(True):
        dtype = np.int32 if fn.K is not None else np.float64
        return np.asarray(call(_every, double(predictor), contexts, z.astype(dtype)), np.float64)


def paths_within_budget(K: int | None, paths: int) -> int:
    """How many of the paths to follow so that the gap costs about as much as drawing them all; at least four."""
    return min(paths, max(4, paths // (NODES if K is None else K)))
