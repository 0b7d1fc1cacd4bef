"""The objective: one trace of the model under its posterior gives every term of the ELBO.

ELBO(x) = E_q[log p(x | z)] - sum_l E_q KL(q(z_l | x, ctx_l) || p(z_l | ctx_l)), in nats per datum, with the
closed form of the KL where NumPyro registers one for the pair of distributions and the log-density difference at
the sample otherwise - the estimator of ``TraceMeanField_ELBO``, without its second trace of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import scale_and_mask
from numpyro.handlers import seed, substitute, trace
from numpyro.primitives import Messenger

from ppl_models.program import Posterior, Program, amortise, knobs, part, rows

Weights = Mapping[str, Any]
KL = "kl"
"""Weight name that multiplies the KL of every latent site (beta)."""
FREE_BITS = "free_bits"
"""Weight name of the nats of each latent site's KL that cost nothing; ``free_bits/SITE`` is that of one site alone."""
BALANCE = "balance"
"""Weight name of the share by which the KLs are balanced (gamma)."""
_ALIVE = 0.01
"""Nats added to each KL before balancing, so that a silent site keeps a price (that of NVAE's released code)."""


class Terms(NamedTuple):
    """What a person reads of one evaluation of the objective; nats per datum, unweighted.

    ``more`` holds what objectives other than the ELBO report of themselves, by column of the history.
    """

    log_lik: dict[str, Float[Array, ""]]
    kl: dict[str, Float[Array, ""]]
    mutable: dict[str, Any]
    more: dict[str, Float[Array, ""]] = {}

    @property
    def elbo(self) -> Float[Array, ""]:
        return sum(self.log_lik.values(), jnp.zeros(())) - sum(self.kl.values(), jnp.zeros(()))


class Draw(NamedTuple):
    """One z ~ q(z | x) per datum and every density at it; nats, one entry a datum.

    log p(x, z) = sum(log_prior) + sum(log_lik); the importance weight is that minus sum(log_q).
    """

    latents: dict[str, Array]
    deterministic: dict[str, Array]
    mean: dict[str, Array]
    log_prior: dict[str, Float[Array, " batch"]]
    log_q: dict[str, Float[Array, " batch"]]
    log_lik: dict[str, Float[Array, " batch"]]

    @property
    def log_weight(self) -> Float[Array, " batch"]:
        parts = (self.log_prior, self.log_lik, self.log_q)
        prior, lik, q = (jnp.stack(list(part.values())).sum(0) if part else jnp.zeros(()) for part in parts)
        return prior + lik - q


def trace_posterior(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    *,
    weights: Weights | None = None,
    mutable: Mapping[str, Any] | None = None,
    under: Callable[[Posterior], Messenger] | None = None,
) -> dict[str, dict[str, Any]]:
    """Trace ``program.model(x)`` once with every latent drawn from the posterior.

    ``x`` is prepared data (batch, *shape), a pytree where a datum is one.  Each latent site holds q in ``fn`` and the
    prior in ``infer["prior"]``.  ``weights`` are the values of the program's knobs.  ``under`` makes the handler from
    the posterior of x where it is not :class:`~ppl_models.program.amortise` but one of its kind.
    """
    # Mutable sites are written in place by the program: hand it its own copies.
    data = {**params, **{name: dict(state) for name, state in (mutable or {}).items()}}
    with trace() as sites, seed(rng_seed=key), substitute(data=data), knobs(weights or {}):
        if program.posterior is None:
            program.model(x)
        else:
            q = program.posterior(x)
            with amortise(q=q) if under is None else under(q):
                program.model(x)
    return sites


def _latent(name: str, site: Mapping[str, Any]) -> bool:
    if site["type"] != "sample" or site["is_observed"]:
        return False
    if "prior" not in site["infer"]:
        raise ValueError(
            f"latent site {name!r} carries no context, so the posterior cannot reach it; declare it as "
            f"numpyro.sample({name!r}, prior, infer={{'ctx': ...}}) (ctx may be None)"
        )
    return True


def _observed(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and site["is_observed"]


def _log_prob(fn: Any, site: Mapping[str, Any]) -> Array:
    return scale_and_mask(fn.log_prob(site["value"]), site["scale"])


def _kl(site: Mapping[str, Any]) -> Array:
    prior = site["infer"]["prior"]
    try:
        return scale_and_mask(kl_divergence(site["fn"], prior), site["scale"])
    except NotImplementedError:
        return _log_prob(site["fn"], site) - _log_prob(prior, site)


def fused_elbo(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    *,
    weights: Weights | None = None,
    mutable: Mapping[str, Any] | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """Weighted negative ELBO of a batch in nats per datum, and its unweighted terms.

    loss = -(1/B) [ sum_obs w_obs log p(x_obs | z) - beta sum_l w_l c_l max(KL_l, B free_l) ], every weight 1 unless
    ``weights`` names it: a site's name, ``"kl"`` for beta, ``"free_bits"`` for all free_l and ``"free_bits/SITE"`` for
    one (0 unless named), ``"balance"`` for gamma (0 unless named), or a knob of the program.

    c_l = 1 - gamma + gamma L KL_l / sum_m KL_m, without gradient, mean 1: a site that says little pays little, the one
    that says most pays most (Vahdat et al. 2018, DVAE++, arXiv 1802.04920; Vahdat & Kautz 2020, NVAE, arXiv 2007.03898,
    both while the KL is faded in).  With gamma = 0 at the end the ELBO is what is trained.  Traced weights do not
    recompile.
    """
    weights = weights or {}
    sites = trace_posterior(program, params, key, x, weights=weights, mutable=mutable)
    batch = rows(x)
    log_lik = {name: jnp.sum(_log_prob(s["fn"], s)) / batch for name, s in sites.items() if _observed(s)}
    kl = {name: jnp.sum(_kl(s)) / batch for name, s in sites.items() if _latent(name, s)}
    beta = weights.get(KL, 1.0)
    elbo = sum((weights.get(name, 1.0) * value for name, value in log_lik.items()), jnp.zeros(()))
    paid = _balanced(_floored(kl, weights), kl, weights.get(BALANCE))
    elbo -= beta * sum((weights.get(name, 1.0) * value for name, value in paid.items()), jnp.zeros(()))
    return -elbo, Terms(log_lik, kl, {n: s["value"] for n, s in sites.items() if s["type"] == "mutable"})


def _floored(kl: Mapping[str, Array], weights: Weights) -> Mapping[str, Array]:
    """``max(KL_l, free_l)`` where there is a floor."""
    free = {name: weights.get(f"{FREE_BITS}/{name}", weights.get(FREE_BITS)) for name in kl}
    return {name: value if free[name] is None else jnp.maximum(value, free[name]) for name, value in kl.items()}


def _balanced(paid: Mapping[str, Array], kl: Mapping[str, Array], gamma: Any) -> Mapping[str, Array]:
    """``c_l paid_l``, see :func:`fused_elbo`."""
    if gamma is None or not kl:
        return paid
    says = {name: jax.lax.stop_gradient(jnp.abs(value)) + _ALIVE for name, value in kl.items()}
    mean = sum(says.values(), jnp.zeros(())) / len(says)
    return {name: (1 - gamma + gamma * says[name] / mean) * value for name, value in paid.items()}


def _per_datum(name: str, value: Array, batch: tuple[int, ...]) -> Array:
    if value.shape != batch:
        raise ValueError(
            f"site {name!r} has log density of shape {value.shape}, expected one value a datum, {batch}; "
            "put the site in the plate over the batch and use .to_event for its own dimensions"
        )
    return value


def per_datum_elbo(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    *,
    mutable: Mapping[str, Any] | None = None,
) -> Float[Array, " batch"]:
    """ELBO of each datum of prepared ``x`` in nats, one draw of z, closed-form KL where there is one."""
    batch = (rows(x),)
    total = jnp.zeros(batch)
    for name, site in trace_posterior(program, params, key, x, mutable=mutable).items():
        if _observed(site):
            total += _per_datum(name, _log_prob(site["fn"], site), batch)
        elif _latent(name, site):
            total -= _per_datum(name, _kl(site), batch)
    return total


def joint_draw(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    *,
    mutable: Mapping[str, Any] | None = None,
) -> Draw:
    """Draw z ~ q(z | x) for each datum of prepared ``x`` and return all densities, one trace of the model.

    ``mean`` holds E[x | z] of each observed site whose distribution has a mean.  Raises ``ValueError`` if a site
    has no density per datum (a latent outside the plate over the batch): evidence per datum is then undefined.
    """
    return densities(trace_posterior(program, params, key, x, mutable=mutable), x)


def densities(sites: Mapping[str, dict[str, Any]], x: Any) -> Draw:
    """What :func:`joint_draw` says of a trace of :func:`trace_posterior` of prepared ``x``."""
    batch = (rows(x),)
    latent = {name: s for name, s in sites.items() if _latent(name, s)}
    observed = {name: s for name, s in sites.items() if _observed(s)}
    mean = {}
    for name, s in observed.items():
        target = part(x, name)
        target = s["value"] if target is None else target
        if getattr(type(s["fn"]), "mean", None) is not None and s["fn"].event_shape == target.shape[1:]:
            try:
                mean[name] = jnp.broadcast_to(s["fn"].mean, target.shape)
            except NotImplementedError:
                continue
    return Draw(
        latents={name: s["value"] for name, s in latent.items()},
        deterministic={name: s["value"] for name, s in sites.items() if s["type"] == "deterministic"},
        mean=mean,
        log_prior={name: _per_datum(name, _log_prob(s["infer"]["prior"], s), batch) for name, s in latent.items()},
        log_q={name: _per_datum(name, _log_prob(s["fn"], s), batch) for name, s in latent.items()},
        log_lik={name: _per_datum(name, _log_prob(s["fn"], s), batch) for name, s in observed.items()},
    )


def init_params(program: Program, key: Key[Array, ""], x: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return (unconstrained parameters, constraining transforms, mutable state) of a program; jit-able values.

    Parameters keep the initial values of the program's modules and ``numpyro.param`` statements.
    """
    from numpyro.distributions import biject_to, constraints

    params, transforms, state = {}, {}, {}
    for name, site in trace_posterior(program, {}, key, x).items():
        if site["type"] == "param":
            transform = biject_to(site["kwargs"].get("constraint", constraints.real))
            transforms[name] = transform
            params[name] = site["value"] if isinstance(site["value"], dict) else transform.inv(site["value"])
        elif site["type"] == "mutable":
            state[name] = site["value"]
    # Weak types (a Python float as initial value) would compile the update twice.
    strong = lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf))  # noqa: E731
    return jax.tree.map(strong, params), transforms, jax.tree.map(strong, state)
