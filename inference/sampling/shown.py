"""Progress of loops that run inside compiled code: they report how far they are, and the open bar shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jaxtyping import Array

from inference._progress import Progress

_OPEN: list[Progress] = []
"""Bars of the calls that run now, the innermost last."""


@contextmanager
def shown(total: int, what: str, unit: str, *, show: bool) -> Iterator[Progress]:
    """A bar of ``total`` ``unit`` that :func:`tick` moves; nothing is shown in the first two seconds."""
    with Progress(total, what, unit=unit, show=show, delay=2.0) as bar:
        _OPEN.append(bar)
        try:
            yield bar
            jax.effects_barrier()  # reports are asynchronous: wait for the last one
        finally:
            _OPEN.remove(bar)


def tick(done: Array) -> None:
    """Say, from inside compiled code, that ``done`` units are done (a number that ``vmap`` does not map over)."""
    jax.debug.callback(_moved, done)


def _moved(done: Any) -> None:
    # A report may overtake another, and outlive the call it belongs to.
    if _OPEN:
        _OPEN[-1].update(max(_OPEN[-1].done, int(done)))
