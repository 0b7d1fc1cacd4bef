"""What was observed: p(y | x, nuisances) of a likelihood that is written as NumPyro code.

    lambda x: dist.Normal(A @ x, 0.3).to_event(1)                    a distribution of y

    def sensors(x):                                                  with nuisances, sampled where they are needed
        noise = numpyro.sample("noise", dist.LogNormal(-1.2, 0.5))
        return dist.Normal(A @ x, noise).to_event(1)

    def sensors(x, y): ...; numpyro.sample("y", dist.Normal(A @ x, noise).to_event(1), obs=y)     or a whole model

Nuisances live in unconstrained coordinates ``u``, one flat vector for all sites; their priors may not depend on x.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to

Likelihood = Callable[..., Any]


class Observed:
    """``likelihood`` and the ``y`` that it saw, as functions of a datum ``x`` (in the data's units) and of ``u``.

    ``likelihood``  ``x -> distribution of y``, or a model ``(x, y)`` with one observed site; sites that are sampled in
                    it are nuisances.
    ``y``           the observation, an array of the distribution's shape.
    ``x``           any datum of the right shape: with it the sites are found.

    Raises ``ValueError`` for a likelihood that gives no distribution, or one of another shape than y, and for discrete
    nuisances.
    """

    def __init__(self, likelihood: Likelihood, y: Any, x: Array) -> None:
        self.likelihood, self.y = likelihood, y
        needed = [p for p in inspect.signature(likelihood).parameters.values() if p.default is p.empty]
        self.takes_y = len([p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]) > 1
        law, sites = self._trace(x, {})
        for name, site in sites.items():
            if site["fn"].is_discrete:
                raise ValueError(f"nuisance {name!r} is discrete; sum it out in the likelihood (MixtureSameFamily)")
        shape = (*law.batch_shape, *law.event_shape)
        if jnp.shape(y) != shape:
            raise ValueError(
                f"the likelihood is a distribution of shape {shape}, y has shape {jnp.shape(y)}; pass one observation, "
                "and give the likelihood its shape"
            )
        self.nuisances: Mapping[str, tuple[int, ...]] = {name: jnp.shape(site["value"]) for name, site in sites.items()}
        self.maps = {name: biject_to(site["fn"].support) for name, site in sites.items()}
        self.free = {name: jnp.shape(self.maps[name].inv(site["value"])) for name, site in sites.items()}
        self.size = sum(math.prod(shape) for shape in self.free.values())
        """Unconstrained numbers of all nuisances."""

    def _trace(self, x: Array, values: Mapping[str, Array]) -> tuple[Any, dict[str, Any]]:
        returned = []

        def run() -> None:
            returned.append(self.likelihood(x, self.y) if self.takes_y else self.likelihood(x))

        seeded = handlers.seed(handlers.substitute(run, data=dict(values)), jax.random.key(0))
        sites = {n: s for n, s in handlers.trace(seeded).get_trace().items() if s["type"] == "sample"}
        law = returned[0]
        if self.takes_y:
            seen = [site["fn"] for site in sites.values() if site["is_observed"]]
            if len(seen) != 1:
                raise ValueError(f"a likelihood model (x, y) has one observed site, this one has {len(seen)}")
            law = seen[0]
        if not isinstance(law, dist.Distribution):
            raise ValueError(
                f"the likelihood must return the NumPyro distribution of y given x, got {type(law).__name__}; e.g. "
                "lambda x: dist.Normal(x, 0.1).to_event(1)"
            )
        return law, {name: site for name, site in sites.items() if not site["is_observed"]}

    def law(self, x: Array, u: Float[Array, " p"]) -> Any:
        """The distribution of y given x and the nuisances."""
        return self._trace(x, self.constrain(u))[0]

    def log_prob(self, x: Array, u: Float[Array, " p"]) -> Float[Array, ""]:
        """``log p(y | x, nuisances)`` in nats."""
        return self.law(x, u).log_prob(self.y).sum()

    def each(self, x: Array, u: Float[Array, " p"]) -> Array:
        """``log p(y_i | x, nuisances)`` of each entry of y, where these are independent; else the whole, a scalar."""
        law = self.law(x, u)
        while isinstance(law, dist.Independent):
            law = law.base_dist
        found = law.log_prob(self.y)
        return found if found.shape == jnp.shape(self.y) else found.sum()

    def constrain(self, u: Float[Array, " p"]) -> dict[str, Array]:
        """The nuisances by site."""
        found, at = {}, 0
        for name, shape in self.free.items():
            n = math.prod(shape)
            found[name] = self.maps[name](u[at : at + n].reshape(shape))
            at += n
        return found

    def log_prior(self, x: Array, u: Float[Array, " p"]) -> Float[Array, ""]:
        """Log density of ``u`` in nats: the priors of the sites and the Jacobians of their maps."""
        values = self.constrain(u)
        sites, total, at = self._trace(x, values)[1], jnp.zeros(()), 0
        for name, shape in self.free.items():
            n = math.prod(shape)
            jacobian = self.maps[name].log_abs_det_jacobian(u[at : at + n].reshape(shape), values[name])
            total = total + sites[name]["fn"].log_prob(values[name]).sum() + jacobian.sum()
            at += n
        return total

    def draw(self, x: Array, key: Array) -> Float[Array, " p"]:
        """``u`` from the priors."""
        if not self.size:
            return jnp.zeros(0)
        found = handlers.trace(
            handlers.seed(lambda: self.likelihood(x, self.y) if self.takes_y else self.likelihood(x), key)
        ).get_trace()
        return jnp.concatenate([self.maps[name].inv(found[name]["value"]).reshape(-1) for name in self.free])


def gaussian_parts(law: Any) -> tuple[Float[Array, " m"], Float[Array, "m m"]] | None:
    """Mean (m,) and covariance (m, m) of a normal distribution of any shape, flattened; ``None`` for another."""
    shape = (*law.batch_shape, *law.event_shape)
    while isinstance(law, (dist.Independent, dist.ExpandedDistribution)):
        law = law.base_dist
    if isinstance(law, dist.Normal):
        loc = jnp.broadcast_to(law.loc, shape).reshape(-1)
        return loc, jnp.diag(jnp.broadcast_to(law.scale, shape).reshape(-1) ** 2)
    if isinstance(law, dist.MultivariateNormal) and len(shape) == 1:
        return jnp.broadcast_to(law.loc, shape), jnp.broadcast_to(law.covariance_matrix, (*shape, *shape))
    return None
