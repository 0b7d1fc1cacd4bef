"""Several processes that make one fit: how they find one another, and wait for one another."""

from __future__ import annotations

import itertools

PATIENCE = 3600
"""Seconds that a process waits for the others: one may compile much longer than another."""
_MEETINGS = itertools.count()


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> int:
    """Join the processes of a run (``jax.distributed.initialize``) and return the number of this one.

    Before the first JAX computation.  What is ``None`` JAX reads from its surroundings: the variables of SLURM and Open
    MPI, the metadata of a TPU pod, Kubernetes (with the package ``kubernetes``), ``JAX_COORDINATOR_ADDRESS``.  On CPUs
    the processes talk through gloo.  Raises ``ValueError`` where nothing says how many there are, which one this is, or
    where the first listens.
    """
    import jax

    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(
            f"the coordinator is HOST:PORT, got {coordinator!r}; any free port of the first process will do"
        )
    if None not in (num_processes, process_id) and not 0 <= process_id < num_processes:  # type: ignore[operator]
        raise ValueError(f"process {process_id} is not one of {num_processes}, which are numbered from 0")
    # JAX's other transport between CPUs is MPI, which needs a library; the setting has no effect on accelerators.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the processes cannot find one another ({error}) and no cluster says how: give the address where the "
            "first listens (HOST:PORT), the number of processes, and which one this is"
        ) from error
    return jax.process_index()


def meet() -> None:
    """Return once every process is here; all make these calls in the same order.

    Over the coordination service, not over devices: their transport may give up after half a minute.  Nothing where
    there is one process.
    """
    from jax._src import distributed  # JAX has no public name for its coordination service

    if (client := distributed.global_state.client) is not None:
        client.wait_at_barrier(f"ppl-models {next(_MEETINGS)}", timeout_in_ms=1000 * PATIENCE)
