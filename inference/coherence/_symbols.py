"""What a predictive distribution says in numbers: probabilities of symbols, or the first two moments."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num

_BINARY = (dist.BernoulliProbs, dist.BernoulliLogits)
_CATEGORICAL = (dist.CategoricalProbs, dist.CategoricalLogits)


class Kind(NamedTuple):
    """What sort of predictive distribution a rule has, once and for all its states."""

    K: int | None
    names: tuple[str, ...]
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    text: str


def kind(fn: Any) -> Kind:
    """The kind of a predictive distribution."""
    return Kind(outcomes(fn), feature_names(fn), tuple(fn.batch_shape), tuple(fn.event_shape), type(fn).__name__)


def outcomes(fn: Any) -> int | None:
    """Number K of symbols 0..K-1, or ``None`` for any other distribution than Bernoulli and Categorical."""
    if isinstance(fn, _BINARY):
        return 2
    return int(fn.probs.shape[-1]) if isinstance(fn, _CATEGORICAL) else None


def probabilities(fn: Any) -> Float[Array, " K"]:
    """Probabilities of all symbols; of a finite distribution only."""
    return jnp.stack([1 - fn.probs, fn.probs], -1) if isinstance(fn, _BINARY) else fn.probs


def feature_names(fn: Any) -> tuple[str, ...]:
    """The functions g of a symbol whose predictive means are followed: [z=1]; [z=k] for each k; z and z^2."""
    K = outcomes(fn)
    if K is None:
        return ("z", "z^2")
    return ("z=1",) if K == 2 else tuple(f"z={k}" for k in range(K))


def symbols_of(names: tuple[str, ...]) -> int | None:
    """Number K of symbols behind features of these names; ``None`` for real symbols."""
    return None if names == ("z", "z^2") else max(2, len(names))


def expected(fn: Any) -> Float[Array, " feature"]:
    """``E g(Z)`` under the predictive distribution, for each g of :func:`feature_names`."""
    if isinstance(fn, _BINARY):
        return fn.probs[..., None]
    if isinstance(fn, _CATEGORICAL):
        return fn.probs
    return jnp.stack([fn.mean, fn.variance + fn.mean**2], -1)


def features(z: Num[Array, "*shape"], names: tuple[str, ...]) -> Float[Array, "*shape feature"]:
    """``g(z)`` of drawn symbols, for each g of :func:`feature_names`."""
    if len(names) == 1:
        return z[..., None].astype(float)
    if names == ("z", "z^2"):
        return jnp.stack([z, z**2], -1)
    return jax.nn.one_hot(z, len(names))


def check_context(context: Any, what: str = "context", ndim: int = 1) -> np.ndarray:
    """Return a context as an array of integers or floats; ``ValueError`` for anything else."""
    array = np.asarray(context)
    if array.ndim != ndim:
        shape = "(n,)" if ndim == 1 else "(contexts, n)"
        raise ValueError(f"{what} must have shape {shape}, got {array.shape}; one symbol an entry")
    if array.size == 0:
        return np.zeros(array.shape, np.int32)
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int32)
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise ValueError(f"{what} must hold finite numbers, got dtype {array.dtype}; drop or impute missing symbols")
    return array.astype(np.float32)


def match_context(context: np.ndarray, K: int | None) -> np.ndarray:
    """Check symbols against a rule of K outcomes (``None``: real), and give a finite rule integers."""
    if K is None:
        return context.astype(np.float32)
    whole = context.astype(np.int32)
    if (whole != context).any() or (context.size and (context.min() < 0 or context.max() >= K)):
        raise ValueError(
            f"this predictor speaks of the symbols 0..{K - 1}, the context has values from {context.min():g} to "
            f"{context.max():g}; recode it"
        )
    return whole
