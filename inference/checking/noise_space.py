"""The posterior of one datum as a density over unconstrained reals: the noise eps of the guide's maps.

The guide maps noise to latents, z_l = T_l(eps_l; ctx_l) (:mod:`inference.checking.transport`).  By change of variables

    gamma(eps) = p(x, T(eps)) |dT/deps| = p(x, z) N(eps; 0, I) / r(z),   z = T(eps)

where r is the density of T(eps) with eps ~ N(0, I): the guide's own, or its stand-in's.  The integral of gamma is p(x),
whatever the guide; its gradient is that of model, guide and maps together, as a level's map reads the levels above.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key
from numpyro.distributions.util import scale_and_mask

from inference.checking.gaussians import Gaussian
from inference.checking.transport import reference, transport
from inference.fitting.objectives import densities, trace_posterior
from ppl_models.program import Posterior, Program, amortise

_EDGE = 5.19
"""Noise beyond which a map by quantiles has no inverse left in single precision."""


class Densities(NamedTuple):
    """Logarithms of p(z) and of p(x, z), both as densities over eps; nats."""

    prior: Float[Array, ""]
    joint: Float[Array, ""]


class _Held(amortise):
    """``amortise`` with every latent made from given noise, or given itself, or drawn from its prior."""

    def __init__(
        self, q: Posterior, *, eps: Array | None = None, z: Mapping[str, Array] | None = None, key: Any = None
    ) -> None:
        super().__init__(q=q)
        self.eps, self.z, self.key = eps, z, key
        self.base: list[Array] = []
        self.noise: list[Array] = []

    def process_message(self, msg: dict[str, Any]) -> None:
        mine = msg["type"] == "sample" and not msg["is_observed"] and "ctx" in msg["infer"]
        super().process_message(msg)
        if not mine:
            return
        guide, mask = _bare(msg["fn"])
        start = reference(guide)
        way = transport(start)
        if way is None:
            raise ValueError(cannot((msg["name"],)))
        if self.eps is not None:
            at = sum(part.size for part in self.noise)
            eps = self.eps[at : at + way.size]
            z = way.to(eps.reshape(way.shape))
        else:
            prior = _bare(msg["infer"]["prior"])[0]
            at = len(self.noise)
            z = prior.sample(jax.random.fold_in(self.key, at)) if self.z is None else self.z[msg["name"]]
            eps = way.back(z).reshape(-1)
            if not _onto(start):
                # Beyond the edge the map is flat: such a value has no noise, and must not pass for its neighbour.
                eps = jnp.where(jnp.abs(eps) < _EDGE, eps, jnp.nan)
        self.noise.append(eps)
        self.base.append(scale_and_mask(start.log_prob(z), msg["scale"], mask).sum())
        msg["value"] = z


def log_densities(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    eps: Float[Array, " D"],
    *,
    mutable: Mapping[str, Any] | None = None,
) -> Densities:
    """Log densities over the noise of one prepared datum ``x`` (1, *shape); ``key`` for a likelihood with noise.

    A masked latent counts nowhere: its noise keeps N(0, I).
    """
    held: list[_Held] = []
    sites = trace_posterior(program, params, key, x, mutable=mutable, under=_noting(held, eps=eps))
    draw = densities(sites, x)
    prior = sum(value.sum() for value in draw.log_prior.values())
    lik = sum(value.sum() for value in draw.log_lik.values())
    own = sum(held[0].base, jnp.zeros(()))
    shift = standard(eps) - own
    return Densities(prior + shift, prior + lik + shift)


def noise_of(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    *,
    latents: Mapping[str, Array] | None = None,
    mutable: Mapping[str, Any] | None = None,
) -> Float[Array, " D"]:
    """Noise of given latents (1, *event) by site, or of a draw from the prior; nan for a value that no noise maps to.

    Raises ``ValueError`` for a site without a map.
    """
    held: list[_Held] = []
    trace_posterior(program, params, key, x, mutable=mutable, under=_noting(held, z=latents, key=key))
    return jnp.concatenate(held[0].noise)


def _noting(held: list[_Held], **given: Any) -> Any:
    def under(q: Posterior) -> _Held:
        held.append(_Held(q, **given))
        return held[0]

    return under


def cannot(names: tuple[str, ...]) -> str:
    """What to tell of latents that have no map from noise."""
    return (
        f"latent {', '.join(names)} cannot be annealed: its posterior is no (transformed) Normal or law with quantiles "
        '(it is discrete, or a mixture); use method="importance", or give the program such a posterior'
    )


def standard(eps: Float[Array, " D"]) -> Float[Array, ""]:
    """log N(eps; 0, I) in nats."""
    return dist.Normal(0, 1).log_prob(eps).sum()


def place(q: Gaussian, u: Float[Array, " D"]) -> Float[Array, " D"]:
    """Noise at whitened coordinates u: m + D (I + N) u; a factor of low rank is left to the density."""
    e = u if q.lower is None else u + jnp.tril(q.lower, -1) @ u
    return q.loc + jnp.exp(q.log_scale) * e


def unplace(q: Gaussian, eps: Float[Array, " D"]) -> Float[Array, " D"]:
    """Inverse of :func:`place`."""
    e = (eps - q.loc) * jnp.exp(-q.log_scale)
    if q.lower is None:
        return e
    root = jnp.tril(q.lower, -1) + jnp.eye(e.shape[-1])
    return jax.scipy.linalg.solve_triangular(root, e, lower=True, unit_diagonal=True)


def log_start(q: Gaussian, u: Float[Array, " D"]) -> Float[Array, ""]:
    """log q over the noise eps at ``place(q, u)``, nats."""
    if q.factor is None:
        return standard(u) - q.log_scale.sum()
    zero = jnp.zeros_like(u)
    return Gaussian(zero, zero, factor=q.factor).log_prob(u, (u.shape[-1],))[0] - q.log_scale.sum()


def draw_start(q: Gaussian, key: Key[Array, ""]) -> Float[Array, " D"]:
    """u with ``place(q, u)`` ~ q."""
    if q.factor is None:
        return jax.random.normal(key, q.loc.shape)
    zero = jnp.zeros_like(q.loc)
    return Gaussian(zero, zero, factor=q.factor).draw(key)


def _bare(d: Any) -> tuple[Any, Any]:
    return (d.base_dist, d._mask) if isinstance(d, dist.MaskedDistribution) else (d, None)


def _onto(d: Any) -> bool:
    """Whether the map of ``d`` reaches all its values: a Normal's, transformed or not, not one by clipped quantiles."""
    while isinstance(d, dist.Independent | dist.ExpandedDistribution | dist.TransformedDistribution):
        d = d.base_dist
    return isinstance(d, dist.Normal | dist.MultivariateNormal | dist.LowRankMultivariateNormal)
