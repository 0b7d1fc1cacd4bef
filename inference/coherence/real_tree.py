"""The tree of a rule of real symbols, by quadrature: coherence without Monte Carlo error beyond finite sets.

At each place u the integral over the next symbol is the trapezoidal sum of :mod:`inference.coherence.gap`, so that the
nodes of depth d are Q^d symbols with weights W(u) that sum to one.  With m(u), v(u) the predictive mean and variance
at u, and m, v those at the root,

    root gap        of z:   (E m(U_k-1) - m) / sd,     of z^2:  E[v(U_k-1) + (m(U_k-1) - m)^2] / v - 1,   k = 2..L+1
    node defect     the same after one more symbol, in units of the place itself: see :func:`one_step_gap`
    exchangeability KL(p || p_sym) over sequences of L symbols, p_sym the average over their L! orders

A rule is a martingale in these two moments to depth L if all defects are zero; exchangeable to depth L if the KL is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inference.coherence._call import call, double
from inference.coherence.gap import COUNTS, NODES, TOLERANCE, nodes_of
from inference.coherence.paths import fitting_context
from ppl_models.program import Predictor

MAX_SEQUENCES = 2**18
"""Sequences, orders included, that are followed at most."""


@dataclass(frozen=True)
class RealTree:
    """``mean[d]``, ``variance[d]`` of the Q^d places of depth d = 0..L; ``branch[d]`` (Q^d, Q) weights below them.

    ``log_p``  (order, Q^L) log-density of every sequence read in each of the L! orders, the order as drawn first.
    ``error``  largest error of mass, mean (sd) or variance (variances) of an integral, weighted by its place.
    """

    mean: tuple[Float[np.ndarray, " _"], ...]
    variance: tuple[Float[np.ndarray, " _"], ...]
    branch: tuple[Float[np.ndarray, "_ Q"], ...]
    log_p: Float[np.ndarray, "order _"]
    error: float

    @property
    def depth(self) -> int:
        return len(self.branch)

    @property
    def weights(self) -> tuple[Float[np.ndarray, " _"], ...]:
        """W(u) of each place, by depth."""
        found = [np.ones(1)]
        for w in self.branch:
            found.append((found[-1][:, None] * w).ravel())
        return tuple(found)

    @property
    def root_gap(self) -> Float[np.ndarray, "step 2"]:
        """The gap of z and of z^2 for k = 2..L+1, one row a k."""
        m, v = self.mean[0][0], self.variance[0][0]
        rows = []
        for w, mean, variance in zip(self.weights[1:], self.mean[1:], self.variance[1:], strict=True):
            rows.append((w @ (mean - m) / np.sqrt(v), w @ (variance + (mean - m) ** 2) / v - 1))
        return np.array(rows)

    @property
    def defects(self) -> tuple[Float[np.ndarray, " _"], ...]:
        """The larger of the two defects at every place of depth 0..L-1."""
        found = []
        for d, w in enumerate(self.branch):
            m, v = self.mean[d][:, None], self.variance[d]
            after, spread = self.mean[d + 1].reshape(w.shape) - m, self.variance[d + 1].reshape(w.shape)
            first = np.abs((w * after).sum(1)) / np.sqrt(v)
            found.append(np.maximum(first, np.abs((w * (spread + after**2)).sum(1) / v - 1)))
        return tuple(found)

    def row(self) -> dict[str, float | int | str]:
        """The effect sizes in one row: predictive standard deviations (z) or variances (z^2); nats, nats a symbol."""
        gap = self.root_gap
        at, which = np.unravel_index(np.abs(gap).argmax(), gap.shape)
        weights = self.weights
        square = sum(float(w @ d**2) for w, d in zip(weights[:-1], self.defects, strict=True)) / self.depth
        heavy = [d[w > 1e-6] for w, d in zip(weights[:-1], self.defects, strict=True)]
        even = np.logaddexp.reduce(np.maximum(self.log_p, -1e300), 0) - math.log(len(self.log_p))
        alive = weights[-1] > 0
        kl = max(0.0, float(weights[-1][alive] @ (self.log_p[0] - even)[alive]))
        return {
            "root_gap": float(gap[at, which]),
            "root_gap_at": int(at) + 2,
            "root_gap_of": ("z", "z^2")[which],
            "node_rms": math.sqrt(square),
            "node_max": max(float(d.max()) for d in heavy),
            "kl": kl,
            "kl_per_symbol": kl / self.depth,
            "integral_error": self.error,
        }


def _grow(
    predictor: Predictor, context: Array, *, depth: int, nodes: int
) -> tuple[list[Array], list[Array], list[Array], Array, Array]:
    start = predictor.init(context)
    states = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], start)
    mean, variance, branch, errors = [], [], [], []
    drawn: list[Array] = []

    def look(state: Any) -> tuple[Array, ...]:
        fn = predictor.predict(state)
        m, v = fn.mean, fn.variance
        z, w = nodes_of(fn, m, jnp.sqrt(v), nodes)
        u = (z - m) / jnp.sqrt(v)
        error = jnp.abs(jnp.stack([w.sum() - 1, w @ u, w @ u**2 - 1])).max()
        return m, v, z, w, error

    weight = jnp.ones(1)
    for _ in range(depth):
        m, v, z, w, error = jax.vmap(look)(states)
        mean.append(m)
        variance.append(v)
        branch.append(w)
        errors.append((weight * error).max())
        drawn = [jnp.repeat(before, z.shape[1]) for before in drawn] + [z.ravel()]
        weight = (weight[:, None] * w).ravel()
        states = jax.vmap(lambda state, z: jax.vmap(lambda z: predictor.update(state, z))(z))(states, z)
        states = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), states)

    def last(state: Any) -> tuple[Array, Array]:
        fn = predictor.predict(state)
        return fn.mean, fn.variance

    m, v = jax.vmap(last)(states)
    sequences = jnp.stack(drawn, 1)

    def density(sequence: Array) -> Array:
        step = lambda state, z: (predictor.update(state, z), predictor.predict(state).log_prob(z))  # noqa: E731
        return jax.lax.scan(step, start, sequence)[1].sum()

    orders = jnp.asarray(list(permutations(range(depth))))
    log_p = jax.lax.map(lambda order: jax.vmap(density)(sequences[:, order]), orders)
    return [*mean, m], [*variance, v], branch, log_p, jnp.stack(errors).max()


def quadrature_tree(predictor: Predictor, context: Any, *, depth: int = 2, nodes: int = NODES) -> RealTree:
    """Every continuation of a context (n,) to ``depth`` real symbols on ``nodes`` values each, in double precision.

    For counts the 256 values around the mean are summed instead.  Raises ``ValueError`` for a finite set of symbols
    (:func:`exact_tree` counts those), for more than 262,144 sequences, orders included, and where an integral misses
    the rule's own mass, mean or variance by more than 1e-4, so that no number of it could be believed.

    >>> row = quadrature_tree(NormalNormal(0.0, 1.0, 1.0), np.array([0.3, -1.0])).row()
    >>> row["node_max"] < 1e-6, row["kl"] < 1e-6
    (True, True)
    """
    context, fn = fitting_context(predictor, context, ahead=depth)
    if fn.K is not None:
        raise ValueError(f"the symbols 0..{fn.K - 1} can be counted: use exact_tree")
    if nodes < 9 or depth < 1 or nodes**depth * math.factorial(depth) > MAX_SEQUENCES:
        raise ValueError(
            f"nodes must be at least 9, depth at least 1 and nodes^depth depth! at most {MAX_SEQUENCES:,}, got nodes="
            f"{nodes}, depth={depth}; 65 nodes reach depth 2, 33 depth 3"
        )
    with jax.enable_x64(True):
        found = call(_grow, double(predictor), context.astype(np.float64), depth=depth, nodes=nodes)
        mean, variance, branch = (tuple(np.asarray(a, np.float64) for a in part) for part in found[:3])
        log_p, error = np.asarray(found[3], np.float64), float(found[4])
    if not error <= TOLERANCE:
        raise ValueError(
            f"an integral over {nodes if branch[0].shape[1] != COUNTS else COUNTS} values misses the mass, mean or "
            f"variance of {fn.text} by {error:.2g}, expected at most {TOLERANCE}: a density with narrow peaks, tails "
            "without a variance, or too few nodes; give more, or use predictive_paths with the tests"
        )
    return RealTree(mean, variance, branch, log_p, error)
