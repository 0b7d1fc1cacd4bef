"""The top-down pass as sample sites: every level a site, whether its cell is written out or one turn of a loop.

A loop over cells cannot stop at each of them to let effect handlers choose a value.  So a run of cells goes ahead: it
draws its z_i itself, from the posterior in force or from the priors, with the keys that the sites would have taken.
Then each z_i is registered as a site whose law answers that very key with that very draw.  Whatever a handler does
instead - condition, substitute, replay, mask, another law - shows in what the site returns: from the first site that
returns something else on, the levels are written out.  So every handler sees the same sites, in the same order and with
the same laws; a run that is given its values costs one useless loop.  Where nothing is held so are the values: a site
that is given its value takes no key where levels are written out, but a loop has taken one for it already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Float, Key
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.transforms import ReshapeTransform

from ppl_models.distributions import ConditionalFlow, ShapedGaussian
from ppl_models.distributions.conditional_flow import unit_lower
from ppl_models.hvae.execution import Run, loop, looped, rematerialised, runs
from ppl_models.hvae.networks import Decoder, Encoder, is_table
from ppl_models.hvae.parts import rms
from ppl_models.networks.dropout import Drop, drop_at
from ppl_models.program import current_posterior

if TYPE_CHECKING:
    from ppl_models.hvae.spec import HVAE
    from ppl_models.networks.flow import CouplingFlow

Latent = Float[Array, "batch height width zdim"]


class Remembered(dist.Normal):
    """``Normal(loc, scale)`` that has been drawn from: ``sample`` of the same ``key`` is ``z``, of another it draws."""

    key: Any = None
    z: Any = None

    @classmethod
    def of(cls, loc: Latent, scale: Array, key: Key[Array, ""], z: Latent) -> Remembered:
        """The law and its draw."""
        found = cls(loc, scale)
        found.key, found.z = key, z
        return found

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """``z`` for the key that it was drawn with, else a draw."""
        if key is self.key and sample_shape == ():
            return self.z
        return super().sample(key, sample_shape)


class Drawn(NamedTuple):
    """What a loop found of q at a level: mean and log standard deviation, and the draw with its key."""

    loc: Latent
    log_sd: Latent
    key: Key[Array, ""]
    z: Latent


class Above(NamedTuple):
    """What the posterior of a level may read of the generative side.

    ``state``   what the level's own blocks read of the state that it starts from.
    ``prior``   p(z | Z), and its mean and log standard deviation ``moments``.
    ``drawn``   q(z | Z, x) where a loop has it already.
    """

    state: Float[Array, "batch height width channel"]
    prior: dist.Distribution
    moments: tuple[Array, Array]
    drawn: Drawn | None = None


def rate(site: str) -> str:
    """Name of the site with KL(q(z | Z, x) || p(z | Z)) of a latent site, nats, one value a datum."""
    return f"rate_{site}"


# ----------------------------------------------------------------------------------------------- posterior
@dataclass(frozen=True, eq=False)
class LevelPosterior:
    """``q(site, ctx)`` of data whose ``activations`` the encoder ``net`` has found; records the rate of each level.

    ``given`` is what the encoder saw: of a table, the linear paths read it.
    """

    spec: HVAE
    net: Encoder
    activations: dict[int, Array]
    given: Array
    drop: Drop

    def __call__(self, site: str, ctx: Above) -> dist.Distribution:
        level = self.spec.latents.index(site)
        found: dist.Distribution
        if ctx.drawn is not None:
            found = Remembered.of(ctx.drawn.loc, jnp.exp(ctx.drawn.log_sd), ctx.drawn.key, ctx.drawn.z).to_event(3)
        else:
            found = self._law(level, ctx)
        # Unused in training, where it costs nothing; in a posterior it is the KL at the sampled state.
        numpyro.deterministic(rate(site), _divergence(found, ctx.prior))
        return found

    def moments(
        self, level: int, state: Array, prior: tuple[Array, Array], cell: Any, block: Any = None
    ) -> tuple[Array, Array]:
        """Mean and log standard deviation from what a level reads; ``cell`` its number, ``block`` its own in a loop."""
        a = self.activations[self.spec.decoder_cells[level].res]
        drop = drop_at(self.drop, len(self.spec.encoder_cells) + cell)
        return self.net.posterior(level, state, a, drop, prior, block=block)

    def _law(self, level: int, ctx: Above) -> dist.Distribution:
        spec = self.spec
        loc, log_sd = rematerialised(lambda state, prior: self.moments(level, state, prior, level), spec)(
            ctx.state, ctx.moments
        )
        if is_table(spec):
            more_loc, more_log_sd = self.net.linear(level, self.given)
            loc, log_sd = loc + more_loc, log_sd + more_log_sd
        if spec.posterior == "normal" or level not in spec.dense:
            return dist.Normal(loc, jnp.exp(log_sd)).to_event(3)
        # Its masks come after those of the level's first block.
        drop = drop_at(self.drop, len(spec.encoder_cells) + len(spec.decoder_cells) + level)
        return _richer(loc[:, 0, 0], log_sd[:, 0, 0], *self.net.rich(level, ctx.state, self.activations[1], drop))


def _richer(loc: Array, log_sd: Array, entries: Array, context: Array, flow: CouplingFlow | None) -> dist.Distribution:
    """A level (batch, 1, 1, zdim) with a full covariance, or a flow, from vectors (batch, zdim)."""
    lower, scale = unit_lower(entries, loc.shape[-1]), jnp.exp(log_sd)
    shape = (1, 1, loc.shape[-1])
    if flow is None:
        return ShapedGaussian(dist.MultivariateNormal(loc, scale_tril=scale[..., None] * lower), shape)
    return ConditionalFlow(flow, context, loc, scale, lower, [ReshapeTransform(shape, loc.shape[-1:])])


def _divergence(q: dist.Distribution, p: dist.Distribution) -> Array:
    """KL(q || p) in nats, exact where it is closed, else at one draw of q: right on average over draws."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        key = numpyro.prng_key()
        z = q.sample(jax.random.key(0) if key is None else key)
        return q.log_prob(z) - p.log_prob(z)


# ------------------------------------------------------------------------------------------------ top-down
class TopDown:
    """One pass of the generative side, level by level: states by resolution, draws and norms so far."""

    def __init__(self, spec: HVAE, net: Decoder, batch: int, drop: Drop, temperature: Any) -> None:
        self.spec, self.net, self.batch, self.drop, self.temperature = spec, net, batch, drop, temperature
        self.states: dict[int, Array] = {}
        self.zs: list[Array] = []
        self.norms: list[Array] = []
        posterior = current_posterior()
        self.posterior = posterior if isinstance(posterior, LevelPosterior) else None
        self.free = posterior is self.posterior  # no law that a loop does not know, and no value given so far

    def prior(self, pm: Array, pv: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of p(z | Z)."""
        return pm, jnp.exp(pv) * self.temperature

    def written(self, level: int, key: Any = None) -> None:
        """A level by itself; ``key`` for its draw where it has been taken already."""
        spec, net, drop = self.spec, self.net, drop_at(self.drop, level)
        Z = net.enter(level, self.states, self.batch)
        seen = net.seen(level, Z)
        pm, pv, drift = rematerialised(lambda seen: net.prior(level, seen, drop), spec)(seen)
        prior = dist.Normal(*self.prior(pm, pv)).to_event(3)
        z = numpyro.sample(spec.latents[level], prior, rng_key=key, infer={"ctx": Above(seen, prior, (pm, pv))})
        step = rematerialised(lambda Z, drift, z: net.step(level, Z, drift, z, drop), spec)
        self._leave(level, step(Z, drift, z), z)

    def _leave(self, level: int, Z: Array, z: Array) -> None:
        self.states[self.spec.decoder_cells[level].res] = Z
        self.zs.append(z)
        self.norms.append(rms(Z))

    def run(self, run: Run) -> None:
        """A run of levels as a loop, then as sites; written out from the first site that is given another value on."""
        spec, net, posterior, first = self.spec, self.net, self.posterior, run.start
        keys = [numpyro.prng_key() for _ in run.cells]
        if not self.free or keys[0] is None:
            for level, key in zip(run.cells, keys, strict=True):
                self.written(level, key)
            return
        shape = (self.batch, spec.decoder_cells[first].res, spec.decoder_cells[first].res, spec.zdim)

        def turn(Z: Array, weights: Any, given: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, ...]]:
            level, time, key = given
            drop = drop_at(self.drop, level)
            seen = net.seen(first, Z, time=time)
            pm, pv, drift = net.prior(first, seen, drop, cell=weights[0])
            q: tuple[Array, ...] = ()
            loc, scale = self.prior(pm, pv)
            if posterior is not None:
                q = loc, log_sd = posterior.moments(first, seen, (pm, pv), level, weights[1])
                scale = jnp.exp(log_sd)
            z = loc + scale * jax.random.normal(key, shape)
            after = net.step(first, Z, drift, z, drop, cell=weights[0], time=time)
            return after, (Z, z, rms(after), pm, pv, *q)

        weights = [
            nnx.List([net.cell(level), *([posterior.net.posterior_block(level)] if posterior is not None else [])])
            for level in run.first_cells
        ]
        times = np.asarray([spec.times[level] for level in run.cells], "float32")
        start = net.enter(first, self.states, self.batch)
        last, found = loop(turn, start, run, weights, (np.asarray(run.cells), times, jnp.stack(keys)), spec)
        for i, (level, key) in enumerate(zip(run.cells, keys, strict=True)):
            Z, z, norm, pm, pv, *q = (part[i] for part in found)
            prior = Remembered.of(*self.prior(pm, pv), key, z).to_event(3)
            drawn = Drawn(q[0], q[1], key, z) if q else None
            above = Above(net.seen(level, Z), prior, (pm, pv), drawn)
            value = numpyro.sample(spec.latents[level], prior, rng_key=key, infer={"ctx": above})
            if value is not z:
                self._depart(level, Z, value, run.cells[i + 1 :], keys[i + 1 :])
                return
            self.zs.append(z)
            self.norms.append(norm)
        self.states[shape[1]] = last

    def _depart(self, level: int, Z: Array, z: Array, rest: range, keys: list[Any]) -> None:
        """Go on from a level that has been given ``z``: what the loop made of its own draw is not used."""
        self.free = False
        drop = drop_at(self.drop, level)
        drift = self.net.prior(level, self.net.seen(level, Z), drop)[2]
        self._leave(level, self.net.step(level, Z, drift, z, drop), z)
        for other, key in zip(rest, keys, strict=True):
            self.written(other, key)


def top_down(
    spec: HVAE, net: Decoder, batch: int, drop: Drop, temperature: Any
) -> tuple[Array, list[Array], list[Array]]:
    """Register every level of ``spec`` as a sample site; returns the finest state, all z and the states' norms.

    ``temperature`` multiplies the standard deviations of the priors.  To be called inside the plate over the batch.
    """
    going = TopDown(spec, net, batch, drop, temperature)
    single = spec.dense if spec.posterior != "normal" else ()
    for run in runs(spec.decoder_cells, spec.decoder_groups, looped(spec) and not is_table(spec), single):
        if len(run.cells) > 1:
            going.run(run)
        else:
            going.written(run.start)
    return going.states[spec.grid], going.zs, going.norms
