"""Predictors that cannot be traced: the coherence of a rule that only answers requests, a language model for example.

:class:`InProcess` is a traced rule behind the same protocol: what an endpoint that serves it should return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key, Num

from inference.coherence._call import call
from inference.coherence._symbols import check_context, expected, match_context, symbols_of
from inference.coherence.calibrated import check_moments, is_finite, martingale_tests
from inference.coherence.paths import host_paths, kind_names, predictive_paths
from inference.coherence.tree import Tree, check_depth, sequences_of
from ppl_models.program import HostPaths, HostPredictor, Predictor


def _after(predictor: Predictor, sequences: Array) -> Float[Array, "sequence feature"]:
    return jax.vmap(lambda z: expected(predictor.predict(predictor.init(z))))(sequences)


@dataclass(frozen=True)
class InProcess:
    """A traced rule as a :class:`ppl_models.program.HostPredictor`; a seed s stands for ``jax.random.key(s)``."""

    rule: Predictor

    @property
    def names(self) -> tuple[str, ...]:
        """The features of its predictive distribution."""
        return kind_names(self.rule)

    def paths(self, context: Num[np.ndarray, " n"], steps: int, paths: int, seed: int) -> HostPaths:
        """:func:`predictive_paths` with the key of the seed."""
        found = predictive_paths(self.rule, context, steps=steps, paths=paths, key=jax.random.key(seed), others=0)
        return HostPaths(found.z, np.asarray(found.p, float), np.asarray(found.log_p, float))

    def score(self, sequences: Sequence[Num[np.ndarray, " _"]]) -> Float[np.ndarray, "sequence feature"]:
        """Each after its last symbol; one compilation for each length."""
        found = np.empty((len(sequences), len(self.names)))
        lengths = np.array([len(z) for z in sequences])
        for n in np.unique(lengths):
            rows = np.flatnonzero(lengths == n)
            given = match_context(
                check_context(np.stack([sequences[i] for i in map(int, rows)]), "sequences", 2), symbols_of(self.names)
            )
            found[rows] = np.asarray(call(_after, self.rule, given))
        return found


def predictor_names(predictor: Predictor | HostPredictor) -> tuple[str, ...]:
    """The features of any predictor's predictive distribution."""
    return tuple(predictor.names) if isinstance(predictor, HostPredictor) else kind_names(predictor)


def host_tree(predictor: HostPredictor, context: Any, *, depth: int) -> Tree:
    """The exact tree of a finite host predictor, all its nodes scored in one call of ``score``."""
    K = symbols_of(tuple(predictor.names))
    if K is None:
        raise ValueError("an exact tree needs a finite set of symbols, this predictor speaks of real ones")
    check_depth(K, depth)
    context = match_context(check_context(context), K)
    nodes = [np.concatenate([context, u]) for d in range(depth + 1) for u in sequences_of(K, d)]
    p = np.asarray(predictor.score(nodes), float)
    p = np.concatenate([1 - p, p], 1) if p.shape[1] == 1 else p
    start = np.cumsum([0, *(K**d for d in range(depth + 1))])
    return Tree(tuple(p[start[d] : start[d + 1]] for d in range(depth + 1)))


def host_contexts(
    predictor: HostPredictor,
    contexts: Any,
    *,
    key: Key[Array, ""],
    steps: int,
    paths: int,
    depth: int,
    told: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """One row a context: the tree's effect sizes where ``depth`` is not 0, then the drift and lag tests.

    Without ``one_step_gap``, whose every query would be a request.
    """
    names = tuple(predictor.names)
    given = match_context(check_context(contexts, "contexts", ndim=2), symbols_of(names))
    rows = []
    for i, (context, k) in enumerate(zip(given, jax.random.split(key, len(given)), strict=True)):
        draw_key, test_key = jax.random.split(k)
        drawn = host_paths(predictor, context, steps=steps, paths=paths, key=draw_key)
        if drawn.samples_only:
            raise ValueError(
                "these paths carry no probabilities, which the drift and lag tests read; use predictive_paths with "
                "drift_test and falck2024, which need the draws alone"
            )
        check_moments(drawn.p, names)
        drift, lag = martingale_tests(
            jnp.asarray(drawn.g), jnp.asarray(drawn.p, float), test_key, finite=is_finite(names)
        )
        row: dict[str, Any] = {} if not depth else host_tree(predictor, context, depth=depth).row()
        row.pop("root_gap_symbol", None)
        p = drawn.p[0, 0]
        row["p_next"] = p[0] if len(p) < 3 else p.max()
        move = (drawn.p[:, -1] - drawn.p[:, 0]).mean(0)
        row["move"] = move[np.abs(move).argmax()]
        for name, test in (("drift", drift), ("lag", lag)):
            effect = np.asarray(test.effect)
            row |= {name: effect[np.abs(effect).argmax()], f"{name}_se": np.asarray(test.se).max()}
            row[f"{name}_p"] = float(test.p_value)
        rows.append(row)
        if told is not None:
            told(i + 1, len(given))
    return pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="context")).astype(float)
