"""Processes that share the cost of their imports: the server imports everything, then forks one for each attempt.

JAX starts threads with its backend, and a process with threads must not be forked: the server therefore never runs an
operation of JAX.  Each child starts its own backend, and finds its compiled programs in a cache on disk.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 900.0
"""Seconds without a sign of life after which a child counts as hung."""


def check_no_backend() -> None:
    """Raise ``RuntimeError`` where JAX has started in this process, which then must not be forked."""
    from jax._src import xla_bridge  # no public way to ask without starting it

    if xla_bridge.backends_are_initialized():
        raise RuntimeError("JAX has started in the process that forks: no operation of JAX may run there")


@dataclass
class Child:
    """A forked attempt: what it says line by line, then how it ended."""

    pid: int
    pipe: int
    said: str = ""
    code: int | None = None

    def line(self, seconds: float = LONGEST) -> str | None:
        """The next line that it says; ``None`` once it has ended.  Raises ``TimeoutError`` for a child that hangs."""
        end = time.monotonic() + seconds
        while "\n" not in self.said:
            if not select.select([self.pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                self.kill()
                raise TimeoutError(f"a child said nothing for {seconds:.0f} s")
            if not (part := os.read(self.pipe, 65536)):
                return None
            self.said += part.decode()
        found, _, self.said = self.said.partition("\n")
        return found

    def wait_for(self, *words: str) -> str | None:
        """Read up to a line that is one of ``words``."""
        while (line := self.line()) is not None and line not in words:
            pass
        return line

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether the process is over; ``end`` says how."""
        return self.code is not None or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> dict[str, Any]:
        """How it ended: ``code`` (minus the signal where one killed it), and what it raised or returned last."""
        last: dict[str, Any] = {}
        while (line := self.line()) is not None:
            if line.startswith("{"):
                last = json.loads(line)
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self.pipe)
        return {"code": self.code, **last}


Say = Callable[[str], None]


def start(function: Callable[..., Any], *args: Any, log: Path | None = None) -> Child:
    """Fork a child that runs ``function(say, *args)``, and reports what it returned (JSON) or raised."""
    check_no_backend()
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Child(pid, reader)
    code = 70
    try:
        os.close(reader)
        target = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        say = lambda line: os.write(writer, f"{line}\n".encode()) and None  # noqa: E731
        try:
            value = function(say, *args)
            say(json.dumps({"value": value}))
            code = 0
        except BaseException as error:  # noqa: B036 - whatever ends the child is what is looked at
            traceback.print_exc()
            say(json.dumps({"error": type(error).__name__, "says": str(error), "os": isinstance(error, OSError)}))
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
