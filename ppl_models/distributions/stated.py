"""log p of a diffusion to an error that the caller states: steps and probes are added until it is met.

    log p(x) = log base(x_T) + integral div f(x_t, t) dt

The path is cheap (a call of the network a stage), the divergence is dear (Jacobian-vector products), and it need not be
known at every stage of the solver: here it is integrated by Gregory's rule of order 4 over the nodes of the path, so
that n steps of RK4 cost 4 n calls and n + 1 divergences instead of 4 n of both.  With ``x = cos(t) x_0 + sin(t) eps``
the nodes are even in u,

    cot t = C sinh(K (1 - u)),    0 <= u <= 1

even in log tan(t) for most of the way, for the divergence is a smooth function of that, and even in t next to pi/2.
Probes of images have their random signs on a lattice, every second pixel of every second row, four of them for all
pixels; or every fourth, sixteen for all, from where that is worth it.  The Jacobian of a denoiser fades with the
distance, and neighbours, which would scatter the estimate most, are never in one probe (Tang & Saad 2012).

What is stated has three parts:

    probes   sum_i w_i^2 var_i / N_i, the spread of the N_i estimates of the trace at node i, or that of the nodes
             before where it is larger; new probes at each node
    nodes    the rule with every second node left out, less this one, less what the probes explain of that, over 15
             (Richardson, for a rule of order 4)
    path     sum_i score(x_i) . e_i, e_i = h (k_4 - k_5) / 10 the local error of the embedded rule of order 3: a step
             that misses by e_i changes log p by the score times that

The lattice at a node follows from the spread at the nodes BEFORE, and a pass whose error is above the one asked for is
done again with new probes, on more nodes or with more of them: the estimate stays unbiased.  Everything is for
one datum.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ppl_models.distributions.diffusion_prior import DiffusionPrior
from ppl_models.distributions.schedules import Trigonometric

SHARE, STEPS_SHARE = 0.8, 0.6
"""Shares of the error asked for that probes and steps aim at where it was missed: in squares they make the whole."""
FIRST, LARGEST = 28, 112
"""Steps that are tried first, and at most."""
PROBES, MOST, DENSE = 4, 32, 1.5
"""Probes at once; how often they may be doubled, as a factor; how many too few make the lattice the wide one."""
BEND = 0.07
"""C of the grid: where the clock changes from log tan(t) to t."""
SMALL = 8
"""Numbers in a datum up to which the trace is exact: two random sign vectors would often be the same."""


class Stated(NamedTuple):
    """``log_p`` and the error that is stated for it, in nats; the ``steps`` and ``probes`` of the last pass."""

    log_p: Array
    error: Array
    probe_error: Array
    step_error: Array
    steps: Array
    probes: Array
    effort: Array


class _Sums(NamedTuple):
    """What is summed along the path: integral, variance, the same of the difference to every second node; errors."""

    whole: Array
    variance: Array
    gap: Array
    gap_variance: Array
    path: Array
    probes: Array


def log_prob_within(law: DiffusionPrior, x: Float[Array, "*shape"], error: float, *, key: Key[Array, ""]) -> Stated:
    """``log p(x)`` of one datum, known to about ``error`` nats; the solver and the trace of ``law`` are not used.

    ``key``  of the probes, another one for each datum.  Up to 8 numbers in a datum the trace is exact.

    Steps are doubled, from 28 to 112 at most, and probes up to 32-fold: where that does not suffice, the error that
    is returned is above the one that was asked for.  Raises ``ValueError`` unless ``error`` is positive and the
    schedule is ``Trigonometric`` up to pi/2, whose base is exact; every other one that preserves variance is a change
    of its clock.

    >>> import jax, jax.numpy as jnp
    >>> from ppl_models.distributions import DiffusionPrior, Trigonometric, Velocity
    >>> law = DiffusionPrior(Velocity(lambda params, x, t: jnp.zeros_like(x)), Trigonometric(), (2,))  # N(0, I)
    >>> found = log_prob_within(law, jnp.zeros(2), 0.1, key=jax.random.key(0))
    >>> round(float(found.log_p), 4), int(found.steps)
    (-1.8379, 28)
    """
    if not 0 < error < math.inf:
        raise ValueError(f"the error to be met is in nats, positive and finite, got {error!r}; 1 suits images")
    if not isinstance(law.schedule, Trigonometric) or law.schedule.T < math.pi / 2:
        raise ValueError(f"an error is stated along Trigonometric() up to pi/2 only, got {law.schedule}")

    def lacking(found: Stated) -> tuple[Array, Array]:
        """The steps and probes of the next pass: what it takes by the rates at which both errors fall."""
        short = (found.step_error > STEPS_SHARE * error) & (found.steps < LARGEST)
        n = jnp.where(short & (found.effort > 0), 2, 1) * found.steps
        wanted = (found.probe_error / (SHARE * error)) ** 2 * found.steps / n
        factor = jnp.exp2(jnp.ceil(jnp.log2(jnp.clip(wanted, 1.0, MOST)))).astype(int)
        return n, jnp.clip(found.effort * factor, 1, MOST)

    def again(found: Stated) -> Stated:
        n, effort = lacking(found)
        return _along(law, x, n, effort, SHARE * error, jax.random.fold_in(key, 1000 * n + effort))

    def more(found: Stated) -> Array:
        n, effort = lacking(found)
        return (found.error > error) & ((n > found.steps) | (effort > found.effort))

    nothing = jnp.full((), jnp.inf, x.dtype)  # one body for all passes compiles in half the time
    before = Stated(jnp.zeros_like(nothing), nothing, nothing, nothing, *jnp.asarray([FIRST, 0, 0]))
    return jax.lax.while_loop(more, again, before)


def gregory(i: Array, n: Array) -> Array:
    """Weight of node ``i`` of 0..n, over the step: 3/8, 7/6, 23/24, 1, .., 1, 23/24, 7/6, 3/8; for n >= 5."""
    return jnp.asarray([3 / 8, 7 / 6, 23 / 24, 1.0])[jnp.minimum(jnp.minimum(i, n - i), 3)]


def _along(law: DiffusionPrior, x: Array, n: Array, effort: Array, target: float, key: Array) -> Stated:
    zero = jnp.zeros((), x.dtype)
    K = math.asinh(1 / (math.tan(law.schedule.start) * BEND))

    def time(i: Array) -> tuple[Array, Array]:
        """The time at the (broken) node i, and how much of it passes in a step there."""
        left = K * (1 - jnp.minimum(i, n) / n)
        t = jnp.arctan2(1.0, BEND * jnp.sinh(left))
        return t, jnp.sin(t) ** 2 * BEND * K * jnp.cosh(left) / n

    def slope(x: Array, i: Array) -> Array:
        t, pace = time(i)
        return pace * law.drift(x, t)

    def node(given: Any) -> Any:
        i, x, missed, spread, was_wide, sums = given
        t, pace = time(i)
        weight = pace * gregory(i, n)
        other = jnp.where(i % 2 == 0, 2 * pace * gregory(i // 2, n // 2), 0.0)
        # Probes of the narrow lattice that an equal share of the variance would take here.
        wanted = (n + 1) * weight**2 * spread / target**2
        wide = (was_wide | (wanted > DENSE * effort)) & (len(x.shape) > 1)
        # The wide lattice is dear: two nodes of three do with one estimate, and are given the spread of those before.
        count = effort * jnp.where(wide & was_wide & (i % 3 != 0), 1, 2)
        velocity, mean, variance = _divergence(law, x, t, count, wide, jax.random.fold_in(key, i))
        variance = jnp.where(count > 1, variance, spread)
        score = -x - velocity / jnp.tan(t)  # (cos(t) D - x) / sin(t)^2
        sums = _Sums(
            sums.whole + weight * mean,
            sums.variance + weight**2 * jnp.maximum(variance, spread) / count,  # few estimates: the larger is cautious
            sums.gap + (other - weight) * mean,
            sums.gap_variance + (other - weight) ** 2 * variance / count,
            sums.path + jnp.where(i > 0, jnp.vdot(score, missed - pace * velocity / 10), 0.0),
            sums.probes + _cost(x.shape, count, wide),
        )
        k1 = pace * velocity
        k2 = slope(x + k1 / 2, i + 0.5)
        k3 = slope(x + k2 / 2, i + 0.5)
        k4 = slope(x + k3, i + 1.0)
        x = jnp.where(i < n, x + (k1 + 2 * (k2 + k3) + k4) / 6, x)
        spread = jnp.where((i == 0) | (wide & ~was_wide), variance, (spread + variance) / 2)
        return i + 1, x, k4 / 10, spread, wide, sums

    start = _Sums(zero, zero, zero, zero, zero, jnp.asarray(0))
    begin = (jnp.asarray(0), x, jnp.zeros_like(x), zero, jnp.asarray(False), start)
    _, x_T, _, _, _, sums = jax.lax.while_loop(lambda given: given[0] <= n, node, begin)
    nodes = jnp.sqrt(jnp.maximum(sums.gap**2 - sums.gap_variance, 0.0)) / 15
    step_error = jnp.hypot(nodes, sums.path)
    total = jnp.sqrt(sums.variance + step_error**2)
    log_p = law.base_log_prob(x_T) + sums.whole
    return Stated(log_p, total, jnp.sqrt(sums.variance), step_error, n, sums.probes, effort)


def _divergence(
    law: DiffusionPrior, x: Array, t: Array, count: Array, wide: Array, key: Array
) -> tuple[Array, Array, Array]:
    """Drift at ``x``, mean of ``count`` estimates of its divergence, and the variance of one."""

    # Linearised once: what the network is at x is not computed again for each probe.
    velocity, along = jax.linearize(lambda x: law.drift(x, t), x)

    def contracted(vectors: Array) -> Array:
        return jax.vmap(lambda v: jnp.vdot(v, along(v)))(vectors).sum()

    if x.size <= SMALL:
        trace = contracted(jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape))
        return velocity, trace, jnp.zeros((), x.dtype)
    parts = jnp.where(wide, 4, 1)

    def add(given: Any) -> Any:
        j, first, this, total, squares = given
        signs = jax.random.rademacher(jax.random.fold_in(key, j), (PROBES, *x.shape), x.dtype)
        found = contracted(signs * _lattice(x.shape, wide, j % parts))
        this = found + jnp.where(j % parts == 0, 0.0, this)
        done = (j + 1) % parts == 0
        first = jnp.where(done & (j < parts), this, first)
        more = jnp.where(done, this - first, 0.0)  # less the first: no cancellation in the variance
        return j + 1, first, this, total + more, squares + more**2

    zero = jnp.zeros((), x.dtype)
    begin = (jnp.asarray(0), zero, zero, zero, zero)
    _, first, _, total, squares = jax.lax.while_loop(lambda given: given[0] < count * parts, add, begin)
    return velocity, first + total / count, (squares - total**2 / count) / jnp.maximum(count - 1, 1)


def _cost(shape: tuple[int, ...], count: Array, wide: Array) -> Array:
    """Jacobian-vector products of ``count`` estimates."""
    size = math.prod(shape)
    return jnp.asarray(size) if size <= SMALL else (PROBES * jnp.where(wide, 4, 1) * count).astype(int)


def _lattice(shape: tuple[int, ...], wide: Array, part: Array) -> Array:
    """What each of four probes has of the data (4, *shape): squares of all parts sum to one at each number."""
    if len(shape) < 2:
        return jnp.full((PROBES, *shape), PROBES**-0.5)
    rows, columns = jnp.meshgrid(jnp.arange(shape[0]), jnp.arange(shape[1]), indexing="ij")
    own = jnp.where(wide, 4 * (rows % 4) + columns % 4 - PROBES * part, 2 * (rows % 2) + columns % 2)
    own = (own == jnp.arange(PROBES)[:, None, None]).astype(float)
    return jnp.broadcast_to(own.reshape(PROBES, *shape[:2], *(1,) * (len(shape) - 2)), (PROBES, *shape))
