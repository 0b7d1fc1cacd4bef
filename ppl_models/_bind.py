"""Weights of a network as NumPyro parameters (``bind``), and scheduled weights read inside a model (``knob``)."""

from __future__ import annotations

import contextlib
import contextvars
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpyro
from flax import nnx
from numpyro.primitives import mutable

_HOLDERS: weakref.WeakKeyDictionary[nnx.Module, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Mutable site of each bound module that has state (asking NumPyro for the site again would replace its value)."""


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """Graph, parameters and the rest of a module (the one call whose stub mypy cannot read)."""
    split: Callable[..., Any] = nnx.split
    return split(module, nnx.Param, nnx.Not(nnx.Param))


def bind(name: str, module: nnx.Module) -> Any:
    """Return a live copy of an NNX module whose weights are NumPyro parameters.

    :func:`numpyro.contrib.module.nnx_module` returns a callable that exposes only ``__call__``; the copy
    returned here has all methods and sub-modules, so a cell can offer ``prior``, ``posterior`` and ``step``.
    The site is ``f"{name}$params"`` (a nested dict, the layout of ``nnx_module``); non-parameter state, if the
    module has any, is the mutable site ``f"{name}$state"`` and is written back by :func:`commit`.

    The same name bound in model and guide is one set of weights.  The initial values are those of ``module``,
    which is never modified: the SVI key does not seed them, ``spec.build(key)`` does.
    """
    graph, params, rest = _split(module)
    values = numpyro.param(f"{name}$params", nnx.to_pure_dict(params))
    if values is not None:
        nnx.replace_by_pure_dict(params, values)
    state = nnx.to_pure_dict(rest)
    if not state:
        return nnx.merge(graph, params, rest, copy=True)
    holder = mutable(f"{name}$state", {"state": state})
    nnx.replace_by_pure_dict(rest, holder["state"])
    live = nnx.merge(graph, params, rest, copy=True)
    _HOLDERS[live] = holder
    return live


def commit(module: nnx.Module) -> None:
    """Write the non-parameter state of a bound module (running statistics) back to its mutable site."""
    if module not in _HOLDERS:
        raise ValueError("commit needs a module that bind returned, with running statistics or other state to write")
    _HOLDERS[module]["state"] = jax.lax.stop_gradient(nnx.to_pure_dict(_split(module)[2]))


_KNOBS: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar("knobs", default=None)


def knob(name: str, default: float = 1.0) -> Any:
    """Read a scheduled weight inside a model or posterior; ``default`` wherever nobody schedules it.

    The training loop sets knobs from schedules of the step (see ``inference.fit(weights=...)``) as traced
    scalars, so a fade-in changes value at every step and compiles once.  Stock ``SVI`` sees the default.
    """
    return (_KNOBS.get() or {}).get(name, default)


@contextlib.contextmanager
def knobs(values: Mapping[str, Any]) -> Iterator[None]:
    """Set the values that :func:`knob` returns inside the ``with`` block."""
    token = _KNOBS.set({**(_KNOBS.get() or {}), **values})
    try:
        yield
    finally:
        _KNOBS.reset(token)
