"""Chunked passes over (datum, draw) pairs, shared by the evidence and the posterior.

Every pair has its own key, ``fold_in(fold_in(key, datum), draw)``, and is evaluated as a batch of one under
``jax.vmap``: the numbers of a datum depend on its row and the key alone, not on the chunk it happened to share, and
the first n rows of a larger pass equal a pass over n rows.  ``vmap`` leaves what does not depend on the draw, the
encoder, unbatched: it runs once a datum.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from inference.checking.semi_amortised import Local, refined_draw
from inference.fitting.checkpoint import is_key
from inference.fitting.objectives import Draw, joint_draw
from inference.fitting.placement import OneDevice, Placement, as_placement
from inference.fitting.progress import Progress
from ppl_models.program import Program, numbers, rows, take

_PREPARE, DRAW, GENERATE, REFINE, PILOT = range(5)
_NUMBERS_AT_ONCE = 2**20


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit`` for a kernel with a key for every pair: a pass runs briefly, so its compilation must be brief too.

    On a CPU, the highest level of LLVM optimisation takes two to three times as long to compile the random numbers of
    such a kernel, and the kernel then runs no faster.  JAX is asked for its device at the first call: a module that is
    imported must not start it.
    """

    @functools.cache
    def kernel() -> Callable[..., Any]:
        options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        return jax.jit(function, compiler_options=options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return kernel()(*args)

    return call


class _Same:
    """A program that equals itself alone, so that what is compiled for it can be found again."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.program is self.program

    def __hash__(self) -> int:
        return id(self.program)


# Few entries: each keeps the networks of its program alive.
@functools.lru_cache(maxsize=8)
def _once(make: Callable[..., Any], same: _Same, *rest: Any) -> Any:
    return make(same.program, *rest)


def once(make: Callable[..., Any], program: Program, *rest: Any) -> Any:
    """``make(program, *rest)``, a compiled function of a program: the same one for the same program."""
    return _once(make, _Same(program), *rest)


def check_key(key: Any) -> None:
    """Raise ``ValueError`` unless ``key`` is one new-style JAX key."""
    if not is_key(key) or key.shape != ():
        raise ValueError(f"key must be one random key, got {key!r}; pass key=jax.random.key(0)")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def pairs_at_once(program: Program, chunk: int | None) -> int:
    """How many (datum, draw) pairs one dispatch evaluates: ``chunk``, or about a million numbers of data."""
    if chunk is not None:
        check_count("chunk", chunk, 1)
        return int(chunk)
    width = program.observation.width or numbers(program.shape)
    return min(8192, max(16, _NUMBERS_AT_ONCE // max(1, width)))


def pair_key(key: jax.Array, purpose: int | jax.Array, datum: jax.Array, draw: jax.Array) -> jax.Array:
    """The key of one (datum, draw) pair for one purpose."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, purpose), datum), draw)


def prepare_key(key: jax.Array, datum: jax.Array) -> jax.Array:
    """The key that the stored form of a datum is prepared with."""
    return jax.random.fold_in(jax.random.fold_in(key, _PREPARE), datum)


def prepare_one(program: Program, key: jax.Array, x: Any, datum: jax.Array, local: Local | None = None) -> Any:
    """Scored form (1, *shape) of one stored datum; the same for all its draws, and that which ``local`` is one of."""
    noise = prepare_key(key, datum) if local is None else local.noise
    return program.observation.prepare(take(x, None), noise, False)


def draw_one(
    program: Program,
    params: Mapping[str, Any],
    mutable: Mapping[str, Any] | None,
    key: jax.Array,
    x: Any,
    datum: jax.Array,
    draw: jax.Array,
    local: Local | None = None,
    purpose: int | jax.Array = DRAW,
) -> Draw:
    """One draw for one prepared datum (1, *shape): from the guide, or from its refined posterior ``local``."""
    own = pair_key(key, purpose, datum, draw)
    if local is None:
        return joint_draw(program, params, own, x, mutable=mutable)
    return refined_draw(program, params, own, x, local, mutable=mutable)


def locals_of(fit: Any, x: Any) -> Local | None:
    """What a refined fit holds for each datum of stored ``x``; ``None`` for a fit as it was trained."""
    found = getattr(fit, "local", None)
    return None if found is None else found(x)


def placed(fit: Any) -> tuple[Placement, Any, Any]:
    """Where a fit is evaluated, and its parameters and mutable state there, whole on each device."""
    place = as_placement(getattr(fit, "mesh", None))
    return place, place.store(fit.params), place.store(fit.mutable)


def sweep(
    kernel: Callable[[np.ndarray, np.ndarray], Any],
    data: int,
    draws: int,
    pairs: int,
    *,
    what: str,
    progress: bool,
    place: Placement | None = None,
    start: int = 0,
) -> Iterator[tuple[slice, slice, Any]]:
    """Call ``kernel(datum indices, draw indices)`` over all pairs in blocks of one shape; yield NumPy results.

    ``start``  the first datum, where those before it are done: blocks begin at multiples of one number of data.

    A result's leading axes are (datum, draw).  The last block repeats the last datum, or draws on beyond the
    number asked for; the surplus is cut off here, so the kernel compiles once, and not again for other data.

    ``place``  where the kernel's arrays lie: a block then has a multiple of its ``rows_at_once`` data.
    """
    place = OneDevice() if place is None else place
    blocks = math.ceil(draws / pairs)
    width = math.ceil(draws / blocks)
    rows = math.ceil(min(data, max(1, pairs // width)) / place.rows_at_once) * place.rows_at_once
    begin = data if start >= data else start // rows * rows
    with Progress(
        data * draws, what, unit="draws", show=progress and place.writes, delay=2.0, start=begin * draws
    ) as bar:
        for first_row in range(begin, data, rows):
            stop = min(first_row + rows, data)
            datum = np.minimum(np.arange(first_row, first_row + rows), data - 1).astype(np.uint32)
            for first in range(0, draws, width):
                last = min(first + width, draws)
                out = place.host(kernel(datum, np.arange(first, first + width, dtype=np.uint32)))
                keep = (slice(0, stop - first_row), slice(0, last - first))
                out = jax.tree.map(lambda a, k=keep: np.asarray(a)[k], out)
                yield slice(first_row, stop), slice(first, last), out
                bar.update(first_row * draws + (stop - first_row) * last)


def by_rows(blocks: Iterable[tuple[slice, slice, Any]], draws: int) -> Iterator[tuple[slice, Any]]:
    """The blocks of :func:`sweep`, those of the same data joined along their draws (axis 1)."""
    parts: list[Any] = []
    for datum, columns, found in blocks:
        parts.append(found)
        if columns.stop == draws:
            yield datum, parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: np.concatenate(p, 1), *parts)
            parts = []


def params_checksum(fit: Any) -> int:
    """CRC-32 of the arrays of a fit, parameters and mutable state: whether a result is still that of these."""
    found = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((fit.params, fit.mutable)):
        found = zlib.crc32(jax.tree_util.keystr(path).encode(), found)
        found = zlib.crc32(np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf).tobytes(), found)
    return found


def checksums(x: Any) -> np.ndarray:
    """CRC-32 of each stored datum (n,), its arrays one after another: whether two tables hold the same data."""
    arrays = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(x)]
    found = np.zeros(rows(x), np.int64)
    for i in range(len(found)):
        for array in arrays:
            found[i] = zlib.crc32(array[i].tobytes(), int(found[i]))
    return found
