"""A plot of a fit while it runs, in a notebook."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from inference.fitting.callbacks import Watcher
from inference.reporting.figures import training


class LivePlot(Watcher):
    """Loss and its terms, drawn anew below the cell at most every ``every`` seconds while the fit runs.

        fitted = fit(program, x, steps=20_000, key=key, callbacks=[LivePlot()], progress=False)

    Interrupt the cell to end the fit in good order: a run folder keeps its checkpoint (``resume`` goes on with it), and
    the exception, a ``KeyboardInterrupt``, has what was fitted, ``sys.last_value.fit`` in the next cell.

    Raises ``ImportError`` where there is no IPython, ``ValueError`` for a negative ``every``.
    """

    def __init__(self, every: float = 2.0) -> None:
        from IPython.display import display

        if not every >= 0:
            raise ValueError(f"every is the least time between two drawings in seconds, at least 0, got {every!r}")
        self.display, self.every = display, every
        self.rows: list[dict[str, float]] = []
        self.handle: Any = None
        self.drawn = -float("inf")

    def begin(self, facts: Mapping[str, Any]) -> None:
        self.rows, self.handle, self.drawn = [], None, -float("inf")

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **figures})
        if time.monotonic() - self.drawn >= self.every:
            self._draw()

    def end(self, info: Mapping[str, Any]) -> None:
        if self.rows:
            self._draw()

    def _draw(self) -> None:
        import pandas as pd

        figure = training(pd.DataFrame(self.rows))
        if self.handle is None:
            self.handle = self.display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.monotonic()
