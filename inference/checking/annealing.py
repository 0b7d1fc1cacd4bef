"""Annealed importance sampling of one datum's p(x) with Hamiltonian transitions, and sequential Monte Carlo.

    pi_b(z) ~ q0(z)^(1-b) p(x, z)^b,   0 = b_0 < b_1 < ... < b_K = 1
    log w   = sum_k (b_k - b_{k-1}) log [p(x, z_{k-1}) / q0(z_{k-1})],   z_k ~ T_k(. | z_{k-1}), T_k leaves pi_{b_k}

The average of w is unbiased for p(x) whatever T_k does (Neal 2001, eq. 4 and 11); with K = 1 it is importance sampling.
Run backwards from an exact draw of p(z | x), the average of 1/w is unbiased for 1/p(x), and bounds log p(x) from above
(Grosse, Ghahramani & Adams 2015).  Sequential Monte Carlo resamples the chains of a datum where the effective sample
size falls below half of them (Del Moral, Doucet & Jasra 2006).

Coordinates are the noise of the guide's maps (:mod:`inference.checking.noise_space`), whitened by the refined posterior
where there is one: all latents are then real numbers near N(0, I).  Starting at q rather than at the prior, the path is
as short as q is good.  T_k is a leapfrog trajectory with a new momentum, accepted by Metropolis, its step jittered by a
fifth.  Step sizes (for an acceptance of .8) and temperatures (equal steps of the path's thermodynamic length: Gelman &
Meng 1998, section 3.2) are found for each datum by pilot chains with keys of their own, then frozen: estimates stay
unbiased.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from inference.checking.gaussians import Gaussian
from inference.checking.noise_space import draw_start, log_densities, log_start, noise_of, place, unplace
from inference.checking.per_datum import check_count, compiled, pair_key
from inference.fitting.progress import Progress
from ppl_models.program import rows, take

STARTS = ("posterior", "prior")
ACCEPTANCE = 0.8
PILOTS, PASSES = 16, 2
"""Chains of a datum that find its step sizes and temperatures, and how often they climb."""
SETTLE = 10
"""Transitions at b = 1 that part the backward chains, which all begin at the one exact draw."""
_PILOT, _FORWARD, _BACKWARD = 16, 24, 25  # purposes of keys, beyond those of inference.checking.per_datum


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """How a datum is annealed; the defaults of :func:`inference.evidence`, which says what each is."""

    temperatures: int = 16
    transitions: int = 1
    leapfrog: int = 4
    start: str = "posterior"

    def __post_init__(self) -> None:
        for name in ("temperatures", "transitions", "leapfrog"):
            check_count(name, getattr(self, name), 1)
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {self.start!r}")

    def changed(self) -> list[str]:
        """Names of what is not the default."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]


class Ladder(NamedTuple):
    """Inverse temperatures 0 = b_0 < ... < b_K = 1 of each datum, and the leapfrog step at each."""

    b: Float[np.ndarray, "data K+1"]
    step: Float[np.ndarray, "data K+1"]


class Chains(NamedTuple):
    """Whitened positions, log densities of start and joint there, gradients of both, and the likelihood's own keys."""

    u: Float[Array, "data chains D"]
    start: Float[Array, "data chains"]
    joint: Float[Array, "data chains"]
    start_grad: Float[Array, "data chains D"]
    joint_grad: Float[Array, "data chains D"]
    own: Key[Array, "data chains"]

    @property
    def delta(self) -> Float[Array, "data chains"]:
        """log p(x, z) - log q0(z)."""
        return self.joint - self.start


class Block(NamedTuple):
    """Some data on the device: prepared, with their starts, row numbers, and where they stand in the whole."""

    x: Any
    q: Gaussian
    number: Array
    at: np.ndarray
    keep: int


@dataclass(frozen=True)
class Data:
    """Stored data, the keys they are prepared with, their starts q0 over the noise, and their rows in a whole."""

    x: Any
    noise: Key[Array, " data"]
    q: Gaussian
    index: np.ndarray


class Annealer:
    """Chains of a fit's posteriors; calls with as many data and chains as before compile nothing.

    ``pairs`` (datum, chain) pairs are evaluated at once.
    """

    def __init__(self, fit: Any, settings: Annealing, pairs: int, *, progress: bool = True) -> None:
        self.fit, self.settings, self.pairs, self.progress = fit, settings, pairs, progress
        program, prior = fit.program, settings.start == "prior"

        def densities(params: Any, mutable: Any, x: Any, q: Gaussian, own: Any, u: Array) -> tuple[Array, Array]:
            found = log_densities(program, params, own, x, place(q, u), mutable=mutable)
            return (found.prior if prior else log_start(q, u)), found.joint

        def evaluate(params: Any, mutable: Any, x: Any, q: Gaussian, own: Any, u: Array) -> tuple[Array, ...]:
            if prior:
                (start, joint), pull = jax.vjp(lambda u: densities(params, mutable, x, q, own, u), u)
                one, none = jnp.ones_like(start), jnp.zeros_like(start)
                return start, joint, *pull((one, none)), *pull((none, one))
            start, start_grad = jax.value_and_grad(lambda u: log_start(q, u))(u)
            joint, joint_grad = jax.value_and_grad(lambda u: densities(params, mutable, x, q, own, u)[1])(u)
            return start, joint, start_grad, joint_grad

        def begin(params: Any, mutable: Any, x: Any, q: Gaussian, own: Any, key: Any) -> Array:
            if prior:
                return unplace(q, noise_of(program, params, key, x, mutable=mutable))
            return draw_start(q, key)

        def known(params: Any, mutable: Any, x: Any, q: Gaussian, own: Any, latents: Any) -> Array:
            return unplace(q, noise_of(program, params, own, x, latents=take(latents, None), mutable=mutable))

        def over(function: Any, per_chain: bool = True) -> Any:
            chains = jax.vmap(function, in_axes=(None, None, None, None, 0, 0 if per_chain else None))
            return jax.vmap(chains, in_axes=(None, None, 0, 0, 0, 0))

        self._evaluate, self._begin, self._known = (
            jax.jit(over(evaluate)),
            compiled(over(begin)),
            compiled(over(known, False)),
        )
        self._prepare = jax.jit(
            jax.vmap(lambda x, key: program.observation.prepare(take(x, None), key, False), in_axes=(0, 0))
        )

    # ------------------------------------------------------------------------------------------------- passes
    def pilot(self, data: Data, key: Key[Array, ""]) -> Ladder:
        """Temperatures and step sizes of each datum."""
        K, n = self.settings.temperatures, rows(data.x)
        D = data.q.loc.shape[-1]
        even = np.linspace(0, 1, K + 1) ** (4 if self.settings.start == "prior" else 1)
        b, step = np.tile(even, (n, 1)), np.full((n, K + 1), 0.8 * D**-0.25)
        if K == 1:
            return Ladder(b, step)
        with self.bar(n * PASSES * K, "finding step sizes and temperatures") as bar:
            for turn in range(PASSES):
                spread = np.empty_like(b)
                for block in self.blocks(data, PILOTS):
                    at, keys = block.at, self.keys(block, key, _PILOT + turn, PILOTS)
                    chains = self.start(block, keys)
                    size, sds, steps = jnp.asarray(step[at, 1]), [_sd(chains.delta)], [step[at, 1]]
                    for k in range(1, K + 1):
                        if turn:
                            size = jnp.asarray(step[at, k])
                        for rep in range(self.settings.transitions):
                            chains, rate = self._move(block, chains, keys, (k, rep), b[at, k], size)
                            size = size * jnp.exp((1.0 if turn else 1.5) * (rate.mean(1) - ACCEPTANCE))
                        sds.append(_sd(chains.delta))
                        steps.append(np.asarray(size))
                        bar.update(bar.done + block.keep)
                    kept = at[: block.keep]
                    step[kept] = np.stack(steps, 1)[: block.keep]
                    spread[kept] = np.stack(sds, 1)[: block.keep]
                found = [_spaced(b[i], spread[i]) for i in range(n)]
                step = np.stack([np.exp(np.interp(found[i], b[i], _smooth(np.log(step[i])))) for i in range(n)])
                b = np.stack(found)
        return Ladder(b, step)

    def forward(self, data: Data, ladder: Ladder, key: Key[Array, ""], chains: int) -> tuple[np.ndarray, np.ndarray]:
        """Log weights (data, chains) of annealed importance sampling, and the mean acceptance of each datum."""
        K, n = self.settings.temperatures, rows(data.x)
        out, accepted = np.empty((n, chains)), np.full(n, np.nan)
        with self.bar(n * K, "annealing") as bar:
            for block in self.blocks(data, chains):
                keys = self.keys(block, key, _FORWARD, chains)
                state = self.start(block, keys)
                log_w, rates, b = np.zeros((len(block.at), chains)), [], ladder.b[block.at]
                for k in range(1, K + 1):
                    log_w = log_w + log_gain(b[:, k] - b[:, k - 1], state.delta)
                    if k < K:
                        state, found = self.moves(block, state, keys, k, ladder)
                        rates += found
                    bar.update(bar.done + block.keep)
                kept = block.at[: block.keep]
                out[kept] = np.asarray(log_w)[: block.keep]
                if rates:
                    accepted[kept] = np.mean([np.asarray(rate).mean(1) for rate in rates], 0)[: block.keep]
        return out, accepted

    def backward(
        self, data: Data, ladder: Ladder, latents: Any, key: Key[Array, ""], chains: int
    ) -> Float[np.ndarray, "data chains"]:
        """Log weights of chains from the exact draw ``latents`` (data, *event), by site, down to the start."""
        K, n = self.settings.temperatures, rows(data.x)
        out = np.empty((n, chains))
        with self.bar(n * K, "annealing backwards") as bar:
            for block in self.blocks(data, chains):
                keys = self.keys(block, key, _BACKWARD, chains)
                there = jax.tree.map(lambda leaf, at=block.at: jnp.asarray(leaf)[at], latents)
                own = _fold(keys, 0)
                u = self._known(self.fit.params, self.fit.mutable, block.x, block.q, own[:, :1], there)
                state = self._at(block, jnp.tile(u, (1, chains, 1)), own)
                if K > 1:
                    for rep in range(SETTLE):
                        at_one = ladder.b[block.at, K], ladder.step[block.at, K]
                        state, _ = self._move(block, state, keys, (K, rep), *at_one)
                log_w, b = np.zeros((len(block.at), chains)), ladder.b[block.at]
                for k in range(K, 0, -1):
                    log_w = log_w + log_gain(b[:, k] - b[:, k - 1], state.delta)
                    if k > 1:
                        state, _ = self.moves(block, state, keys, k - 1, ladder)
                    bar.update(bar.done + block.keep)
                out[block.at[: block.keep]] = np.asarray(log_w)[: block.keep]
        return out

    # -------------------------------------------------------------------------------------------------- chains
    def bar(self, total: int, what: str) -> Progress:
        """Progress over (datum, temperature) pairs."""
        return Progress(total, what, unit="temperatures", show=self.progress, delay=2.0)

    def blocks(self, data: Data, chains: int) -> Iterator[Block]:
        """Data in blocks of one shape; the last repeats its last datum."""
        n = rows(data.x)
        count = -(-n // max(1, self.pairs // chains))
        size = -(-n // count)
        for first in range(0, n, size):
            at = np.minimum(np.arange(first, first + size), n - 1)
            x = self._prepare(take(data.x, at), data.noise[at])
            yield Block(x, take(data.q, at), jnp.asarray(data.index[at], jnp.uint32), at, min(size, n - first))

    def keys(self, block: Block, key: Key[Array, ""], purpose: int, chains: int) -> Key[Array, "data chains"]:
        """A key for each chain of a block."""
        return pair_keys(key, purpose, block.number, jnp.arange(chains, dtype=jnp.uint32))

    def start(self, block: Block, keys: Key[Array, "data chains"]) -> Chains:
        """Chains drawn from q0."""
        own = _fold(keys, 0)
        u = self._call(self._begin, block, own, _fold(keys, 1))
        return self._at(block, u, own)

    def _at(self, block: Block, u: Array, own: Any) -> Chains:
        start, joint, start_grad, joint_grad = self._call(self._evaluate, block, own, u)
        return Chains(u, start, joint, start_grad, joint_grad, own)

    def _call(self, kernel: Any, block: Block, own: Any, each: Any) -> Any:
        """A kernel over all chains of a block, in parts of one width where one datum's are too many at once."""
        size, chains = own.shape
        parts = -(-chains // max(1, self.pairs // size))
        width = -(-chains // parts)
        found = []
        for first in range(0, chains, width):
            at = np.minimum(np.arange(first, first + width), chains - 1)
            out = kernel(self.fit.params, self.fit.mutable, block.x, block.q, own[:, at], each[:, at])
            found.append(jax.tree.map(lambda leaf, most=chains - first: leaf[:, :most], out))
        return found[0] if parts == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), *found)

    def moves(
        self, block: Block, state: Chains, keys: Any, k: int, ladder: Ladder
    ) -> tuple[Chains, list[Float[Array, "data chains"]]]:
        """The transitions at temperature k, and their probabilities of acceptance."""
        rates = []
        for rep in range(self.settings.transitions):
            state, rate = self._move(block, state, keys, (k, rep), ladder.b[block.at, k], ladder.step[block.at, k])
            rates.append(rate)
        return state, rates

    def _move(
        self, block: Block, old: Chains, keys: Any, when: tuple[int, int], b: Any, step: Any
    ) -> tuple[Chains, Float[Array, "data chains"]]:
        """One Hamiltonian transition that leaves pi_b as it is, and the probabilities of acceptance."""
        b = jnp.asarray(b, jnp.float32)
        p, h, uniform = _momenta(old.u, keys, np.uint32(when[0]), np.uint32(when[1]), jnp.asarray(step, jnp.float32))
        new, q = self.trajectory(block, old, p, h, b)
        return _decide(old, new, p, q, uniform, b)

    def trajectory(
        self, block: Block, chains: Chains, p: Float[Array, "data chains D"], h: Float[Array, "data chains"], b: Array
    ) -> tuple[Chains, Float[Array, "data chains D"]]:
        """Where leapfrog steps of size ``h`` take the chains and their momenta ``p``: reversible, of volume 1."""
        p = _kick(chains, p, h / 2, b)
        # A loop in Python: convolutions inside a scan are tens of times slower on a CPU.
        for left in range(self.settings.leapfrog, 0, -1):
            chains = self._at(block, chains.u + h[..., None] * p, chains.own)
            p = _kick(chains, p, h if left > 1 else h / 2, b)
        return chains, p


# ------------------------------------------------------------------------------------------------ leapfrog
@compiled
def pair_keys(key: Any, purpose: Any, index: Array, chain: Array) -> Array:
    """A key for each (datum, chain)."""
    return jax.vmap(lambda i: jax.vmap(lambda c: pair_key(key, purpose, i, c))(chain))(index)


@compiled
def _fold(keys: Any, number: Any) -> Array:
    return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(keys)


def _gradient(chains: Chains, b: Array) -> Array:
    b = b[:, None, None]
    return (1 - b) * chains.start_grad + b * chains.joint_grad


def _energy(chains: Chains, p: Array, b: Array) -> Array:
    b = b[:, None]
    # At b = 1 the start may be without a density, and does not count.
    start = jnp.where(b < 1, (1 - b) * chains.start, 0.0)
    return start + b * chains.joint - 0.5 * (p**2).sum(-1)


@compiled
def _momenta(u: Array, keys: Any, time: Any, rep: Any, step: Array) -> tuple[Array, Array, Array]:
    """New momenta, jittered steps, and uniform numbers to accept by."""

    def one(key: Any, u: Array) -> tuple[Array, Array, Array]:
        key = jax.random.fold_in(jax.random.fold_in(key, 2 + time), rep)
        momentum_key, jitter_key, accept_key = jax.random.split(key, 3)
        jitter = jax.random.uniform(jitter_key, (), minval=0.8, maxval=1.2)
        return jax.random.normal(momentum_key, u.shape), jitter, jax.random.uniform(accept_key)

    p, jitter, uniform = jax.vmap(jax.vmap(one))(keys, u)
    return p, step[:, None] * jitter, uniform


@jax.jit
def _kick(chains: Chains, p: Array, h: Array, b: Array) -> Array:
    b = b[:, None, None]
    return p + h[..., None] * ((1 - b) * chains.start_grad + b * chains.joint_grad)


@jax.jit
def _decide(old: Chains, new: Chains, p: Array, q: Array, uniform: Array, b: Array) -> tuple[Chains, Array]:
    """Metropolis: the new state, and the probability that it is the proposal ``new`` with momenta ``q``."""

    def minus_energy(chains: Chains, p: Array) -> Array:
        # At b = 1 the start may be without a density, and does not count.
        start = jnp.where(b[:, None] < 1, (1 - b[:, None]) * chains.start, 0.0)
        return start + b[:, None] * chains.joint - 0.5 * (p**2).sum(-1)

    ratio = minus_energy(new, q) - minus_energy(old, p)
    rate = jnp.where(jnp.isnan(ratio), 0.0, jnp.exp(jnp.minimum(ratio, 0.0)))  # what overflowed is refused
    yes = uniform < rate

    def where(a: Array, b: Array) -> Array:
        return jnp.where(yes.reshape(*yes.shape, *[1] * (a.ndim - 2)), a, b)

    u, start, joint, start_grad, joint_grad = (where(a, b) for a, b in zip(new[:-1], old[:-1], strict=True))
    return Chains(u, start, joint, start_grad, joint_grad, old.own), rate


# -------------------------------------------------------------------------------------------------- ladders
def log_gain(db: Float[np.ndarray, " data"], delta: Float[Array, "data chains"]) -> Float[np.ndarray, "data chains"]:
    """Log weights gained over a step ``db`` of b, in double precision: many small terms of large numbers."""
    return db[:, None] * np.asarray(delta, np.float64)


def _sd(delta: Array) -> np.ndarray:
    """Standard deviation of a datum's finite values."""
    found = np.asarray(delta, np.float64)
    found = np.where(np.isfinite(found), found, np.nan)
    with np.errstate(all="ignore"):
        count = np.isfinite(found).sum(1)
        centre = np.nansum(found, 1) / np.maximum(count, 1)
        return np.sqrt(np.nansum((found - centre[:, None]) ** 2, 1) / np.maximum(count - 1, 1))


def _spaced(b: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Temperatures at equal steps of the integral of sd_b[log p(x, z) - log q0(z)] over b."""
    sd = _smooth(sd)
    speed = sd + 0.1 * np.trapezoid(sd, b) + 1e-6  # none is left out
    length = np.concatenate([[0.0], np.cumsum(np.diff(b) * (speed[1:] + speed[:-1]) / 2)])
    found = np.interp(np.linspace(0, 1, len(b)), length / length[-1], b)
    found[0], found[-1] = 0.0, 1.0
    return found


def _smooth(values: np.ndarray) -> np.ndarray:
    """Average with the neighbours: sixteen chains say little of one temperature."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
