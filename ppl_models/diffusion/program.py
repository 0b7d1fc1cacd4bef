"""The diffusion model as a NumPyro program without latent sites.

Notation:

    x_0 = (x - centre) / scale              the datum; grey levels are (grey + u) / levels first
    x_phi = cos(phi) x_0 + sin(phi) eps     noised, phi in [0, pi/2]; at pi/2 the law is N(0, I) exactly
    D(x, phi) = E[x_0 | x_phi = x]          the denoiser, module ``denoiser``
    v = E[cos(phi) eps - sin(phi) x_0 | x]  = (cos(phi) x - D) / sin(phi), the drift of the ODE dx/dphi = v

The site ``x`` is drawn by the ODE and scored, in training, by the denoising bound at one noise level a datum;
``Program.exact.log_prob`` is the density of the ODE.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped
from numpyro.distributions.transforms import AffineTransform, IndependentTransform
from numpyro.handlers import substitute

from ppl_models.diffusion import by_class, panels
from ppl_models.diffusion.dropped import dropping, hidden_share
from ppl_models.diffusion.networks import GreyDenoiser, RealDenoiser
from ppl_models.distributions import ode
from ppl_models.distributions.denoising_bound import DenoisingBound, bound_terms, unit_base
from ppl_models.distributions.diffusion_prior import BIAS, DiffusionPrior
from ppl_models.distributions.pixels import Normal, check_grey
from ppl_models.distributions.predictions import Denoiser
from ppl_models.distributions.schedules import Schedule, Trigonometric
from ppl_models.distributions.stated import SMALL, log_prob_within
from ppl_models.networks.pure import Apply, at_once, pure
from ppl_models.program import Exact, Observation, Program, Training, Views, bind

if TYPE_CHECKING:
    from ppl_models.diffusion.spec import Diffusion

LOWEST = math.log(1e-4)
"""Lowest log tan(phi) of :func:`bound`: well below the width of a grey level over the data's scale."""
SITE = "denoiser$params"
"""The parameters' site."""
REPLICATED = 160_000
"""Numbers that an evaluation draws by itself at most: each image takes hundreds of calls of the network."""

_PIXELS = Normal(dequantise=True)  # only its way of storing and naming what is scored


@dataclass(frozen=True)
class OneDatum:
    """A batched network as the function of one datum and one angle that the prior maps over."""

    apply: Apply

    def __call__(self, params: Any, x: Array, phi: Array, *label: Array) -> Array:
        """``E[x_0 | x]`` of one datum, given its class where the network reads one."""
        return self.apply(params, x[None], jnp.asarray(phi)[None], *(c[None] for c in label))[0]


@dataclass(frozen=True)
class OnSchedule:
    """The same for any schedule: ``x_t / sqrt(alpha^2 + sigma^2)`` stands at the angle ``atan2(sigma, alpha)``."""

    apply: Apply
    schedule: Schedule

    def __call__(self, params: Any, x: Array, t: Array, *label: Array) -> Array:
        """``E[x_0 | x_t]`` of one datum, given its class where the network reads one."""
        a, s = self.schedule.alpha(t), self.schedule.sigma(t)
        more = (c[None] for c in label)
        return self.apply(params, (x / jnp.hypot(a, s))[None], jnp.arctan2(s, a)[None], *more)[0]


def one_datum(spec: Diffusion, apply: Apply) -> OneDatum | OnSchedule:
    """What the prior of ``spec`` maps over."""
    return OneDatum(apply) if isinstance(spec.path, Trigonometric) else OnSchedule(apply, spec.path)


def program(spec: Diffusion, key: Key[Array, ""]) -> Program:
    """Build the network of ``spec`` from ``key`` and put the program together."""
    module = denoiser(spec, key)
    dropout = hidden_share(spec)
    _warn_of_bias(spec)
    return Program(
        spec=spec,
        model=generative(spec, module),
        posterior=None,
        latents=(),
        shape=spec.shape if spec.classes is None else {"x": spec.shape, by_class.LABEL: ()},
        observation=Observation(
            observation(spec),
            prepare=lambda x, key, training: prepare(spec, x, key, training),
            check=lambda x: check_data(spec, x),
            given=() if spec.classes is None else (by_class.LABEL,),
            bits_offset=None if spec.levels is None else _PIXELS.bits_offset(spec.levels),
            width=math.prod(spec.shape) * (spec.levels or 1),  # the denoiser holds a number for each grey level
        ),
        training=Training({"dropout": 0.0}, {"dropout": lambda step: dropout}) if dropout else Training(),
        exact=Exact(log_prob=lambda params, key, x: log_prob(spec, module, params, key, x), solver=solver_line(spec)),
        views=Views(
            density(spec),
            {"denoiser": module},
            panels=lambda fit, x, factors, tree: panels.panels(spec, fit, x, tree),
            replicates=REPLICATED // math.prod(spec.shape),
        ),
    )


def denoiser(spec: Diffusion, key: Key[Array, ""]) -> nnx.Module:
    """The network of ``spec`` with starting weights from ``key``."""

    def make(rngs: nnx.Rngs) -> nnx.Module:
        if spec.levels is None:
            return RealDenoiser(spec.network, spec.shape, prediction=spec.prediction, rngs=rngs, classes=spec.classes)
        return GreyDenoiser(
            spec.network, spec.shape, spec.levels, spec.centre, spec.scale, rngs=rngs, classes=spec.classes
        )

    return at_once(make, key)


def generative(spec: Diffusion, module: nnx.Module) -> Any:
    """``p(x)`` for any denoiser ``(x, phi) -> E[x_0 | x]`` over batches; with classes, ``p(x | label)`` of a dict.

    A dict without ``x`` draws one datum a label; ``size=n`` draws n data of any class.
    """

    def model(x: Any = None, *, size: int | None = None) -> Array:
        if x is None and size is None:
            raise ValueError("the model needs data x or a size: model(x) scores x, model(size=n) draws n fresh data")
        x, label = by_class.parts(x)
        batch = size if x is None and label is None else jnp.shape(x if label is None else label)[0]
        plain, params = pure(bind("denoiser", module))
        key = numpyro.prng_key()
        apply: Any = dropping(spec, plain)
        fn: Any = one_datum(spec, plain)
        law = DenoisingBound
        more: dict[str, Any] = {"params": params}
        if label is not None:
            more = {"params": (params, label), "batch_shape": (batch,)}
            apply, fn, law = by_class.OfBatch(apply), by_class.OfClass(fn), by_class.BoundByClass
        bound = law(
            apply,
            fn,
            spec.shape,
            **more,
            key=jax.random.key(0) if key is None else key,  # without a seed handler the noise is fixed
            mean=spec.level_mean,
            spread=spec.level_spread,
            cap=spec.weight_cap,
            solver=spec.solver,
            schedule=spec.path,
        )
        with numpyro.plate("data", batch):
            return numpyro.sample("x", in_data_units(spec, bound), obs=x)

    return model


def in_data_units(spec: Diffusion, law: dist.Distribution) -> dist.Distribution:
    """The law of ``centre + scale x_0``."""
    affine = IndependentTransform(AffineTransform(spec.centre, spec.scale), len(spec.shape))
    return dist.TransformedDistribution(law, affine)


def _trained(module: nnx.Module, params: Mapping[str, Any]) -> tuple[Apply, Any]:
    with substitute(data=dict(params)):
        return pure(bind("denoiser", module))


def standard_prior(
    program: Program,
    params: Mapping[str, Any],
    *,
    trace: ode.Trace | None = None,
    label: int | None = None,
    guidance: float = 0.0,
) -> DiffusionPrior:
    """The trained model as a :class:`DiffusionPrior` over ``x_0``, the standardised datum; otherwise :func:`prior`."""
    by_class.check_guidance(program.spec.classes, label, guidance)
    own = None if label is None else jnp.asarray(label, jnp.int32)
    return _prior(program.spec, *_trained(program.views.modules["denoiser"], params), trace, own, guidance)


def _prior(
    spec: Diffusion, apply: Apply, weights: Any, trace: ode.Trace | None, label: Any = None, guidance: float = 0.0
) -> DiffusionPrior:
    trace = trace or (ode.Exact() if spec.probes is None else ode.Hutchinson(spec.probes))
    fn = one_datum(spec, apply)
    return DiffusionPrior(
        Denoiser(fn if label is None else by_class.OfClass(fn, guidance)),
        spec.path,
        spec.shape,
        params=weights if label is None else (weights, label),
        base=unit_base(spec.path, spec.shape),
        solver=spec.solver,
        trace=trace,
    )


def _warn_of_bias(spec: Diffusion) -> None:
    with jax.ensure_compile_time_eval():
        left = float(spec.path.alpha(spec.path.T)) / float(spec.path.sigma(spec.path.T))
    if left * math.sqrt(math.prod(spec.shape)) > BIAS:
        warnings.warn(
            f"schedule {spec.path.kind!r} leaves a share alpha/sigma = {left:.2g} of the data at its end, and the "
            f"flow starts from a centred Gaussian there: log p(x) is off by about {left:.2g} times the length of the "
            "mean of (x - centre) / scale, in nats; raise its T, or use trigonometric, cosine or flow",
            UserWarning,
            stacklevel=2,
        )


def prior(
    program: Program,
    params: Mapping[str, Any],
    *,
    trace: ode.Trace | None = None,
    label: int | None = None,
    guidance: float = 0.0,
) -> dist.Distribution:
    """The trained model as a NumPyro distribution over x, for any program: ``numpyro.sample("x", prior(...))``.

    ``program`` and ``params`` are those of a fit.  ``trace`` replaces the spec's estimator of the divergence (probes
    are fixed here, as MCMC needs).

    ``label``    the class that x is given, for a spec with ``classes``; by default any.
    ``guidance`` w of ``D_w = D_none + (1 + w) (D_class - D_none)`` (Ho & Salimans 2022, arXiv 2207.12598); 0 is
                 p(x | class).  ``log_prob`` of a guided law is the density of its own draws, which is neither
                 p(x | class) nor proportional to a power of it.

    Raises ``ValueError`` for a class that the model does not know, and for a guidance below 0 or without a class.
    """
    law = standard_prior(program, params, trace=trace, label=label, guidance=guidance)
    return in_data_units(program.spec, law)


def log_prob(spec: Diffusion, module: nnx.Module, params: Mapping[str, Any], key: Key[Array, ""], x: Any) -> Any:
    """Density of the ODE in nats, (n,); with ``probes`` or an adaptive solver, the pair of it and its standard error.

    Probes come from ``key``, new for each datum; there are at least two, for one cannot tell its own error.  With
    ``within`` the triple with what it took: steps and probes of each datum.  ``x`` (n, *shape), with classes the dict
    of it and the labels that it is given.
    """
    x, label = by_class.parts(x)
    trace = scoring_trace(spec)
    trained = _trained(module, params)
    law = functools.partial(_prior, spec, *trained, trace)
    x_0, keys = (x - spec.centre) / spec.scale, jax.random.split(key, len(x))
    shift = math.prod(spec.shape) * math.log(spec.scale)
    if (within := spec.within) is not None:
        one = lambda x, key, label: log_prob_within(law(label), x, within, key=key)  # noqa: E731
        known = jax.vmap(one)(x_0, keys, label)
        probes = {} if math.prod(spec.shape) <= SMALL else {"probes": known.probes}
        return known.log_p - shift, known.error, {"steps": known.steps, **probes}
    if isinstance(trace, ode.Exact) and isinstance(spec.solver, ode.RK4):
        return jax.vmap(lambda x, key, label: law(label).log_prob(x, keys=key))(x_0, keys, label) - shift
    found, se = jax.vmap(lambda x, key, label: law(label).log_prob_and_se(x, keys=key))(x_0, keys, label)
    return found - shift, se


def scoring_trace(spec: Diffusion) -> ode.Exact | ode.Hutchinson:
    """The trace that evidence uses: in few dimensions the exact one, where two sign vectors are often the same."""
    if spec.probes is None or math.prod(spec.shape) <= SMALL:
        return ode.Exact()
    return ode.Hutchinson(max(2, spec.probes))


def solver_line(spec: Diffusion) -> str:
    """How evidence computes the density, for its table."""
    if spec.within is not None:
        trace = "exact traces" if math.prod(spec.shape) <= SMALL else "random probes on lattices"
        return f"ODE by RK4, {trace} at its nodes, as many as state {spec.within:g} nats (se has all errors)"
    return _line(spec, scoring_trace(spec))


def prior_line(spec: Diffusion) -> str:
    """How :func:`prior` computes its density: by the fixed steps, with fixed probes."""
    found = ode.Exact() if spec.probes is None else ode.Hutchinson(spec.probes)
    return _line(spec, found) + ("" if spec.probes is None else ", kept for all data: their error is not stated")


def _line(spec: Diffusion, found: ode.Exact | ode.Hutchinson) -> str:
    path = "" if isinstance(spec.path, Trigonometric) else f" of schedule {spec.path.kind}"
    solver = (
        f"RK4 with {spec.solver.n} steps"
        if isinstance(spec.solver, ode.RK4)
        else f"Tsit5 at rtol {spec.solver.rtol:g} (se includes its error)"
    )
    trace = "exact trace" if isinstance(found, ode.Exact) else f"{found.n} random probes a datum"
    return f"ODE{path} by {solver}, {trace}"


def bound(
    program: Program, params: Mapping[str, Any], key: Key[Array, ""], x: Any, *, draws: int = 64
) -> Float[Array, " n"]:
    """The denoising bound on log p(x) in nats, (n,), averaged over ``draws`` evenly spread noise levels a datum.

    ``x`` prepared data (n, *shape); with classes the dict of them and their labels, whose bound is on log p(x | label).
    """
    spec = program.spec
    apply: Any
    apply, weights = _trained(program.views.modules["denoiser"], params)
    x, label = by_class.parts(x)
    if label is not None:
        apply, weights = by_class.OfBatch(apply), (weights, label)
    x_0 = (x - spec.centre) / spec.scale
    low, high = LOWEST, 4.0  # beyond these the integrand is nil: x_0 known, or independent of x

    def one(total: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        index, draw_key = given
        level_key, noise_key = jax.random.split(draw_key)
        u = (index + jax.random.uniform(level_key, (len(x),))) / draws
        noise = jax.random.normal(noise_key, x.shape)
        return total + bound_terms(apply, weights, x_0, low + (high - low) * u, noise), None

    steps = (jnp.arange(draws), jax.random.split(key, draws))
    gain = jax.lax.scan(one, jnp.zeros(len(x)), steps)[0] * (high - low) / draws
    flat = x_0.reshape(len(x), -1)
    log_normal = -0.5 * (flat**2).sum(1) - flat.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(spec.scale))
    return log_normal + gain


# ------------------------------------------------------------------------------------------------- data
def prepare(spec: Diffusion, x: Any, key: Key[Array, ""], training: bool) -> Any:
    """Stored grey levels to ``(grey + u) / levels``, u anew at each use; real data as they are.

    In training a share ``label_dropout`` of the labels is hidden.
    """
    if spec.classes is not None:
        key, own = jax.random.split(key)
        label = x[by_class.LABEL].astype("int32")
        label = by_class.hide(label, own, spec.label_dropout) if training else label
        return {"x": _scored(spec, x["x"], key, training), by_class.LABEL: label}
    return _scored(spec, x, key, training)


def _scored(spec: Diffusion, x: Shaped[Array, "..."], key: Key[Array, ""], training: bool) -> Float[Array, "..."]:
    if spec.levels is None:
        return x.astype("float32")
    return _PIXELS.prepare(x, key, training, spec.levels)


def check_data(spec: Diffusion, x: Any) -> None:
    """Raise ``ValueError`` for stored data that this program cannot score."""
    if spec.classes is not None:
        by_class.check_labels(x[by_class.LABEL], spec.classes)
        x = x["x"]
    if spec.levels is not None:
        check_grey(x, spec.shape, spec.levels, whole=True)
        return
    spread = float(np.std(np.asarray(x, np.float64))) / spec.scale
    if len(x) > 1 and not 1e-2 < spread < 1e2:
        raise ValueError(
            f"the data's standard deviation is {spread * spec.scale:.3g}, the spec's scale {spec.scale:g}; set scale "
            "(and centre) to those of the data, or standardise them"
        )


def observation(spec: Diffusion) -> str:
    """What is scored, in one line; the same as for other families that dequantise the same data."""
    given = "" if spec.classes is None else f"; given its class, 1 of {spec.classes}"
    if spec.levels is None:
        return f"x in R^{'x'.join(map(str, spec.shape))} as given; density, nats{given}"
    return _PIXELS.observation(spec.shape, spec.levels) + given


def density(spec: Diffusion) -> tuple[str, ...]:
    """The model in the paper's symbols, one line each."""
    first = "x₀ = (x − m)/s" if spec.levels is None else f"x₀ = ((k + u)/{spec.levels} − m)/s, u ~ U[0, 1)"
    known = (
        "D(x, φ) = cos φ x − sin φ net(x, φ)"
        if spec.levels is None
        else "D(x, φ) = Σₖ P(k | x) E[x₀ | x₀ ∈ boxₖ, x], P(k | x) ∝ exp(netₖ(x, φ) + tableₖ) N(boxₖ; x/cos φ, tan²φ)"
    )
    return (
        f"{first}, m = {spec.centre:g}, s = {spec.scale:g}",
        "x_φ = cos φ x₀ + sin φ ε, ε ~ N(0, I), 0 ≤ φ ≤ π/2",
        known,
        "sampling: x at π/2 ~ N(0, I), dx/dφ = v(x, φ) = (cos φ x − D(x, φ))/sin φ back to 0",
        "log p(x₀) = log N(x at π/2; 0, I) + ∫ div v dφ",
        "training: log p(x₀) ≥ log N(x₀; 0, I) + ∫ cot φ E[2 v·v̂ − |v̂|²] dφ",
        *(
            ()
            if spec.classes is None
            else (
                f"given a class c, 1 of {spec.classes}, or none: a share {spec.label_dropout:g} of training hides it",
                "guided: D = D(x, φ, none) + (1 + w)(D(x, φ, c) − D(x, φ, none))",
            )
        ),
    )
