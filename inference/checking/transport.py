"""Maps from standard normal noise to the draws of a distribution, and back: the coordinates posteriors are refined in.

    z = T(eps),   eps ~ N(0, I)   =>   z ~ d

A Gaussian N(m, L L') over eps then is a refined d, with m = 0 and L = I the one that was given.  For a location-scale
Normal, T is loc + scale eps; a transformed Normal (LogNormal, a flow) goes on through its transforms; other laws on the
line go through the normal distribution function and their own quantile function.  Beta, Gamma and Dirichlet, whose
quantiles are expensive or do not exist, are started from the logistic normal or log-normal with the moments of their
logits or logs: close to d, not equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import digamma, ndtr, ndtri, polygamma
from jaxtyping import Array
from numpyro.distributions import transforms

_FLOOR = 1e-7
"""Probability beyond which a quantile is not asked for: single precision rounds 1 - 3e-8 to 1."""


class Transport(NamedTuple):
    """``to`` maps noise of ``shape`` to values, ``back`` is its inverse; both keep leading axes."""

    shape: tuple[int, ...]
    to: Callable[[Array], Array]
    back: Callable[[Array], Array]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def reference(d: dist.Distribution) -> dist.Distribution:
    """The distribution that refinement of ``d`` starts from: ``d`` itself, or a transformed Normal close to it."""
    base, wrap = d, []
    while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        wrap.append(base)
        base = base.base_dist
    near = _near(base)
    if near is None:
        return d
    for layer in reversed(wrap):
        if isinstance(layer, dist.Independent):
            near = near.to_event(layer.reinterpreted_batch_ndims)
        elif isinstance(layer, dist.ExpandedDistribution):
            near = near.expand(layer.batch_shape)
        else:
            near = near.mask(layer._mask)
    return near


def _near(d: dist.Distribution) -> dist.Distribution | None:
    if isinstance(d, dist.Beta):
        a, b = d.concentration1, d.concentration0
        base = dist.Normal(digamma(a) - digamma(b), jnp.sqrt(polygamma(1, a) + polygamma(1, b)))
        return dist.TransformedDistribution(base, transforms.SigmoidTransform())
    if isinstance(d, dist.Gamma):
        base = dist.Normal(digamma(d.concentration) - jnp.log(d.rate), jnp.sqrt(polygamma(1, d.concentration)))
        return dist.TransformedDistribution(base, transforms.ExpTransform())
    if isinstance(d, dist.Dirichlet):
        # A Dirichlet breaks a stick at Beta(a_i, a_{i+1} + ... + a_K); NumPyro's transform shifts their logits.
        a = d.concentration[..., :-1]
        rest = jnp.flip(jnp.cumsum(jnp.flip(d.concentration, -1), -1), -1)[..., 1:]
        shift = jnp.log(a.shape[-1] - jnp.arange(a.shape[-1]))
        mean = digamma(a) - digamma(rest) + shift.astype(a.dtype)
        base = dist.Normal(mean, jnp.sqrt(polygamma(1, a) + polygamma(1, rest))).to_event(1)
        return dist.TransformedDistribution(base, transforms.StickBreakingTransform())
    return None


def transport(d: dist.Distribution) -> Transport | None:
    """The map of a distribution with all its batch and event axes; ``None`` if there is none (mixtures, counts)."""
    if isinstance(d, dist.MaskedDistribution):
        return transport(d.base_dist)
    if isinstance(d, dist.Independent):
        return transport(d.base_dist)
    if isinstance(d, dist.ExpandedDistribution):
        inner = transport(d.base_dist)
        if inner is None:
            return None
        # Expanding adds or stretches batch axes alone; the maps broadcast over them.
        return inner._replace(shape=(*d.batch_shape, *inner.shape[len(d.base_dist.batch_shape) :]))
    if isinstance(d, dist.TransformedDistribution):
        return _through(d)
    shape = (*d.batch_shape, *d.event_shape)
    if isinstance(d, dist.Normal):
        return Transport(shape, lambda eps: d.loc + d.scale * eps, lambda z: (z - d.loc) / d.scale)
    if isinstance(d, dist.MultivariateNormal):
        return _affine(d.loc, d.scale_tril, shape)
    if isinstance(d, dist.LowRankMultivariateNormal):
        return _affine(d.loc, jnp.linalg.cholesky(d.covariance_matrix), shape)
    return _by_quantiles(d, shape)


def _through(d: dist.TransformedDistribution) -> Transport | None:
    inner = transport(d.base_dist)
    if inner is None:
        return None

    def to(eps: Array) -> Array:
        z = inner.to(eps)
        for step in d.transforms:
            z = step(z)
        return z

    def back(z: Array) -> Array:
        for step in reversed(d.transforms):
            z = step.inv(z)
        return inner.back(z)

    return Transport(inner.shape, to, back)


def _affine(loc: Any, tril: Any, shape: tuple[int, ...]) -> Transport:
    def back(z: Array) -> Array:
        e = z - loc
        e = jnp.broadcast_to(e, jnp.broadcast_shapes(e.shape, shape))  # an expanded distribution adds axes in front
        root = jnp.broadcast_to(tril, (*e.shape, e.shape[-1]))
        return jax.scipy.linalg.solve_triangular(root, e[..., None], lower=True)[..., 0]

    return Transport(shape, lambda eps: loc + jnp.einsum("...ij,...j->...i", tril, eps), back)


def _by_quantiles(d: dist.Distribution, shape: tuple[int, ...]) -> Transport | None:
    """Through N(0, 1)'s distribution function and the quantile function, for a law on the line that has both."""
    one_law = not d.event_shape and not d.support.is_discrete
    if not one_law or type(d).icdf is dist.Distribution.icdf or type(d).cdf is dist.Distribution.cdf:
        return None
    return Transport(
        shape,
        lambda eps: d.icdf(jnp.clip(ndtr(eps), _FLOOR, 1 - _FLOOR)),
        lambda z: ndtri(jnp.clip(d.cdf(z), _FLOOR, 1 - _FLOOR)),
    )
