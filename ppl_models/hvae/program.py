"""The hierarchical VAE as a NumPyro program: every level a sample site whose prior reads the state above it.

Notation (level i = 0..L-1, coarse to fine; everything an image, written (batch, height, width, channel)):

    Z_0                                       a learned constant: the hierarchy starts at a point mass
    z_i | Z_i ~ N(pm_i, exp(pv_i)^2)          site z_<i>;  (pm, pv, drift) = prior block of Z_i
    Z_{i,+} = Z_i + drift_i + W_i z_i + b_i   first half step, stochastic
    Z_{i+1} = Z_{i,+} + resnet_i(Z_{i,+})     second half step, deterministic
    x | Z_L ~ p(x | f(Z_L))                   site x, f the read-out of the finest state; of a table f(Z_L, z)
    q(z_i | Z_i, x) = N(qm_i, exp(qv_i)^2)    (qm, qv) = posterior block of [Z_i, a_i(x)], a the encoder; or richer

Where the resolution changes, the state of the new one starts at its own learned constant plus the coarser state,
repeated to the finer grid.  The posterior has no top-down pass of its own: it reads the model's state Z_i, which is
the context of the site, so one trace of the model holds both densities.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.transforms import ReshapeTransform

from ppl_models.distributions import Columns, ConditionalFlow, ShapedGaussian
from ppl_models.distributions.conditional_flow import unit_lower
from ppl_models.hvae import checks, panels
from ppl_models.hvae.networks import Decoder, Encoder, is_table, rms
from ppl_models.hvae.observed import encoder_input, observation
from ppl_models.hvae.table_start import START_SIZE, table_start
from ppl_models.networks.dropout import Drop, Dropout, no_drop
from ppl_models.program import Event, Posterior, Program, Training, Views, bind, knob, rows

if TYPE_CHECKING:
    from flax import nnx

    from ppl_models.hvae.spec import HVAE
    from ppl_models.networks.flow import CouplingFlow

NORM = "state_norm"
"""Site with the root mean square of the state after each level, (batch, levels)."""


class Above(NamedTuple):
    """What the posterior of a level may read of the generative side.

    ``state``   what the level's own blocks read of the state that it starts from.
    ``prior``   p(z | Z), and its mean and log standard deviation ``moments``.
    """

    state: Float[Array, "batch height width channel"]
    prior: dist.Distribution
    moments: tuple[Array, Array]


def rate(site: str) -> str:
    """Name of the site with KL(q(z | Z, x) || p(z | Z)) of a latent site, nats, one value a datum."""
    return f"rate_{site}"


def program(spec: HVAE, key: Key[Array, ""]) -> Program:
    """Build the networks of ``spec`` from ``key`` and put the program together."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    encoder, decoder = Encoder(spec, rng=rng), Decoder(spec, rng=rng)
    return Program(
        spec=spec,
        model=generative(spec, decoder),
        posterior=amortised(spec, encoder),
        latents=spec.latents,
        shape=spec.likelihood.shape if isinstance(spec.likelihood, Columns) else spec.shape,
        observation=observation(spec),
        training=Training(
            {"dropout": 0.0} if spec.dropout else {},
            {"dropout": lambda step: spec.dropout} if spec.dropout else {},
            (Event(0, "fitting a factor analysis", table_start(spec), START_SIZE),) if is_table(spec) else (),
        ),
        views=Views(
            density(spec),
            {"encoder": encoder, "decoder": decoder},
            checks=lambda tree: checks.checks(tree, spec),
            panels=lambda fit, x, factors, tree: panels.panels(spec, fit, x, tree),
        ),
    )


def _dropout(spec: HVAE) -> Drop:
    """Dropout where the training loop has switched it on and there is a source of randomness, else none."""
    share = knob("dropout", 0.0)
    if not spec.dropout or (isinstance(share, float | int) and share == 0):
        return no_drop
    key = numpyro.prng_key()
    return no_drop if key is None else Dropout(share, key)


def _gaussian(loc: Array, log_sd: Array) -> dist.Distribution:
    return dist.Normal(loc, jnp.exp(log_sd)).to_event(3)


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


def generative(spec: HVAE, decoder: nnx.Module) -> Any:
    """``p(x, z)`` of a spec with the weights of ``decoder``.

    The knob ``temperature`` multiplies the standard deviations of all levels: 1 is the model, less gives likelier and
    less varied samples, 0 the mean of each level given those above.
    """

    likelihood = spec.likelihood

    def model(x: Any = None, *, size: int | None = None) -> Array:
        if x is None and size is None:
            raise ValueError("the model needs data x or a size: model(x) scores x, model(size=n) draws n fresh data")
        x = jax.tree.map(jnp.asarray, x)
        batch = int(size or 0) if x is None else rows(x)
        net: Decoder = bind("decoder", decoder)
        start = likelihood.parameters() if isinstance(likelihood, Columns) else likelihood.parameters(spec.shape)
        parameters = numpyro.param("likelihood", start) if start else start
        drop, temperature = _dropout(spec), knob("temperature", 1.0)
        states: dict[int, Array] = {}
        zs, norms = [], []
        with numpyro.plate("data", batch):
            for level, (name, cell) in enumerate(zip(spec.latents, spec.decoder_cells, strict=True)):
                Z = net.enter(level, states, batch)
                seen = net.seen(level, Z)
                pm, pv, drift = net.prior(level, seen, drop)
                prior = dist.Normal(pm, jnp.exp(pv) * temperature).to_event(3)
                z = numpyro.sample(name, prior, infer={"ctx": Above(seen, prior, (pm, pv))})
                states[cell.res] = net.step(level, Z, drift, z, drop)
                zs.append(z)
                norms.append(rms(states[cell.res]))
            numpyro.deterministic(NORM, jnp.stack(norms, axis=-1))
            decoded = net.read_out(states[spec.grid], zs)
            if isinstance(likelihood, Columns):
                law = likelihood.distribution(decoded, parameters, None if x is None else x["there"])
                return numpyro.sample("x", law, obs=None if x is None else x["x"])
            return numpyro.sample("x", likelihood.distribution(decoded, parameters, spec.levels), obs=x)

    return model


def amortised(spec: HVAE, encoder: nnx.Module) -> Any:
    """``q(z | x)`` of a spec with the weights of ``encoder``; records each level's rate beside it."""
    level_of = {name: level for level, name in enumerate(spec.latents)}

    def posterior(x: Any = None, *, size: int | None = None) -> Posterior:
        del size
        if x is None:
            raise ValueError("the posterior q(z | x) needs data x; for draws from the prior run the model alone")
        net: Encoder = bind("encoder", encoder)
        drop = _dropout(spec)
        given = encoder_input(spec, jax.tree.map(jnp.asarray, x))
        activations = net(given, drop)

        def q(site: str, ctx: Above) -> dist.Distribution:
            level = level_of[site]
            a = activations[spec.decoder_cells[level].res]
            loc, log_sd = net.posterior(level, ctx.state, a, drop, ctx.moments)
            if is_table(spec):
                more_loc, more_log_sd = net.linear(level, given)
                loc, log_sd = loc + more_loc, log_sd + more_log_sd
            found = _gaussian(loc, log_sd)
            if spec.posterior != "normal" and level in spec.dense:
                found = _richer(loc[:, 0, 0], log_sd[:, 0, 0], *net.rich(level, ctx.state, a, drop))
            # Unused in training, where it costs nothing; in a posterior it is the KL at the sampled state.
            numpyro.deterministic(rate(site), _divergence(found, ctx.prior))
            return found

        return q

    return posterior


_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def density(spec: HVAE) -> tuple[str, ...]:
    """The factorisation in the papers' symbols, one line each."""
    count = len(spec.decoder_cells)
    last = str(count - 1).translate(_SUBSCRIPT)
    sides = list(dict.fromkeys(cell.res for cell in spec.decoder_cells))
    many = [sum(cell.res == side for cell in spec.decoder_cells) for side in sides]
    grids = ", ".join(f"{n} of {side}×{side}×{spec.zdim}" for side, n in zip(sides, many, strict=True))
    total = sum(n * side**2 * spec.zdim for side, n in zip(sides, many, strict=True))
    symbols = spec.likelihood.symbols()
    rich = {
        "full": ("at 1×1: zᵢ = qmᵢ + exp(qvᵢ) Tᵢ(Zᵢ, a) ε, T unit lower triangular",),
        "flow": ("at 1×1: zᵢ = qmᵢ + exp(qvᵢ) Tᵢ(Zᵢ, a) fᵢ(ε; Zᵢ, a), T unit lower triangular, f couplings",),
    }
    linear = ("f(Z) = b + ∑ᵢ Wᵢ′ zᵢ + g(Z), qmᵢ with Aᵢ x beside its block: at first a factor analysis",)
    return (
        f"p(x, z₀, …, z{last}) = p(x | Z) ∏ᵢ p(zᵢ | Zᵢ), levels i = 0…{count - 1}: {grids}; {total:,} dimensions",
        "p(zᵢ | Zᵢ) = N(zᵢ; pmᵢ(Zᵢ), diag exp(pvᵢ(Zᵢ))²), Z₀ a learned constant",
        "Zᵢ₊₁ = Zᵢ,₊ + resnetᵢ(Zᵢ,₊), Zᵢ,₊ = Zᵢ + driftᵢ(Zᵢ) + Wᵢ zᵢ + bᵢ",
        symbols.replace("z)", "Z)"),
        "q(z | x) = ∏ᵢ N(zᵢ; qmᵢ(Zᵢ, aᵢ(x)), diag exp(qvᵢ(Zᵢ, aᵢ(x)))²), a the encoder",
        *rich.get(spec.posterior, ()),
        *(linear if is_table(spec) else ()),
    )


def dimensions(spec: HVAE) -> int:
    """Number of latent dimensions of a datum."""
    return sum(math.prod((cell.res, cell.res, spec.zdim)) for cell in spec.decoder_cells)
