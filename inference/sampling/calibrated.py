"""Simulated problems for a conditional sampler: where does the truth rank among its draws?

x and nuisances from the prior, y from the likelihood, draws given y; the rank of f(truth) among f(draws) is uniform for
every f if the draws follow the posterior (Talts et al. 2018, arXiv 1804.06788).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from inference.sampling.condition import CHAINS, Plan, one_run, unwrap
from inference.sampling.observed import Likelihood, Observed
from inference.sampling.shown import shown


def calibration_ranks(
    law: Any,
    likelihood: Likelihood,
    *,
    key: Any,
    method: str = "tds",
    simulations: int = 100,
    draws: int = 200,
    steps: int = 100,
    warp: float = 1.5,
    twist: str | None = None,
    spread: float | None = None,
    block: int = 20,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Rank fractions in (0, 1), uniform if calibrated: ``x`` (simulation, *shape), each nuisance, and ``log_lik``.

    ``log_lik`` is log p(y | x, nuisances): it sees a posterior that ignores y, which the others do not (Modrak et al.
    2023, arXiv 2211.02383).  90 % central intervals hold the truth where ``|rank - 1/2| <= 0.45``.  Every simulation is
    one run of ``draws`` particles; ``block`` of them run at once, and progress is shown after each block.  The other
    arguments are those of :func:`~inference.sampling.condition.condition`.  Give the ranks to
    ``inference.sampler_verdict(tree, ranks=...)``.

    Raises ``ValueError`` for ``nuts`` and ``noise_hmc``, which are chains of their own for each y.
    """
    if method in CHAINS:
        raise ValueError(f"ranks are of particle methods, {method!r} needs chains for each y; use 'tds' or a loop")
    if simulations < 10 or block < 1:
        raise ValueError(f"expected at least 10 simulations in blocks of 1 or more, got {simulations} and {block}")
    core, to_data = unwrap(law)
    zero = to_data(jnp.zeros(core.event_shape))
    y = np.zeros(_shape(likelihood, zero))
    plan = Plan.of(law, likelihood, jnp.asarray(y), method, draws, steps, warp, twist, spread)
    found: list[Any] = []
    with shown(simulations, f"ranks of {method}", "simulations", show=progress) as bar:
        for own in _blocks(jax.random.split(key, simulations), block):
            found.append(jax.device_get(_ranks(law, own, plan.given, plan.times, plan)))
            bar.update(min(simulations, len(found) * block))
    return {name: np.concatenate([part[name] for part in found])[:simulations] for name in found[0]}


def _shape(likelihood: Likelihood, x: Array) -> tuple[int, ...]:
    """The shape of y, found by asking for one that cannot be."""
    from numpyro import handlers

    law = handlers.seed(likelihood, jax.random.key(0))(x)
    if not hasattr(law, "batch_shape"):
        raise ValueError("ranks need a likelihood that returns the distribution of y, of which y is simulated")
    return (*law.batch_shape, *law.event_shape)


def _blocks(keys: Array, block: int) -> Iterator[Array]:
    """Blocks of equal size, so that one compilation serves; the last one repeats its last key."""
    for first in range(0, len(keys), block):
        yield keys[jnp.minimum(jnp.arange(first, first + block), len(keys) - 1)]


@partial(jax.jit, static_argnums=(4,))
def _ranks(law: Any, keys: Array, given: Any, times: Array, plan: Plan) -> dict[str, Array]:
    core, to_data = unwrap(law)

    def one(key: Array, z: Array, truth: Array) -> dict[str, Array]:
        u_key, y_key, run_key, tie_key = jax.random.split(key, 4)
        blank = Observed(plan.likelihood, jnp.zeros(_shape(plan.likelihood, to_data(z))), to_data(z))
        x, u = to_data(truth), blank.draw(to_data(truth), u_key)
        y = blank.law(x, u).sample(y_key)
        run = one_run(law, y, run_key, given, times, plan)
        observed = Observed(plan.likelihood, y, x)
        drawn = jax.vmap(to_data)(run.x)
        pairs = {
            "x": (x, drawn),
            **{
                name: (observed.constrain(u)[name], jax.vmap(observed.constrain)(run.u)[name]) for name in observed.free
            },
            "log_lik": (observed.log_prob(x, u), jax.vmap(observed.log_prob)(drawn, run.u)),
        }
        ties = jax.random.split(tie_key, len(pairs))
        return {name: _rank(*pair, k) for (name, pair), k in zip(pairs.items(), ties, strict=True)}

    z_key = jax.vmap(lambda k: jax.random.fold_in(k, 7))(keys)
    z = jax.vmap(lambda k: jax.random.normal(k, core.event_shape))(z_key)
    return jax.vmap(one)(jax.vmap(lambda k: jax.random.fold_in(k, 8))(keys), z, core.from_noise(z))


def _rank(truth: Array, drawn: Array, key: Array) -> Array:
    """``(below + u (ties + 1)) / (draws + 1)``, u uniform; nan where a draw is not a number."""
    below, ties = (drawn < truth).sum(0), (drawn == truth).sum(0)
    rank = (below + jax.random.uniform(key, truth.shape) * (ties + 1)) / (len(drawn) + 1)
    return jnp.where(jnp.isfinite(drawn).all(0), rank, jnp.nan)
