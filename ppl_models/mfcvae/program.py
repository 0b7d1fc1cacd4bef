"""The multi-facet clustering VAE as a NumPyro program.

Notation (facet j = 0..J-1, shallow to deep; named, so that site names can be read):

    c_j ~ Cat(pi_j)                          summed out of the model; p(c_j | z_j) is the site resp_<facet>
    z_j | c_j ~ N(mu_jc, S_jc)               site z_<facet>
    x | z ~ p(x | f(z_0, ..., z_{J-1}))      site x, f the decoder
    q(z_j | x) = N(m_j(x), diag s_j(x)^2)    the encoder

Facets are independent a priori and meet only in the decoder.  Because c_j is summed out, the ELBO of this program is
the ``marginal`` bound, E_q[log p(x|z) + sum_j log p(z_j) - log q(z_j|x)], the tightest of the bounds in use for this
model; the responsibilities are exact given z and need no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from ppl_models.mfcvae import checks, panels
from ppl_models.mfcvae.mixture import initial, mixture
from ppl_models.mfcvae.refit import events
from ppl_models.mfcvae.views import VIEWS
from ppl_models.program import Posterior, Program, bind, knob

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE, Likelihood


def program(spec: MFCVAE, key: Key[Array, ""]) -> Program:
    """Build the networks and mixtures of ``spec`` from ``key`` and put the program together."""
    dims = tuple(facet.dim for facet in spec.facets)
    encoder_key, decoder_key, *facet_keys = jax.random.split(key, 2 + len(spec.facets))
    views = [VIEWS[facet.view] for facet in spec.facets]
    viewed = {"views": views} if any(facet.view != "whole" for facet in spec.facets) else {}
    encoder = spec.network.encoder(spec.shape, dims, nnx.Rngs(encoder_key), **viewed)
    decoder = spec.network.decoder(spec.shape, dims, nnx.Rngs(decoder_key))
    mixtures = {
        facet.name: initial(
            facet_key,
            dim=facet.dim,
            clusters=facet.clusters,
            covariance=facet.covariance,
            scale=1.0 if facet.refit else spec.prior_scale,
            spread=0.0 if facet.refit else spec.prior_spread,  # equal components: one Gaussian, whatever their number
            learn_weights=spec.learn_weights,
            rank=facet.rank,
        )
        for facet, facet_key in zip(spec.facets, facet_keys, strict=True)
    }
    names = tuple(mixtures)
    return Program(
        spec=spec,
        model=generative(decoder, mixtures, spec.likelihood),
        posterior=amortised(encoder, names),
        latents=tuple(f"z_{name}" for name in names),
        shape=spec.shape,
        prepare=lambda x, key, training: spec.likelihood.prepare(x, key, training, spec.levels),
        check_data=lambda x: spec.likelihood.check(x, spec.shape, spec.levels),
        observation=spec.likelihood.observation(spec.shape, spec.levels),
        bits_offset=spec.likelihood.bits_offset(spec.levels),
        density=density(spec),
        knobs={f"fade_{name}": 1.0 for name in names},
        weights={"kl": lambda step: jax.numpy.minimum((step + 1) / spec.warmup, 1.0)} if spec.warmup else {},
        events=events(spec, amortised(encoder, names)),
        modules={"encoder": encoder, "decoder": decoder},
        checks=lambda tree: checks.checks(tree, names),
        panels=lambda fit, x, factors, tree: panels.panels(spec, fit, x, factors, tree),
    )


def generative(decoder: nnx.Module, mixtures: Mapping[str, Mapping[str, Array]], likelihood: Likelihood) -> Any:
    """``p(x, z)`` for any decoder ``(zs, fades) -> (batch, *shape)``, facets in the order of ``mixtures``."""

    def model(x: ArrayLike | None = None, *, size: int | None = None) -> Array:
        if x is None and size is None:
            raise ValueError("the model needs data x or a size: model(x) scores x, model(size=n) draws n fresh data")
        x = None if x is None else jax.numpy.asarray(x)
        batch = size if x is None else x.shape[0]
        decode = bind("decoder", decoder)
        priors = {name: mixture(numpyro.param(f"mixture_{name}", dict(start))) for name, start in mixtures.items()}
        start = likelihood.parameters()
        parameters = numpyro.param("likelihood", start) if start else start
        zs, fades = [], [knob(f"fade_{name}", 1.0) for name in mixtures]
        with numpyro.plate("data", batch):
            for name, prior in priors.items():
                # The context is empty: the encoder reads the data alone, not the other facets.
                z = numpyro.sample(f"z_{name}", prior, infer={"ctx": None})
                numpyro.deterministic(f"resp_{name}", prior.responsibilities(z))
                zs.append(z)
            return numpyro.sample("x", likelihood.distribution(decode(zs, fades), parameters), obs=x)

    return model


def amortised(encoder: nnx.Module, names: tuple[str, ...]) -> Any:
    """``q(z | x) = prod_j N(m_j(x), diag s_j(x)^2)`` for any encoder ``x -> ((loc, log_scale), ...)``."""

    def posterior(x: ArrayLike | None = None, *, size: int | None = None) -> Posterior:
        del size
        if x is None:
            raise ValueError("the posterior q(z | x) needs data x; for draws from the prior run the model alone")
        heads = bind("encoder", encoder)(jax.numpy.asarray(x))
        found = {f"z_{name}": head for name, head in zip(names, heads, strict=True)}

        def q(site: str, ctx: Any) -> dist.Distribution:
            del ctx
            loc, log_scale = found[site]
            return dist.Normal(loc, jax.numpy.exp(log_scale)).to_event(1)

        return q

    return posterior


_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def density(spec: MFCVAE) -> tuple[str, ...]:
    """The factorisation in the paper's symbols, one line each."""
    facets = [(str(j).translate(_SUBSCRIPT), facet) for j, facet in enumerate(spec.facets)]
    zs = ", ".join(f"z{j}" for j, _ in facets)
    priors = " ".join(f"p(z{j})" for j, _ in facets)
    lines = [f"p(x, {zs}) = p(x | {zs}) {priors}"]
    for j, facet in facets:
        spread = f"diag σ{j}c²" if facet.covariance == "diag" else f"Σ{j}c"
        lines.append(
            f"p(z{j}) = ∑c π{j}c N(z{j}; μ{j}c, {spread}), z{j} ∈ ℝ^{facet.dim}, c = 1…{facet.clusters}  [{facet.name}]"
        )
    posteriors = " ".join(f"N(z{j}; m{j}(x), diag s{j}(x)²)" for j, _ in facets)
    return (*lines, spec.likelihood.symbols(), f"q({zs} | x) = {posteriors}")
