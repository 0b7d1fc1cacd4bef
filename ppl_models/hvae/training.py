"""VDVAE's way to train, as arguments of ``inference.fit``; its rule to skip updates gives way to one that cannot lock.

The original skips every update whose gradient norm exceeds a fixed threshold (400 nats per dimension).  A run whose
norms settle above it never changes again.  Here an update is scaled down to a multiple of the running mean of the
gradient's norm, which follows wherever the norms go: nothing is skipped, and no number has units.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


class RunningNorm(NamedTuple):
    """Running mean of the logarithm of the gradient's norm; nan before the first update."""

    log_norm: Float[Array, ""]


def clip_to_running_norm(multiple: float = 4.0, decay: float = 0.98) -> optax.GradientTransformation:
    """Scale an update down to ``multiple`` times the geometric running mean of the updates' global norm.

    The mean takes in norms as they are cut, so one wild gradient hardly moves it; norms that stay high do: after a
    jump by a factor F the full updates are back within ``log F / ((1 - decay) log multiple)`` steps.
    """
    if not 1 < multiple < math.inf:
        raise ValueError(f"multiple must be above 1 (an ordinary gradient is left alone), got {multiple}; try 4")
    if not 0 <= decay < 1:
        raise ValueError(f"decay of the running norm must be between 0 and 1, got {decay}; try 0.98")

    def init(params: Any) -> RunningNorm:
        del params
        return RunningNorm(jnp.asarray(jnp.nan, "float32"))

    def update(updates: Any, state: RunningNorm, params: Any = None) -> tuple[Any, RunningNorm]:
        del params
        log_norm = jnp.log(jnp.maximum(optax.tree.norm(updates), 1e-30))
        mean = jnp.where(jnp.isnan(state.log_norm), log_norm, state.log_norm)
        cut = jnp.minimum(log_norm, mean + math.log(multiple))
        scaled = jax.tree.map(lambda u: u * jnp.exp(cut - log_norm), updates)
        return scaled, RunningNorm(decay * mean + (1 - decay) * cut)

    return optax.GradientTransformation(init, update)


def vdvae_training(
    steps: int | None = None,
    *,
    learning_rate: float = 2e-4,
    warmup: int = 100,
    b2: float = 0.9,
    weight_decay: float = 0.01,
    multiple: float = 4.0,
    average: float = 0.999,
) -> dict[str, Any]:
    """Arguments ``optimizer`` and ``average`` of ``inference.fit``: AdamW, linear warm-up, guarded norm, average.

    The defaults are the original's for 32x32 images (betas .9 and .9, decoupled weight decay .01, 2e-4 after 100
    steps, then constant); ``steps`` lets the rate fall to 1 % of its peak by half a cosine.  For small images and
    minutes: ``vdvae_training(steps, learning_rate=3e-3, b2=0.999, average=0.995)``.

    >>> fit(program, x, steps=9000, batch_size=64, key=key, **vdvae_training(9000, learning_rate=3e-3, b2=0.999))
    """
    if steps is not None and steps <= warmup:
        raise ValueError(f"steps must exceed the {warmup} steps of warm-up, got {steps}; pass a smaller warmup")
    start = learning_rate / max(1, warmup)  # the first update already moves
    if steps is None:
        rate = optax.linear_schedule(start, learning_rate, max(1, warmup))
    else:
        rate = optax.warmup_cosine_decay_schedule(start, learning_rate, warmup, steps, 0.01 * learning_rate)
    adamw = optax.adamw(rate, b1=0.9, b2=b2, weight_decay=weight_decay)
    return {"optimizer": optax.chain(clip_to_running_norm(multiple), adamw), "average": average}


def digits8_training(steps: int) -> dict[str, Any]:
    """Arguments ``optimizer``, ``average`` and ``weights`` of ``inference.fit`` for the preset ``digits8``.

    In a pyramid of convolutions the 1x1 level and the last at 8x8 stay empty at a constant price: the others learn
    faster, and what is left for them is worth less than it costs.  So the KL fades in from a twentieth over the first
    three tenths of the steps, and .05 nats of every level are free throughout; held-out scores are never so lenient.
    """
    fade = optax.linear_schedule(0.05, 1.0, max(1, 3 * steps // 10))
    rules = vdvae_training(steps, learning_rate=2e-3, warmup=min(100, steps // 2), b2=0.999, average=0.995)
    return {**rules, "weights": {"kl": fade, "free_bits": 0.05}}


def mnist_training(steps: int) -> dict[str, Any]:
    """Arguments ``optimizer``, ``average`` and ``weights`` of ``inference.fit`` for the preset ``mnist``.

    Rate 2e-3 at its peak, half a cosine to 1 % of it; the KL fades in from a tenth over the first fifth of the steps
    (Sonderby et al. 2016, arXiv 1602.02282, sec. 2.3: without it upper levels switch off early and stay off).
    """
    fade = optax.linear_schedule(0.1, 1.0, max(1, steps // 5))
    rules = vdvae_training(steps, learning_rate=2e-3, warmup=min(200, steps // 2), b2=0.999, average=0.999)
    return {**rules, "weights": {"kl": fade}}
