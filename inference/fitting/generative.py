"""A program's own draws: one run of the bare model, and what it drew as prepared data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from numpyro.handlers import seed, substitute, trace

from ppl_models.program import Program, knobs, zeros

Sites = dict[str, dict[str, Any]]


def generate(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    size: int,
    *,
    given: Mapping[str, Array] | None = None,
    held: Mapping[str, Array] | None = None,
    weights: Mapping[str, Any] | None = None,
    mutable: Mapping[str, Any] | None = None,
) -> Sites:
    """Sites of one run of the model: ``size`` data, or one for each of the prepared inputs ``given``.

    ``held`` are values that sites keep; ``weights`` those of the program's knobs.
    """
    # Mutable sites are written in place by the program: hand it its own copies.
    data = {**params, **{name: dict(state) for name, state in (mutable or {}).items()}, **(held or {})}
    with trace() as sites, seed(rng_seed=key), substitute(data=data), knobs(weights or {}):
        program.model(dict(given)) if given else program.model(size=size)
    return sites


def inputs_of(program: Program, x: Any) -> dict[str, Array]:
    """The inputs among prepared data of a conditional program; empty for any other."""
    return {name: x[name] for name in program.observation.given}


def example(program: Program) -> Any:
    """One prepared datum of zeros (1, *shape)."""
    return program.observation.prepare(jax.tree.map(jnp.asarray, zeros(program.shape)), jax.random.key(0), False)


def as_data(program: Program, sites: Sites, given: Mapping[str, Array] | None = None) -> Any:
    """What a run drew, in the dtypes of prepared data (a Bernoulli draws integers, encoders read floats)."""
    x = program.from_draw({**(given or {}), **{name: sites[name]["value"] for name in program.observed}})
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), x, jax.eval_shape(lambda: example(program)))
