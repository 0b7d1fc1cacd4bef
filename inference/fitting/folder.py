"""A run as a folder: spec.json, run.json, history.csv and checkpoint/, all readable without this package."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from inference.fitting.checkpoint import checkpoints, write_atomic
from ppl_models.program import spec_from_json, spec_to_json

FORMAT = "ppl-models run 1"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    names = ("jax", "jaxlib", "numpyro", "flax", "optax", "arviz", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


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

    def create(self) -> None:
        """Make the folder for a new run and make sure that it can be written.

        Raises ``ValueError`` if another run or other files are there, and ``OSError`` with the path if it cannot be
        written: before any training, not at the first checkpoint.
        """
        if self.started():
            raise ValueError(
                f"{self.path} already holds a run; continue it (resume), choose another folder, or remove it first"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is not an empty folder; choose another folder for the run")
        try:
            self.checkpoint.mkdir(parents=True, exist_ok=True)
            write_text(self.path / ".writable", "x" * 4096)
            (self.path / ".writable").unlink()
        except OSError as error:
            raise OSError(
                error.errno, f"cannot write the run folder {self.path}: {error.strerror}; choose another"
            ) from error

    def write_spec(self, spec: Any) -> None:
        write_text(self.path / "spec.json", spec_to_json(spec))

    def read_spec(self) -> Any:
        """The declared spec.  Raises ``ValueError`` naming the file if it is missing or torn."""
        return spec_from_json(self._text("spec.json"))

    def write_run(self, run: Mapping[str, Any]) -> None:
        write_text(self.path / "run.json", json.dumps({"format": FORMAT, **run}, indent=2, default=str) + "\n")

    def read_run(self) -> dict[str, Any]:
        """The arguments, data card, versions and facts of the run."""
        try:
            run = json.loads(self._text("run.json"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.path / 'run.json'} is torn or not JSON ({error}); restore it from a copy"
            ) from error
        if not isinstance(run, dict) or run.get("format") != FORMAT:
            raise ValueError(f"{self.path / 'run.json'} was not written by this package: expected format {FORMAT!r}")
        return run

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
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
        """Keep the rows of the file up to ``step``; later ones, and a line torn by a kill, are written anew."""
        if self.path is None or not self.path.exists():
            return
        with open(self.path, newline="") as file:
            for row in csv.DictReader(file):
                complete = None not in row and None not in row.values() and set(row) == set(self.fields)
                if complete and row["step"].isdigit() and int(row["step"]) <= step:
                    self.rows.append(
                        {k: (int(v) if k in ("step", "skipped") else float(v or "nan")) for k, v in row.items()}
                    )
        self._rewrite()

    def read(self) -> Any:
        """The whole file as a DataFrame (empty if there is none)."""
        import pandas as pd

        assert self.path is not None
        return pd.read_csv(self.path) if self.path.exists() else pd.DataFrame()

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
        with open(self.path, "a") as file:
            file.write(",".join(self._text(full)) + "\n")

    def frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=self.fields)
