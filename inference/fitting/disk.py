"""Minibatches of rows that stay on disk: the next ones are read while the device works on the last.

Where any row can be read by itself the batches are those that the same data in memory would give, bit for bit.  Rows
that come in blocks (Parquet row groups) are shuffled at two levels: an epoch is a permutation of the blocks, cut into
windows of about :data:`WINDOW` numbers that are held together, and each window is a permutation of its rows.
Everything is a function of the key and the step, so that a resumed run sees the same batches, also within an epoch.
"""

from __future__ import annotations

import threading
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
"""Numbers of stored data in a window of blocks, about; a window has two blocks at least.  Two windows are in memory."""


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
    """Rows by epoch and position where they are read in blocks; one window is held, the next is read meanwhile."""

    def __init__(self, source: DiskSource, blocks: np.ndarray, key: jax.Array) -> None:
        self.source, self.blocks = source, blocks
        block_key, self.key = jax.random.split(key)
        self.order = Order(len(blocks), block_key)
        wide = max(1, WINDOW // numbers(source.program.shape))
        self.each = max(2, round(wide / blocks.mean()))
        self._lock = threading.Lock()
        self._plans: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="window")
        self._held: tuple[int, int] | None = None
        self._ahead: tuple[tuple[int, int], Future[Any]] | None = None

    def _plan(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The windows of an epoch: the blocks of each, and the position at which it ends."""
        with self._lock:
            if epoch not in self._plans:
                index = self.order.at(epoch, np.arange(len(self.blocks)))
                parts = [index[start : start + self.each] for start in range(0, len(index), self.each)]
                ends = np.cumsum([self.blocks[part].sum() for part in parts])
                self._plans = {**{e: p for e, p in self._plans.items() if e >= epoch - 1}, epoch: (parts, ends)}
            return self._plans[epoch]

    def at(self, epoch: int, positions: np.ndarray) -> Any:
        ends = self._plan(epoch)[1]
        which = np.searchsorted(ends, positions, side="right")
        found = []
        for window in np.unique(which):
            data, shuffled = self._window(epoch, int(window))
            start = ends[window] - rows(data)
            found.append(take(data, shuffled[positions[which == window] - start]))
        return found[0] if len(found) == 1 else jax.tree.map(lambda *leaf: np.concatenate(leaf), *found)

    def _window(self, epoch: int, window: int) -> tuple[Any, np.ndarray]:
        if self._held != (epoch, window):
            ahead, self._ahead, self._data = self._ahead, None, None
            known = ahead is not None and ahead[0] == (epoch, window)
            future = ahead[1] if ahead is not None and known else self._reader.submit(self._load, epoch, window)
            self._data = future.result()
            self._held = epoch, window
            following = (epoch, window + 1) if window + 1 < len(self._plan(epoch)[0]) else (epoch + 1, 0)
            self._ahead = following, self._reader.submit(self._load, *following)
        assert self._data is not None
        return self._data

    def _load(self, epoch: int, window: int) -> tuple[Any, np.ndarray]:
        """The rows of a window, and their order."""
        source, parts = self.source, self._plan(epoch)[0]
        blocks = [source.checked(lambda b=b: source.rows.read(np.asarray([b])), f"block {b}") for b in parts[window]]
        data = jax.tree.map(lambda *leaf: np.concatenate(leaf), *blocks)
        key = jax.random.fold_in(jax.random.fold_in(self.key, epoch), window)
        seed = np.asarray(jax.random.key_data(key))
        return data, np.random.default_rng(seed).permutation(rows(data))
