"""How the cells of a hierarchy run: each written out, or runs of them as loops; a choice apart from their weights.

A *run* is a stretch of plain cells of one resolution.  Written out, every cell is a part of the compiled program, which
takes the longer to compile the deeper the hierarchy.  Looped (``jax.lax.scan``), a run is one cell, compiled once:

    weights of the cells        the loop
    all the same                closes over them
    each its own                runs over them, stacked: (cells, ...)
    the same g in a row         runs over the groups' weights, stacked, an inner loop g times over each

Cells that mix in or pool stand between the runs.  The parameters are the same trees either way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

if TYPE_CHECKING:
    from ppl_models.hvae.blocks import DecoderCell, EncoderCell
    from ppl_models.hvae.spec import HVAE

DEEP = 16
"""Cells of a decoder from which on ``execution="auto"`` loops on a CPU too."""


class Run(NamedTuple):
    """Cells from ``start`` on: ``groups`` groups of ``repeat`` cells, those of a group with the same weights."""

    start: int
    groups: int = 1
    repeat: int = 1

    @property
    def cells(self) -> range:
        """Numbers of its cells."""
        return range(self.start, self.start + self.groups * self.repeat)

    @property
    def first_cells(self) -> range:
        """The first cell of each group."""
        return self.cells[:: self.repeat]


def looped(spec: HVAE) -> bool:
    """Whether runs are loops.

    ``execution="auto"``: on an accelerator always, on a CPU from 16 decoder cells on.  There a cell in a loop costs
    somewhat more than one written out, and what a loop saves is the time to compile.
    """
    if spec.execution == "auto":
        return jax.default_backend() != "cpu" or len(spec.decoder_cells) >= DEEP
    return spec.execution == "scan"


def runs(
    cells: Sequence[EncoderCell | DecoderCell], weights: Sequence[int], loop: bool, single: Collection[int] = ()
) -> list[Run]:
    """The cells in order as runs; without ``loop`` each by itself, and so all of a stretch with one of ``single``.

    ``weights`` are the numbers of the weights that the cells use, as :func:`ppl_models.hvae.blocks.groups` gives them.
    A run ends where the resolution or the length of its groups changes.
    """
    found: list[Run] = []
    for (_, plain), stretch in groupby(range(len(cells)), lambda i: (cells[i].res, _plain(cells[i]))):
        members = list(stretch)
        if not (loop and plain) or set(members) & set(single):
            found += [Run(i) for i in members]
            continue
        at = members[0]
        lengths = [len(list(group)) for _, group in groupby(weights[i] for i in members)]
        for repeat, alike in groupby(lengths):
            run = Run(at, len(list(alike)), repeat)
            found.append(run)
            at = run.cells.stop
    return found


def _plain(cell: EncoderCell | DecoderCell) -> bool:
    return not (getattr(cell, "mixin", 0) or getattr(cell, "down", 1) > 1)


def rematerialised[F: Callable[..., Any]](function: F, spec: HVAE, *, in_loop: bool = False) -> F:
    """``function``, or with ``remat=True`` one whose inner values the backward pass computes again."""
    # A loop's body is compiled by itself, so nothing undoes the second computation there.
    return jax.checkpoint(function, prevent_cse=not in_loop) if spec.remat else function


def loop[Carry](
    body: Callable[[Carry, Any, Any], tuple[Carry, Any]],
    carry: Carry,
    run: Run,
    weights: Sequence[nnx.Module],
    xs: Any,
    spec: HVAE,
) -> tuple[Carry, Any]:
    """``carry, y = body(carry, module, x)`` over the cells of a run; returns the last carry and all y, stacked.

    ``weights`` holds a module for each group of the run, all of one structure; the leaves of ``xs`` are (cells, ...).
    """
    split = [nnx.split(module) for module in weights]
    graph = split[0][0]

    def cell(carry: Carry, state: Any, x: Any) -> tuple[Carry, Any]:
        return body(carry, nnx.merge(graph, state), x)

    cell = rematerialised(cell, spec, in_loop=True)

    def group(carry: Carry, given: tuple[Any, Any]) -> tuple[Carry, Any]:
        state, x = given
        return jax.lax.scan(lambda c, each: cell(c, state, each), carry, x)

    if run.groups == 1:
        return group(carry, (split[0][1], xs))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for _, state in split))
    if run.repeat == 1:
        return jax.lax.scan(lambda c, given: cell(c, *given), carry, (stacked, xs))
    folded = jax.tree.map(lambda leaf: leaf.reshape(run.groups, run.repeat, *leaf.shape[1:]), xs)
    carry, ys = jax.lax.scan(group, carry, (stacked, folded))
    return carry, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), ys)
