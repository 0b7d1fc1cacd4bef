"""Importance-weighted bounds on log p(x), and two estimators of their gradient.

For K draws z_k ~ q(z | x) of each datum, w_k = p(x, z_k) / q(z_k | x):

    L_K = E log (1/K) sum_k w_k,   ELBO = L_1 <= L_K <= L_{K+1} <= log p(x)

(IWAE: Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519, eq. 8 and theorem 1).  Only densities enter: no closed
form of a KL, and no bound of a family's own.  With v_k = w_k / sum_j w_j, theta the parameters as they enter p, phi as
they enter q (a parameter of both is in both, and gets the sum):

    d/d theta   E sum_k v_k   d log p(x, z_k) / d theta
    d/d phi     E sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi)                            ("dreg")

The second is the doubly reparameterised gradient (Tucker, Lawson, Gu & Maddison 2019, arXiv 1810.04152, eq. 8): as
unbiased as differentiating the bound ("iwae"), whose signal-to-noise ratio for phi falls as 1/sqrt(K) (Rainforth et al.
2018, arXiv 1802.04537, theorem 1).  With K = 1 it is "sticking the landing" (Roeder, Wu & Duvenaud 2017).

In a hierarchy q(z_l | ctx_l(z_<l), x) reads the model's own top-down pass, so the parameters of that pass belong to
both: the draws z_k carry their gradient with weight v^2, log p with weight v, and log q is evaluated with stopped
*parameters* and live z, ctx(z) included.  Stopping the distribution of a site instead is biased there.

**Scheduled weights.**  With weights beta of the KL and b of observed sites, w_k = prod_obs p(x_obs | z)^b (p(z) /
q(z | x))^beta: a tempered bound, for warm-ups; at beta = b = 1 it is L_K, and at K = 1 it is the weighted ELBO.  The
second gradient then has (1 - beta) v_k + beta v_k^2 in place of v_k^2: d/d phi of the densities contributes
-beta E sum_k v_k d log q(z_k) / d phi, which is -beta E sum_k (v_k - v_k^2) (d log w_k / d z_k)(d z_k / d phi).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpyro.handlers import substitute

from inference.fitting.objectives import KL, Draw, Terms, Weights, densities, trace_posterior
from ppl_models.program import Program, rows, zeros

BOUND = "bound"
"""Column of the history with the importance-weighted bound, unweighted."""


def bound_of(log_w: Float[Array, "K batch"]) -> Float[Array, " batch"]:
    """log (1/K) sum_k w_k of each datum, nats."""
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(len(log_w))


def importance_weighted(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    *,
    particles: int,
    doubly: bool = False,
    weights: Weights | None = None,
    mutable: Mapping[str, Any] | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """Negative importance-weighted bound of ``particles`` draws a datum of prepared ``x``, nats per datum.

    Its gradient is that of the estimate, or with ``doubly`` the doubly reparameterised one.  ``weights`` temper the
    weights as the head of this file says; knobs reach the program.  :class:`Terms` hold averages over the draws, so
    ``terms.elbo`` is an ELBO, and the unweighted bound under ``more["bound"]``.

    Raises ``ValueError`` for a latent whose posterior cannot be reparameterised, a site that has no density per datum,
    and with ``doubly`` for a weight of one latent site.
    """
    weights = weights or {}
    if doubly:
        check_weights(program, weights)
    keys = jax.random.split(key, particles)

    def draw(key: Key[Array, ""]) -> tuple[Draw, dict[str, Any]]:
        sites = trace_posterior(program, params, key, x, weights=weights, mutable=mutable)
        _check_reparameterised(program, sites)
        found = densities(sites, x)._replace(mean={}, deterministic={})
        return found, {name: s["value"] for name, s in sites.items() if s["type"] == "mutable"}

    # The encoder does not depend on the key, so it is run once and the draws are K of its one pass.
    drawn, states = jax.vmap(draw)(keys)
    log_w = _tempered(drawn, weights)
    value = bound_of(log_w).mean()
    if doubly:
        surrogate = _doubly(program, params, keys, x, drawn, log_w, weights, mutable)
        value = surrogate + jax.lax.stop_gradient(value - surrogate)
    batch = rows(x)
    log_lik = {name: each.sum() / batch / particles for name, each in drawn.log_lik.items()}
    kl = {name: (each - drawn.log_prior[name]).sum() / batch / particles for name, each in drawn.log_q.items()}
    more = {BOUND: bound_of(_tempered(drawn, {})).mean()}
    return -value, Terms(log_lik, kl, jax.tree.map(_merged, states), more)


def per_datum_bound(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    *,
    particles: int,
    mutable: Mapping[str, Any] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """(importance-weighted bound, ELBO) of each datum of prepared ``x`` from the same draws; nats, no closed form."""
    each = jax.vmap(lambda k: densities(trace_posterior(program, params, k, x, mutable=mutable), x).log_weight)
    log_w = each(jax.random.split(key, particles))
    return bound_of(log_w), log_w.mean(0)


def _tempered(draw: Draw, weights: Weights) -> Float[Array, "..."]:
    """log w of every draw, each site's terms times its weight."""
    beta = weights.get(KL, 1.0)
    total = sum((weights.get(name, 1.0) * value for name, value in draw.log_lik.items()), jnp.zeros(()))
    for name, log_q in draw.log_q.items():
        total += beta * weights.get(name, 1.0) * (draw.log_prior[name] - log_q)
    return total


def _doubly(
    program: Program,
    params: Mapping[str, Any],
    keys: Key[Array, " K"],
    x: Any,
    drawn: Draw,
    log_w: Float[Array, "K batch"],
    weights: Weights,
    mutable: Mapping[str, Any] | None,
) -> Float[Array, ""]:
    """A number whose gradient is the doubly reparameterised one of the mean bound; its value means nothing.

    The draws are given to two more traces of the model: log p with live parameters, log q with stopped ones.  Their
    forward passes repeat that of the draws, number for number, and are compiled once.
    """
    beta = weights.get(KL, 1.0)
    v = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=0))
    # Both traces weigh their densities by v; a gradient that reaches z gets the rest of (1 - beta) v + beta v^2.
    z = {name: _scaled(value, (1 - beta) + beta * v) for name, value in drawn.latents.items()}

    def at(params: Mapping[str, Any]) -> Draw:
        def one(key: Key[Array, ""], z: dict[str, Array]) -> Draw:
            with substitute(data=z):  # outermost: each site has taken its key by then, as when z was drawn
                sites = trace_posterior(program, params, key, x, weights=weights, mutable=mutable)
            return densities(sites, x)._replace(mean={}, deterministic={})

        return jax.vmap(one)(keys, z)

    p, q = at(params), at(jax.lax.stop_gradient(dict(params)))
    return (v * _tempered(p._replace(log_q=q.log_q), weights)).sum(0).mean()


@jax.custom_vjp
def _scaled_rows(value: Array, factor: Array) -> Array:
    """``value``, whose gradient is multiplied by ``factor`` (of the same number of axes)."""
    return value


_scaled_rows.defvjp(
    lambda value, factor: (value, factor),
    lambda factor, gradient: (gradient * factor, jnp.zeros_like(factor)),
)


def _scaled(value: Float[Array, "K batch ..."], factor: Float[Array, "K batch"]) -> Array:
    return _scaled_rows(value, factor.reshape(*factor.shape, *[1] * (value.ndim - factor.ndim)))


def check_weights(program: Program, names: Iterable[str]) -> None:
    """Raise ``ValueError`` for a weight of one latent site, which the doubly reparameterised gradient has not."""
    if own := [name for name in names if name in program.latents]:
        raise ValueError(
            f'objective "dreg" has one weight of the KL, not one of {own[0]!r} alone: its gradient is known for equal '
            'weights of all latents; weigh "kl", or use objective="iwae"'
        )


def check_reparameterised(program: Program) -> None:
    """Raise ``ValueError`` for a program with a latent whose draws carry no gradient, from shapes alone."""

    def traced() -> int:
        key = jax.random.key(0)
        x = program.observation.prepare(jax.tree.map(jnp.asarray, zeros(program.shape)), key, False)
        _check_reparameterised(program, trace_posterior(program, {}, key, x))
        return 0

    jax.eval_shape(traced)


def _check_reparameterised(program: Program, sites: Mapping[str, dict[str, Any]]) -> None:
    """Raise ``ValueError`` for a latent whose draws do not carry the gradient of its posterior's parameters."""
    for name in program.latents:
        if not sites[name]["fn"].has_rsample:
            raise ValueError(
                f"the posterior of site {name!r}, a {type(_inner(sites[name]['fn'])).__name__}, cannot be "
                "reparameterised, so the gradient of an importance-weighted bound would be biased; use "
                'objective="elbo", or another posterior'
            )


def _inner(fn: Any) -> Any:
    """The distribution below plates, masks and event dimensions."""
    while type(fn).__name__ in ("ExpandedDistribution", "MaskedDistribution", "Independent"):
        fn = fn.base_dist
    return fn


def _merged(leaf: Array) -> Array:
    """Mutable state after K draws of one batch: averaged, such as running statistics; counts and flags of the first."""
    return leaf.mean(0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf[0]
