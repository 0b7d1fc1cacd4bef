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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Key

from ppl_models.distributions import Columns
from ppl_models.hvae import checks, panels
from ppl_models.hvae.levels import LevelPosterior, top_down
from ppl_models.hvae.networks import Decoder, Encoder, is_table
from ppl_models.hvae.observed import encoder_input, observation
from ppl_models.hvae.parts import weights_from
from ppl_models.hvae.table_start import START_SIZE, table_start
from ppl_models.networks.dropout import Drop, Dropout, no_drop
from ppl_models.program import Event, Posterior, Program, Training, Views, bind, knob, rows

if TYPE_CHECKING:
    from flax import nnx

    from ppl_models.hvae.spec import HVAE

NORM = "state_norm"
"""Site with the root mean square of the state after each level, (batch, levels)."""


def program(spec: HVAE, key: Key[Array, ""]) -> Program:
    """Build the networks of ``spec`` from ``key`` and put the program together."""
    rng = weights_from(key)
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
        with numpyro.plate("data", batch):
            Z, zs, norms = top_down(spec, net, batch, drop, temperature)
            numpyro.deterministic(NORM, jnp.stack(norms, axis=-1))
            decoded = net.read_out(Z, zs)
            if isinstance(likelihood, Columns):
                law = likelihood.distribution(decoded, parameters, None if x is None else x["there"])
                return numpyro.sample("x", law, obs=None if x is None else x["x"])
            return numpyro.sample("x", likelihood.distribution(decoded, parameters, spec.levels), obs=x)

    return model


def amortised(spec: HVAE, encoder: nnx.Module) -> Any:
    """``q(z | x)`` of a spec with the weights of ``encoder``; records each level's rate beside it."""

    def posterior(x: Any = None, *, size: int | None = None) -> Posterior:
        del size
        if x is None:
            raise ValueError("the posterior q(z | x) needs data x; for draws from the prior run the model alone")
        net: Encoder = bind("encoder", encoder)
        drop = _dropout(spec)
        given = encoder_input(spec, jax.tree.map(jnp.asarray, x))
        return LevelPosterior(spec, net, net(given, drop), given, drop)

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
