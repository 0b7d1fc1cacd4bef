"""The sleep phase: the guide also learns from the program's own draws, which never run out.

    S(phi) = E_{p(z, x)} [-log q_phi(z | x)] = E_{p(x)} KL(p(z | x) || q_phi(z | x)) + a constant

at the current parameters of the model (the sleep phase of wake-sleep: Hinton, Dayan, Frey & Neal 1995; Bornschein &
Bengio 2015, arXiv 1406.2751; inference compilation: Le, Baydin & Wood 2017, arXiv 1610.09900).  Its
minimum over all q is the exact posterior.  Where the ELBO's KL(q || p) lets q drop a part of the posterior, this one
makes q cover it.  It trusts the program: while p(x) is far from the data, q learns about data that there are not.

**What it moves.**  S is no function that the model may improve (it would by making its draws easy to invert), so its
gradient reaches the parameters of the guide alone: those whose ``param`` sites the posterior has and the bare model has
not.  A parameter of both is held fixed, and what the guide reads of the model, ctx(z), is too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from numpyro.handlers import seed, substitute, trace

from inference.fitting.objectives import Weights, densities, trace_posterior
from ppl_models.program import Program, knobs, rows, zeros

SLEEP = "sleep"
"""Column of the history with -log q(z | x) of the program's own draws."""


def guide_only(program: Program) -> tuple[str, ...]:
    """Names of the parameters that belong to the posterior alone, from one abstract trace of the model under each.

    Raises ``ValueError`` for a program without latents, one whose every parameter is also the model's, and one that
    cannot draw.
    """
    if program.posterior is None or not program.latents:
        raise ValueError("sleep trains a posterior on the program's own draws, this one has no latents; use sleep=0")
    found: dict[str, list[str]] = {}

    def traced() -> int:
        x, key = _example(program), jax.random.key(0)
        drawn = _run(program, {}, {}, key, x, None)
        with trace() as scored, seed(rng_seed=key):
            program.model(x)
        whole = trace_posterior(program, {}, key, x)
        for which, sites in (("model", {**drawn, **scored}), ("whole", whole)):
            found[which] = [name for name, site in sites.items() if site["type"] == "param"]
        program.from_draw(_values(program, drawn, x))
        return 0

    try:
        jax.eval_shape(traced)
    except NotImplementedError as error:
        raise ValueError(
            f"sleep needs a program that can draw its latents and data, this one cannot ({error}); use sleep=0"
        ) from error
    names = tuple(name for name in found["whole"] if name not in found["model"])
    if not names:
        raise ValueError(
            "sleep has nothing to train: the model has every parameter of the posterior, "
            f"{', '.join(found['model']) or 'which has none'}; use sleep=0"
        )
    return names


def sleep_loss(
    program: Program,
    params: Mapping[str, Any],
    key: Key[Array, ""],
    x: Any,
    *,
    weights: Weights | None = None,
    mutable: Mapping[str, Any] | None = None,
) -> Float[Array, ""]:
    """-log q(z | x) in nats per datum, averaged over as many draws of the program as ``x`` has data.

    ``x`` is prepared data; only its number is used, and the inputs of a conditional program: its draws are those given
    the inputs of the batch.  Nothing of a draw is missing.  Knobs have their values of the step, in draw and posterior.
    ``params`` stand still but for those that the caller differentiates: the draws carry no gradient.
    """
    draw_key, score_key = jax.random.split(key)
    sites = _run(program, params, mutable or {}, draw_key, x, weights)
    found = jax.lax.stop_gradient(_values(program, sites, x))
    z = {name: found[name] for name in program.latents}
    own = as_prepared(program, program.from_draw(found))
    with substitute(data=z):
        log_q = densities(trace_posterior(program, params, score_key, own, weights=weights, mutable=mutable), own).log_q
    return -jnp.stack(list(log_q.values())).sum(0).mean()


def as_prepared(program: Program, x: Any) -> Any:
    """A program's own draw in the dtypes of prepared data (a Bernoulli draws integers, encoders read floats)."""
    like = jax.eval_shape(lambda: _example(program))
    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), x, like)


def _example(program: Program) -> Any:
    return program.observation.prepare(jax.tree.map(jnp.asarray, zeros(program.shape)), jax.random.key(0), False)


def _given(program: Program, x: Any) -> dict[str, Array]:
    return {name: x[name] for name in program.observation.given}


def _run(
    program: Program, params: Mapping[str, Any], mutable: Mapping[str, Any], key: Key[Array, ""], x: Any, weights: Any
) -> dict[str, dict[str, Any]]:
    """Sites of one run of the bare model that draws as many data as ``x`` has, given its inputs."""
    data = {**params, **{name: dict(state) for name, state in mutable.items()}}
    given = _given(program, x)
    with trace() as sites, seed(rng_seed=key), substitute(data=data), knobs(weights or {}):
        program.model(given) if given else program.model(size=rows(x))
    return sites


def _values(program: Program, sites: Mapping[str, dict[str, Any]], x: Any) -> dict[str, Array]:
    """Values of latent and observed sites of a run, and the inputs that it was given."""
    return {**_given(program, x), **{n: sites[n]["value"] for n in (*program.latents, *program.observed)}}
