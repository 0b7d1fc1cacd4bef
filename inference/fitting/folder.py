"""A run as a folder: spec.json, run.json, history.csv and checkpoint/, all readable without this package."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from inference.fitting.checkpoint import checkpoints, leftovers, write_atomic, write_error
from inference.fitting.lock import locked
from inference.fitting.record import FORMAT, run_record
from ppl_models.program import spec_from_json, spec_to_json

TEXTS = ("run.json", "spec.json", "history.csv", ".writable")
"""The files of a fit in the folder itself, besides the checkpoints in theirs."""


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    names = ("jax", "jaxlib", "numpyro", "flax", "optax", "arviz", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|[-+]?inf|nan|", re.ASCII)
"""What a fit writes into a cell of history.csv."""


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    def started(self) -> bool:
        """Whether a run lives here: its description or a checkpoint exists."""
        return (self.path / "run.json").exists() or bool(checkpoints(self.checkpoint))

    def stillborn(self) -> bool:
        """Whether the folder is empty, or holds only what a run left that was killed before run.json was written."""
        names = {path.name for path in self.path.iterdir()} - {p.name for p in self._leftovers()}
        ours = "checkpoint" in names and self.checkpoint.is_dir() and names <= {"checkpoint", "spec.json", ".writable"}
        return not names or ours and all(path.name.startswith(".") for path in self.checkpoint.iterdir())

    def _leftovers(self) -> list[Path]:
        """What a killed writer left half written."""
        return [*leftovers(self.checkpoint), *(path for name in TEXTS for path in leftovers(self.path, name))]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Write this folder alone: no second fit may, until the first ends or dies.

        Removes what a killed writer left half written.  Raises :class:`inference.fitting.lock.FolderInUse`, a
        ``ValueError``, where another process writes here, and ``OSError`` where nothing can be written.
        """
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        with locked(self.checkpoint, str(self.path)):
            for path in self._leftovers():
                path.unlink(missing_ok=True)
            yield

    def create(self) -> None:
        """Make the folder for a new run and make sure that it can be written.

        Raises ``ValueError`` if another run or other files are there, and ``OSError`` with the path if it cannot be
        written: before any training, not at the first checkpoint.  What a run left that was killed while it was being
        set up is no other file.
        """
        if self.started():
            raise ValueError(
                f"{self.path} already holds a run; continue it (resume), choose another folder, or remove it first"
            )
        if self.path.exists() and (not self.path.is_dir() or not self.stillborn()):
            raise ValueError(f"{self.path} exists and is not an empty folder; choose another folder for the run")
        try:
            self.checkpoint.mkdir(parents=True, exist_ok=True)
            write_text(self.path / ".writable", "x" * 4096)
            (self.path / ".writable").unlink()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise OSError(error.errno, f"cannot write the run folder {self.path}: {reason}; choose another") from error

    def write_spec(self, spec: Any) -> None:
        write_text(self.path / "spec.json", spec_to_json(spec))

    def read_spec(self) -> Any:
        """The declared spec.  Raises ``ValueError`` naming the file if it is missing or torn."""
        return spec_from_json(self._text("spec.json"))

    def write_run(self, run: Mapping[str, Any]) -> None:
        write_text(self.path / "run.json", json.dumps({"format": FORMAT, **run}, indent=2, default=str) + "\n")

    def read_run(self) -> dict[str, Any]:
        """The arguments, data card, versions and facts of the run; see :func:`run_record` for what it raises."""
        return run_record(self._text("run.json"), self.path / "run.json")

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} is not a run folder: it has no {name}; give the folder that fit wrote"
            ) from None
        except (NotADirectoryError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path / name} cannot be read: {error}") from error


class History:
    """Rows of figures by step, kept in memory and appended to a CSV file as they come."""

    def __init__(self, path: Path | None, fields: Iterable[str]) -> None:
        self.path, self.fields, self.rows = path, list(fields), list[dict[str, Any]]()

    def restore(self, step: int) -> None:
        """Keep the rows of the file up to ``step``; later ones, and a line torn by a kill, are written anew.

        So are lines that are no numbers, which no fit wrote.
        """
        if self.path is None or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").replace("\0", "?").splitlines()
        for row in csv.DictReader(lines):
            found = self._numbers(row)
            if found is not None and 0 <= found["step"] <= step:
                self.rows.append(found)
        self._rewrite()

    def _numbers(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The numbers of one line of the file; ``None`` for a line that is torn or none of ours."""
        if None in row or None in row.values() or set(row) != set(self.fields):
            return None
        if not all(_NUMBER.fullmatch(text) for text in row.values()):
            return None
        try:
            return {k: (int(v) if k in ("step", "skipped") else float(v or "nan")) for k, v in row.items()}
        except ValueError:  # a whole number is expected
            return None

    def read(self) -> Any:
        """The whole file as a DataFrame (empty if there is none)."""
        import pandas as pd

        assert self.path is not None
        try:
            return pd.read_csv(self.path) if self.path.exists() else pd.DataFrame()
        except ValueError as error:  # pandas' own errors and those of decoding are ValueErrors
            raise ValueError(
                f"{self.path} is torn or no table ({error}); remove it: resuming the run writes it anew from there on"
            ) from error

    def _rewrite(self) -> None:
        assert self.path is not None
        lines = [",".join(self.fields)] + [",".join(self._text(row)) for row in self.rows]
        write_text(self.path, "\n".join(lines) + "\n")

    def _text(self, row: Mapping[str, Any]) -> list[str]:
        return ["" if row[f] != row[f] else repr(row[f]) for f in self.fields]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; fields that it lacks are NaN in memory and empty in the file."""
        full = {field: row.get(field, float("nan")) for field in self.fields}
        self.rows.append(full)
        if self.path is None:
            return
        if not self.path.exists():
            self._rewrite()
            return
        try:
            with open(self.path, "a") as file:
                file.write(",".join(self._text(full)) + "\n")
        except OSError as error:
            raise write_error(self.path, error) from error

    def frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=self.fields)
