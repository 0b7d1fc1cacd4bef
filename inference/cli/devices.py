"""The devices and processes that a command is to use, from its options."""

from __future__ import annotations

import dataclasses
from typing import Any

from inference.cli import runs
from inference.cli.arguments import Devices, Evaluation, check_at_least
from inference.cli.common import UsageError, start, usage


def begin(options: Devices) -> bool:
    """Join the other processes, where there are any; whether this process writes files and prints.

    Before anything that starts JAX.  Raises :class:`UsageError` for options that do not go together and for processes
    that nothing tells how to find one another.
    """
    check_at_least(1, num_processes=options.num_processes)
    check_at_least(0, process_id=options.process_id)
    if options.mesh is not None:
        from inference.fitting.placement import parse_mesh

        with usage():
            parse_mesh(options.mesh)
    given = {name: getattr(options, name) for name in ("coordinator", "num_processes", "process_id")}
    if not options.distributed:
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for several processes; add --distributed")
        return True
    start()
    from inference.fitting.processes import join

    with usage():
        return join(**given) == 0


def place(options: Devices, batch_size: int | None = None) -> Any:
    """The placement that the options ask for; all devices share the data where several processes name no mesh."""
    import jax

    from inference.fitting.placement import as_placement, check_batch

    several = options.distributed and options.mesh is None
    with usage():
        found = as_placement(f"data={len(jax.devices())}" if several else options.mesh)
        if batch_size is not None:
            check_batch(found, batch_size)
    return found


def finish(options: Devices, first: bool, fitted: Any, data: runs.Data, evaluation: Evaluation) -> None:
    """:func:`inference.cli.runs.finish`; what several processes fitted is left for one to evaluate."""
    if options.distributed:
        evaluation = dataclasses.replace(evaluation, no_evaluate=True)
    if first:
        runs.finish(fitted, data, evaluation)
