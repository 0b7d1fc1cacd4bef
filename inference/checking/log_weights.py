"""Importance weights of every datum, and what they say: log p(x), its error, the ELBO, the effective sample size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from inference.checking.per_datum import DRAW, by_rows, compiled, draw_one, once, placed, prepare_one, sweep
from inference.checking.psis import pareto_k
from inference.checking.semi_amortised import Local
from ppl_models.program import Program, rows, take


def _kernel(program: Program) -> Any:
    def one(params: Any, mutable: Any, key: Any, purpose: Any, x: Any, datum: Any, local: Any, index: Any) -> jax.Array:
        x = prepare_one(program, key, x, datum, local)

        def draw(i: jax.Array) -> jax.Array:
            return draw_one(program, params, mutable, key, x, datum, i, local, purpose).log_weight[0]

        return jax.vmap(draw)(index)

    return compiled(jax.vmap(one, in_axes=(None, None, None, None, 0, 0, 0, None)))


_AT_ONCE = 2**20
"""Weights that are held for their summary, about."""


class Weigher:
    """Log weights of a fit, chunk by chunk; what is compiled for a program serves all its weighers.

    ``kernel`` is that of another weigher of the same program, where there is one.
    """

    def __init__(
        self, fit: Any, pairs: int, *, progress: bool = True, what: str = "evidence", kernel: Any = None
    ) -> None:
        self.fit, self.pairs, self.progress, self.what = fit, pairs, progress, what
        self.kernel = kernel or once(_kernel, fit.program)

    def __call__(
        self,
        x: Any,
        draws: int,
        key: jax.Array,
        *,
        local: Local | None = None,
        purpose: int = DRAW,
        index: np.ndarray | None = None,
    ) -> Float[np.ndarray, "data draws"]:
        """log p(x, z_s) - log q(z_s | x) in nats for stored ``x``, of which ``local`` holds one entry a datum.

        ``index`` are the rows that the data have in the whole they were taken from; draws depend on the row and the
        key.
        """
        out = np.empty((rows(x), draws), np.float32)
        for found, values in self._blocks(x, draws, key, local, purpose, index):
            out[found] = values
        return out

    def summary(
        self,
        x: Any,
        draws: int,
        key: jax.Array,
        *,
        local: Local | None = None,
        purpose: int = DRAW,
        index: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """:func:`summarise` of the same weights, few of which are held at a time."""
        parts, held = [], list[np.ndarray]()
        for _, values in self._blocks(x, draws, key, local, purpose, index):
            held.append(values)
            if len(held) * values.size >= _AT_ONCE:
                parts.append(summarise(np.concatenate(held)))
                held = []
        if held:
            parts.append(summarise(np.concatenate(held)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _blocks(
        self, x: Any, draws: int, key: jax.Array, local: Local | None, purpose: int, index: np.ndarray | None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        index = np.arange(rows(x)) if index is None else np.asarray(index)
        place, params, mutable = placed(self.fit)
        key = place.store(key)

        def block(datum: np.ndarray, draw: np.ndarray) -> Any:
            at = place.rows((take(x, datum), index[datum].astype(np.uint32), take(local, datum)))
            return self.kernel(params, mutable, key, np.uint32(purpose), *at, draw)

        blocks = sweep(block, rows(x), draws, self.pairs, what=self.what, progress=self.progress, place=place)
        return by_rows(blocks, draws)


def summarise(log_weight: np.ndarray) -> dict[str, np.ndarray]:
    """Columns ``log_px, se, elbo, ess, khat`` from log weights (data, particles), in double precision."""
    particles = log_weight.shape[1]
    parts = []
    for start in range(0, len(log_weight), 4096):
        rows = log_weight[start : start + 4096].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            top = rows.max(axis=1)
            weight = np.exp(rows - np.where(np.isfinite(top), top, 0.0)[:, None])
            mean, square = weight.mean(axis=1), (weight**2).mean(axis=1)
            part = {
                "log_px": np.where(np.isfinite(top), top, 0.0) + np.log(mean),
                "se": weight.std(axis=1, ddof=1) / (np.sqrt(particles) * mean),
                "elbo": rows.mean(axis=1),
                "ess": particles * mean**2 / square,
            }
        part["khat"] = pareto_k(log_weight[start : start + 4096].T)
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
