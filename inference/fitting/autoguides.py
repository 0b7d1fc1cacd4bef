"""A stock NumPyro model with a trained autoguide as a fit: may its posterior be trusted?

    p(y, u) = p(y | z) p(z) |dz/du|,   z = T(u),   u in R^D        T maps the real line to each site's support
    q(u)    = what the autoguide puts over u

One datum is the whole data set.  Its evidence is log p(y) of the model, its k-hat that of the guide (Yao, Vehtari,
Simpson & Gelman 2018, "Yes, but did it work?"), and log p(y) - ELBO the KL divergence of the guide from the posterior.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key
from numpyro.distributions import biject_to, constraints
from numpyro.handlers import block, seed, trace, uncondition
from numpyro.infer.autoguide import AutoBNAFNormal, AutoContinuous, AutoDAIS, AutoLaplaceApproximation
from numpyro.primitives import Messenger

from inference.fitting.fitted import Fit
from ppl_models.program import Observation, Posterior, Program, Views

Sites = dict[str, dict[str, Any]]


def from_autoguide(
    guide: Any, params: Mapping[str, Any], /, *args: Any, **kwargs: Any
) -> tuple[Fit, dict[str, np.ndarray]]:
    """Return ``(fit, x)`` for a guide that ``SVI`` trained: what ``evidence``, ``posterior`` and ``refine`` take.

    ``guide``   an autoguide with a density over unconstrained space: ``AutoDiagonalNormal``,
                ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal``, ``AutoLaplaceApproximation``,
                ``AutoIAFNormal``.
    ``params``  ``SVI.get_params(state)``, or ``.params`` of ``SVI.run``.
    the rest    the arguments of the model, as ``SVI`` got them.

    ``x`` holds the array arguments, each with a leading axis of length 1: the data set is one datum.  Other arguments
    are fixed.  The latent site is the guide's vector ``u``, called ``{prefix}_latent``; the model's own latents are
    deterministic sites under their names, so ``posterior(fit, x, ...)`` holds draws of them.  Flat priors
    (``ImproperUniform``, ``numpyro.factor``) give an evidence up to a constant; k-hat, the effective sample size and
    the gap do not depend on it.

    Raises ``ValueError`` for a guide of another kind, a model with other latents than the guide's, and parameters
    that lack one of the guide's.

    >>> guide = AutoMultivariateNormal(model)
    >>> result = SVI(model, guide, Adam(0.01), Trace_ELBO()).run(jax.random.key(0), 5000, y=y)
    >>> fit, x = from_autoguide(guide, result.params, y=y)
    >>> evidence(fit, x, particles=4000, key=jax.random.key(1))[["khat", "ess", "log_px", "elbo"]]
    """
    if not isinstance(guide, AutoContinuous) or isinstance(guide, AutoDAIS | AutoBNAFNormal):
        raise ValueError(
            "guide must be an autoguide with a density over all latents at once that can be evaluated anywhere, such "
            f"as AutoDiagonalNormal or AutoMultivariateNormal, got {type(guide).__name__}"
        )
    call, x = _arguments(guide.model, args, kwargs)
    if guide.prototype_trace is None:
        with seed(rng_seed=0), block():
            guide(*args, **kwargs)
    with block(), trace() as wanted, seed(rng_seed=0):
        guide._get_posterior()
    lacking = sorted(name for name, site in wanted.items() if site["type"] == "param" and name not in params)
    if lacking:
        raise ValueError(
            f"params lack {', '.join(lacking)} of this {type(guide).__name__}, got {', '.join(sorted(params))}; pass "
            "the params that SVI trained with this guide"
        )
    import pandas as pd

    # No history: whether SVI had settled is not known here, so a diagnosis has no line on it.
    # Laplace's approximation is made of the parameters once, by a Hessian; the other guides are functions of them.
    fixed = guide.get_posterior(dict(params)) if isinstance(guide, AutoLaplaceApproximation) else None
    return Fit(_program(guide, call, x, fixed), dict(params), {}, pd.DataFrame({"step": []}), {}), x


class _Unconstrained(Messenger):
    """Gives each latent site the value T(u) of its part of u and keeps log |dT/du|, a scalar by site."""

    def __init__(self, u: Mapping[str, Array]) -> None:
        self.u, self.log_det = u, dict[str, Array]()
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        name, fn = msg["name"], msg["fn"]
        if name not in self.u:
            raise ValueError(
                f"the model draws {name!r}, which this guide does not know (it has {', '.join(self.u)}); pass the "
                "arguments that the guide was trained with"
            )
        to = biject_to(fn.support)
        msg["value"] = to(self.u[name])
        self.log_det[name] = jnp.sum(to.log_abs_det_jacobian(self.u[name], msg["value"]))


class _Prior(dist.Distribution):
    """The prior of u, a batch of one: log p(T(u)) + log |dT/du|."""

    support = constraints.real_vector

    def __init__(self, size: int, density: Callable[[Array], Array], draw: Callable[[Any], Array]) -> None:
        self.density, self.draw = density, draw
        super().__init__((1,), (size,))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        if sample_shape:
            raise NotImplementedError("one draw at a time")
        return self.draw(key)[None]

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        return self.density(value[0])[None]


def _arguments(model: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Callable[..., Any], dict[str, np.ndarray]]:
    """The model as a function of its array arguments by name, and these as one datum."""
    bound = inspect.signature(model).bind(*args, **kwargs)
    bound.apply_defaults()
    extra = {p.name for p in bound.signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    x = {k: np.asarray(v)[None] for k, v in bound.arguments.items() if k not in extra and np.ndim(v)}
    x |= {k: np.asarray(v)[None] for name in extra if isinstance(more := bound.arguments[name], dict)
          for k, v in more.items() if np.ndim(v)}  # fmt: skip

    def call(data: Mapping[str, Array]) -> Any:
        own = inspect.BoundArguments(bound.signature, dict(bound.arguments))
        for name, value in data.items():
            if name in bound.arguments:
                own.arguments[name] = value
        for name in extra:
            if isinstance(more := bound.arguments[name], dict):
                own.arguments[name] = {k: data.get(k, v) for k, v in more.items()}
        return model(*own.args, **own.kwargs)

    # Data that the model holds itself are no argument: a datum then is one number that nothing reads.
    return call, x or {"data": np.zeros((1, 1), "float32")}


def _program(guide: AutoContinuous, call: Callable[..., Any], x: Mapping[str, np.ndarray], fixed: Any) -> Program:
    latent = f"{guide.prefix}_latent"
    hidden = lambda site: site["type"] not in ("param", "mutable")  # noqa: E731
    stored = {name: jnp.asarray(value[0]) for name, value in x.items() if name != "data" or value.shape != (1, 1)}

    def at(u: Float[Array, " D"], data: Any, key: Key[Array, ""] | None = None) -> tuple[Sites, dict[str, Array]]:
        """All sites of the model at u, and the log Jacobians; observed sites are drawn afresh where there is a key."""
        handler = _Unconstrained(guide._unpack_latent(u))
        with block(hide_fn=hidden), trace() as sites:
            if key is None:
                with handler:
                    call(data)
            else:
                with seed(rng_seed=key), uncondition(), handler:
                    call(data)
        return sites, handler.log_det

    def density(site: Mapping[str, Any]) -> Array:
        value = jnp.sum(site["fn"].log_prob(site["value"]))
        return value if site["scale"] is None else site["scale"] * value

    def draw(data: Any, key: Any) -> Array:
        with block(hide_fn=hidden), trace() as sites, seed(rng_seed=key):
            call(data)
        u = {n: biject_to(sites[n]["fn"].support).inv(sites[n]["value"]) for n in guide._init_locs}
        return jnp.concatenate([jnp.reshape(value, -1) for value in u.values()])

    def model(x: dict[str, Array] | None = None, *, size: int | None = None) -> None:
        if size not in (None, 1):
            raise ValueError(f"one datum is the whole data set, so size must be 1, got {size}")
        data = stored if x is None else {name: value[0] for name, value in x.items() if name in stored}

        def prior(u: Array) -> Array:
            sites, log_det = at(u, data)
            return sum((density(sites[name]) + value for name, value in log_det.items()), jnp.zeros(()))

        with numpyro.plate("data set", 1):
            law = _Prior(guide.latent_dim, prior, lambda key: draw(data, key))
            u = numpyro.sample(latent, law, infer={"ctx": None})[0]
            key = numpyro.prng_key() if x is None else None
            sites, log_det = at(u, data, key)
            for name, site in sites.items():
                if site["type"] == "deterministic" or name in log_det:
                    numpyro.deterministic(name, site["value"][None])
                elif site["type"] == "sample" and x is not None:
                    numpyro.factor(name, density(site)[None])
                elif site["type"] == "sample" and not isinstance(site["fn"], dist.Unit):
                    numpyro.sample(name, dist.Delta(site["value"][None], event_dim=jnp.ndim(site["value"])))

    def posterior(x: Any) -> Posterior:
        q = guide._get_posterior() if fixed is None else fixed
        return lambda site, ctx: q if q.event_shape else q.to_event(1)  # a diagonal one comes as D separate Normals

    observed = tuple(
        name for name, site in guide.prototype_trace.items() if site["type"] == "sample" and site["is_observed"]
    )
    return Program(
        None, model, posterior, (latent,), {name: value.shape[1:] for name, value in x.items()}, observed=observed,
        observation=Observation("the whole data set", prepare=lambda x, key, training: jax.tree.map(jnp.asarray, x)),
        views=Views((f"p(y, u) = p(y | T(u)) p(T(u)) |dT/du|, u in R^{guide.latent_dim}",)),
    )  # fmt: skip
