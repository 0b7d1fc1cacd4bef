"""Checkpoints: one npz file a step, written atomically, readable with ``numpy.load``.

A file holds every leaf of the training state under its tree path and a JSON header under ``__meta__``.  It is
written to a temporary name in the same folder, flushed to disk and renamed, so a name that exists is a whole
file; the last ``keep`` files stay.  Reading verifies the zip checksums and compares names, shapes and dtypes with
the state that is expected: a torn or foreign file is an error, never a silent start from other numbers.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NAME = re.compile(r"step_(\d{8,})\.npz$")
_TEMPORARY = re.compile(r"\.\d+\.tmp$")
FORMAT = "ppl-models checkpoint 1"
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, OSError, NotImplementedError, MemoryError,
    RecursionError,
)  # fmt: skip
"""What zip, NumPy and JSON raise for a file that is torn, or was never a checkpoint."""
Pick = Callable[[Mapping[str, Any]], Sequence[str]]


class CheckpointError(ValueError):
    """A checkpoint that is torn, foreign, or of another model."""


def is_key(leaf: Any) -> bool:
    """Whether ``leaf`` is a new-style random key array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flatten(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def write_atomic(path: Path, write: Any) -> None:
    """Call ``write(file)`` on a temporary file beside ``path``, flush it to disk, and rename it into place.

    Raises ``OSError`` that names ``path`` where it cannot be written (disk full, no permission); a file that was there
    before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> OSError:
    """What to raise for an error of writing ``path``, which the system's own message need not name."""
    reason = error.strerror or str(error)
    return OSError(
        error.errno,
        f"cannot write {path}: {reason}; what was written before is whole: free some space or make the folder "
        "writable, then go on (resume)",
    )


def leftovers(folder: Path, name: str = "*") -> list[Path]:
    """Temporary files of :func:`write_atomic` for ``name``: half written by a process that was killed."""
    return sorted(p for p in folder.glob(f".{name}.*.tmp") if _TEMPORARY.search(p.name))


def save(folder: Path, step: int, tree: Any, meta: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write ``tree`` and ``meta`` as the checkpoint of ``step`` and drop all but the newest ``keep``.

    Raises ``OSError`` (disk full, no permission) and then leaves the earlier checkpoints as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        name: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf) for name, leaf in _flatten(tree).items()
    }
    header = json.dumps({"format": FORMAT, "step": step, **meta})
    path = folder / f"step_{step:08d}.npz"
    write_atomic(path, lambda file: np.savez(file, __meta__=np.array(header), **arrays))
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files of a folder, oldest first."""
    return sorted((p for p in folder.glob("step_*.npz") if _NAME.search(p.name)), key=lambda p: int(p.stem[5:]))


def read(path: Path, template: Any, pick: Pick | None = None) -> tuple[Any, dict[str, Any]]:
    """Return (state, header) of one checkpoint; ``template`` is the expected tree of arrays or shapes.

    With ``pick`` only a part is read: ``template`` is then a tuple of trees and ``pick(header)`` names the tree path
    of each in the file.

    Raises :class:`CheckpointError` naming the file and what is wrong with it.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        header = json.loads(str(stored.pop("__meta__")))
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except KeyError:
        raise CheckpointError(f"{path} is not a checkpoint of this package: it has no __meta__ header") from None
    except _BROKEN as error:
        raise CheckpointError(
            f"{path} is torn or not a checkpoint ({error}); remove it to use the one before"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {header!r:.80}, expected {FORMAT!r}; it was written by other software"
        )
    if pick is None:
        expected = _flatten(template)
    else:
        parts = zip(pick(header), template, strict=True)
        expected = {prefix + name: leaf for prefix, part in parts for name, leaf in _flatten(part).items()}
    absent = set(expected) - set(stored) if pick else set(expected) ^ set(stored)
    if missing := sorted(absent):
        raise CheckpointError(
            f"{path} belongs to another model or optimiser: {len(missing)} entries differ, first {missing[0]!r}; "
            "resume with the arguments of the original run"
        )
    leaves = {}
    for name, like in expected.items():
        value = stored[name]
        key = is_key(like)
        want = jax.eval_shape(jax.random.key_data, like) if key else like
        if value.shape != want.shape or value.dtype != want.dtype:
            raise CheckpointError(
                f"{path}: entry {name!r} is {value.dtype}{value.shape}, expected {want.dtype}{want.shape}; "
                "it belongs to another model"
            )
        leaves[name] = jax.random.wrap_key_data(jnp.asarray(value)) if key else jnp.asarray(value)
    return jax.tree.unflatten(jax.tree.structure(template), list(leaves.values())), header


def read_newest(folder: Path, template: Any, pick: Pick | None = None) -> tuple[Any, dict[str, Any], list[str]]:
    """Return (state, header, warnings) of the newest readable checkpoint of a folder.

    Torn newer files are passed over and named in ``warnings``.  Raises :class:`CheckpointError` if none is usable.
    """
    problems: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            state, header = read(path, template, pick)
            return state, header, problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("no usable checkpoint: " + "; ".join(problems))
    raise CheckpointError(f"no checkpoint in {folder}: the run was stopped before its first one; start it again")
