"""Progress for anything over two seconds: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any


class Progress:
    """Context manager that shows ``done/total``, rate, time left and a few figures on standard error.

    Nothing is shown for work that ends within ``delay`` seconds.  On a terminal the line is redrawn; otherwise one
    line is printed every ``every`` seconds, so that a log file stays readable.  ``each`` says what one unit holds,
    ``(128, "data")``: the line then also has data a second.
    """

    def __init__(
        self,
        total: int,
        what: str,
        *,
        unit: str = "it",
        show: bool = True,
        start: int = 0,
        delay: float = 1.0,
        every: float = 15.0,
        each: tuple[int, str] | None = None,
    ) -> None:
        self.total, self.what, self.unit, self.show = total, what, unit, show
        self.done = self.start = start
        self.delay, self.every, self.each = delay, every, each
        self.figures: Mapping[str, Any] = {}

    def __enter__(self) -> Progress:
        self.began = time.monotonic()
        self.printed, self.shown = self.began + self.delay - self.every, ""
        self.first: tuple[float, int] | None = None
        self.bar: Any = None
        return self

    def update(self, done: int, figures: Mapping[str, Any] | None = None) -> None:
        """Set how much is done; ``figures`` are shown behind the rate."""
        self.done = done
        if figures is not None:
            self.figures = figures
        if not self.show:
            return
        now = time.monotonic()
        if self.first is None:
            # The first piece of work includes compilation: the rate is that of the pieces after it.
            self.first = (now, done)
        if sys.stderr.isatty():
            if self.bar is None and now - self.began > self.delay:
                from tqdm import tqdm

                self.bar = tqdm(
                    total=self.total,
                    desc=self.what,
                    unit=self.unit,
                    initial=self.start,
                    leave=False,
                    dynamic_ncols=True,
                    mininterval=0.2,
                )
            if self.bar is not None:
                if figures is not None:
                    self.bar.set_postfix(
                        {
                            **self._throughput(),
                            **{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in figures.items()},
                        },
                        refresh=False,
                    )
                self.bar.update(done - self.bar.n)
        elif now - self.printed >= self.every:
            self.printed = now
            self._print()

    def _print(self) -> None:
        if (line := self.line()) != self.shown:
            self.shown = line
            print(line, file=sys.stderr, flush=True)

    def line(self) -> str:
        """The state in one line of text: done, rate, time left, figures."""
        rate = self._rate()
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.figures.items())
        pace = f", {rate:.3g} {self.unit}/s, {(self.total - self.done) / rate:.0f} s left" if rate else ""
        pace += "".join(f", {value} {name}" for name, value in self._throughput().items())
        if self.done >= self.total:
            pace = f", {time.monotonic() - self.began:.0f} s"
        return f"{self.what}: {self.done}/{self.total} {self.unit}{pace}" + (f" | {shown}" if shown else "")

    def _rate(self) -> float:
        """Units a second since the first piece of work, 0 where there is none after it."""
        since, before = self.first or (self.began, self.start)
        return (self.done - before) / max(time.monotonic() - since, 1e-9)

    def _throughput(self) -> dict[str, str]:
        """What the units of a second hold, by its name: ``{"data/s": "6.4e+03"}``."""
        if self.each is None or not (rate := self._rate()):
            return {}
        count, name = self.each
        return {f"{name}/s": f"{rate * count:,.0f}"}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.show and self.printed > self.began:
            self._print()
