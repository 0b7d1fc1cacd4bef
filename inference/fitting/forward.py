"""Train an amortised posterior on the program's own draws by the forward KL (neural posterior estimation).

E_{p(z, x)} [-log q(z | x)] = E_{p(x)} KL(p(z | x) || q(z | x)) + a constant (Papamakarios and Murray 2016).  This is
the log-likelihood of a program that observes z given x, so it trains through ``fit`` as it stands: a datum is one
simulated pair, and the fitted parameters are those of the original posterior.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Key
from numpyro.handlers import block, condition, seed, substitute, trace

from ppl_models.program import Observation, Program, Views, amortise

Sampler = Callable[[Key[Array, ""], int], Any]


def simulator(program: Program, params: Mapping[str, Any] | None = None) -> Sampler:
    """``(key, n) -> {"x": x, "latents": {site: z}}``: n pairs drawn from the program; data for :func:`forward_kl`."""

    def draw(key: Key[Array, ""], n: int) -> dict[str, Any]:
        with trace() as sites, seed(rng_seed=key), substitute(data=dict(params or {})):
            program.model(size=n)
        values = {name: sites[name]["value"].astype("float32") for name in (*program.observed, *program.latents)}
        return {"x": program.from_draw(values), "latents": {name: values[name] for name in program.latents}}

    return draw


def forward_kl(program: Program) -> Program:
    """A program whose log-likelihood is ``log q(z | x)``: fit it on ``simulator(program)``, then use the parameters.

    Its ``sampler`` is ``simulator(program)`` with the parameters that the program starts from.

    The generative part must have no parameters of its own to learn (they would get no gradient), and the program must
    be able to prepare its own draws like stored data; ``prepare`` is applied to x, so a family that hides part of x in
    training does so here too.

    Raises ``ValueError`` for a program without latents, or with several observed sites.

    >>> fitted = fit(forward_kl(program), simulator(program), steps=2000, key=jax.random.key(0))
    >>> fitted = dataclasses.replace(fitted, program=program)
    """
    posterior = program.posterior
    if posterior is None or not program.latents:
        raise ValueError("forward_kl needs a program with latents and a posterior; this program has none")
    if len(program.observed) != 1:
        raise ValueError(f"forward_kl needs one observed site, got {program.observed}")
    if program.observation.given:
        raise ValueError(f"forward_kl draws whole data, this program needs inputs: {program.observation.given}")
    latents = jax.eval_shape(lambda: _latent_values(program))

    def prepare(pairs: dict[str, Any], key: Key[Array, ""], training: bool) -> dict[str, Any]:
        x = jax.tree.map(lambda leaf: leaf.astype("float32"), pairs["x"])
        z = {name: pairs["latents"][name].astype(like.dtype) for name, like in latents.items()}
        return {"x": program.observation.prepare(x, key, training), "latents": z}

    def model(x: Any = None, *, size: int | None = None) -> None:
        if x is None:
            raise ValueError(f"this program scores simulated pairs only, got size={size}; draw them with simulator()")
        # Conditioned outside amortise, a latent is scored under q; x itself is not scored.
        hidden = block(hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
        with condition(data=x["latents"]), amortise(q=posterior(x["x"])), hidden:
            program.model(x["x"])

    return dataclasses.replace(
        program,
        model=model,
        posterior=None,
        latents=(),
        observed=program.latents,
        shape={"x": program.shape, "latents": {name: like.shape[1:] for name, like in latents.items()}},
        observation=Observation(
            "latents of simulated pairs given their data", prepare=prepare, sampler=simulator(program)
        ),
        training=dataclasses.replace(program.training, weights={}),
        exact=dataclasses.replace(program.exact, predictor=None),
        views=Views(tuple(f"q({name} | x)" for name in program.latents), program.views.modules),
    )


def _latent_values(program: Program) -> dict[str, Array]:
    with trace() as sites, seed(rng_seed=0):
        program.model(size=1)
    return {name: sites[name]["value"] for name in program.latents}
