"""Where minibatches come from: arrays, a sampler ``(key, n) -> batch``, or a grain dataset.

Each source splits its work: ``example()`` is one item, for shapes; ``feed(step, count)`` on the host returns what the
next ``count`` updates need (indices, step numbers, or whole batches, stacked on a leading axis); ``batch(store, item)``
inside the jitted update turns one item into a stored batch.  All depend on nothing but the key and the step, so a
resumed run sees the batches that the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

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


def stored(program: Program, x: Any, what: str = "data") -> Any:
    """Validate stored data of a program and return them as NumPy arrays: one, or a pytree as its ``shape`` says.

    Whatever the program can ``read`` (a DataFrame, where it is a model of a table) is read first, and the columns of a
    Hugging Face data set are taken as arrays.  Raises
    ``ValueError`` for other leaves than those of a datum, a wrong shape, leaves of different lengths, no data, a dtype
    that is neither integer, bool nor float, NaN or infinite values, and whatever the program's own ``check`` refuses.
    """
    x = program.observation.read(_records(program, x))
    wanted = leaves(program.shape)
    if list(wanted) == [""]:
        found = _array(x, wanted[""], what)
    else:
        given = named_leaves(x)
        if list(given) != list(wanted):
            expected = ", ".join(f"{name!r} ({', '.join(map(str, ('n', *shape)))})" for name, shape in wanted.items())
            got = f"leaves {list(given)}" if list(given) != [""] else f"one {type(x).__name__}"
            raise ValueError(f"{what} must hold the arrays {expected}, got {got}; pass them as one dict")
        arrays = [_array(leaf, wanted[name], f"{name!r} of {what}") for name, leaf in given.items()]
        lengths = {name: len(leaf) for name, leaf in zip(wanted, arrays, strict=True)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of {what} differ in length: {lengths}; row i of each is datum i")
        found = jax.tree.unflatten(jax.tree.structure(x), arrays)
    program.observation.check(found)
    return found


def _records(program: Program, x: Any) -> Any:
    """The columns of a Hugging Face data set as arrays, those that the program knows; anything else as it is."""
    if type(x).__module__.partition(".")[0] != "datasets" or not hasattr(x, "with_format"):
        return x
    found = x.with_format("numpy")[:]
    if isinstance(program.shape, Mapping):
        wanted = list(program.shape)
    else:
        wanted = list(found) if len(found) == 1 else [program.observed[0]]
    if lacking := [name for name in wanted if name not in found]:
        raise ValueError(f"the data set has the columns {sorted(found)}, expected {lacking}; rename_column(OLD, NEW)")
    return {name: found[name] for name in wanted} if isinstance(program.shape, Mapping) else found[wanted[0]]


def _array(x: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """One array (n, *shape) of finite numbers."""
    array = np.asarray(x)
    if array.dtype == object or not (array.dtype == bool or np.issubdtype(array.dtype, np.number)):
        raise ValueError(f"{what} must be an array of numbers, got dtype {array.dtype}; convert it first")
    if np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{what} must be real, got dtype {array.dtype}; split real and imaginary parts")
    if array.ndim == 0 or array.shape[1:] != shape:
        raise ValueError(
            f"{what} has shape {array.shape}, this program expects ({', '.join(map(str, ('n', *shape)))}): "
            "one datum a row; reshape it, or set the spec's shape to that of one datum"
        )
    if array.shape[0] == 0:
        raise ValueError(f"{what} is empty: shape {array.shape}; expected at least one datum")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
        raise ValueError(
            f"{what} has NaN or infinite values in {bad.size} of {len(array)} data, first at row {bad[0]}; "
            "drop or impute those rows"
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


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
        self._epoch, self._order = -1, np.zeros(0, np.int32)

    def _indices(self, step: int) -> np.ndarray:
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            seed = np.asarray(jax.random.key_data(jax.random.fold_in(self.key, epoch)))
            self._order = np.random.default_rng(seed).permutation(self.size).astype(np.int32)
            self._epoch = epoch
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]

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
        return _stacked([self.sampler(jax.random.fold_in(self.key, int(s)), self.batch_size) for s in steps])

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
        return _stacked(batches)

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


def _stacked(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *leaf: np.stack([np.asarray(one) for one in leaf]), *batches)


def _check_batch(batch: Any, program: Program, n: int, gives: str, remedy: str) -> None:
    """Raise ``ValueError`` unless ``batch`` holds n data of the program's shape."""
    wanted = {name: (n, *shape) for name, shape in leaves(program.shape).items()}
    got = {name: tuple(leaf.shape) for name, leaf in named_leaves(batch).items()}
    if got != wanted:
        plain = lambda shapes: shapes.get("", shapes)  # noqa: E731 - one array has no name
        raise ValueError(f"{gives} shape {plain(got)}, expected {plain(wanted)}: {remedy}")


def as_source(data: Any, program: Program, batch_size: int, key: jax.Array) -> Source:
    """Turn an array, a pytree of arrays, a sampler or a grain dataset into a :class:`Source`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if type(data).__module__.partition(".")[0] == "grain":
        return GrainSource(data, batch_size, program)
    if callable(data):
        return SamplerSource(data, batch_size, key, program)
    return ArraySource(stored(program, data), batch_size, key)
