"""Conditional flows as NumPyro distributions: a Gaussian whose noise a network bends, given a context.

    z = m + S T u,   u = f(eps; c),   eps ~ N(0, I)

    log q(z) = log N(eps; 0, I) - log |du / deps| - sum log s,     eps = f^-1(T^-1 S^-1 (z - m); c)

with S = diag s, T unit lower triangular and f couplings (:mod:`ppl_models.networks.flow`), at first the identity.  The
inverse is exact, so a draw from anywhere, the prior say, has its density.  (Rezende & Mohamed 2015, eq. 5; Dinh et al.
2017; Durkan et al. 2019; Papamakarios et al. 2021, eq. 3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key
from numpyro.distributions import (
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    constraints,
    transforms,
)
from numpyro.distributions.kl import kl_divergence

from ppl_models.networks.flow import CouplingFlow


class CouplingTransform(transforms.Transform):
    """``eps -> loc + scale * (T f(eps; context))`` over vectors of length d, one map an entry of the batch.

    ``loc``, ``scale`` (*batch, d), ``context`` (*batch, c), ``lower`` T (d, d) or (*batch, d, d), unit lower
    triangular; ``None`` for I.  Without ``flow``, f is the identity.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(
        self,
        flow: CouplingFlow | None,
        context: Float[Array, "*batch c"],
        loc: Float[Array, "*batch d"],
        scale: Float[Array, "*batch d"],
        lower: Float[Array, "*_ d d"] | None = None,
    ) -> None:
        self.flow, self.context, self.loc, self.scale, self.lower = flow, context, loc, scale, lower

    def call_with_intermediates(self, x: Float[Array, "*n d"]) -> tuple[Array, Array]:
        """``(z, log |dz / deps|)``."""
        u, log_det = (x, jnp.zeros(())) if self.flow is None else self.flow.forward(x, self.context)
        if self.lower is not None:
            u = jnp.einsum("...ij,...j->...i", self.lower, u)
        return self.loc + self.scale * u, log_det + jnp.log(self.scale).sum(-1)

    def __call__(self, x: Float[Array, "*n d"]) -> Array:
        return self.call_with_intermediates(x)[0]

    def undo(self, y: Float[Array, "*n d"]) -> tuple[Array, Array]:
        """``(eps, log |dz / deps| at eps)``."""
        u = (y - self.loc) / self.scale
        if self.lower is not None:
            u = _solve(self.lower, u)
        eps, log_det = (u, jnp.zeros(())) if self.flow is None else self.flow.inverse(u, self.context)
        return eps, log_det + jnp.log(self.scale).sum(-1)

    def _inverse(self, y: Float[Array, "*n d"]) -> Array:
        return self.undo(y)[0]

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """``log |dy / dx|`` in nats."""
        del y
        return self.call_with_intermediates(x)[1] if intermediates is None else intermediates

    # A network is no array: its weights are leaves of the pytree, its graph is static.
    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        split: Any = (None, None) if self.flow is None else nnx.split(self.flow)
        graph, weights = split
        return (self.context, self.loc, self.scale, self.lower, weights), graph

    @classmethod
    def tree_unflatten(cls, aux_data: Any, params: Any) -> CouplingTransform:
        made = cls.__new__(cls)
        made.context, made.loc, made.scale, made.lower, weights = params
        made.flow = None if aux_data is None else nnx.merge(aux_data, weights)
        return made


class ConditionalFlow(TransformedDistribution):
    """Standard normal noise under a :class:`CouplingTransform`: batch shape that of ``loc``, vectors of length d.

    ``then``  further maps: to another shape, to an interval or a simplex.

    >>> flow = CouplingFlow(2, 3, rngs=nnx.Rngs(0))
    >>> q = ConditionalFlow(flow, jnp.zeros((5, 3)), jnp.zeros((5, 2)), jnp.ones((5, 2)))
    >>> q.batch_shape, q.event_shape
    ((5,), (2,))
    """

    def __init__(
        self,
        flow: CouplingFlow | None,
        context: Float[Array, "*batch c"],
        loc: Float[Array, "*batch d"],
        scale: Float[Array, "*batch d"],
        lower: Float[Array, "*_ d d"] | None = None,
        then: Sequence[transforms.Transform] = (),
    ) -> None:
        base = Normal(jnp.zeros_like(loc), jnp.ones_like(scale)).to_event(1)
        super().__init__(base, [CouplingTransform(flow, context, loc, scale, lower), *then])

    def sample(self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws (*sample_shape, *batch, *event), differentiable in the parameters."""
        return self.at(self.base_dist.sample(key, sample_shape))

    def rsample(self, key: Key[Array, ""] | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """The same as :meth:`sample`."""
        return self.sample(key, sample_shape)

    def at(self, eps: Float[Array, "*n d"]) -> Float[Array, "*n_event"]:
        """The value that standard normal noise is mapped to."""
        z, log_q = eps, self.base_dist.log_prob(eps)
        for step in self.transforms:
            moved, more = step.call_with_intermediates(z)
            log_q = log_q - _summed(step.log_abs_det_jacobian(z, moved, more), log_q.ndim)
            z = moved
        self._drawn = z, log_q
        return z

    def log_prob(self, value: Float[Array, "*n_event"], intermediates: Any = None) -> Float[Array, "*n"]:
        """``log q(value)`` in nats, at any value."""
        del intermediates
        drawn = getattr(self, "_drawn", None)
        # Of the last draw it is known already: no inverse in training.
        if drawn is not None and drawn[0] is value:
            return drawn[1]
        z, dets = value, []
        for step in reversed(self.transforms):
            if isinstance(step, CouplingTransform):
                before, det = step.undo(z)
            else:
                before = step.inv(z)
                det = step.log_abs_det_jacobian(before, z)
            z = before
            dets.append(det)
        log_q = self.base_dist.log_prob(z)
        return log_q - sum(_summed(det, log_q.ndim) for det in dets)


def _summed(det: Array, ndim: int) -> Array:
    """A log determinant with the axes of the event added up."""
    return det.sum(tuple(range(ndim, det.ndim)))


class ShapedGaussian(TransformedDistribution):
    """A Gaussian of vectors under another shape, (1, 1, d) say: its closed forms are those of the vector."""

    def __init__(self, gaussian: MultivariateNormal, shape: tuple[int, ...]) -> None:
        super().__init__(gaussian, [transforms.ReshapeTransform(shape, gaussian.event_shape)])

    @property
    def mean(self) -> Array:
        return self.base_dist.mean.reshape(*self.batch_shape, *self.event_shape)

    @property
    def variance(self) -> Array:
        return self.base_dist.variance.reshape(*self.batch_shape, *self.event_shape)


@kl_divergence.register(ShapedGaussian, Independent)
def _from_diagonal(q: ShapedGaussian, p: Independent) -> Float[Array, "*batch"]:
    """KL(N(m, L L^T) || N(mu, diag v)) = .5 sum_i [(sum_j L_ij^2 + (m_i - mu_i)^2) / v_i - 1 + log v_i] - log |L|."""
    base, shape = p.base_dist, (*p.batch_shape, q.base_dist.event_shape[0])
    if not isinstance(base, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError(f"closed for independent Normals of one shape, got {type(base).__name__}")
    full = (*p.batch_shape, *p.event_shape)
    loc, scale = (jnp.broadcast_to(value, full).reshape(shape) for value in (base.loc, base.scale))
    q = q.base_dist
    squares = ((q.scale_tril**2).sum(-1) + (q.loc - loc) ** 2) / scale**2
    log_det = jnp.log(jnp.diagonal(q.scale_tril, axis1=-2, axis2=-1)).sum(-1)
    return (0.5 * (squares - 1) + jnp.log(scale)).sum(-1) - log_det


def unit_lower(entries: Float[Array, "*batch entries"], dim: int) -> Float[Array, "*batch dim dim"]:
    """Unit lower triangular matrices with the entries below their diagonals, row by row."""
    rows, columns = np.tril_indices(dim, -1)
    return jnp.zeros((*entries.shape[:-1], dim, dim)).at[..., rows, columns].set(entries) + jnp.eye(dim)


def _solve(lower: Array, u: Array) -> Array:
    """``T^-1 u``, T with a unit diagonal, for a shared T or one each."""
    root = jnp.broadcast_to(lower, (*u.shape, u.shape[-1]))
    return jax.scipy.linalg.solve_triangular(root, u[..., None], lower=True, unit_diagonal=True)[..., 0]
