"""Where minibatches come from: arrays, rows on disk, a sampler ``(key, n) -> batch``, or a grain dataset.

Each source splits its work: ``example()`` is one item, for shapes; ``feed(step, count)`` on the host returns what the
next ``count`` updates need (indices, step numbers, or whole batches, stacked on a leading axis); ``batch(store, item)``
inside the jitted update turns one item into a stored batch.  All depend on nothing but the key and the step, so a
resumed run sees the batches that the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from inference.fitting.disk import DiskSource
from inference.fitting.order import Order
from inference.fitting.stored import stacked, stored as stored
from inference.fitting.stored_rows import on_disk
from ppl_models.program import Program, leaves, named_leaves, rows, take


@runtime_checkable
class Source(Protocol):
    """Minibatches as a pure function of (key, step)."""

    store: Any
    batch_size: int

    @property
    def per_epoch(self) -> int | None: ...
    def example(self) -> Any: ...
    def feed(self, step: int, count: int) -> Any: ...
    def batch(self, store: Any, item: Any) -> Any: ...
    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...


class ArraySource:
    """Rows of an array or a pytree of arrays, shuffled anew each epoch; they stay as stored (uint8) on the device.

    An epoch is one permutation from ``fold_in(key, epoch)`` cut into full batches; the rows left over by the last
    cut are others in the next epoch.
    """

    def __init__(self, data: Any, batch_size: int, key: jax.Array) -> None:
        self.size = rows(data)
        if batch_size > self.size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the data, {self.size} rows; use batch_size={self.size} or less"
            )
        self.store = jax.tree.map(jnp.asarray, data)
        self.batch_size, self.key = batch_size, key
        self.per_epoch = self.size // batch_size
        self.order = Order(self.size, key)

    def _indices(self, step: int) -> np.ndarray:
        epoch, batch = divmod(step, self.per_epoch)
        return self.order.at(epoch, np.arange(batch * self.batch_size, (batch + 1) * self.batch_size))

    def example(self) -> np.ndarray:
        return np.zeros(self.batch_size, np.int32)

    def feed(self, step: int, count: int) -> np.ndarray:
        return np.stack([self._indices(step + i) for i in range(count)])

    def batch(self, store: Any, item: jax.Array) -> Any:
        return take(store, item)

    def state(self) -> None:
        return None

    def restore(self, state: Any) -> None: ...


class SamplerSource:
    """Fresh draws ``sampler(key, n)``: inside the jitted update when the sampler is traceable, else on the host."""

    per_epoch = None

    def __init__(self, sampler: Callable[..., Any], batch_size: int, key: jax.Array, program: Program) -> None:
        self.sampler, self.batch_size, self.key = sampler, batch_size, key
        try:
            like = jax.eval_shape(lambda k: _device(sampler(k, batch_size)), key)
            self.traced = True
        except (jax.errors.JAXTypeError, TypeError):
            like, self.traced = _host(sampler(key, batch_size)), False
        self.store: Any = key if self.traced else ()
        _check_batch(like, program, batch_size, f"sampler(key, {batch_size}) returned", "n data of the program's shape")

    def example(self) -> Any:
        return take(self.feed(0, 1), 0)

    def feed(self, step: int, count: int) -> Any:
        steps = np.arange(step, step + count, dtype=np.int32)
        if self.traced:
            return steps
        return stacked([self.sampler(jax.random.fold_in(self.key, int(s)), self.batch_size) for s in steps])

    def batch(self, store: Any, item: Any) -> Any:
        if self.traced:
            return _device(self.sampler(jax.random.fold_in(store, item), self.batch_size))
        return item

    def state(self) -> None:
        return None

    def restore(self, state: Any) -> None: ...


class GrainSource:
    """Records of a grain dataset, batched here; the iterator's own state makes a resumed run exact."""

    per_epoch = None

    def __init__(self, dataset: Any, batch_size: int, program: Program) -> None:
        self.batch_size, self.program = batch_size, program
        iterable = dataset.to_iter_dataset() if hasattr(dataset, "to_iter_dataset") else dataset
        self.batches = iterable.batch(batch_size, drop_remainder=True)
        self.iterator = iter(self.batches)
        self.store: tuple[()] = ()

    def example(self) -> Any:
        return _host(next(iter(self.batches)))

    def feed(self, step: int, count: int) -> Any:
        try:
            batches = [_host(next(self.iterator)) for _ in range(count)]
        except StopIteration:
            raise ValueError(
                f"the grain dataset ended at step {step}; add .repeat() before passing it, or ask for fewer steps"
            ) from None
        remedy = "map its records to data of the program's shape, unbatched"
        _check_batch(batches[0], self.program, self.batch_size, "the grain dataset gives batches of", remedy)
        return stacked(batches)

    def batch(self, store: Any, item: Any) -> Any:
        return item

    def state(self) -> Any:
        return self.iterator.get_state()

    def restore(self, state: Any) -> None:
        if state is not None:
            self.iterator.set_state(state)


def _host(x: Any) -> Any:
    return jax.tree.map(np.asarray, x)


def _device(x: Any) -> Any:
    return jax.tree.map(jnp.asarray, x)


def _check_batch(batch: Any, program: Program, n: int, gives: str, remedy: str) -> None:
    """Raise ``ValueError`` unless ``batch`` holds n data of the program's shape."""
    wanted = {name: (n, *shape) for name, shape in leaves(program.shape).items()}
    got = {name: tuple(leaf.shape) for name, leaf in named_leaves(batch).items()}
    if got != wanted:
        plain = lambda shapes: shapes.get("", shapes)  # noqa: E731 - one array has no name
        raise ValueError(f"{gives} shape {plain(got)}, expected {plain(wanted)}: {remedy}")


def as_source(data: Any, program: Program, batch_size: int, key: jax.Array) -> Source:
    """Turn an array, a pytree of arrays, rows on disk, a sampler or a grain dataset into a :class:`Source`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if type(data).__module__.partition(".")[0] == "grain":
        return GrainSource(data, batch_size, program)
    if (found := on_disk(program, data)) is not None:
        return DiskSource(found, batch_size, key, program)
    if callable(data):
        return SamplerSource(data, batch_size, key, program)
    return ArraySource(stored(program, data), batch_size, key)
