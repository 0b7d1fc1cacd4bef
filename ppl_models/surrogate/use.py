"""What a fitted surrogate is used for: to predict fields with their uncertainty, and to roll a flow forward.

    found = predict(fit, x)                      found.mean, found.sd (n, H, W, C)
    path = rollout(fit, x, steps=5)              path.mean, path.sd (n, 5, H, W, C)
    band = conformal(y_val, val.mean, val.sd)    intervals that keep their level: interval(mean, sd, band)

A ``fit`` is what ``inference.fit`` returns: anything with ``program``, ``params``.  Batches have one size, so that one
compilation serves all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, Num
from numpyro.handlers import substitute

from ppl_models.program import bind

BATCH, PIXELS = 64, 2**18
"""Data predicted at once: so many, fewer where they hold more pixels than this together."""


@dataclass(frozen=True)
class Prediction:
    """The law of y: ``mean`` (n, H, W, C); ``sd`` of the same shape; of masks, mean is the probability of a 1."""

    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Rollout:
    """Steps 1..T of a flow: ``mean`` and ``sd`` (n, T, H, W, C)."""

    mean: np.ndarray
    sd: np.ndarray


def predict(fit: Any, x: Num[np.ndarray, "n height width channel"]) -> Prediction:
    """Mean and standard deviation of every pixel of y given stored inputs ``x``."""
    x = _inputs(fit, x)
    kernel, parts = _kernel(fit), []
    size = max(1, min(BATCH, PIXELS // (x.shape[1] * x.shape[2])))
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])
        parts.append(tuple(np.asarray(a)[: len(rows)] for a in kernel(fit.params, padded)))
    return Prediction(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def rollout(
    fit: Any,
    x: Num[np.ndarray, "n height width channel"],
    steps: int,
    *,
    draws: int = 0,
    key: Key[jax.Array, ""] | None = None,
) -> Rollout:
    """Feed predictions back: the first C_y channels of x are the state, the others (a forcing, say) stay as they are.

    ``draws``  0: ``mean`` is the path of the means, and ``sd`` of a step is that of the one-step law there, which
               leaves out the errors carried over from earlier steps: calibrate each step (:func:`conformal`).
               At least 2: so many paths of draws of the program, from ``key``; their mean and standard deviation.

    Raises ``ValueError`` for masks, for fewer inputs than outputs, and for one draw.
    """
    spec = fit.program.spec
    C = spec.shape["y"][2]
    if spec.likelihood.kind != "normal" or spec.shape["x"][2] < C:
        raise ValueError(
            f"a roll-out feeds y back as the first {C} channels of x; this surrogate has shape {dict(spec.shape)} and "
            f"likelihood {spec.likelihood.kind!r}"
        )
    if steps < 1 or draws == 1 or draws < 0:
        raise ValueError(f"steps must be at least 1, draws 0 or at least 2, got {steps} and {draws}")
    if draws and key is None:
        raise ValueError("draws of a roll-out need key=jax.random.key(...)")
    x = np.repeat(_inputs(fit, x), max(1, draws), 0)
    means, sds = [], []
    for step in range(steps):
        found = predict(fit, x)
        state, sd = found.mean, found.sd
        if draws:
            noise = jax.random.normal(jax.random.fold_in(key, step), state.shape)  # type: ignore[arg-type]
            state = state + sd * np.asarray(noise)
            paths = state.reshape(-1, draws, *state.shape[1:])
            means.append(paths.mean(1))
            sds.append(paths.std(1, ddof=1))
        else:
            means.append(state)
            sds.append(sd)
        x = np.concatenate([state, x[..., C:]], -1)
    return Rollout(np.stack(means, 1), np.stack(sds, 1))


def _inputs(fit: Any, x: Any) -> np.ndarray:
    shape = tuple(fit.program.spec.shape["x"])
    x = np.asarray(x, np.float32)
    if x.shape[1:] != shape or not len(x):
        raise ValueError(f"x must be inputs (n, {', '.join(map(str, shape))}), got {x.shape}; pass data['x']")
    return x


def _kernel(fit: Any) -> Callable[..., Any]:
    return _compiled(_Module(fit.program.views.modules["network"]))


@dataclass(frozen=True)
class _Module:
    """A module by identity: what is compiled for it is kept."""

    net: Any

    def __hash__(self) -> int:
        return id(self.net)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Module) and self.net is other.net


@lru_cache(maxsize=8)
def _compiled(module: _Module) -> Callable[..., Any]:
    @jax.jit
    def run(params: Any, x: Float[jax.Array, "n height width channel"]) -> Any:
        with substitute(data=dict(params)):
            live = bind("network", module.net)
        loc, log_sd = live(x)
        if log_sd is None:
            p = jax.nn.sigmoid(loc)
            return p, jnp.sqrt(p * (1 - p))
        return loc, jnp.broadcast_to(jnp.exp(log_sd), loc.shape)

    return run
