"""One process at a time writes a run folder: a lock that the system takes back when its holder dies."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: two fits into one folder are not kept apart there
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


class FolderInUse(ValueError):
    """Another process is writing the folder."""


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of an existing ``folder``; ``what`` names the run in messages.

    Raises :class:`FolderInUse` at once where another process, or another call in this one, holds it, and ``OSError``
    where the folder cannot be written.  On a file system without locks nothing is held.
    """
    file = _taken(folder / NAME, what)
    try:
        yield
    finally:
        # Removed while it is held: whoever opened it meanwhile finds, in _taken, that the name is gone.
        (folder / NAME).unlink(missing_ok=True)
        file.close()


def check_free(folder: Path, what: str) -> None:
    """Raise :class:`FolderInUse` where a process writes ``folder`` now; leaves nothing behind."""
    if (folder / NAME).exists():
        with locked(folder, what):
            pass


def _taken(path: Path, what: str) -> IO[str]:
    while True:
        try:
            file = open(path, "a+")
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write the run folder {what}: {error.strerror}; make it writable, or work on a copy",
            ) from error
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
            raise FolderInUse(
                f"{what} is being written by {holder}; wait until it ends, stop it, or choose another folder"
            ) from None
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
                return file
        file.close()
