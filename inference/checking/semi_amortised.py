"""Draws from a posterior that was refined for one datum, and every density at them.

The guide's site distributions map noise to latents, z_l = T_l(eps_l; ctx_l) with eps ~ N(0, I)
(:mod:`inference.checking.transport`).  A refined posterior moves the noise alone: eps ~ N(m, S) over all sites at
once.  Each level of a hierarchy keeps reading the state above it, so one Gaussian is an offset on every level's mean
and scale, correlated across levels, and

    log q(z | x) = log q_guide(z | x) + log N(eps; m, S) - log N(eps; 0, I),   eps = T^-1(z)

exactly, by change of variables.  A site without such a map keeps the guide's distribution.  Proposals may be mixtures
of the refined posterior, the guide and the prior; their log density is that of the mixture, so weights stay unbiased.
(Semi-amortised inference: Kim, Wiseman, Miller, Sontag & Rush 2018; Hjelm et al. 2016.)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpyro.distributions import MaskedDistribution
from numpyro.distributions.util import scale_and_mask

from inference.checking.gaussians import Gaussian
from inference.checking.transport import reference, transport
from inference.fitting.objectives import Draw, densities, trace_posterior
from ppl_models.program import Posterior, Program, amortise

REFINED, GUIDE, PRIOR = range(3)
"""What a draw can come from; the order of :attr:`Local.shares`."""


class Local(NamedTuple):
    """What belongs to each datum of a refined posterior, one entry a datum.

    ``noise``   the key that its stored form was prepared with (binarised, dequantised): the refined posterior is one
                of that prepared datum.
    ``q``       the Gaussian over the noise of its latents.
    ``shares``  of refined posterior, guide and prior in the proposal; they sum to 1.
    """

    noise: Key[Array, "*data"]
    q: Gaussian
    shares: Float[Array, "*data 3"]


class Layout(NamedTuple):
    """Numbers of noise of each latent site, in the order of the model; 0 for a site that is left as the guide's.

    ``samples_prior`` is false where a prior has a density and no draws: the proposal then takes no share of it.
    """

    sizes: dict[str, int]
    samples_prior: bool

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    @property
    def kept(self) -> tuple[str, ...]:
        """Sites that cannot be refined."""
        return tuple(name for name, size in self.sizes.items() if not size)


def layout(program: Program, params: Mapping[str, Any], mutable: Mapping[str, Any] | None, x: Any) -> Layout:
    """Which latent sites can be refined, from shapes alone; ``x`` one prepared datum (1, *shape)."""
    found: dict[str, int] = {}
    samples = []

    def traced() -> int:
        for name, site in trace_posterior(program, params, jax.random.key(0), x, mutable=mutable).items():
            if site["type"] == "sample" and "prior" in site["infer"]:
                way = transport(reference(site["fn"]))
                found[name] = 0 if way is None else way.size
                samples.append(_prior_draw(site["infer"]["prior"], jax.random.key(0), None) is not None)
        return 0

    jax.eval_shape(traced)
    return Layout(found, all(samples))


class _Placed(amortise):
    """``amortise`` with the value of each site made from given noise, or drawn from the guide or the prior."""

    def __init__(
        self,
        q: Posterior,
        eps: Float[Array, " D"],
        key: Key[Array, ""],
        source: Array | None,
        at: Mapping[str, Array] | None = None,
    ) -> None:
        super().__init__(q=q)
        self.eps, self.key, self.source, self.at = eps, key, source, at
        self.base: dict[str, Array] = {}
        """Log density of what each site's refinement starts from."""
        self.noise: dict[str, Array] = {}
        """Noise of each site at its value, empty for a site that is left as it is."""

    def process_message(self, msg: dict[str, Any]) -> None:
        mine = msg["type"] == "sample" and not msg["is_observed"] and "ctx" in msg["infer"]
        super().process_message(msg)
        if not mine:
            return
        guide, start = _bare(msg["fn"]), reference(_bare(msg["fn"]))
        way = transport(start)
        key, at = jax.random.fold_in(self.key, len(self.base)), sum(part.size for part in self.noise.values())
        eps = self.eps[at : at + way.size] if way is not None else jnp.zeros(0)
        if self.at is not None:
            z = self.at[msg["name"]]
            eps = eps if way is None else way.back(z).reshape(-1)
        else:
            z = guide.sample(key) if way is None else way.to(eps.reshape(way.shape))
        if self.source is not None and self.at is None:
            guide_key, prior_key = jax.random.split(key)
            drawn = z if way is None else guide.sample(guide_key)
            z = jnp.select(
                [self.source == REFINED, self.source == GUIDE],
                [z, drawn],
                _prior_draw(msg["infer"]["prior"], prior_key, drawn),
            )
            if way is not None:
                eps = jnp.where(self.source == REFINED, eps, way.back(z).reshape(-1))
        mask = msg["fn"]._mask if isinstance(msg["fn"], MaskedDistribution) else None
        self.base[msg["name"]] = scale_and_mask(start.log_prob(z), msg["scale"], mask)
        self.noise[msg["name"]], msg["value"] = eps, z


def _prior_draw(prior: Any, key: Key[Array, ""], otherwise: Any) -> Any:
    try:
        return _bare(prior).sample(key)
    except NotImplementedError:
        return otherwise


def _bare(d: Any) -> Any:
    return d.base_dist if isinstance(d, MaskedDistribution) else d


def refined_draw(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    local: Local,
    *,
    mutable: Mapping[str, Any] | None = None,
    at: Mapping[str, Array] | None = None,
) -> Draw:
    """One draw for one prepared datum ``x`` (1, *shape) from its proposal: :func:`joint_draw` of a refined posterior.

    ``log_q`` of a site is its density given the sites before it, so its rate is what it was for the guide.  With
    values ``at`` of all latents, (1, *event) each, these take the place of the draw.
    """
    source_key, noise_key, site_key, trace_key = jax.random.split(key, 4)
    source = jax.random.categorical(source_key, jnp.log(local.shares))
    if at is not None:
        source = jnp.full_like(source, -1)  # from none of the three
    placed: list[_Placed] = []

    def under(q: Posterior) -> _Placed:
        placed.append(_Placed(q, local.q.draw(noise_key), site_key, source, at))
        return placed[0]

    sites = trace_posterior(program, params, trace_key, x, mutable=mutable, under=under)
    draw, (handler,) = densities(sites, x), placed
    names = list(draw.log_q)
    moved = _moved(local.q, handler)
    # Log density of the sites up to each one under every source, then of the mixture, then site by site.
    base, guide, prior = (
        jnp.cumsum(jnp.stack([_scalar(found[name]) for name in names]))
        for found in (handler.base, draw.log_q, draw.log_prior)
    )
    each = jnp.stack([base + moved, guide, prior])
    # A draw from elsewhere may lie where a distribution has no density or its inverse overflows: it is none there.
    each = jnp.where(jnp.isnan(each) & (jnp.arange(3)[:, None] != source), -jnp.inf, each)
    share = jnp.log(local.shares)[:, None]
    up_to = jax.scipy.special.logsumexp(jnp.where(jnp.isneginf(share), -jnp.inf, share + each), axis=0)
    by_site = jnp.diff(up_to, prepend=0.0)
    return draw._replace(log_q={name: by_site[i][None] for i, name in enumerate(names)})


def log_weight(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    q: Gaussian,
    eps: Float[Array, " D"],
    *,
    mutable: Mapping[str, Any] | None = None,
) -> Float[Array, ""]:
    """log p(x, z) - log q(z | x) in nats at z = T(eps), for gradients: log q does not pass any to its parameters.

    The parameters of q act through eps alone ("sticking the landing": Roeder, Wu & Duvenaud 2017): the gradient of the
    ELBO stays unbiased and vanishes where q is exact.  The guide's own parameters are frozen, and what it makes of the
    state above, ctx(z), stays live: stopping the distribution rather than the parameters is wrong in a hierarchy.
    """
    site_key, trace_key = jax.random.split(key)
    placed: list[_Placed] = []

    def under(guide: Posterior) -> _Placed:
        placed.append(_Placed(guide, eps, site_key, None))
        return placed[0]

    sites = trace_posterior(program, params, trace_key, x, mutable=mutable, under=under)
    draw, (handler,) = densities(sites, x), placed
    base = jnp.stack([_scalar(value) for value in handler.base.values()]).sum()
    moved = _moved(jax.lax.stop_gradient(q), handler)[-1]
    joint = sum(_scalar(value) for part in (draw.log_prior, draw.log_lik) for value in part.values())
    return joint - base - moved


def _moved(q: Gaussian, handler: _Placed) -> Float[Array, " sites"]:
    """log N(eps; m, S) - log N(eps; 0, I) of the noise up to each site."""
    eps = jnp.concatenate(list(handler.noise.values()))
    ends = tuple(itertools.accumulate(part.size for part in handler.noise.values()))
    zero = jnp.zeros_like(eps)
    return q.log_prob(eps, ends) - Gaussian(zero, zero).log_prob(eps, ends)


def _scalar(value: Array) -> Array:
    """The one entry of a batch of one."""
    if value.shape != (1,):
        raise ValueError(f"expected the density of one datum, shape (1,), got {value.shape}")
    return value[0]
