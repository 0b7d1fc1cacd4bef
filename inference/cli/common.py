"""What the commands share: errors, the runtime, plug-ins, names, run folders and plain tables."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

PARTS = (
    "spec.json", "run.json", "checkpoint", "history.csv", "posterior.nc", "evidence.csv", "evidence.json",
    "diagnosis.csv", "clustering.csv", "report.html", "figures", "samples.npz", "assignments.csv", "baselines.csv",
    "baselines.json", "columns.csv", "imputed.csv", "imputed_table.csv", "tensorboard",
)  # fmt: skip
"""What a run folder holds.  Only these are ever removed, and only from a folder that has a ``run.json``."""


class UsageError(Exception):
    """The command line, or a file it names, is wrong; nothing was done (exit code 2)."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM, while a run folder was being filled; says how to go on."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: the system, or a queue of jobs, wants this process to end (exit code 143)."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turn a SIGTERM into :class:`Terminated`, so that files are closed and it is said how to go on."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated("terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Report a ``ValueError`` raised while names, specs and options are read as a usage error."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def say(text: str = "") -> None:
    """Print one line of progress on stderr; stdout is kept for results."""
    print(text, file=sys.stderr, flush=True)


def shell(path: Path | str) -> str:
    """Return a path as it can be pasted into a shell."""
    import shlex

    return shlex.quote(str(path))


# ------------------------------------------------------------------------------------------------ runtime
def start() -> None:
    """Tune allocator and compile cache before JAX starts, and keep its platform messages off the screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax").setLevel(logging.ERROR)
    from inference.fitting.runtime import tune_runtime

    tune_runtime()


@contextlib.contextmanager
def plain_warnings(show_all: bool) -> Iterator[None]:
    """Show our own warnings as one line on stderr and hide those of the libraries below, unless debugging."""
    with warnings.catch_warnings():
        if not show_all:
            warnings.simplefilter("ignore")
            for category in (UserWarning, RuntimeWarning):
                warnings.filterwarnings("default", category=category, module=r"(ppl_models|inference)\b")
            warnings.showwarning = lambda message, *args, **kwargs: say(f"warning: {message}")
        yield


# ------------------------------------------------------------------------------------------------ plug-ins
def load_plugins(files: Iterable[Path | str]) -> list[dict[str, str]]:
    """Import files that register families of the user's own; returns what ``run.json`` remembers of them.

    That the user named them is remembered in the user's cache, for :func:`reload_plugins`.
    """
    notes = [_load_plugin(Path(file)) for file in files]
    for note in notes:
        with contextlib.suppress(OSError):  # a cache that cannot be written: the file has to be named again
            mark = _trust_mark(note["path"])
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(note["path"], encoding="utf-8")
    return notes


def _trust_mark(path: str) -> Path:
    """What stands in the user's cache for a plug-in that the user has named with ``--plugin``."""
    from inference.fitting.runtime import cache_folder

    return cache_folder() / "plugins" / hashlib.sha256(path.encode()).hexdigest()


def _is_trusted(path: Path) -> bool:
    """Whether the user has named a plug-in before, or it runs in this process already."""
    loaded = sys.modules.get(f"ppl_models_plugin_{path.stem}")
    return _trust_mark(str(path)).is_file() or getattr(loaded, "__file__", None) == str(path)


def _load_plugin(file: Path) -> dict[str, str]:
    path = file.expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"no plug-in file {str(file)!r}; --plugin names a Python file that calls register(...)")
    note = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    name = f"ppl_models_plugin_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return note
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"{str(file)!r} is not a Python file; --plugin expects a name that ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    # Registered before it runs: dataclasses and pydantic look a class up through its module.
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"plug-in {str(file)!r} stops with {type(error).__name__}: {error}") from error
    return note


def reload_plugins(noted: Any, given: Sequence[Path]) -> None:
    """Load the plug-ins that a run's card notes; a file given on the command line stands for one of the same name.

    A run folder may come from anywhere: it starts no file that the user of this machine has not named before.
    """
    load_plugins(given)
    if not isinstance(noted, (list, tuple)):
        raise UsageError(f"the run notes its plug-ins as {noted!r:.80}, expected a list; mend its card")
    for note in noted:
        if not (isinstance(note, Mapping) and isinstance(note.get("path"), str)):
            raise UsageError(
                f"the run notes a plug-in as {note!r:.80}, expected an object with its path; mend its card"
            )
        path = Path(note["path"])
        if path.name in {file.name for file in given}:
            continue
        if not path.is_file():
            raise UsageError(
                f"the run was fitted with the plug-in {str(path)!r}, which is gone; say where it is now: "
                f"--plugin NEW/PLACE/{path.name}"
            )
        if not _is_trusted(path):
            raise UsageError(
                f"the run wants to start the plug-in {str(path)!r}, which you have not named on this machine; read it, "
                f"then give --plugin {shell(path)}"
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != note.get("sha256"):
            say(f"warning: plug-in {path} has changed since the run was fitted")
        say(f"plug-in {path}")
        load_plugins([path])


# --------------------------------------------------------------------------------------------------- names
def read_spec(model: str) -> Any:
    """Return the spec that ``FAMILY``, ``FAMILY:PRESET``, or a ``.json`` or ``.toml`` file names."""
    from ppl_models.program import resolve, spec_from_json

    path = Path(model).expanduser()
    with usage():
        if path.suffix.lower() not in (".json", ".toml"):
            return resolve(model)
        if not path.is_file():
            raise UsageError(f"no spec file {model!r}; give an existing .json or .toml file, or FAMILY[:PRESET]")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{model}: a spec file is UTF-8 text, got bytes that are not: {error}") from error
        try:
            if path.suffix.lower() == ".json":
                return spec_from_json(text)
            import tomllib

            try:
                return spec_from_json(tomllib.loads(text))
            except tomllib.TOMLDecodeError as error:
                raise UsageError(f"{model}: not TOML: {error}") from error
        except ValueError as error:
            raise UsageError(f"{model}: {error}") from error


def data_info(name: str) -> Any:
    """Return the information on a data set, or a usage error that names the closest one."""
    from ppl_models import datasets

    with usage():
        return datasets.info(name)


# ----------------------------------------------------------------------------------------------- run folder
def is_run(folder: Path) -> bool:
    """Whether a folder was written by a fit."""
    return (folder / "run.json").is_file()


def read_run(folder: Path) -> dict[str, Any]:
    """Return the run's record (``run.json``); a usage error where the folder holds no run."""
    if not folder.is_dir():
        near = did_you_mean_path(folder)
        raise UsageError(f"no run folder {str(folder)!r}{near}; `ppl-models fit ... --out DIR` makes one")
    path = folder / "run.json"
    if not path.is_file():
        raise UsageError(f"{str(folder)!r} is not a run folder: it has no run.json; give the DIR of a `fit --out DIR`")
    from inference.fitting.record import run_record

    try:
        return run_record(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is torn: it is no text ({error}); restore it from a copy") from error


def did_you_mean_path(path: Path) -> str:
    """Return ``" (did you mean ...?)"`` with the closest neighbour of a missing path, or an empty string."""
    from ppl_models._registry import did_you_mean

    parent = path.parent
    if not parent.is_dir():
        return ""
    return did_you_mean(path.name, [entry.name for entry in parent.iterdir() if entry.is_dir()])


def claim(out: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that is in use or cannot be written; leaves nothing behind and removes nothing.

    Raises :class:`UsageError` where the folder holds something; ``OSError`` where it cannot be written.
    """
    if out.is_dir() and any(out.iterdir()):
        foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in PARTS)
        if not is_run(out) and _stillborn(out):
            return check_writable(out)
        if not is_run(out) or (overwrite and foreign):
            what = f"files that are not of a run ({foreign[0]}, ...)" if foreign else "parts of a run but no run.json"
            raise UsageError(f"--out {str(out)!r} has {what} and is left alone; give another folder")
        if not overwrite:
            raise UsageError(
                f"--out {str(out)!r} already holds a run; continue it: `ppl-models resume {shell(out)}`, replace it: "
                "--overwrite, or give another folder"
            )
        from inference.fitting.lock import FolderInUse, check_free

        try:
            check_free(out / "checkpoint", str(out))
        except FolderInUse as error:
            raise UsageError(f"--out {error}") from error
    check_writable(out)


def _stillborn(out: Path) -> bool:
    """Whether a folder holds only what a fit left that was killed while it set up its run."""
    start()
    from inference.fitting.folder import RunFolder

    return RunFolder(out).stillborn()


def check_writable(out: Path) -> None:
    """Prove that a folder can be made and filled, before any long work; leaves nothing behind.

    Raises :class:`UsageError` for a file of that name and ``OSError`` where nothing can be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a file; give a folder")
    place = out.absolute()
    while not place.exists():
        place = place.parent
    probe = place / f".ppl-models-write-test-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * 65536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"cannot write to --out {str(out)!r}: {reason}; free some space or give another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove the parts of a run from its folder; whatever else lies there stays."""
    for name in (part for part in PARTS if part != "run.json"):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    # Last: until then an interrupted removal is still recognised as a run, and can be repeated.
    (folder / "run.json").unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------- results
def table_text(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Return rows as aligned plain text; numbers to the right, words to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    lines = [
        "  ".join(
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [list(header), *cells]
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def to_json(value: Any) -> str:
    """Return machine-readable JSON: numbers that are not finite become ``null``, arrays become lists."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def shape_text(shape: Sequence[int] | Mapping[str, Sequence[int]]) -> str:
    """A shape as people write it: 8x8, or several by name."""
    if isinstance(shape, Mapping):
        return ", ".join(f"{name} {shape_text(part)}" for name, part in shape.items())
    return "x".join(str(size) for size in shape)
