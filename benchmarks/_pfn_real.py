"""Loss of a prior-fitted network of real symbols to exact Bayes, by quadrature; a fit with the recipe of ``pfn``."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inference import fit
from ppl_models.in_context import InContext

NODES, REACH = 400, 8.0


def recipe(steps: int, peak: float = 5e-3) -> Any:
    """AdamW, warm-up to the peak rate, cosine to 1e-5, gradients clipped at norm 1."""
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps * 60 // 700), steps, 1e-5)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


def fitted(spec: InContext, steps: int, seed: int, peak: float = 5e-3, batch_size: int = 64) -> tuple[Any, float]:
    """A fit on fresh draws of its task, and its CPU seconds, compilation included."""
    build_key, fit_key = jax.random.split(jax.random.key(seed))
    program = spec.build(build_key)
    cpu = time.process_time()
    made = fit(
        program, program.observation.sampler, steps=steps, batch_size=batch_size, optimizer=recipe(steps, peak),
        key=fit_key, progress=False,
    )  # fmt: skip
    return made, time.process_time() - cpu


def kl_along(spec: InContext, rule: Any, sequences: int, seed: int) -> np.ndarray:
    """Mean of KL(exact || network) before each symbol of fresh sequences, (T,) nats; exact predictives are Normal.

    A sum over 400 values within 8 standard deviations of the exact predictive.
    """
    u = jnp.linspace(-REACH, REACH, NODES)
    weight = jnp.exp(-(u**2) / 2) / jnp.sqrt(2 * jnp.pi) * (u[1] - u[0])

    bayes = spec.exact  # found by tracing the task, which must not happen inside jit

    def one(row: Any) -> Any:
        def step(states: Any, z: Any) -> Any:
            exact, own = states
            f = bayes.predict(exact)
            at = f.loc + f.scale * u
            kl = weight @ (f.log_prob(at) - rule.predict(own).log_prob(at))
            return (bayes.update(exact, z), rule.update(own, z)), kl

        return jax.lax.scan(step, (bayes.init(row[:0]), rule.init(row[:0])), row)[1]

    z = spec.sampler(jax.random.key(seed), sequences)
    return np.asarray(jax.jit(lambda z: jax.lax.map(one, z, batch_size=16))(z), np.float64).mean(0)
