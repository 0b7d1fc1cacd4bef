"""Optimise the posterior of each datum by itself, the decoder frozen: Adam on the Gaussians of a chunk of data at once.

    elbo  E_q log w, w = p(x, z) / q(z | x), gradients of log q through z alone
    dreg  E log (1/K) sum_k w_k by its doubly reparameterised gradient, sum_k v_k^2 d log w_k with v the normalised
          weights (Tucker, Lawson, Gu & Maddison 2019, eq. 8)

Every datum has its own noise, its own Adam and the same number of steps, whatever chunk it shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from inference.checking.gaussians import Gaussian, start, which
from inference.checking.per_datum import REFINE, check_count, pair_key
from inference.checking.semi_amortised import Layout, log_weight
from inference.fitting.progress import Progress
from ppl_models.program import rows, take


def elbo(log_w: Float[Array, " K"]) -> Float[Array, ""]:
    """Average log weight."""
    return log_w.mean()


def dreg(log_w: Float[Array, " K"]) -> Float[Array, ""]:
    """Surrogate whose gradient is the doubly reparameterised one of the importance-weighted bound."""
    v = jax.lax.stop_gradient(jax.nn.softmax(log_w))
    return (v**2 * log_w).sum()


OBJECTIVES: dict[str, Callable[[Float[Array, " K"]], Float[Array, ""]]] = {"elbo": elbo, "dreg": dreg}
WIDENING = 0.03
"""What ``widen="auto"`` may cost of the ELBO, nats: a factor w costs D (w^2/2 - 1/2 - log w), about D (w - 1)^2."""
COVARIANCES = ("auto", "diag", "full", "low_rank")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How posteriors are refined; the defaults of :func:`inference.refine`, which says what each is."""

    objective: str = "elbo"
    covariance: str = "auto"
    rank: int = 8
    steps: int = 100
    draws: int = 8
    learning_rate: float = 0.05
    widen: float | str = "auto"
    defensive: float = 0.0

    def wider(self, size: int) -> float:
        """The factor of standard deviations for a datum of ``size`` latent numbers."""
        if isinstance(self.widen, str):
            return 1 + math.sqrt(WIDENING / max(1, size))
        return self.widen

    def __post_init__(self) -> None:
        for name, known in (("objective", tuple(OBJECTIVES)), ("covariance", COVARIANCES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        check_count("rank", self.rank, 1)
        check_count("steps", self.steps, 0)
        check_count("draws", self.draws, 2 if self.objective == "dreg" else 1)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate!r}; try 0.05")
        if self.widen != "auto" and (isinstance(self.widen, str) or not self.widen > 0):
            raise ValueError(
                f"widen multiplies standard deviations: 'auto' or a number above 0, got {self.widen!r}; try 1.15"
            )
        if not 0 <= self.defensive < 1:
            raise ValueError(
                f"defensive is the prior's share of the proposal, at least 0 and below 1, got {self.defensive!r}; "
                "try 0.05"
            )


def optimise(
    fit: Any,
    x: Any,
    noise: Key[Array, " data"],
    index: np.ndarray,
    layout: Layout,
    settings: Settings,
    *,
    key: Key[Array, ""],
    pairs: int,
    progress: bool,
) -> Gaussian:
    """The optimised Gaussian of each stored datum of ``x``, widening included.

    ``noise`` the keys that the data are prepared with, ``index`` their rows in the whole they were taken from, which
    their random numbers depend on; ``pairs`` how many (datum, draw) pairs are evaluated at once.
    """
    n, program, objective = rows(x), fit.program, OBJECTIVES[settings.objective]
    covariance = which(settings.covariance, layout.size)
    whole = start(n, layout.size, covariance, settings.rank, jax.random.fold_in(key, REFINE))
    schedule = optax.cosine_decay_schedule(settings.learning_rate, max(1, settings.steps), alpha=0.05)
    optimizer = optax.adam(schedule, b2=0.99)  # a hundred steps: the memory of squared gradients must be shorter

    def loss(q: Gaussian, params: Any, mutable: Any, own: Any, x: Any, noise: Any) -> Array:
        x = program.observation.prepare(take(x, None), noise, False)
        eps_key, draw_key = jax.random.split(own)
        each = jax.vmap(lambda k, eps: log_weight(program, params, k, x, q, eps, mutable=mutable))
        log_w = each(jax.random.split(draw_key, settings.draws), q.draw(eps_key, settings.draws))
        return -objective(log_w)

    def update(q: Any, opt: Any, params: Any, mutable: Any, key: Any, x: Any, noise: Any, datum: Any, step: Any) -> Any:
        own = jax.vmap(lambda i: pair_key(key, REFINE, i, step))(datum)
        values, grads = jax.vmap(jax.value_and_grad(loss), in_axes=(0, None, None, 0, 0, 0))(
            q, params, mutable, own, x, noise
        )
        parts = [jnp.isfinite(g).reshape(len(g), -1).all(1) for g in jax.tree.leaves(grads)]
        ok = jnp.isfinite(values) & jnp.stack(parts).all(0)

        def where(new: Array, old: Array) -> Array:
            return jnp.where(ok.reshape(-1, *[1] * (new.ndim - 1)), new, old) if new.ndim else new

        # A step that is not finite is left out, of its own datum alone.
        moves, next_opt = optimizer.update(jax.tree.map(lambda g: where(g, jnp.zeros_like(g)), grads), opt)
        return jax.tree.map(where, optax.apply_updates(q, moves), q), jax.tree.map(where, next_opt, opt)

    step_of = jax.jit(update, donate_argnums=(0, 1))
    chunks = -(-n // max(1, min(n, pairs // settings.draws)))
    size, found = -(-n // chunks), []
    with Progress(n * settings.steps, "refining", unit="steps", show=progress, delay=2.0) as bar:
        for first in range(0, n, size):
            at = np.minimum(np.arange(first, first + size), n - 1)
            q = jax.tree.map(jnp.copy, take(whole, at))
            opt, batch, keys, datum = optimizer.init(q), take(x, at), noise[at], index[at].astype(np.uint32)
            # A loop in Python: convolutions inside a scan are tens of times slower on a CPU, and a step is long.
            for step in range(settings.steps):
                q, opt = step_of(q, opt, fit.params, fit.mutable, key, batch, keys, datum, np.uint32(step))
                if step % 10 == 0:
                    jax.block_until_ready(q)  # so that the progress shown is that of work done
                    bar.update(first * settings.steps + (min(first + size, n) - first) * step)
            found.append(take(q, slice(0, min(size, n - first))))
        bar.update(n * settings.steps)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found).widened(settings.wider(layout.size))
