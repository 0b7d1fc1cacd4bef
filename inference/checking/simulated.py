"""What simulation-based calibration computes on the device: simulations, densities at given latents, weighted ranks.

A simulation is (z*, x), z* from the prior of the program or from the guide at an observed datum, x ~ p(x | z*), and
reference points for TARP.  Everything that is ranked is a function of (z, x) that is evaluated alike, by
:func:`_evaluate`, at z* and at each draw of the posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpyro.handlers import substitute

from inference.checking.semi_amortised import Local, refined_draw
from inference.fitting.generative import as_data, generate, inputs_of
from inference.fitting.objectives import Draw, densities, joint_draw, trace_posterior
from ppl_models.program import take

LOG_LIK, LOG_Q, LOG_WEIGHT, TARP = "log_lik", "log_q", "log_weight", "tarp"
DENSITIES = (LOG_LIK, LOG_Q, LOG_WEIGHT, TARP)
CANDIDATES = 4
"""Points of which the likeliest given x is TARP's reference point."""
FARTHEST = 40.0
"""Largest log ratio of two weights, nats: beyond, single precision has no digits for the smaller one."""

Function = Callable[[Mapping[str, Array], Any], Array]


class Simulation(NamedTuple):
    """Latents z* by site (n, *event), prepared data x of them, TARP's reference points, and what ranks need of x.

    ``around``  prepared observed datum of each simulation, whose posterior z* was drawn from; ``None`` for the prior.
    ``scale``   of each latent number (*event): its standard deviation over candidates.
    ``grain``   (n,): differences of log weights below it are rounding.
    ``offset``  (n,): uniform, where the grid of that grain starts.
    """

    truth: dict[str, Array]
    x: Any
    around: Any
    reference: dict[str, Array]
    scale: dict[str, Array]
    grain: Float[Array, " n"]
    offset: Float[Array, " n"]


class Sums(NamedTuple):
    """Over draws, by quantity (n, *event): weights of those below z*'s value and of those equal to it.

    ``total`` and ``square`` (n,) are the sums of the weights and of their squares, in units of the weight of z*.
    """

    below: dict[str, Array]
    ties: dict[str, Array]
    total: Float[Array, " n"]
    square: Float[Array, " n"]


class Simulator:
    """The kernels of one program: ``start`` a block of simulations, ``at`` its z*, ``draws`` of its posterior.

    ``functions`` are further quantities: ``f(z, x)`` of latents by site (n, *event) and prepared x gives (n,).
    """

    def __init__(self, fit: Any, functions: Mapping[str, Function], n: int) -> None:
        self.program, self.functions, self.n = fit.program, functions, n
        self.params, self.mutable = dict(fit.params), dict(getattr(fit, "mutable", None) or {})

    # ------------------------------------------------------------------------------------ simulations
    def start(self, params: Any, mutable: Any, key: Key[Array, ""], stored: Any, local: bool) -> Simulation:
        """n simulations: from the prior, with the inputs of ``stored`` if it has any, or ``local``, around them."""
        n, program = self.n, self.program
        keys = jax.random.split(key, 6)
        held = None if stored is None else program.observation.prepare(stored, keys[0], False)
        around = held if local else None
        given = inputs_of(program, held)

        def latents(key: Key[Array, ""]) -> dict[str, Array]:
            if local:
                return joint_draw(program, params, key, held, mutable=mutable).latents
            sites = generate(program, params, key, n, given=given, mutable=mutable)
            return {name: sites[name]["value"] for name in program.latents}

        truth = latents(keys[1])
        sites = generate(program, params, keys[2], n, given=given, held=truth, mutable=mutable)
        x = as_data(program, sites, given)
        candidates = jax.vmap(latents)(jax.random.split(keys[3], CANDIDATES))

        def fits(z: dict[str, Array]) -> tuple[Array, Array]:
            found = self._held(params, mutable, keys[4], x, z)
            log_lik, log_prior = _sum(found.log_lik, n), _sum(found.log_prior, n)
            return jnp.nan_to_num(log_lik, nan=-jnp.inf), jnp.abs(log_lik) + jnp.abs(log_prior)

        log_lik, size = jax.vmap(fits)(candidates)
        best = log_lik.argmax(0)
        size = jnp.where(jnp.isfinite(size), size, 0.0).max(0)
        return Simulation(
            truth, x, around,
            {name: value[best, jnp.arange(n)].astype(float) for name, value in candidates.items()},
            {name: _scale(value) for name, value in candidates.items()},
            1e-3 + 1e-5 * size,
            jax.random.uniform(keys[5], (n,)),
        )  # fmt: skip

    def _held(self, params: Any, mutable: Any, key: Key[Array, ""], x: Any, z: Mapping[str, Array]) -> Draw:
        """All densities of the program and its guide at latents ``z`` of prepared ``x``."""
        with substitute(data=z):
            sites = trace_posterior(self.program, params, key, x, mutable=mutable)
        return densities(sites, x)

    # ------------------------------------------------------------------------------------------ ranks
    def at(
        self, params: Any, mutable: Any, key: Key[Array, ""], sim: Simulation, local: Local | None
    ) -> tuple[dict[str, Array], Float[Array, " n"]]:
        """What is ranked, at z*, and the log weight of z* there."""
        own_key, around_key = jax.random.split(key)
        found = self._posterior(params, mutable, own_key, sim.x, local, sim.truth)
        return self._evaluate(found, sim), self._weight(params, mutable, around_key, found, sim)

    def draws(
        self, params: Any, mutable: Any, key: Key[Array, ""], sim: Simulation, local: Local | None,
        truth: tuple[dict[str, Array], Float[Array, " n"]], index: Array, count: int,
    ) -> Sums:  # fmt: skip
        """Sums over the draws ``index``, those from ``count`` on left out."""
        values, log_w = truth

        def one(i: Array) -> tuple[dict[str, Array], dict[str, Array], Array]:
            own_key, around_key = jax.random.split(jax.random.fold_in(key, i))
            found = self._posterior(params, mutable, own_key, sim.x, local, None)
            ratio = jnp.exp(jnp.clip(self._weight(params, mutable, around_key, found, sim) - log_w, max=FARTHEST))
            ratio = jnp.where((i < count) & ~jnp.isnan(ratio), ratio, 0.0)
            drawn = self._evaluate(found, sim)
            below, ties = {}, {}
            for name, value in drawn.items():
                share = _like(ratio, value)
                # A number that is not one makes the sum so, and is reported.
                lost = jnp.where(jnp.isnan(value) | jnp.isnan(values[name]), jnp.nan, 0.0)
                below[name] = jnp.where(value < values[name], share, 0.0) + lost
                ties[name] = jnp.where(value == values[name], share, 0.0)
            return below, ties, ratio

        below, ties, ratio = jax.vmap(one)(index)
        below, ties = jax.tree.map(lambda leaf: leaf.sum(0), (below, ties))
        return Sums(below, ties, ratio.sum(0), (ratio**2).sum(0))

    def _posterior(
        self, params: Any, mutable: Any, key: Key[Array, ""], x: Any, local: Local | None, at: dict[str, Array] | None
    ) -> Draw:
        """A draw of the posterior that is checked for each datum of ``x``, or its densities ``at`` given latents."""
        if local is None:
            if at is not None:
                return self._held(params, mutable, key, x, at)
            return joint_draw(self.program, params, key, x, mutable=mutable)

        def one(key: Key[Array, ""], x: Any, local: Local, at: Any) -> Draw:
            alone = None if at is None else take(at, None)
            found = refined_draw(self.program, params, key, take(x, None), local, mutable=mutable, at=alone)
            return jax.tree.map(lambda leaf: leaf[0], found._replace(deterministic={}, mean={}))

        return jax.vmap(one)(jax.random.split(key, self.n), x, local, at)

    def _weight(
        self, params: Any, mutable: Any, key: Key[Array, ""], found: Draw, sim: Simulation
    ) -> Float[Array, " n"]:
        """log pi(z) - log p(z): from the posterior under the prior to that under pi(z) = q(z | observed datum)."""
        if sim.around is None:
            return jnp.zeros(self.n)
        there = self._held(params, mutable, key, sim.around, found.latents)
        return _sum(there.log_q, self.n) - _sum(there.log_prior, self.n)

    def _evaluate(self, found: Draw, sim: Simulation) -> dict[str, Array]:
        """What is ranked: every latent number, the densities, the distance to the reference point, the functions."""
        n = self.n
        log_lik, log_q = _sum(found.log_lik, n), _sum(found.log_q, n)
        log_weight = log_lik + _sum(found.log_prior, n) - log_q
        apart = {name: (z - sim.reference[name]) / sim.scale[name] for name, z in found.latents.items()}
        distance = _sum({name: (gap**2).reshape(n, -1).sum(1) for name, gap in apart.items()}, n)
        values = {**found.latents, LOG_LIK: log_lik, LOG_Q: log_q, TARP: distance}
        # Under an exact posterior the log weight is one number and its rounding: what the grid makes equal is a tie.
        values[LOG_WEIGHT] = jnp.floor(log_weight / sim.grain + sim.offset)
        for name, function in self.functions.items():
            value = jnp.asarray(function(found.latents, sim.x))
            if value.shape != (n,):
                raise ValueError(
                    f"quantity {name!r} gave shape {value.shape} for {n} data, expected ({n},): one number a datum"
                )
            values[name] = value
        return values


def _sum(parts: Mapping[str, Array], n: int) -> Float[Array, " n"]:
    return sum(parts.values(), jnp.zeros(n))


def _like(ratio: Array, value: Array) -> Array:
    return jnp.broadcast_to(ratio.reshape(-1, *[1] * (value.ndim - 1)), value.shape)


def _scale(candidates: Array) -> Array:
    spread = candidates.astype(float).std((0, 1))
    return jnp.where(jnp.isfinite(spread) & (spread > 0), spread, 1.0)
