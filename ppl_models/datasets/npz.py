"""Data sets of your own: ``NAME.npz`` files, described from their headers and read without pickle.

Two layouts, images first along the first axis, bytes (0..255) or floats:

    x_train, x_test [, x_valid ...]   one array a split; ``x_train`` is required
    x                                 no test split: ours is ``heldout``, by the rule of :func:`held_out_rows`

Integer vectors of the same length are factors: ``y_SPLIT`` (or ``y``) is called "label", ``NAME_SPLIT`` (or ``NAME``)
keeps its name. Optional: ``class_names`` (names of the labels), ``levels`` (grey levels of byte data, default 256),
and the texts ``description``, ``licence``, ``provenance``.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Integer, Shaped

from ppl_models.datasets import idx
from ppl_models.datasets.describe import Info
from ppl_models.datasets.locate import verify_once

Header = tuple[tuple[int, ...], np.dtype]
_BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, NotImplementedError, MemoryError,
    struct.error,
)  # fmt: skip
_TEXTS = ("description", "licence", "provenance")


def headers(path: Path) -> dict[str, Header]:
    """Return shape and dtype of every array of an npz file, from its headers alone.

    Raises ``ValueError`` for a file that is torn or is not an npz file at all.
    """
    found: dict[str, Header] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _later_header
                    shape, _, dtype = read(stream)
                    found[member.removesuffix(".npy")] = shape, dtype
    except _BROKEN as error:
        raise _torn(path, error) from error
    return found


def _later_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_2_0(stream)


def _torn(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path} cannot be read: it is torn, or not an npz file of plain arrays ({type(error).__name__}: {error}); "
        "copy it again, or write it with numpy.savez_compressed(path, x_train=..., y_train=..., x_test=..., y_test=...)"
    )


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read some arrays of an npz file; never unpickles. ``ValueError`` for a torn file or an array of objects."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except _BROKEN as error:
        raise _torn(path, error) from error


# ----------------------------------------------------------------------------------------------------- layout
@dataclass(frozen=True)
class Layout:
    """Which array of a file holds what: ``x`` and ``factors`` by split; ``whole`` if one array serves all splits."""

    x: Mapping[str, str]
    factors: Mapping[str, Mapping[str, str]]
    sizes: Mapping[str, int]
    shape: tuple[int, ...]
    levels: int | None
    whole: bool
    classes: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def has_layout(found: Mapping[str, Header]) -> bool:
    """Whether a file with these arrays is one of ours (other npz files may share the directory)."""
    return "x" in found or "x_train" in found


def layout(path: Path, label: str = "label", held_out: int | None = None) -> Layout:
    """Describe a file from its headers, and check them.

    Raises ``ValueError`` naming the array and what was expected: no ``x_train`` or ``x``, pixels that are neither
    bytes nor floats, labels that are not an integer vector of the right length, splits of different shapes.
    """
    found = headers(path)
    splits = {match[1]: key for key in found if (match := re.fullmatch(r"x_(\w+)", key))}
    whole = not splits
    if whole == ("x" not in found) or (splits and "train" not in splits):
        raise ValueError(f"{path} must hold x_train (and x_test), or x alone; got arrays {sorted(found)}")
    for key in ["x"] if whole else list(splits.values()):
        _check_pixels(path, key, found[key])
    first = found["x" if whole else "x_train"]
    if any(found[key][0][1:] != first[0][1:] or found[key][1] != first[1] for key in splits.values()):
        each = ", ".join(f"{key} {found[key][1]} {found[key][0]}" for key in splits.values())
        raise ValueError(f"{path}: the splits must have one dtype and one shape but for the first axis, got {each}")
    if whole:
        train, rest = held_out_rows(first[0][0], held_out)
        splits, sizes = {"train": "x", "heldout": "x"}, {"train": len(train), "heldout": len(rest)}
    else:
        sizes = {split: found[key][0][0] for split, key in splits.items()}
    small = tuple(k for k in ("class_names", "levels", *_TEXTS) if k in found and not found[k][1].hasobject)
    notes = read_arrays(path, small)
    classes = tuple(map(str, np.atleast_1d(notes["class_names"]))) if "class_names" in notes else ()
    return Layout(
        x=splits,
        factors={split: _factors(path, found, split, "" if whole else f"_{split}", label) for split in splits},
        sizes=sizes,
        shape=first[0][1:],
        levels=_levels(path, notes, first[1]),
        whole=whole,
        classes=classes,
        texts={key: str(notes[key]) for key in _TEXTS if key in notes},
    )


def held_out_rows(size: int, held_out: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (train, heldout) of a set that came without a test split.

    ``held_out=None``: a tenth (at least one) of the rows, drawn without regard to ``seed``, the end of
    ``numpy.random.default_rng(0).permutation(size)``, since a file may be sorted by class. A number: the last rows.
    """
    if size < 2:
        raise ValueError(f"a set without a test split needs at least 2 data to hold one out, got {size}")
    rows = np.random.default_rng(0).permutation(size) if held_out is None else np.arange(size)
    cut = size - (max(1, size // 10) if held_out is None else held_out)
    return rows[:cut], rows[cut:]


def _check_pixels(path: Path, key: str, header: Header) -> None:
    shape, dtype = header
    if dtype.hasobject:
        raise ValueError(f"{path}: {key} holds pickled Python objects, which are never loaded; save a plain array")
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(
            f"{path}: {key} must be uint8 or float, got {dtype}; save {key}.astype('uint8') if it holds 0..255"
        )
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"{path}: {key} must be (number, *shape of one datum) and not empty, got shape {shape}")


def _factors(path: Path, found: Mapping[str, Header], split: str, suffix: str, label: str) -> dict[str, str]:
    size = found[f"x{suffix}"][0][0]
    target = f"y{suffix}"
    if target in found and (found[target][0] != (size,) or found[target][1].kind not in "iu"):
        raise ValueError(
            f"{path}: {target} must be {size:,} integers, one a datum, got {found[target][1]} of shape "
            f"{found[target][0]}; save argmax over the classes if it is one-hot, or leave it out"
        )
    names = {key: key[: len(key) - len(suffix)] for key in found if key.endswith(suffix)}
    return {
        label if name == "y" else name: key
        for key, name in names.items()
        if name != "x" and found[key][0] == (size,) and found[key][1].kind in "iu"
    }


def _levels(path: Path, notes: Mapping[str, np.ndarray], dtype: np.dtype) -> int | None:
    if dtype != np.uint8:
        return None
    levels = notes.get("levels", np.array(256))
    if levels.size != 1 or levels.dtype.kind not in "iu" or not 2 <= levels.item() <= 256:
        raise ValueError(f"{path}: levels must be one integer from 2 to 256, got {levels!r}")
    return int(levels.item())


# ------------------------------------------------------------------------------------------------------- read
def read_split(
    path: Path, split: str, plan: Layout, held_out: int | None, pins: Mapping[str, str], remedy: str
) -> tuple[Shaped[np.ndarray, "n ..."], dict[str, Integer[np.ndarray, " n"]]]:
    """Read one split, checked: pinned checksums (once a file), bytes below ``levels``, floats finite."""
    if pins:
        verify_once(path, pins, lambda: _sums(path, tuple(pins)), remedy)
    sidecar = path.with_name(f"{path.name}.sha256")
    if sidecar.is_file():
        expected = (sidecar.read_text().split() or ["empty"])[0]
        verify_once(path, {"the file": expected}, lambda: _file_sum(path), remedy)
    keys = plan.factors[split]
    arrays = read_arrays(path, (plan.x[split], *keys.values()))
    x = arrays[plan.x[split]]
    if plan.levels is not None and plan.levels < 256 and int(x.max()) >= plan.levels:
        top = plan.levels - 1
        raise ValueError(f"{path}: {plan.x[split]} must lie in 0..{top} (levels {plan.levels}), got {x.max()}")
    if plan.levels is None and not np.isfinite(x).all():
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
        raise ValueError(
            f"{path}: {plan.x[split]} must be finite, got NaN or infinity in {bad.sum():,} of {len(x):,} data, "
            f"the first at row {bad.argmax()}; remove those rows"
        )
    factors = {name: arrays[key].astype(np.int64) for name, key in keys.items()}
    if plan.whole:
        rows = held_out_rows(len(x), held_out)[split != "train"]
        x, factors = x[rows], {name: value[rows] for name, value in factors.items()}
    return x, factors


def _sums(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    found = headers(path)
    arrays = read_arrays(path, tuple(name for name in names if name in found))
    return {name: idx.sha256(array) for name, array in arrays.items() if array.dtype == np.uint8}


def _file_sum(path: Path) -> dict[str, str]:
    import hashlib

    with path.open("rb") as stream:
        return {"the file": hashlib.file_digest(stream, "sha256").hexdigest()}


def user_info(name: str, path: Path, how_to_get: tuple[str, ...]) -> Info:
    """Describe a file of the user's own. Raises what :func:`layout` raises."""
    plan = layout(path)
    names = {factor: () for split in plan.factors.values() for factor in split}
    rule = "; no test split: a tenth is held out at random as 'heldout'" if plan.whole else ""
    return Info(
        name=name,
        shape=plan.shape,
        levels=plan.levels,
        sizes=plan.sizes,
        factors={**names, **({"label": plan.classes} if "label" in names else {})},
        description=plan.texts.get("description", "a file of your own") + rule,
        licence=plan.texts.get("licence", "not stated by the file"),
        provenance=plan.texts.get("provenance", "not stated by the file"),
        how_to_get=how_to_get,
        where=lambda: str(path) if path.is_file() else None,
    )
