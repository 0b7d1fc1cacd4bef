"""Where this package keeps what it can make or fetch again: the user's cache, by the convention of the platform."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

CACHE_VARIABLE = "PPL_MODELS_CACHE"
"""Environment variable: the cache directory."""


def cache_dir() -> Path:
    """Return the user's cache directory of this package; it need not exist yet.

    ``$PPL_MODELS_CACHE``; else ``$XDG_CACHE_HOME/ppl-models``; else ``~/Library/Caches/ppl-models`` on macOS,
    ``%LOCALAPPDATA%\\ppl-models\\Cache`` on Windows, ``~/.cache/ppl-models`` elsewhere, and also where an earlier
    version has made it.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "ppl-models"
    try:
        home = Path.home()
    except RuntimeError:  # no home directory: a container run under a bare user id
        return Path(tempfile.gettempdir()) / "ppl-models"
    usual = home / ".cache" / "ppl-models"
    if usual.is_dir():
        return usual
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "ppl-models"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "ppl-models" / "Cache"
    return usual
