"""Minibatches of rows that stay on disk: the next ones are read while the device works on the last.

Where any row can be read by itself the batches are those that the same data in memory would give, bit for bit.  Rows
that come in blocks (Parquet row groups) are shuffled at two levels: an epoch is a permutation of the blocks, cut into
windows of about :data:`WINDOW` numbers that are held together, and each window is a permutation of its rows.
Everything is a function of the key and the step, so that a resumed run sees the same batches, also within an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from inference.fitting.order import Order
from inference.fitting.stored import stacked, stored
from inference.fitting.stored_rows import Rows
from ppl_models.program import Program, numbers, rows, take

WINDOW = 2**24
"""Numbers of stored data in a window of blocks, about; a window has at least two blocks where there are as many."""


class DiskSource:
    """A :class:`inference.fitting.sources.Source` of rows on disk; each batch is checked as data in memory are."""

    def __init__(self, found: Rows, batch_size: int, key: jax.Array, program: Program) -> None:
        self.size = len(found)
        if batch_size > self.size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the data, {self.size} rows; use batch_size={self.size} or less"
            )
        self.rows, self.batch_size, self.program = found, batch_size, program
        self.per_epoch = self.size // batch_size
        self.store: tuple[()] = ()
        self.checked(found.head, "its first rows")
        self._windows = None if found.blocks is None else _Windows(self, np.asarray(found.blocks), key)
        self._order = Order(self.size, key)
        self._example: Any = None
        # One thread reads, also what was not foreseen: rows are never read by two at a time.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: tuple[int, int, Future[Any]] | None = None

    def checked(self, read: Callable[[], Any], which: str) -> Any:
        """Stored data from what was read; errors name the place."""
        found = read()
        try:
            return stored(self.program, found)
        except ValueError as error:
            raise ValueError(f"{self.rows.name}, {which}: {error}") from error

    def _batch(self, step: int) -> Any:
        epoch, batch = divmod(step, self.per_epoch)
        positions = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        if self._windows is not None:
            return self._windows.at(epoch, positions)
        index = self._order.at(epoch, positions)
        return self.checked(lambda: self.rows.read(index), f"a batch of rows {index[:3].tolist()}, ...")

    def _read(self, step: int, count: int) -> Any:
        return stacked([self._batch(step + i) for i in range(count)])

    def example(self) -> Any:
        if self._example is None:
            self._example = take(self.feed(0, 1), 0)
        return self._example

    def feed(self, step: int, count: int) -> Any:
        if self._ahead is not None and self._ahead[:2] == (step, count):
            future = self._ahead[2]
        else:
            future = self._reader.submit(self._read, step, count)
        self._ahead = None
        found = future.result()
        self._ahead = step + count, count, self._reader.submit(self._read, step + count, count)
        return found

    def batch(self, store: Any, item: Any) -> Any:
        return item

    def state(self) -> Any:
        return {"rows": self.size}

    def restore(self, state: Any) -> None:
        if state is not None and state["rows"] != self.size:
            raise ValueError(
                f"{self.rows.name} has {self.size} rows, the run was fitted to {state['rows']}: its batches would be "
                "others; restore the files, or start a new run in another folder"
            )


class _Windows:
    """Rows by epoch and position where they are read in blocks; one window is held."""

    def __init__(self, source: DiskSource, blocks: np.ndarray, key: jax.Array) -> None:
        self.source, self.blocks = source, blocks
        block_key, self.key = jax.random.split(key)
        self.order = Order(len(blocks), block_key)
        self.wide = max(1, WINDOW // numbers(source.program.shape))
        self._epoch, self._held = -1, (-1, -1)
        self._data: Any = None

    def _plan(self, epoch: int) -> None:
        """Cut the blocks of an epoch into windows: their numbers, and the positions at which each begins and ends."""
        if epoch == self._epoch:
            return
        index = self.order.at(epoch, np.arange(len(self.blocks)))
        each = max(2, round(self.wide / self.blocks.mean()))
        self._parts = [index[start : start + each] for start in range(0, len(index), each)]
        self._ends = np.cumsum([self.blocks[part].sum() for part in self._parts])
        self._epoch = epoch

    def at(self, epoch: int, positions: np.ndarray) -> Any:
        self._plan(epoch)
        which = np.searchsorted(self._ends, positions, side="right")
        found = []
        for window in np.unique(which):
            data, shuffled = self._window(epoch, int(window))
            start = self._ends[window] - rows(data)
            found.append(take(data, shuffled[positions[which == window] - start]))
        return found[0] if len(found) == 1 else jax.tree.map(lambda *leaf: np.concatenate(leaf), *found)

    def _window(self, epoch: int, window: int) -> tuple[Any, np.ndarray]:
        if self._held != (epoch, window):
            self._data = None  # let go of the last one first
            part = self._parts[window]
            blocks = [
                self.source.checked(lambda b=block: self.source.rows.read(np.asarray([b])), f"block {block}")
                for block in part
            ]
            self._data = jax.tree.map(lambda *leaf: np.concatenate(leaf), *blocks)
            key = jax.random.fold_in(jax.random.fold_in(self.key, epoch), window)
            seed = np.asarray(jax.random.key_data(key))
            self._shuffled = np.random.default_rng(seed).permutation(rows(self._data))
            self._held = epoch, window
        return self._data, self._shuffled
