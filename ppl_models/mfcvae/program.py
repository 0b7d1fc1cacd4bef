"""The multi-facet clustering VAE as a NumPyro program.

Notation (facet j = 0..J-1, shallow to deep; named, so that site names can be read):

    c_j ~ Cat(pi_j)                          summed out of the model; p(c_j | z_j) is the site resp_<facet>
    z_j | c_j ~ N(mu_jc, S_jc)               site z_<facet>
    x | z ~ p(x | f(z_0, ..., z_{J-1}))      site x, f the decoder
    q(z_j | x) = N(m_j(x), diag s_j(x)^2)    the encoder; richer: :mod:`ppl_models.mfcvae.guides`

Facets are independent a priori and meet only in the decoder.  Because c_j is summed out, the ELBO of this program is
the ``marginal`` bound, E_q[log p(x|z) + sum_j log p(z_j) - log q(z_j|x)], the tightest of the bounds in use for this
model; the responsibilities are exact given z and need no network.  The other bounds differ in the class of the prior
alone, through its registered divergence: see ``MFCVAE.bound``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Key

from ppl_models.distributions import Columns, Counts, MeanFieldMixture, MixtureOfGaussians, SampledMixture
from ppl_models.distributions.correlated_row_law import unit_lower
from ppl_models.mfcvae import checks, guides, observed, panels
from ppl_models.mfcvae.classical_start import classical_start
from ppl_models.mfcvae.counts_start import counts_start
from ppl_models.mfcvae.mixture import initial, mixture
from ppl_models.mfcvae.networks import Additive
from ppl_models.mfcvae.refit import events
from ppl_models.mfcvae.views import VIEWS
from ppl_models.program import Observation, Posterior, Program, Training, Views, bind, commit, knob, rows

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE


def program(spec: MFCVAE, key: Key[Array, ""]) -> Program:
    """Build the networks and mixtures of ``spec`` from ``key`` and put the program together."""
    dims = tuple(facet.dim for facet in spec.facets)
    encoder_key, decoder_key, *facet_keys = jax.random.split(key, 2 + len(spec.facets))
    views = [VIEWS[facet.view] for facet in spec.facets]
    viewed: dict[str, Any] = {"views": views} if any(facet.view != "whole" for facet in spec.facets) else {}
    encoder = spec.network.encoder(
        observed.encoder_shape(spec), dims, nnx.Rngs(encoder_key), guides.extras(spec), **viewed
    )
    flows = guides.flows(spec, nnx.Rngs(jax.random.fold_in(encoder_key, 1)))
    decoder = spec.network.decoder(decoded_shape(spec), dims, nnx.Rngs(decoder_key))
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
            square=spec.square,
        )
        for facet, facet_key in zip(spec.facets, facet_keys, strict=True)
    }
    names = tuple(mixtures)
    known, modules = observed.labelled(spec), {"encoder": encoder, "decoder": decoder}
    if flows is not None:
        modules["flow"] = flows
    posterior, likelihood = amortised(spec, encoder, flows), spec.likelihood
    start = counts_start(spec) if isinstance(likelihood, Counts) else classical_start(spec)
    return Program(
        spec=spec,
        model=generative(spec, decoder, mixtures),
        posterior=posterior,
        latents=tuple(f"z_{name}" for name in names),
        observed=("x", *(f"c_{name}" for name in known)),
        shape=observed.datum_shape(spec),
        observation=Observation(
            observation(spec),
            prepare=lambda x, key, training: observed.prepare(spec, x, key, training),
            check=lambda x: observed.check(spec, x),
            read=lambda x: observed.read(spec, x),
            given=(observed.LIBRARY,) if isinstance(likelihood, Counts) else (),
            columns=likelihood.columns if isinstance(likelihood, Columns) else (),
            features=likelihood.numbers
            if isinstance(likelihood, Columns)
            else likelihood.shares
            if isinstance(likelihood, Counts)
            else None,
            drawn=lambda values: observed.drawn(spec, values),
            bits_offset=None if known or spec.missing else bits_offset(spec),
        ),
        training=Training(
            knobs={
                **{f"fade_{name}": 1.0 for name in names},
                **({"dirichlet": 0.0} if spec.dirichlet else {}),
                **({"batch_statistics": 0.0} if _batch_norm(spec) else {}),
            },
            weights=schedules(spec),
            events=events(spec, posterior, modules, start),
        ),
        views=Views(
            density(spec),
            modules,
            checks=lambda tree: checks.checks(tree, names),
            panels=lambda fit, x, factors, tree: panels.panels(spec, fit, observed.unpack(x)[0], factors, tree),
        ),
    )


def decoded_shape(spec: MFCVAE) -> tuple[int, ...]:
    """Shape of what the decoder returns: one number a pixel, or several in a last axis; for a row, all in one axis."""
    if isinstance(spec.likelihood, Columns):
        return (spec.likelihood.outputs,)
    if isinstance(spec.likelihood, Counts):
        return spec.shape
    return spec.likelihood.decoded_shape(spec.shape, spec.levels)


def bits_offset(spec: MFCVAE) -> float | None:
    """What makes the score of a datum a code length: see ``Program.observation.bits_offset``."""
    if isinstance(spec.likelihood, Columns | Counts):
        return spec.likelihood.bits_offset
    return spec.likelihood.bits_offset(spec.levels)


def schedules(spec: MFCVAE) -> dict[str, Any]:
    """The spec's scheduled weights: of the KL, of each facet's KL and fade, of the Dirichlet prior."""
    found: dict[str, Any] = {}
    if spec.warmup:
        found["kl"] = lambda step: jnp.minimum((step + 1) / spec.warmup, 1.0)
    if spec.progressive:
        for j, facet in enumerate(spec.facets):
            found |= spec.progressive.weights(j, facet.name)
    if spec.dirichlet:
        found["dirichlet"] = lambda step: 1.0
    if _batch_norm(spec):
        found["batch_statistics"] = lambda step: 1.0
    return found


def _batch_norm(spec: MFCVAE) -> bool:
    return getattr(spec.network, "norm", None) == "batch"


@contextlib.contextmanager
def running(module: Any) -> Iterator[Any]:
    """The module, with the statistics of the batch and their running averages written back while a fit trains it."""
    training = not _zero(knob("batch_statistics", 0.0))
    if training:
        module.train()
    yield module
    if training:
        commit(module)


def generative(spec: MFCVAE, decoder: nnx.Module, mixtures: Mapping[str, Mapping[str, Array]]) -> Any:
    """``p(x, z)`` for any decoder ``(zs, fades) -> (batch, *decoded_shape)``, facets in the order of ``mixtures``."""
    likelihood, labelled, chained = spec.likelihood, observed.labelled(spec), guides.chained(spec)

    def model(x: Any = None, *, size: int | None = None) -> Any:
        batch, pixels, there, labels = arrange(x, size)
        decode = bind("decoder", decoder)
        learnt = {name: numpyro.param(f"mixture_{name}", dict(start)) for name, start in mixtures.items()}
        start = likelihood.parameters() if isinstance(likelihood, Columns) else likelihood.parameters(spec.shape)
        parameters = numpyro.param("likelihood", start) if start else start
        zs: list[Array] = []
        fades = [knob(f"fade_{name}", 1.0) for name in mixtures]
        with numpyro.plate("data", batch):
            for name in mixtures:
                prior = prior_of(spec, learnt[name], batch)
                # Of a normal posterior the context is empty: the encoder reads the data alone, not the other facets.
                z = numpyro.sample(f"z_{name}", prior, infer={"ctx": tuple(zs) if chained else None})
                numpyro.deterministic(f"resp_{name}", prior.responsibilities(z))
                if name in labelled:
                    # p(z) p(c | z) = p(c) p(z | c): scoring the label here is the joint density of both.
                    label = labels.get(name)
                    known = True if label is None else label >= 0
                    c = None if label is None else jnp.maximum(label, 0).astype("int32")
                    # Logits: the probability of a known cluster that z is far from may underflow to 0.
                    law = dist.Categorical(logits=prior.component_log_probs(z)).mask(known)
                    numpyro.sample(f"c_{name}", law, obs=c)
                zs.append(z)
            if spec.dirichlet and not _zero(strength := knob("dirichlet", 0.0)):
                # Scored once a datum: 1/train_size of the log prior of each facet's weights.
                log_prior = sum(jax.nn.log_softmax(p["logits"]).sum() for p in learnt.values())
                excess = (spec.dirichlet.concentration - 1.0) / spec.dirichlet.train_size
                numpyro.factor("dirichlet", jnp.full(batch, strength * excess * log_prior))
            with running(decode):
                decoded = decode(zs, fades)
            beside = there if there is not None else observed.library(spec, x, batch)
            return numpyro.sample("x", law_of(spec, decoded, parameters, beside), obs=pixels)

    return model


def arrange(x: Any, size: int | None) -> tuple[int, Array | None, Array | None, dict[str, Array]]:
    """What a model is called with: the number of data, their pixels, which of them are there, and labels by facet."""
    if x is None and size is None:
        raise ValueError("the model needs data x or a size: model(x) scores x, model(size=n) draws n fresh data")
    if x is None:
        return int(size or 0), None, None, {}
    x = jax.tree.map(jnp.asarray, x)
    return rows(x), *observed.unpack(x)


def law_of(spec: MFCVAE, decoded: Array, parameters: Mapping[str, Array], beside: Array | None) -> dist.Distribution:
    """The law of a datum given what stands ``beside`` it: of counts their library size; else where it is there, for
    the rest is summed out, its values do not matter."""
    there = beside
    if isinstance(spec.likelihood, Counts):
        assert beside is not None
        return spec.likelihood.distribution(decoded, parameters, beside)
    if isinstance(spec.likelihood, Columns):
        return spec.likelihood.distribution(decoded, parameters, there)
    law = spec.likelihood.distribution(decoded, parameters, spec.levels)
    if there is None:
        return law
    assert isinstance(law, dist.Independent)
    return law.base_dist.mask(there).to_event(law.event_dim)


def prior_of(spec: MFCVAE, parameters: Mapping[str, Array], batch: int) -> MixtureOfGaussians:
    """The mixture of one facet, of the class whose divergence is the spec's bound."""
    if spec.bound == "meanfield":
        return mixture(parameters, MeanFieldMixture)
    if spec.bound == "sampled":
        key = numpyro.prng_key()
        if key is not None:  # densities alone need no draws
            noise = jax.random.normal(key, (spec.bound_draws, batch, parameters["means"].shape[1]))
            return mixture(parameters, SampledMixture, noise=noise)
    return mixture(parameters)


def _zero(strength: Any) -> bool:
    return isinstance(strength, float) and strength == 0.0


def observation(spec: MFCVAE) -> str:
    """What is scored, in one line."""
    if isinstance(spec.likelihood, Columns):
        line = spec.likelihood.observation()
    elif isinstance(spec.likelihood, Counts):
        line = spec.likelihood.observation(spec.shape)
    else:
        line = spec.likelihood.observation(spec.shape, spec.levels)
    if spec.missing:
        line += "; missing pixels are summed out"
    if known := observed.labelled(spec):
        line += f"; with the known clusters of {', '.join(known)}"
    return line


def amortised(spec: MFCVAE, encoder: nnx.Module, flows: nnx.Module | None = None) -> Any:
    """``q(z | x)`` for any encoder ``x -> ((loc, log_scale, ...), ...)``: see :mod:`ppl_models.mfcvae.guides`."""
    names, dims, full = [f.name for f in spec.facets], [f.dim for f in spec.facets], spec.posterior == "full"
    additive, chained = isinstance(spec.network, Additive), guides.chained(spec)

    def posterior(x: Any = None, *, size: int | None = None) -> Posterior:
        del size
        if x is None:
            raise ValueError("the posterior q(z | x) needs data x; for draws from the prior run the model alone")
        pixels = observed.encoder_input(spec, jax.tree.map(jnp.asarray, x))
        with running(bind("encoder", encoder)) as encode:
            heads = encode(pixels)
            roots = (
                [unit_lower(m[...], d) for m, d in zip(encode.mixing, dims, strict=True)] if full and additive else ()
            )
        couplings = [None] * len(names) if flows is None else bind("flow", flows)

        def q(site: str, ctx: Any) -> dist.Distribution:
            j = names.index(site.removeprefix("z_"))
            if chained:
                if ctx is None or len(ctx) != j:
                    raise ValueError(
                        f"a {spec.posterior} posterior of {site} reads the {j} facets before it, got context {ctx!r}; "
                        "pass their values, a tuple in the order of the facets"
                    )
                return guides.conditional(heads, j, ctx, couplings[j], additive)
            loc, log_scale = heads[j]
            if full:
                return dist.MultivariateNormal(loc, scale_tril=jnp.exp(log_scale)[..., None] * roots[j])
            return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)

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
        spread = {
            "diag": f"diag σ{j}c²",
            "full": f"Σ{j}c",
            "tied": f"Σ{j}",
            "spherical": f"σ{j}c² I",
            "low_rank": f"diag v{j}c + W{j}c W{j}cᵀ",
        }[facet.covariance]
        lines.append(
            f"p(z{j}) = ∑c π{j}c N(z{j}; μ{j}c, {spread}), z{j} ∈ ℝ^{facet.dim}, c = 1…{facet.clusters}  [{facet.name}]"
        )
    if guides.chained(spec):
        noise = "f{0}(ε; x, z<{0})" if spec.posterior == "flow" else "ε"
        one = "T{0}" if isinstance(spec.network, Additive) else "T{0}(x)"
        below = "" if isinstance(spec.network, Additive) else " + B{0}(x) e<{0}"
        posteriors = ", ".join(
            f"z{j} = m{j}(x) + s{j}(x) ({one} {noise}{below if j != facets[0][0] else ''})".format(j) for j, _ in facets
        )
        return (*lines, spec.likelihood.symbols(), f"q({zs} | x): {posteriors}, ε ~ N(0, I)")
    spread = "S{0}(x) T{0} T{0}ᵀ S{0}(x)" if spec.posterior == "full" else "diag s{0}(x)²"
    posteriors = " ".join(f"N(z{j}; m{j}(x), {spread.format(j)})" for j, _ in facets)
    return (*lines, spec.likelihood.symbols(), f"q({zs} | x) = {posteriors}")
