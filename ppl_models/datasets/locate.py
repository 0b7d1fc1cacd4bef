"""Where data lie on this machine: the search path, the user cache, and the one error for a set that is absent.

Nothing here downloads, and importing it touches no file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ppl_models._folders import CACHE_VARIABLE as CACHE_VARIABLE, cache_dir as cache_dir

DATA_VARIABLE = "PPL_MODELS_DATA"
"""Environment variable: one directory, or several separated as in ``PATH``, that hold ``NAME.npz`` files."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class DataMissingError(FileNotFoundError):
    """A known data set is not on this machine (or could not be fetched); the message lists every way to get it.

    ``name`` is the set, ``ways`` the lines of the message that say how to get it.
    """

    def __init__(self, message: str, name: str = "", ways: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.name, self.ways = name, ways


def missing(name: str, ways: Iterable[str], looked: Iterable[str], reason: str = "") -> DataMissingError:
    """Return the error for an absent set: where we looked, and each way to get it on a line of its own."""
    ways = tuple(ways)
    lines = [f"data set {name!r} is not on this machine" + (f": {reason}" if reason else "")]
    lines += ["looked for:"] + [f"  - {place}" for place in looked]
    lines += ["any one of these gets it:"] + [f"  {i}. {way}" for i, way in enumerate(ways, 1)]
    return DataMissingError("\n".join(lines), name, ways)


def is_name(name: str) -> bool:
    """Whether ``name`` can be the stem of a data file: letters, digits, ``_ . -``, and never a path."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name))


def data_dirs() -> tuple[Path, ...]:
    """Return the directories of ``PPL_MODELS_DATA``, in order; empty if the variable is not set."""
    parts = os.environ.get(DATA_VARIABLE, "").split(os.pathsep)
    return tuple(Path(part).expanduser() for part in parts if part)


def roots(root: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Return the directories that are searched, in order: ``root``, ``PPL_MODELS_DATA``, the cache's ``data``.

    Raises ``ValueError`` for a ``root`` that is not a directory.
    """
    first = () if root is None else (Path(root).expanduser(),)
    if first and not first[0].is_dir():
        raise ValueError(f"root must be a directory that holds the data, got {str(first[0])!r}, which is not one")
    return (*first, *data_dirs(), cache_dir() / "data")


def find_npz(name: str, root: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the first of ``ROOT/NAME.npz`` and ``ROOT/NAME/NAME.npz`` that exists, or ``None``."""
    for directory in roots(root):
        for path in (directory / f"{name}.npz", directory / name / f"{name}.npz"):
            if path.is_file():
                return path
    return None


def places(name: str, root: str | os.PathLike[str] | None = None) -> list[str]:
    """Say where :func:`find_npz` looks, for an error message."""
    lines = [
        f"{name}.npz or {name}/{name}.npz in {directory}" + ("" if directory.is_dir() else " (no such directory)")
        for directory in roots(root)
    ]
    if not data_dirs():
        lines.append(f"(the environment variable {DATA_VARIABLE} is not set)")
    return lines


def all_npz(root: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """Return every data file on the search path by name; the first directory wins."""
    found: dict[str, Path] = {}
    for directory in roots(root):
        if directory.is_dir():
            nested = (sub / f"{sub.name}.npz" for sub in sorted(directory.iterdir()) if sub.is_dir())
            for path in [*sorted(directory.glob("*.npz")), *nested]:
                if is_name(path.stem) and path.is_file():
                    found.setdefault(path.stem, path)
    return found


def verify_once(path: Path, expected: Mapping[str, str], measure: Callable[[], Mapping[str, str]], remedy: str) -> None:
    """Compare checksums the first time a file is used, and remember the success in the user cache.

    ``measure()`` returns the sha256 sums to compare with ``expected``; it is called only if this path with this
    size and modification time has not passed before.  A cache that cannot be written only means that the check
    runs again.  Raises ``ValueError`` that names the part, both sums and ``remedy``.
    """
    stat = path.stat()
    record = {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sums": dict(expected)}
    text = json.dumps(record, sort_keys=True)
    marker = cache_dir() / "verified" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if marker.exists():
        return
    got = measure()
    for part, sum_ in expected.items():
        if got.get(part) != sum_:
            raise ValueError(
                f"{path} does not hold the data it is named after: sha256 of {part} is {got.get(part, 'missing')}, "
                f"expected {sum_}; {remedy}"
            )
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(text)
    except OSError:
        pass
