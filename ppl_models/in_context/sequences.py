"""Sequences of a task: as a NumPyro program p(theta) prod_t p(z_t | theta), and as a source of training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from ppl_models.in_context.tasks import Coin, Dice, Gaussian, Regression


def generative(task: Coin | Dice | Gaussian, length: int) -> Callable[..., Any]:
    """``p(theta) prod_t p(z_t | theta)``, a plate over sequences; entries of ``x`` that are NaN are not scored."""

    def model(x: ArrayLike | None = None, *, size: int | None = None) -> Array:
        batch = batch_size(x, size)
        with numpyro.plate("data", batch):
            theta = numpyro.sample("theta", task.prior(), infer={"ctx": None})
            symbols = task.likelihood(theta, length)
            if x is None:
                return numpyro.sample("x", symbols.to_event(1))
            z, seen = seen_part(x)
            z = z if task.symbols is None else z.astype(jnp.int32)
            return numpyro.sample("x", symbols.mask(seen).to_event(1), obs=z)

    return model


def sampler(task: Coin | Dice | Gaussian | Regression, length: int) -> Callable[[Key[Array, ""], int], Array]:
    """``(key, n) -> (n, length)``: sequences drawn from the task, as stored."""
    if isinstance(task, Regression):
        return lambda key, n: task.draw(key, n, length)
    of: Coin | Dice | Gaussian = task

    def draw(key: Key[Array, ""], n: int) -> Array:
        theta_key, z_key = jax.random.split(key)
        theta = of.prior().sample(theta_key, (n,))
        z = of.likelihood(theta, length).sample(z_key)
        return z.astype("float32" if of.symbols is None else "uint8")

    return draw


def seen_part(x: ArrayLike) -> tuple[Array, Array]:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x, jnp.ones(x.shape, bool)
    seen = ~jnp.isnan(x)
    return jnp.where(seen, x, 0.0), seen


def batch_size(x: ArrayLike | None, size: int | None) -> int:
    if x is None and size is None:
        raise ValueError("the model needs data x or a size: model(x) scores x, model(size=n) draws n fresh sequences")
    return jnp.shape(x)[0] if x is not None else size  # type: ignore[return-value]
