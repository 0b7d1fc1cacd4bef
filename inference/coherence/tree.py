"""The exact tree: every continuation to a given depth, hence coherence without Monte Carlo error.

For K outcomes and depth L the nodes are all u in {0..K-1}^d, d = 0..L, with path probability p(u).

    root gap        E p_{n+k} - p_{n+1} = sum_{|u|=k-1} p(u) p(.|u) - p(.|root),  k = 2..L+1
    node defect     D(u) = sum_z p(z|u) p(.|uz) - p(.|u);   p-weighted RMS over depths 0..L-1, and the largest
    exchangeability KL(p || p_sym) over the K^L sequences, p_sym the average of p over sequences of equal counts

A rule is a martingale to depth L exactly if every D(u) is zero: the root gap alone can vanish by symmetry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from inference.coherence._call import call, double
from inference.coherence._symbols import check_context, probabilities
from inference.coherence.paths import fitting_context
from ppl_models.program import Predictor

MAX_LEAVES = 2**17


@dataclass(frozen=True)
class Tree:
    """``nodes[d]`` holds p(.|u) of the K^d nodes of depth d (K^d, K), in lexicographic order, d = 0..L.

    A predictor that cannot be traced (a remote language model) can fill the nodes itself.
    """

    nodes: tuple[Float[np.ndarray, "_ K"], ...]

    def __post_init__(self) -> None:
        K = self.nodes[0].shape[-1]
        for d, p in enumerate(self.nodes):
            if p.shape != (K**d, K):
                raise ValueError(f"depth {d} of a tree over {K} outcomes has shape {(K**d, K)}, got {p.shape}")

    @property
    def depth(self) -> int:
        return len(self.nodes) - 1

    @cached_property
    def weights(self) -> tuple[Float[np.ndarray, " _"], ...]:
        """Path probability p(u) of each node, by depth."""
        found = [np.ones(1)]
        for p in self.nodes[:-1]:
            found.append((found[-1][:, None] * p).ravel())
        return tuple(found)

    @cached_property
    def root_gap(self) -> Float[np.ndarray, "step K"]:
        """``E p_{n+k} - p_{n+1}`` for k = 2..L+1, one row a k."""
        return np.stack([w @ p - self.nodes[0][0] for w, p in zip(self.weights[1:], self.nodes[1:], strict=True)])

    @cached_property
    def defects(self) -> tuple[Float[np.ndarray, "_ K"], ...]:
        """``D(u)`` of every node of depth 0..L-1."""
        found = []
        for p, below in zip(self.nodes[:-1], self.nodes[1:], strict=True):
            found.append(np.einsum("uz,uzk->uk", p, below.reshape(*p.shape, -1)) - p)
        return tuple(found)

    @cached_property
    def groups(self) -> Int[np.ndarray, " sequence"]:
        """For each of the K^L sequences, the number of its vector of counts."""
        K = self.nodes[0].shape[-1]
        sequences = sequences_of(K, self.depth)
        counts = np.stack([(sequences == k).sum(1) for k in range(K)], 1)
        return np.unique(counts, axis=0, return_inverse=True)[1].ravel()

    @cached_property
    def symmetric(self) -> Float[np.ndarray, " sequence"]:
        """p averaged over the sequences with the same counts, for each of the K^L sequences."""
        return (np.bincount(self.groups, self.weights[-1]) / np.bincount(self.groups))[self.groups]

    def row(self) -> dict[str, float | int]:
        """The effect sizes in one row: probabilities, nats, nats per symbol.

        ``root_gap`` is the signed gap of largest size, ``root_gap_at`` its k, ``root_gap_symbol`` its outcome;
        ``node_rms`` and ``node_max`` measure D(u) in total variation, |D(u)(1)| for two outcomes; ``order_ratio`` is
        the largest ratio of the probabilities of two sequences with the same counts.
        """
        K, L = self.nodes[0].shape[-1], self.depth
        gap = self.root_gap[:, 1:] if K == 2 else self.root_gap
        at, symbol = np.unravel_index(np.abs(gap).argmax(), gap.shape)
        variation = [np.abs(d).sum(1) / 2 for d in self.defects]
        mean_square = sum(float(w @ v**2) for w, v in zip(self.weights[:-1], variation, strict=True)) / L
        p, even = self.weights[-1], self.symmetric
        alive = p > 0
        kl = max(0.0, float(np.sum(p[alive] * np.log(p[alive] / even[alive]))))  # rounding can leave -1e-16
        return {
            "root_gap": float(gap[at, symbol]),
            "root_gap_at": int(at) + 2,
            "root_gap_symbol": int(symbol) + (K == 2),
            "node_rms": float(np.sqrt(mean_square)),
            "node_max": max(float(v.max()) for v in variation),
            "kl": kl,
            "kl_per_symbol": kl / L,
            "order_ratio": self._ratio(),
        }

    def _ratio(self) -> float:
        p, groups = self.weights[-1], self.groups
        high, low = np.full(groups.max() + 1, -np.inf), np.full(groups.max() + 1, np.inf)
        np.maximum.at(high, groups, p)
        np.minimum.at(low, groups, p)
        return float(np.max(high / low)) if (low > 0).all() else float("inf")


def sequences_of(K: int, L: int) -> Int[np.ndarray, "sequence L"]:
    """All K^L sequences in lexicographic order, the first symbol slowest."""
    if L == 0:
        return np.zeros((1, 0), np.int32)
    return np.stack(np.unravel_index(np.arange(K**L), (K,) * L), 1).astype(np.int32)


def _along(predictor: Predictor, context: Array, sequences: Array) -> Float[Array, "sequence depth K"]:
    start = predictor.init(context)

    def step(state: Any, z: Array) -> tuple[Any, Array]:
        return predictor.update(state, z), probabilities(predictor.predict(state))

    def one(sequence: Array) -> Array:
        last, p = jax.lax.scan(step, start, sequence)
        return jax.numpy.concatenate([p, probabilities(predictor.predict(last))[None]])

    return jax.vmap(one)(sequences)


def check_depth(K: int, depth: int) -> None:
    """Raise ``ValueError`` for a tree over K outcomes that has no branches, or too many leaves."""
    if depth < 1 or K**depth > MAX_LEAVES:
        deepest = int(np.log(MAX_LEAVES) / np.log(K))
        raise ValueError(f"depth must be between 1 and {deepest} for {K} outcomes, got {depth}")


def exact_tree(predictor: Predictor, context: Any, *, depth: int = 8) -> Tree:
    """Enumerate every continuation of a context (n,) to ``depth`` symbols, in double precision.

    The predictor is run along all K^depth sequences as one ``scan`` and one ``vmap``; its own floating-point numbers
    are cast to double (single precision leaves gaps of 1e-8 to 1e-6 that are not the rule's).
    Raises ``ValueError`` for a predictive distribution that is neither Bernoulli nor Categorical, or if the tree
    would have more than 131,072 leaves.

    >>> exact_tree(BetaBernoulli(1.0, 1.0), np.array([0, 1, 1]), depth=4).row()["node_max"] < 1e-12
    True
    """
    context, first = fitting_context(predictor, context, ahead=depth)
    K = first.K
    if K is None:
        raise ValueError(
            f"an exact tree needs a finite set of symbols (Bernoulli or Categorical), got {first.text}; "
            "use quadrature_tree for real symbols, or predictive_paths with the drift and lag tests"
        )
    check_depth(K, depth)
    with jax.enable_x64(True):
        sequences = sequences_of(K, depth)
        p = np.asarray(call(_along, double(predictor), context, sequences), np.float64)
    return Tree(tuple(p[:: K ** (depth - d), d] for d in range(depth + 1)))


def tree_table(predictor: Predictor, contexts: Any, *, depth: int = 8) -> pd.DataFrame:
    """One row of effect sizes (:meth:`Tree.row`) for each context (contexts, n)."""
    contexts = check_context(contexts, "contexts", ndim=2)
    rows = [exact_tree(predictor, context, depth=depth).row() for context in contexts]
    table = pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="context"))
    table.attrs["depth"] = depth
    return table
