"""The posteriors of a spec: independent Gaussians, one Gaussian with full covariance, or a conditional flow.

Heads of the encoder give m, s and what the richer ones read.  With e_i = (z_i - m_i) / s_i of the facets before,
T_j unit lower triangular and B_ji the entries of ``mixing``, and c_j the context,

    normal   z_j = m_j + s_j eps_j
    full     z_j = m_j + s_j (T_j(x) eps_j + sum_{i<j} B_ji(x) e_i)           any Gaussian of all facets together
    flow     z_j = m_j + s_j (T_j(x) f(eps_j; c_j(x), e_{<j}) + sum_{i<j} B_ji(x) e_i)

T = I, B = 0 and f the identity at first.  Facets are drawn in their order; what comes before is the context of a site.
An additive network has one T_j for all data and no B.  f: :mod:`ppl_models.networks.flow`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Key

from ppl_models.distributions.conditional_flow import ConditionalFlow, unit_lower
from ppl_models.mfcvae.networks import Additive
from ppl_models.networks.flow import CONTEXT, CouplingFlow
from ppl_models.networks.mlp import Extra, Outputs

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE

MEAN_DRAWS = 64
"""Draws that the mean of a flow is taken from."""


def extras(spec: MFCVAE) -> tuple[Extra, ...]:
    """What each head of the encoder gives beside mean and log scale; nothing for a normal posterior."""
    flow, before, found = spec.posterior == "flow", 0, []
    for facet in spec.facets:
        found.append(Extra(facet.dim * (facet.dim - 1) // 2 + facet.dim * before, CONTEXT if flow else 0))
        before += facet.dim
    # An additive network keeps its mixing itself, the same for all data.
    return tuple(found) if flow or (spec.posterior == "full" and not isinstance(spec.network, Additive)) else ()


def chained(spec: MFCVAE) -> bool:
    """Whether the posterior of a facet reads the facets before it."""
    return bool(extras(spec))


def flows(spec: MFCVAE, rngs: nnx.Rngs) -> nnx.Module | None:
    """The couplings of each facet, where the posterior is a flow."""
    if spec.posterior != "flow":
        return None
    before = np.cumsum([0, *(facet.dim for facet in spec.facets)])
    each = zip(spec.facets, before, strict=False)
    return nnx.List([CouplingFlow(facet.dim, CONTEXT + int(first), rngs=rngs) for facet, first in each])


def conditional(
    heads: Sequence[Outputs], j: int, before: Sequence[Array], couplings: CouplingFlow | None, additive: bool
) -> dist.Distribution:
    """q(z_j | x, z_0..z_{j-1}) of a posterior that is full, or a flow where there are ``couplings``."""
    loc, log_scale, *more = heads[j]
    none = jnp.zeros((loc.shape[0], 0), loc.dtype)
    mixing, context = more or (none, none)  # the first facet, of one number: nothing to mix
    dim, scale = loc.shape[-1], jnp.exp(log_scale)
    own = dim * (dim - 1) // 2
    seen = [(z - m) * jnp.exp(-l) for z, (m, l, *_) in zip(before, heads, strict=False)]
    e = jnp.concatenate([none, *seen], axis=-1)
    if e.shape[-1] and not additive:
        across = mixing[:, own:].reshape(-1, dim, e.shape[-1])
        loc = loc + scale * jnp.einsum("bij,bj->bi", across, e)
    lower = unit_lower(mixing[:, :own], dim)
    if couplings is None:
        return dist.MultivariateNormal(loc, scale_tril=scale[..., None] * lower)
    # Far-off draws of the prior: a network reads squashed numbers.
    context = jnp.concatenate([context, 5 * jnp.tanh(e / 5)], axis=-1)
    return ConditionalFlow(couplings, context, loc, scale, lower if dim > 1 else None)


Q = Callable[[str, Any], dist.Distribution]


def posteriors(
    q: Q, names: Sequence[str], value: Callable[[int, dist.Distribution], Array]
) -> dict[str, tuple[dist.Distribution, Array]]:
    """q of each facet given those before it at ``value(j, q_j)``, and these values, in the order of the facets."""
    found: dict[str, tuple[dist.Distribution, Array]] = {}
    for j, name in enumerate(names):
        law = q(f"z_{name}", tuple(z for _, z in found.values()))
        found[name] = law, value(j, law)
    return found


def drawn(q: Q, names: Sequence[str], facet: str, key: Key[Array, ""]) -> Array:
    """One draw of a facet (batch, dim) from q(z | x), those before it drawn too."""
    laws = posteriors(q, names, lambda j, law: law.sample(key if names[j] == facet else jax.random.fold_in(key, j)))
    return laws[facet][1]


def means(q: Q, names: Sequence[str], key: Key[Array, ""]) -> dict[str, Array]:
    """E_q[z_j] of each facet (batch, dim): exact for Gaussians, the mean of 64 draws of a flow."""

    def all_at(key: Key[Array, ""]) -> dict[str, Array]:
        laws = posteriors(q, names, lambda j, law: law.sample(jax.random.fold_in(key, j)))
        return {name: z for name, (_, z) in laws.items()}

    try:
        # Means of linear conditionals at means are means.
        return {name: z for name, (_, z) in posteriors(q, names, lambda j, law: law.mean).items()}
    except NotImplementedError:
        total = jax.lax.map(all_at, jax.random.split(key, MEAN_DRAWS))
        return jax.tree.map(lambda z: z.mean(0), total)
