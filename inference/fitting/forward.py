"""Train an amortised posterior on the program's own draws by the forward KL (neural posterior estimation).

E_{p(z, x)} [-log q(z | x)] = E_{p(x)} KL(p(z | x) || q(z | x)) + a constant (Papamakarios and Murray 2016).  This is
the log-likelihood of a program that observes z given x, so it trains through ``fit`` as it stands: a datum is one
simulated pair, packed into a row, and the fitted parameters are those of the original posterior.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped
from numpyro.handlers import block, condition, seed, substitute, trace

from ppl_models.program import Observation, Program, Views, amortise

Sampler = Callable[[Key[Array, ""], int], Array]


def simulator(program: Program, params: Mapping[str, Any] | None = None) -> Sampler:
    """``(key, n) -> (n, D + latents)``: rows (x, z) drawn from the program, flattened; data for :func:`forward_kl`."""

    def draw(key: Key[Array, ""], n: int) -> Float[Array, "n row"]:
        with trace() as sites, seed(rng_seed=key), substitute(data=dict(params or {})):
            program.model(size=n)
        parts = [sites[name]["value"] for name in (program.observed[0], *program.latents)]
        return jnp.concatenate([part.reshape(n, -1).astype("float32") for part in parts], 1)

    return draw


def forward_kl(program: Program) -> Program:
    """A program whose log-likelihood is ``log q(z | x)``: fit it on ``simulator(program)``, then use the parameters.

    Its ``sampler`` is ``simulator(program)`` with the parameters that the program starts from.

    The generative part must have no parameters of its own to learn (they would get no gradient), and x must be one
    observed site whose draws the program can prepare like stored data; ``prepare`` is applied to x, so a family that
    hides part of x in training does so here too.

    Raises ``ValueError`` for a program without latents or with several observed sites.

    >>> fitted = fit(forward_kl(program), simulator(program), steps=2000, key=jax.random.key(0))
    >>> fitted = dataclasses.replace(fitted, program=program)
    """
    posterior = program.posterior
    if posterior is None or not program.latents:
        raise ValueError("forward_kl needs a program with latents and a posterior; this program has none")
    if len(program.observed) != 1:
        raise ValueError(f"forward_kl needs one observed site, got {program.observed}")
    shapes = jax.eval_shape(lambda: _latent_shapes(program))
    sizes = {name: int(np.prod(like.shape[1:], dtype=int)) for name, like in shapes.items()}
    width = int(np.prod(program.shape, dtype=int))

    def unpack(rows: Float[Array, "n row"]) -> tuple[Array, dict[str, Array]]:
        x, at, latents = rows[:, :width].reshape(-1, *program.shape), width, {}
        for name, like in shapes.items():
            flat = rows[:, at : at + sizes[name]]
            latents[name] = flat.reshape(-1, *like.shape[1:]).astype(like.dtype)
            at += sizes[name]
        return x, latents

    def prepare(rows: Shaped[Array, "..."], key: Key[Array, ""], training: bool) -> Array:
        rows = rows.astype("float32")
        x = program.observation.prepare(rows[:, :width].reshape(-1, *program.shape), key, training)
        return jnp.concatenate([x.reshape(len(rows), -1).astype("float32"), rows[:, width:]], 1)

    def model(x: Any = None, *, size: int | None = None) -> None:
        if x is None:
            raise ValueError(f"this program scores simulated pairs only, got size={size}; draw them with simulator()")
        seen, latents = unpack(jnp.asarray(x))
        # Conditioned outside amortise, a latent is scored under q; x itself is not scored.
        hidden = block(hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
        with condition(data=latents), amortise(q=posterior(seen)), hidden:
            program.model(seen)

    return dataclasses.replace(
        program,
        model=model,
        posterior=None,
        latents=(),
        observed=program.latents,
        shape=(width + sum(sizes.values()),),
        observation=Observation(
            "latents of simulated pairs given their data", prepare=prepare, sampler=simulator(program)
        ),
        training=dataclasses.replace(program.training, weights={}),
        exact=dataclasses.replace(program.exact, predictor=None),
        views=Views(tuple(f"q({name} | x)" for name in program.latents), program.views.modules),
    )


def _latent_shapes(program: Program) -> dict[str, Array]:
    with trace() as sites, seed(rng_seed=0):
        program.model(size=1)
    return {name: sites[name]["value"] for name in program.latents}
