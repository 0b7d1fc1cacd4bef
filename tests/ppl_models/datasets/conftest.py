"""Every test here sees an empty data path and a cache of its own, so that no file of the machine plays a part."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Point the cache to a fresh folder and unset the data path; returns the folder for data files."""
    data = tmp_path / "files"
    data.mkdir()
    monkeypatch.setenv("PPL_MODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PPL_MODELS_DATA", raising=False)
    return data


@pytest.fixture
def refused() -> Callable[[str], AbstractContextManager[None]]:
    """A context that expects a ``ValueError`` with this message, or, under runtime type checks, a ``TypeError``."""

    @contextmanager
    def expect(message: str) -> Iterator[None]:
        with pytest.raises((ValueError, TypeError)) as caught:
            yield
        assert isinstance(caught.value, TypeError) or re.search(message, str(caught.value))

    return expect


@pytest.fixture
def files(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the data path."""
    monkeypatch.setenv("PPL_MODELS_DATA", str(isolated))
    return isolated
