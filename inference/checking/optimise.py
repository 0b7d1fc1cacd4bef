"""Optimise the posterior of each datum by itself, the decoder frozen: Adam on the Gaussians of a chunk of data at once.

    elbo  E_q log w, w = p(x, z) / q(z | x), gradients of log q through z alone
    dreg  E log (1/K) sum_k w_k by its doubly reparameterised gradient, sum_k v_k^2 d log w_k with v the normalised
          weights (Tucker, Lawson, Gu & Maddison 2019, eq. 8)

Every datum has its own noise, its own Adam and its own clock, whatever data it shares a batch with.  It climbs at one
rate until its bound no longer rises (:func:`gain`: the same noise before and after, so that what the steps changed is
not drowned in what the draws differ), then the rate falls along a cosine for :data:`SETTLE` steps and it is done; the
place of a finished datum in the batch is taken by the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from inference.checking.gaussians import Gaussian, start, which
from inference.checking.per_datum import REFINE, check_count, once, pair_key
from inference.checking.semi_amortised import Layout, log_weight
from inference.fitting.progress import Progress
from ppl_models.program import Program, rows, take


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
BLOCK, FIRST, SETTLE = 10, 50, 90
"""Steps between two looks at the bound of a datum; steps before a look may end the climb, whose first rises at the full
rate are mostly noise; steps in which the rate falls once the bound no longer rises."""
LOOK = 2**32 - 1
"""Stands for the step of a look: no step has this number."""
PLACES = 64
"""Data optimised side by side on a CPU: many more would wait for the slowest of them."""
COVARIANCES = ("auto", "diag", "full", "low_rank")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How posteriors are refined; the defaults of :func:`inference.refine`, which says what each is."""

    objective: str = "elbo"
    covariance: str = "auto"
    rank: int = 8
    steps: int = 200
    tolerance: float = 0.02
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
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(
                f"tolerance is a rise of the bound in nats, at least 0, got {self.tolerance!r}; try 0.02, or 0 to take "
                "every step"
            )
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


def gain(before: np.ndarray, after: np.ndarray, objective: str) -> tuple[np.ndarray, np.ndarray]:
    """Rise of a bound in nats between two sets of log weights (data, K) from the same noise, and its standard error.

    ELBO: the mean of the K differences.  Importance-weighted bound: the difference of log mean w, by the delta method.
    """
    count = before.shape[1]
    if objective == "elbo":
        each = after - before
        return each.mean(1), each.std(1, ddof=1) / math.sqrt(count)
    tops = [log_w.max(1, keepdims=True) for log_w in (before, after)]
    weights = [np.exp(log_w - top) for log_w, top in zip((before, after), tops, strict=True)]
    means = [weight.mean(1, keepdims=True) for weight in weights]
    rise = (np.log(means[1]) + tops[1] - np.log(means[0]) - tops[0])[:, 0]
    return rise, (weights[1] / means[1] - weights[0] / means[0]).std(1, ddof=1) / math.sqrt(count)


class Optimised(NamedTuple):
    """The Gaussian of each datum, widening included, and the steps that it took."""

    q: Gaussian
    steps: np.ndarray


ADAM = optax.scale_by_adam(b2=0.99)  # some hundred steps: the memory of squared gradients must be shorter


def _stepper(program: Program, name: str, draws: int) -> Callable[..., Any]:
    """One step of every datum of a batch, each with its own clock: ``(q, Adam's state, log weights before it)``."""
    objective = OBJECTIVES[name]

    def loss(q: Gaussian, params: Any, mutable: Any, own: Any, x: Any, noise: Any) -> tuple[Array, Array]:
        x = program.observation.prepare(take(x, None), noise, False)
        eps_key, draw_key = jax.random.split(own)
        each = jax.vmap(lambda k, eps: log_weight(program, params, k, x, q, eps, mutable=mutable))
        log_w = each(jax.random.split(draw_key, draws), q.draw(eps_key, draws))
        return -objective(log_w), log_w

    def one(
        q: Any, opt: Any, begin: Any, params: Any, mutable: Any, key: Any, x: Any, noise: Any, datum: Any, clock: Any,
        rate: Any,
    ) -> Any:  # fmt: skip
        def where(condition: Array, yes: Any, no: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)

        q, opt = where(clock == 0, (begin, ADAM.init(begin)), (q, opt))
        # A look at the bound has the noise of the first, and moves nothing: climbing on the same few draws again and
        # again would fit the posterior to them.
        own = pair_key(key, REFINE, datum, jnp.where(rate > 0, clock, jnp.uint32(LOOK)))
        (value, log_w), grads = jax.value_and_grad(loss, has_aux=True)(q, params, mutable, own, x, noise)
        finite = jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]).all() & jnp.isfinite(value)
        # A step that is not finite is left out, of its own datum alone.
        grads = where(finite, grads, jax.tree.map(jnp.zeros_like, grads))
        moves, next_opt = ADAM.update(grads, opt)
        moved = jax.tree.map(lambda a, move: a - rate * move, q, moves)
        return (*where(finite & (rate > 0), (moved, next_opt), (q, opt)), log_w)

    axes = (0, 0, None, None, None, None, 0, 0, 0, 0, 0)
    return jax.jit(jax.vmap(one, in_axes=axes), donate_argnums=(0, 1))


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
) -> Optimised:
    """The optimised Gaussian of each stored datum of ``x``.

    ``noise`` the keys that the data are prepared with, ``index`` their rows in the whole they were taken from, which
    their random numbers depend on; ``pairs`` how many (datum, draw) pairs are evaluated at once.
    """
    n, program = rows(x), fit.program
    covariance = which(settings.covariance, layout.size)
    begin = take(start(1, layout.size, covariance, settings.rank, jax.random.fold_in(key, REFINE)), 0)
    step_of = once(_stepper, program, settings.objective, settings.draws)
    # Two sizes: each is compiled by itself.
    places = max(1, min(pairs // settings.draws, n if jax.default_backend() != "cpu" else 8 if n <= 8 else PLACES))
    q = jax.tree.map(lambda leaf: jnp.tile(leaf, (places, *[1] * leaf.ndim)), begin)
    opt = jax.vmap(ADAM.init)(q)
    found = jax.tree.map(lambda leaf: np.empty((n, *leaf.shape), leaf.dtype), begin)
    clocks = Clocks(n, places, settings)
    with Progress(n, "refining", unit="data", show=progress, delay=2.0) as bar:
        while clocks.busy:
            at = clocks.at
            batch, keys, datum = take(x, at), noise[at], index[at].astype(np.uint32)

            # A loop in Python: convolutions inside a scan are tens of times slower on a CPU, and a step is long.
            def step(q: Any, opt: Any, clock: np.ndarray, rate: np.ndarray, at: Any = (batch, keys, datum)) -> Any:
                clock = clock.astype(np.uint32)
                return step_of(q, opt, begin, fit.params, fit.mutable, key, *at, clock, rate)

            if clocks.stops:
                q, opt, log_w = step(q, opt, clocks.clock, np.zeros(places, np.float32))
                clocks.look(np.asarray(log_w, np.float64))
            for ahead in range(BLOCK):
                clock, rate = clocks.rates(ahead)
                if not rate.any():
                    break
                q, opt, _ = step(q, opt, clock, rate)
            done = clocks.advance()
            if done.any():
                for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(q), strict=True):
                    whole[at[done]] = np.asarray(part)[done]
            clocks.refill(done)
            bar.update(int((clocks.steps >= 0).sum()))
    return Optimised(jax.tree.map(jnp.asarray, found).widened(settings.wider(layout.size)), clocks.steps)


class Clocks:
    """Which datum sits in each place of a batch, the steps it has taken, and when it will have taken its last."""

    def __init__(self, data: int, places: int, settings: Settings) -> None:
        self.settings, self.steps = settings, np.full(data, -1)
        """Steps that each datum took; -1 until it is done."""
        self.at, self.clock = np.minimum(np.arange(places), data - 1), np.zeros(places, int)
        self.next, self.open = places, np.arange(places) < data
        self.stops = settings.tolerance > 0 and settings.draws >= 4
        self.end = np.full(places, settings.steps)
        self.before = np.full((places, settings.draws), np.nan)

    @property
    def busy(self) -> bool:
        return bool(self.open.any())

    @property
    def settle(self) -> int:
        """Steps in which the rate falls: all of them where no datum stops before the last."""
        return min(SETTLE, self.settings.steps) if self.stops else self.settings.steps

    def rates(self, ahead: int) -> tuple[np.ndarray, np.ndarray]:
        """Clock and rate of each place, ``ahead`` steps into the block; the rate is 0 where nothing is to be done."""
        clock = self.clock + ahead
        left = np.clip((self.end - clock) / max(1, self.settle), 0.0, 1.0)
        cosine = 0.05 + 0.95 * 0.5 * (1 - np.cos(np.pi * left))
        rate = self.settings.learning_rate * cosine
        return clock, np.where(self.open & (clock < self.end), rate, 0.0).astype(np.float32)

    def look(self, log_w: np.ndarray) -> None:
        """Let those settle whose bound no longer rises: by the tolerance, or by what its draws can tell."""
        if not self.stops:
            return
        with np.errstate(invalid="ignore", over="ignore"):
            rise, error = gain(self.before, log_w, self.settings.objective)
        # Not (a > b): a bound that is not a number tells nothing, and all steps are taken.
        flat = (rise <= np.maximum(self.settings.tolerance, error / 2)) & (self.clock >= FIRST)
        self.end = np.where(flat, np.minimum(self.end, self.clock + SETTLE), self.end)
        # Where the draws agree that nothing is left to gain, the rate need not fall to its end.
        sure = (np.abs(rise) + 2 * error <= self.settings.tolerance / 4) & (self.clock > BLOCK)
        self.end = np.where(sure, np.minimum(self.end, self.clock), self.end)
        self.before = log_w

    def advance(self) -> np.ndarray:
        """A block further; which places are done."""
        self.clock = np.minimum(self.clock + BLOCK, self.end)
        done = self.open & (self.clock >= self.end)
        self.steps[self.at[done]] = self.clock[done]
        return done

    def refill(self, done: np.ndarray) -> None:
        """Put the next data into the places of those that are done."""
        for place in np.flatnonzero(done):
            if self.next < len(self.steps):
                self.at[place], self.next = self.next, self.next + 1
                self.clock[place], self.end[place] = 0, self.settings.steps
            else:
                self.open[place] = False
