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

from inference.fitting.generative import as_data, example, generate, inputs_of
from inference.fitting.objectives import Weights, densities, trace_posterior
from ppl_models.program import Program, rows

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
        x, key = example(program), jax.random.key(0)
        given = inputs_of(program, x)
        drawn = generate(program, {}, key, 1, given=given)
        with trace() as scored, seed(rng_seed=key):
            program.model(x)
        whole = trace_posterior(program, {}, key, x)
        for which, sites in (("model", {**drawn, **scored}), ("whole", whole)):
            found[which] = [name for name, site in sites.items() if site["type"] == "param"]
        as_data(program, drawn, given)
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
    given = inputs_of(program, x)
    sites = generate(program, params, draw_key, rows(x), given=given, weights=weights, mutable=mutable)
    z = jax.lax.stop_gradient({name: sites[name]["value"] for name in program.latents})
    own = jax.lax.stop_gradient(as_data(program, sites, given))
    with substitute(data=z):
        log_q = densities(trace_posterior(program, params, score_key, own, weights=weights, mutable=mutable), own).log_q
    return -jnp.stack(list(log_q.values())).sum(0).mean()
