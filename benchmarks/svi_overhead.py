"""Does a step of the fit cost more than the same step written by hand in JAX and Optax?

A Bernoulli VAE, 784-400-20, analytic KL, Adam, uint8 data on the device and a fresh batch each step, is written twice
from nothing.  Then one preset of each family, its loss written out around the family's networks (``_by_hand.py``): the
two losses, and their gradients, are first found to agree.  The hand-written step is what one would write without this
package: no NumPyro, no skip of non-finite updates, no running totals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import nnx

from benchmarks._by_hand import CASES, agreement, steps_of
from benchmarks.harness import Claim, interleaved_cpu_time
from inference.fitting.sources import ArraySource
from inference.fitting.trainer import Trainer, make_optimizer
from ppl_models.program import Observation, Posterior, Program, bind

PIXELS, HIDDEN, LATENT, RATE = 784, 400, 20, 1e-3
RUNS, TARGET = 5, "<= 1.03"
"""A ratio is the median of so many runs, each the median of its own rounds in turns."""


class Encoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(PIXELS, HIDDEN, rngs=rngs)
        self.loc = nnx.Linear(HIDDEN, LATENT, rngs=rngs)
        self.log_scale = nnx.Linear(HIDDEN, LATENT, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = nnx.relu(self.hidden(x))
        return self.loc(h), self.log_scale(h)


class Decoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(LATENT, HIDDEN, rngs=rngs)
        self.logits = nnx.Linear(HIDDEN, PIXELS, rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        return self.logits(nnx.relu(self.hidden(z)))


def declared(encoder: Encoder, decoder: Decoder) -> Program:
    """The model as a program of this package."""

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        decode = bind("decoder", decoder)
        with numpyro.plate("data", (size or 1) if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENT]).to_event(1), infer={"ctx": None})
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def posterior(x: jax.Array) -> Posterior:
        loc, log_scale = bind("encoder", encoder)(x)
        return lambda site, ctx: dist.Normal(loc, jnp.exp(log_scale)).to_event(1)

    binary = lambda x, key, training: (x > 127).astype(jnp.float32)  # noqa: E731
    return Program(None, model, posterior, ("z",), (PIXELS,), observation=Observation(prepare=binary))


def written_by_hand(encoder: Encoder, decoder: Decoder) -> tuple[Callable[..., Any], Any]:
    """The same model in JAX, Flax and Optax: ``step(state, store, index)`` and its initial state."""
    graph, params = nnx.split((encoder, decoder))
    optimizer = optax.adam(RATE)

    def loss(params: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        encode, decode = nnx.merge(graph, params)
        loc, log_scale = encode(x)
        z = loc + jnp.exp(log_scale) * jax.random.normal(key, loc.shape)
        logits = decode(z)
        log_lik = jnp.sum(x * logits - jax.nn.softplus(logits), -1)
        kl = 0.5 * jnp.sum(jnp.exp(2 * log_scale) + loc**2 - 1 - 2 * log_scale, -1)
        return jnp.mean(kl - log_lik)

    def step(state: Any, store: jax.Array, index: jax.Array) -> Any:
        key, params, opt = state
        key, noise = jax.random.split(key)
        x = (store[index] > 127).astype(jnp.float32)
        updates, opt = optimizer.update(jax.grad(loss)(params, noise, x), opt, params)
        return key, optax.apply_updates(params, updates), opt

    params = jax.tree.map(jnp.copy, params)
    return jax.jit(step, donate_argnums=0), (jax.random.key(1), params, optimizer.init(params))


def step_times(batch: int, rounds: int, steps: int) -> dict[str, float]:
    """CPU milliseconds a step: by hand, of the fit, and of the fit with ten steps a dispatch."""
    encoder, decoder = Encoder(nnx.Rngs(0)), Decoder(nnx.Rngs(1))
    data = np.random.default_rng(0).integers(0, 256, (4096, PIXELS)).astype("uint8")
    source = ArraySource(data, batch, jax.random.key(0))
    trainer = Trainer(declared(encoder, decoder), source, make_optimizer(RATE, None, None), {}, None)
    step, state = written_by_hand(encoder, decoder)
    states: dict[str, Any] = {
        "hand": state,
        "fit": trainer.init(jax.random.key(1)),
        "fit10": trainer.init(jax.random.key(1)),
    }
    taken = 0

    def by_hand() -> Any:
        nonlocal taken
        taken += 1
        states["hand"] = step(states["hand"], source.store, source.feed(taken, 1)[0])
        return states["hand"][0]

    def fitted(name: str, count: int) -> Callable[[], Any]:
        def one() -> Any:
            nonlocal taken
            taken += count
            states[name] = trainer.update(states[name], source.feed(taken, count))
            return states[name].step

        return one

    singles = interleaved_cpu_time({"hand": by_hand, "fit": fitted("fit", 1)}, rounds=rounds, steps=steps)
    tens = interleaved_cpu_time(
        {"hand": by_hand, "fit10": fitted("fit10", 10)}, rounds=rounds, steps=max(1, steps // 10)
    )
    ratios = [f / h for f, h in zip(singles["fit"].rounds, singles["hand"].rounds, strict=True)]
    tens_ratios = [f / 10 / h for f, h in zip(tens["fit10"].rounds, tens["hand"].rounds, strict=True)]
    return {
        "hand_ms": 1e3 * singles["hand"].least, "fit_ms": 1e3 * singles["fit"].least,
        "fit10_ms": 1e2 * tens["fit10"].least, "ratio_of_least": singles["fit"].least / singles["hand"].least,
        "ratio_median_of_rounds": median(ratios), "ratio10_median_of_rounds": median(tens_ratios),
    }  # fmt: skip


def compile_times(rounds: int) -> dict[str, list[float]]:
    """CPU seconds from built modules to the end of the first step, all caches cold, in turns."""
    encoder, decoder = Encoder(nnx.Rngs(0)), Decoder(nnx.Rngs(1))
    data = np.random.default_rng(0).integers(0, 256, (1024, PIXELS)).astype("uint8")

    def hand(source: ArraySource) -> Any:
        step, state = written_by_hand(encoder, decoder)
        return step(state, source.store, source.feed(0, 1)[0])

    def ours(source: ArraySource) -> Any:
        trainer = Trainer(declared(encoder, decoder), source, make_optimizer(RATE, None, None), {}, None)
        return trainer.update(trainer.init(jax.random.key(1)), source.feed(0, 1))

    spent: dict[str, list[float]] = {"hand": [], "fit": []}
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        for _ in range(rounds):
            for name, function in (("hand", hand), ("fit", ours)):
                source = ArraySource(data, 128, jax.random.key(0))
                jax.clear_caches()
                start = time.process_time()
                jax.block_until_ready(jax.tree.leaves(function(source))[1:])
                spent[name].append(time.process_time() - start)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    return spent


def families(quick: bool) -> Iterable[Claim]:
    """Yield the ratio of CPU time a step for one preset of each family; ``quick``: one alone."""
    for name, build in CASES.items():
        if quick and name != "in_context":
            continue
        case = build()
        equal = agreement(case, keys=32 if quick else 256)
        functions, runs = steps_of(case), []
        for _ in range(1 if quick else RUNS):
            spent = interleaved_cpu_time(functions, rounds=3 if quick else 11, steps=case.steps)
            runs.append(median(f / h for f, h in zip(spent["fit"].rounds, spent["hand"].rounds, strict=True)))
        yield Claim(
            name=f"step_{name}",
            claim=f"CPU time of a fit's step over the hand-written one, {case.title}, batch 128",
            value=median(runs),
            unit="ratio",
            target=TARGET,
            if_missed="the gradient norm and the guard against non-finite updates, which the step by hand lacks, cost "
            "most where a network has many small arrays",
            seeds=(0, 1),
            detail={
                "runs": runs,
                "hand_ms": 1e3 * spent["hand"].least,
                "fit_ms": 1e3 * spent["fit"].least,
                "ratio_of_least": spent["fit"].least / spent["hand"].least,
                "agreement": equal,
            },  # fmt: skip
        )


def run(quick: bool) -> Iterable[Claim]:
    """Yield the ratios of CPU time a step, for a plain VAE and by family, and of the time to compile."""
    rounds, steps = (3, 10) if quick else (9, 40)
    for batch in (128,) if quick else (128, 512):
        found = [step_times(batch, rounds, steps) for _ in range(1 if quick else RUNS)]
        ratios = [run["ratio_median_of_rounds"] for run in found]
        yield Claim(
            name=f"step_batch{batch}",
            claim=f"CPU time of a fit's step over the hand-written one, VAE 784-400-20, batch {batch}",
            value=median(ratios),
            unit="ratio",
            target=TARGET,
            seeds=(0, 1),
            detail={"runs": ratios, "last": found[-1]},
        )
    spent = compile_times(2 if quick else 7)
    yield Claim(
        name="compile",
        claim="CPU time to trace, compile and take the first step over the hand-written one, caches cold",
        value=median(spent["fit"]) / median(spent["hand"]),
        unit="ratio",
        target="<= 1.5",
        seeds=(0, 1),
        detail={"cpu_seconds": spent},
    )
    yield from families(quick)
