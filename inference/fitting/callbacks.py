"""Who is told how a fit goes: plain functions, trackers, plots; any of them may ask it to stop.

A callback is a function ``(step, figures) -> stop``, or a :class:`Watcher` where the begin and the end matter too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any


class Watcher:
    """What a fit tells a callback; override what you want to know.

    ``begin(facts)``          before the first update: the spec, the data card and the arguments of the fit, and
                              ``step``, 0 or where a resumed run goes on.
    ``report(step, figures)`` at every row of the history, with its figures that were measured (``loss``, ``elbo``,
                              ``seconds``, ``validation_elbo``, ...; nats per datum).  Return ``True`` to end the fit
                              after this step: it keeps its checkpoint and returns what it has, ``info["stopped"]`` is
                              ``"callback"``.
    ``end(info)``             after the last update, whatever ended the fit: ``Fit.info``; after an error ``stopped``
                              names it.
    """

    def begin(self, facts: Mapping[str, Any]) -> None: ...

    def report(self, step: int, figures: Mapping[str, float]) -> bool | None: ...

    def end(self, info: Mapping[str, Any]) -> None: ...


class _Function(Watcher):
    """A plain function as a watcher."""

    def __init__(self, function: Callable[[int, Mapping[str, float]], Any]) -> None:
        self.function = function

    def report(self, step: int, figures: Mapping[str, float]) -> bool | None:
        return self.function(step, figures)


class Watchers:
    """The callbacks of a fit.  One that fails is warned about once and told on: it never ends a fit.

    Raises ``ValueError`` for what is neither a function nor a :class:`Watcher`.
    """

    def __init__(self, callbacks: Sequence[Any] = ()) -> None:
        for one in callbacks:
            if isinstance(one, type) or not (isinstance(one, Watcher) or callable(one)):
                raise ValueError(
                    f"a callback is a function (step, figures) or a Watcher, got {one!r:.80}; pass "
                    "callbacks=[lambda step, figures: print(step, figures['loss'])], for example"
                )
        self.all = [one if isinstance(one, Watcher) else _Function(one) for one in callbacks]
        self._failed: set[int] = set()
        self._ended = False

    def begin(self, facts: Mapping[str, Any]) -> None:
        for one in self.all:
            self._tell(one, one.begin, dict(facts))

    def report(self, step: int, figures: Mapping[str, float]) -> bool:
        """Whether one of them asks the fit to end."""
        return any([self._tell(one, one.report, step, dict(figures)) is True for one in self.all])

    def end(self, info: Mapping[str, Any]) -> None:
        self._ended = True
        for one in self.all:
            self._tell(one, one.end, dict(info))

    def _tell(self, one: Watcher, tell: Callable[..., Any], *what: Any) -> Any:
        try:
            return tell(*what)
        except Exception as error:  # whatever a stranger's code raises: hours of fitting are worth more
            if id(one) not in self._failed:
                self._failed.add(id(one))
                name = getattr(one.function, "__qualname__", "?") if isinstance(one, _Function) else type(one).__name__
                warnings.warn(
                    f"callback {name} failed ({type(error).__name__}: {error}); the fit goes on, and further failures "
                    "of it are not shown",
                    UserWarning, stacklevel=5,
                )  # fmt: skip
            return None

    def __enter__(self) -> Watchers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None and not self._ended:
            self.end({"stopped": f"{kind.__name__}: {error}"})
