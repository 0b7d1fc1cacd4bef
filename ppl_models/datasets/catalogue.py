"""The list of data sets, and :func:`load`: one signature for all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ppl_models.datasets import npz
from ppl_models.datasets.describe import Info, check_split, subset, whole
from ppl_models.datasets.facets import CONFIGURATIONS
from ppl_models.datasets.images import folder_dataset
from ppl_models.datasets.locate import DATA_VARIABLE, all_npz, data_dirs, find_npz, is_name
from ppl_models.datasets.operators import OPERATORS
from ppl_models.datasets.packaged import CIFAR10_PNG4K, MNIST, Digits, FashionMNIST, Loaded, Root, _take
from ppl_models.datasets.triangle import TriangleDigits


@runtime_checkable
class DataSet(Protocol):
    """What the catalogue holds: an entry describes itself, and reads one split."""

    @property
    def name(self) -> str: ...

    def info(self, root: Root = None) -> Info: ...

    def read(self, split: str, n: int | None, seed: int, root: Root = None) -> Loaded: ...


@dataclass(frozen=True)
class UserFile:
    """A file of the user's own: ``NAME.npz`` on the search path."""

    name: str
    path: Path

    def info(self, root: Root = None) -> Info:
        """Describe the file from its headers."""
        return npz.user_info(self.name, self.path, (f"it is your file {self.path}",))

    def read(self, split: str, n: int | None, seed: int, root: Root = None) -> Loaded:
        """Read one split of the file."""
        info = self.info()
        check_split(info, split)
        rows = subset(info.sizes[split], n, seed, f"split {split!r} of {self.name!r}")
        remedy = f"it changed since it was written: fetch it again, or remove {self.path.name}.sha256 if that is meant"
        x, factors = npz.read_split(self.path, split, npz.layout(self.path), None, {}, remedy)
        return _take(x, factors, rows)


_SETS: tuple[DataSet, ...] = (
    Digits(),
    FashionMNIST(),
    MNIST,
    CIFAR10_PNG4K,
    *CONFIGURATIONS,
    *OPERATORS,
    TriangleDigits(),
)
BUILTIN: dict[str, DataSet] = {entry.name: entry for entry in _SETS}
"""Named sets. Anything else is a file of the user's own."""


def find(name: str, root: Root = None) -> DataSet:
    """Return the entry of a set, or raise ``ValueError`` with the known names and the closest one.

    A name is looked for among the built-in sets, then among your own files, then as a folder of images.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    path = find_npz(name, root) if is_name(name) else None
    if path is not None:
        return UserFile(name, path)
    if name and Path(name).expanduser().is_dir():
        return folder_dataset(name)
    from ppl_models.program import did_you_mean  # imported late: an error may take the time, an import may not

    known = names(root=root)
    dirs = ", ".join(map(str, data_dirs())) or "not set"
    raise ValueError(
        f"unknown data set {name!r}{did_you_mean(str(name), known)}; known: {', '.join(known)}. A set of your own is "
        f"a file NAME.npz in a directory named by {DATA_VARIABLE} (now: {dirs}), or the path of a folder of images"
    )


def names(*, root: Root = None) -> tuple[str, ...]:
    """Return the names that :func:`load` knows: the built-in sets, then your own files on the search path.

    An npz file without the arrays ``x_train`` or ``x`` is not a data set and is left out; one that cannot be read
    is listed, so that its error can be seen.
    """
    own = [name for name, path in all_npz(root).items() if name not in BUILTIN and _may_be_ours(path)]
    return (*BUILTIN, *sorted(own))


def _may_be_ours(path: Path) -> bool:
    try:
        return npz.has_layout(npz.headers(path))
    except ValueError:
        return True


def info(name: str, *, root: Root = None) -> Info:
    """Return what is known of a set, without reading its pixels.

    Raises ``ValueError`` for an unknown name, and for a file of your own whose headers are wrong.
    """
    return find(name, root).info(root)


def load(
    name: str,
    split: str = "train",
    *,
    n: int | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> Loaded:
    """Return the data and the known factors of one split: ``x`` (n, *shape) as stored, and integer vectors.

    ``x`` is uint8 (0..levels-1, see :func:`info`) or, for files of your own, floats as they are; nothing is scaled,
    binarised or augmented here: that belongs to the model, whose likelihood has to know of it. Both are fresh
    arrays of your own.

    ``n`` takes a subset that depends only on ``seed``, the same for everybody, and nested: the first ``n`` rows of
    ``numpy.random.default_rng(seed).permutation(size)``. Without ``n`` all rows come in stored order. The generated
    sets (``facets_*``, ``navier_stokes``, ``darcy``, ``shape_masks``) draw ``n`` fresh data from ``seed`` instead, also
    nested, and any ``n`` up to a million.  Of sets for conditional models ``x`` is a dict of arrays, ``x`` given and
    ``y`` to be predicted.
    ``root`` is searched before ``PPL_MODELS_DATA`` and the user cache.

        from ppl_models.datasets import load
        x, factors = load("digits", n=100)                  # (100, 8, 8) uint8, {"digit": (100,)}

    Raises ``ValueError`` for an unknown name or split, an ``n`` outside 1..size, a negative ``seed``, and a torn or
    foreign file; :class:`DataMissingError` (a ``FileNotFoundError``) for a known set that is not on this machine.
    Never downloads.
    """
    entry = find(name, root)
    whole(seed, "seed", 0)
    return entry.read(split, n, seed, root)


def table(*, root: Root = None) -> list[dict[str, Any]]:
    """Return one row a set: name, shape, levels, sizes, factors, available, where, licence, description.

    A file that cannot be read has ``available`` False and the reason in ``where``.
    """
    rows = []
    for name in names(root=root):
        try:
            entry = info(name, root=root)
        except ValueError as error:
            blank = dict.fromkeys(("shape", "levels", "sizes", "factors", "licence", "description"))
            rows.append({"name": name, **blank, "available": False, "where": str(error)})
            continue
        rows.append(
            {
                "name": name,
                "shape": entry.shape,
                "levels": entry.levels,
                "sizes": dict(entry.sizes),
                "factors": tuple(entry.factors),
                "available": entry.available(),
                "where": entry.where(),
                "licence": entry.licence,
                "description": entry.description,
            }
        )
    return rows
