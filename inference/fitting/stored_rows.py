"""Rows of data that stay on disk: memory maps, .npy files, folders of shards, Parquet row groups, Hugging Face sets.

Each reads the rows that it is asked for and nothing else, so that data may be larger than memory.  What they return is
what a caller would have passed as data in memory; :func:`inference.fitting.stored.stored` checks it batch by batch.
"""

from __future__ import annotations

import copy
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ppl_models.program import Program, leaves, numbers, zeros

IN_MEMORY = 2**28
"""Numbers (1 GiB of float32) up to which a Hugging Face set is read into memory as a whole: that is faster."""
PARQUET = (".parquet", ".pq")


@runtime_checkable
class Rows(Protocol):
    """Rows on disk: any of them, or, where ``blocks`` says how many rows each has, blocks that are read as a whole."""

    name: str

    def __len__(self) -> int: ...
    @property
    def blocks(self) -> np.ndarray | None: ...
    def head(self) -> Any: ...
    def read(self, index: np.ndarray) -> Any: ...


class ArrayFile:
    """An array (n, *shape) in a file, row after row from byte ``offset`` on.

    Rows are read (``pread``), not mapped: mapped pages count as resident memory, each first touch of one reads far
    around it, and waits with the interpreter's lock held.
    """

    def __init__(self, path: str | Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.offset, self.shape, self.dtype = str(path), offset, shape, dtype
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, index: np.ndarray) -> np.ndarray:
        """The rows of ``index``; raises ``ValueError`` where the file ends before one."""
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        if not out.nbytes:
            return out
        each, view = out.nbytes // len(index), memoryview(out.reshape(-1).view(np.uint8))
        if len(index) > 1 and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
            self._fill(view, self.offset + int(index[0]) * each)
        else:
            for i, row in enumerate(index.tolist()):
                self._fill(view[i * each : (i + 1) * each], self.offset + row * each)
        return out

    def _fill(self, view: memoryview, at: int) -> None:
        while view:
            count = os.preadv(self._file, [view], at)
            if not count:
                raise ValueError(f"{self.path} ends at byte {at}: it has been cut since it was opened; restore it")
            view, at = view[count:], at + count


class FileRows:
    """Arrays (n, *shape) in files, one a leaf of a datum or several one after another (shards).

    ``arrays``  a pytree with lists of :class:`ArrayFile` or arrays for leaves.
    """

    blocks = None

    def __init__(self, name: str, arrays: Any) -> None:
        self.name, self.arrays = name, arrays
        shards = jax.tree.leaves(arrays, is_leaf=_is_shards)
        sizes = [sum(len(shard) for shard in parts) for parts in shards]
        if len(set(sizes)) != 1 or not sizes[0]:
            raise ValueError(f"{name}: expected arrays of one length, at least 1, got lengths {sizes}")
        for parts in shards:
            if len(kinds := {(part.dtype.str, part.shape[1:]) for part in parts}) > 1:
                raise ValueError(f"{name}: the shards differ in dtype or shape of a row: {sorted(map(str, kinds))}")
        self._size = sizes[0]

    def __len__(self) -> int:
        return self._size

    def head(self) -> Any:
        return self.read(np.arange(1))

    def read(self, index: np.ndarray) -> Any:
        return jax.tree.map(lambda parts: _gather(parts, index), self.arrays, is_leaf=_is_shards)


def _is_shards(node: Any) -> bool:
    return isinstance(node, list)


def _gather(parts: Sequence[Any], index: np.ndarray) -> np.ndarray:
    """Rows of shards one after another, in memory."""
    if len(parts) == 1:
        return _rows(parts[0], index)
    ends = np.cumsum([len(part) for part in parts])
    shard = np.searchsorted(ends, index, side="right")
    out = np.empty((len(index), *parts[0].shape[1:]), parts[0].dtype)
    for i in np.unique(shard):
        mine = np.flatnonzero(shard == i)
        out[mine] = _rows(parts[i], index[mine] - (ends[i] - len(parts[i])))
    return out


def _rows(part: Any, index: np.ndarray) -> np.ndarray:
    return part.read(index) if isinstance(part, ArrayFile) else np.asarray(part[index])


def _unmapped(array: Any) -> Any:
    """The file behind a memory map, or behind a part of it that lies in one piece; other arrays as they are."""
    root = array
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    known = isinstance(array, np.memmap) and isinstance(root, np.memmap) and root.filename and root.mode != "c"
    if not known or not array.flags.c_contiguous or array.ndim == 0:
        return array
    at = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return ArrayFile(root.filename, root.offset + at, array.shape, array.dtype)


class ParquetRows:
    """Rows of a Parquet file, or of a folder of them, as DataFrames, a row group at a time.  Needs ``pyarrow``.

    ``columns``  those that are read, by default all.
    """

    def __init__(self, path: str | Path, columns: Sequence[str] = ()) -> None:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError(f"{path} needs pyarrow to be read: pip install 'ppl-models[table]'") from error
        self.name, self.columns = str(path), list(columns) or None
        files = _sorted(Path(path), *PARQUET) if Path(path).is_dir() else [Path(path)]
        self.files = [parquet.ParquetFile(file) for file in files]
        if len(names := {tuple(file.schema_arrow.names) for file in self.files}) > 1:
            raise ValueError(f"{path}: the files differ in their columns: {sorted(names)[:2]}")
        self.groups = [(file, group) for file in self.files for group in range(file.metadata.num_row_groups)]

    def only(self, groups: Sequence[int], columns: Sequence[str] = ()) -> ParquetRows:
        """Some of the row groups, in this order, and columns."""
        found = copy.copy(self)
        found.groups, found.columns = [self.groups[i] for i in groups], list(columns) or self.columns
        found.__dict__.pop("blocks", None)
        return found

    @cached_property
    def blocks(self) -> np.ndarray:
        """Rows of each row group."""
        return np.asarray([file.metadata.row_group(group).num_rows for file, group in self.groups], np.int64)

    def __len__(self) -> int:
        return int(self.blocks.sum())

    def head(self) -> Any:
        """The first two rows, a DataFrame."""
        file, group = self.groups[0]
        return next(file.iter_batches(batch_size=2, row_groups=[group], columns=self.columns)).to_pandas()

    def read(self, index: np.ndarray) -> Any:
        """The row groups of ``index``, one after another, a DataFrame."""
        import pandas as pd

        chosen = [self.groups[i] for i in index]
        found = [file.read_row_group(group, self.columns, use_threads=False).to_pandas() for file, group in chosen]
        return found[0] if len(found) == 1 else pd.concat(found, ignore_index=True)


class ChosenRows:
    """Some of the rows of others, of which any can be read: ``index`` says for rows 0..size-1 which they are."""

    blocks = None

    def __init__(self, whole: Rows, size: int, index: Callable[[np.ndarray], np.ndarray]) -> None:
        if whole.blocks is not None:
            raise ValueError(f"{whole.name} is read in blocks, of which single rows cannot be chosen")
        self.whole, self.index, self._size = whole, index, size
        self.name = whole.name

    def __len__(self) -> int:
        return self._size

    def head(self) -> Any:
        return self.read(np.arange(1))

    def read(self, index: np.ndarray) -> Any:
        return self.whole.read(self.index(index))


class HubRows:
    """Rows of a Hugging Face data set with random access, which keeps them in Arrow files on disk."""

    blocks = None

    def __init__(self, found: Any, program: Program) -> None:
        self.name = "the data set"
        self.several, self.columns = columns_of(program, found)
        self.found = found.with_format("numpy", columns=self.columns)

    def __len__(self) -> int:
        return len(self.found)

    def head(self) -> Any:
        return self.read(np.arange(1))

    def read(self, index: np.ndarray) -> Any:
        rows = self.found[index]
        return {name: rows[name] for name in self.columns} if self.several else rows[self.columns[0]]


def is_hub(x: Any) -> bool:
    """Whether ``x`` is a Hugging Face data set."""
    return type(x).__module__.partition(".")[0] == "datasets" and hasattr(x, "with_format")


def columns_of(program: Program, found: Any) -> tuple[bool, list[str]]:
    """Whether a datum of the program is several arrays, and the columns of a Hugging Face set that hold them."""
    if not hasattr(found, "__getitem__"):
        raise ValueError(
            "a data set that is streamed has no rows to choose from; load it without streaming=True (it stays on "
            "disk), or wrap it as a grain dataset"
        )
    names = list(found.column_names)
    if several := isinstance(program.shape, Mapping):
        wanted = list(program.shape)
    else:
        wanted = names if len(names) == 1 else [program.observed[0]]
    if lacking := [name for name in wanted if name not in names]:
        raise ValueError(f"the data set has the columns {sorted(names)}, expected {lacking}; rename_column(OLD, NEW)")
    return several, wanted


def on_disk(program: Program, data: Any) -> Rows | None:
    """The rows that ``data`` names where they are to stay on disk; ``None`` for data in memory.

    A path (of a .npy file, a .parquet file, or a folder of either), memory maps (``numpy.load(..., mmap_mode="r")``), a
    Hugging Face set of more than 2^28 numbers, or :class:`Rows` themselves.
    """
    if isinstance(data, Rows):
        return data
    if isinstance(data, str | Path):
        return open_rows(data, program.shape, [column.name for column in program.observation.columns])
    if is_hub(data):
        return HubRows(data, program) if len(data) * numbers(program.shape) > IN_MEMORY else None
    arrays = jax.tree.leaves(data)
    if any(isinstance(leaf, np.memmap) for leaf in arrays):
        return FileRows("the memory map", jax.tree.map(lambda leaf: [_unmapped(leaf)], data))
    return None


def open_rows(path: str | Path, shape: Any = (), columns: Sequence[str] = ()) -> Rows:
    """Rows of a .npy file, a folder of .npy shards, a .parquet file or a folder of those, in the order of their names.

    ``shape``    of a datum, as a program states it.  Where it is several arrays, a folder holds each by its name, as
                 ``NAME.npy`` or as shards ``NAME/*.npy``.
    ``columns``  of Parquet that are read, by default all.

    Raises ``ValueError`` for a path that is nothing of the kind, files that are torn or hold objects, and shards that
    differ; ``ImportError`` for Parquet without ``pyarrow``.
    """
    place = Path(path).expanduser()
    parquet = place.suffix.lower() in PARQUET
    if place.is_file() and (parquet or place.suffix.lower() == ".npy"):
        return ParquetRows(place, columns) if parquet else FileRows(str(path), [_array_file(place)])
    expected = "a .npy file, a .parquet file, or a folder of either"
    if not place.is_dir():
        what = "is neither" if place.exists() else "does not exist; expected"
        raise ValueError(f"data {str(path)!r} {what} {expected}")
    if _sorted(place, *PARQUET):
        return ParquetRows(place, columns)
    names = list(leaves(shape))
    if names == [""]:
        arrays = [_array_file(file) for file in _sorted(place, ".npy")]
        if not arrays:
            raise ValueError(f"the folder {str(path)!r} holds no .npy and no .parquet file; expected {expected}")
        return FileRows(str(path), arrays)
    found = {}
    for name in names:
        shards = _sorted(place / name, ".npy") if (place / name).is_dir() else [place / f"{name}.npy"]
        if not shards or not shards[0].is_file():
            raise ValueError(f"the folder {str(path)!r} lacks {name}.npy or {name}/*.npy; expected {', '.join(names)}")
        found[name] = [_array_file(file) for file in shards]
    return FileRows(str(path), jax.tree.unflatten(jax.tree.structure(zeros(shape)), list(found.values())))


def _array_file(file: Path) -> ArrayFile:
    """A .npy file, its header checked against its size."""
    try:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); write it with numpy.save, plain numbers") from error
    found = _unmapped(mapped)
    if not isinstance(found, ArrayFile):
        raise ValueError(f"{file} is not in C order; write it with numpy.save(FILE, numpy.ascontiguousarray(x))")
    return found


def _sorted(folder: Path, *suffixes: str) -> list[Path]:
    """Files of a folder by name, numbers in it by size."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith(".")]
    return sorted(files, key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", file.name)])
