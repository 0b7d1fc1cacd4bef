"""The passes over data behind a posterior tree: draws and their densities, replicated data, draws from the prior.

Each yields what it found block by block, (data of the block, draws, ...), and nothing that it yielded is held here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Unit
from numpyro.handlers import seed, substitute, trace

from inference.checking.per_datum import (
    GENERATE,
    by_rows,
    compiled,
    draw_one,
    locals_of,
    once,
    pair_key,
    placed,
    prepare_one,
    sweep,
)
from ppl_models.program import Program, rows, take

Blocks = Iterator[tuple[slice, Any]]


def _posterior_kernel(program: Program, draws: int) -> Any:
    def one(params: Any, mutable: Any, key: jax.Array, x: Any, datum: jax.Array, local: Any, index: jax.Array) -> Any:
        x = prepare_one(program, key, x, datum, local)

        def draw(i: jax.Array) -> Any:
            found = draw_one(program, params, mutable, key, x, datum, i, local)
            zero = jnp.zeros(1)
            prior, lik, q = (sum(d.values(), zero) for d in (found.log_prior, found.log_lik, found.log_q))
            kept = {
                "latents": found.latents,
                "deterministic": found.deterministic,
                "log_lik": found.log_lik,
                "log_joint": prior + lik,
                "log_q": q,
                "log_weight": prior + lik - q,
                "rates": {f"rate_{name}": found.log_q[name] - found.log_prior[name] for name in found.log_q},
            }
            return jax.tree.map(_single, kept), jax.tree.map(_single, found.mean)

        kept, mean = jax.vmap(draw)(index)
        asked = index < draws  # the last block may hold surplus draws
        total = jax.tree.map(lambda m: jnp.tensordot(asked.astype(m.dtype), m, axes=1), mean)
        # One entry per block on the draw axis, where sweep() looks for it.
        return kept, jax.tree.map(lambda m: m[None], {"x": take(x, 0), "mean": total})

    return compiled(jax.vmap(one, in_axes=(None, None, None, 0, 0, 0, None)))


def posterior_pass(fit: Any, x: Any, draws: int, key: jax.Array, pairs: int, progress: bool, start: int = 0) -> Blocks:
    """Draws of the data from ``start`` on, their densities, and ``x``, as the model scores it and its mean."""
    local, kernel = locals_of(fit, x), once(_posterior_kernel, fit.program, draws)
    place, params, mutable = placed(fit)
    key = place.store(key)

    def block(datum: np.ndarray, index: np.ndarray) -> Any:
        return kernel(params, mutable, key, *place.rows((take(x, datum), datum, take(local, datum))), index)

    blocks = sweep(block, rows(x), draws, pairs, what="posterior", progress=progress, start=start, place=place)
    for found, (kept, data) in by_rows(blocks, draws):
        mean = {name: (part / draws).sum(1) for name, part in data["mean"].items()}
        yield found, {**kept, "x": jax.tree.map(lambda leaf: leaf[:, 0], data["x"]), "mean": mean}


def _single(value: jax.Array) -> jax.Array:
    """Take a site's value out of its batch of one; a value outside the plate is kept whole."""
    return value[0] if value.ndim and value.shape[0] == 1 else value


def _generate_kernel(program: Program) -> Any:
    def one(params: Any, mutable: Any, key: jax.Array, given: Any, held: Any, datum: jax.Array, draw: jax.Array) -> Any:
        data = {**params, **{k: dict(v) for k, v in (mutable or {}).items()}, **{k: v[None] for k, v in held.items()}}
        # Different noise for prior and posterior draws, which would otherwise share the noise of x.
        noise = jax.random.fold_in(pair_key(key, GENERATE, datum, draw), len(held))
        with trace() as sites, seed(rng_seed=noise), substitute(data=data):
            program.model(take(given, None)) if given else program.model(size=1)
        found: dict[str, dict[str, jax.Array]] = {"latents": {}, "deterministic": {}, "observed": {}}
        for name, site in sites.items():
            if site["type"] == "deterministic":
                found["deterministic"][name] = _single(site["value"])
            elif site["type"] == "sample" and not isinstance(site["fn"], Unit):
                found["observed" if name in program.observed else "latents"][name] = _single(site["value"])
        return {"observed": found["observed"]} if held else found

    over_draws = jax.vmap(one, in_axes=(None, None, None, None, 0, None, 0))
    pair = jax.vmap(over_draws, in_axes=(None, None, None, 0, 0, 0, None))
    return compiled(pair)


def generate_pass(
    fit: Any,
    held: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    inputs: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    n: int,
    draws: int,
    key: jax.Array,
    pairs: int,
    progress: bool,
    what: str,
    start: int = 0,
) -> Blocks:
    """Run the generative program for every (datum, draw) pair of the data from ``start`` to ``n``.

    ``held(datum)``    latents (data, draws, ...) that are given, none for draws from the prior.
    ``inputs(datum)``  prepared inputs (data, ...) of a conditional program.
    """
    kernel = once(_generate_kernel, fit.program)
    place, params, mutable = placed(fit)
    key = place.store(key)

    def block(datum: np.ndarray, index: np.ndarray) -> Any:
        given = {name: value[:, np.minimum(index, draws - 1)] for name, value in held(datum).items()}
        return kernel(params, mutable, key, *place.rows((inputs(datum), given, datum)), index)

    return by_rows(sweep(block, n, draws, pairs, what=what, progress=progress, start=start, place=place), draws)
