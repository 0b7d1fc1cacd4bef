"""Several fits as one compiled program: one program, one size of batch, other seeds and learning rates.

The update of one fit is mapped over the members (``jax.vmap``): a leading axis of the state, of the indices of the
batches and of the rates; the data are shared.  Each member keeps its own keys, batches, history, best parameters and
checkpoints, which are those of the same fit by itself but for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from inference.fitting.checkpoint import is_key
from inference.fitting.fitted import Fit
from inference.fitting.loop import Interrupt, Loop
from inference.fitting.progress import Progress
from inference.fitting.sources import ArraySource
from inference.fitting.trainer import State, clipped

Outcome = Fit | FloatingPointError


def run_together(
    loops: Sequence[Loop],
    keys: Sequence[Array],
    rates: Sequence[float],
    clip: float | None,
    *,
    resume: bool,
    progress: bool,
) -> list[Outcome]:
    """Run prepared fits that differ in key and learning rate alone; what each left, or why its numbers ended.

    With ``resume`` all go on from a checkpoint of the same step.  Raises ``KeyboardInterrupt`` once all have written
    a checkpoint.
    """
    first, outcomes = loops[0], dict[int, Outcome]()
    source = first.trainer.source
    states = [first.start(keys[0], resume)]
    states += [loop.start(key, resume, first.size) for loop, key in zip(loops[1:], keys[1:], strict=True)]
    if len({loop.at for loop in loops}) > 1:
        raise ValueError(f"fits that run together start at one step, got {sorted({loop.at for loop in loops})}")
    shared = isinstance(source, ArraySource)
    store = source.store if shared else _stacked([loop.trainer.source.store for loop in loops])
    update = _update(first, clip, shared)
    rate, state, stop = jnp.asarray(rates, jnp.float32), _stacked(states), False
    if not first.going:  # killed after its last update
        outcomes = {i: loop.end(member) for i, (loop, member) in enumerate(zip(loops, states, strict=True))}
    del states
    bar = Progress(first.steps, f"{len(loops)} fits", unit="steps", show=progress, start=first.at)
    quiet = Progress(first.steps, "fit", show=False)
    with Interrupt() as interrupt, bar as shown:
        while len(outcomes) < len(loops) and not stop:
            at = first.at
            if events := first.events.get(at, []):
                members = [jax.tree.map(jnp.asarray, member) for member in _apart(state, len(loops))]
                for event in events:
                    shown.update(at, {"now": event.name})
                    members = [loop.trainer.happen(event, member) for loop, member in zip(loops, members, strict=True)]
                for loop, member in zip(loops, members, strict=True):
                    loop.began_from_data(member)
                state = _stacked(members)
            fed = [loop.trainer.source.feed(at, first.size) for loop in loops]
            state = update(state, store, jax.tree.map(lambda *leaf: np.stack(leaf), *fed), rate)
            at += first.size
            due, asked = first.due(at), bool(interrupt.asked)
            if due or asked:
                figures = state if due - {"log"} or asked else state._replace(params={}, mutable={}, opt=(), average=())
                members = _apart(figures, len(loops))
                for i, (loop, member) in enumerate(zip(loops, members, strict=True)):
                    if i in outcomes:
                        continue
                    try:
                        member = loop.after(member, at, asked, quiet)
                        if not loop.going:
                            loop.check_some(member)
                            outcomes[i] = loop.end(member)
                    except FloatingPointError as error:
                        outcomes[i] = error
                    except KeyboardInterrupt:
                        stop = True
                if due & {"log", "validate"}:
                    state = state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals))
            first.at = at  # also where the first has ended before the others
            shown.update(at, {"running": len(loops) - len(outcomes)})
        if stop:
            interrupt.pass_on()
    if stop:
        raise KeyboardInterrupt(f"stopped at step {first.at} of {first.steps}")
    return [outcomes[i] for i in range(len(loops))]


def _update(first: Loop, clip: float | None, shared: bool) -> Any:
    """The compiled update of all members: (states, store, items, rates) -> states."""

    def one(state: State, store: Any, items: Any, rate: Array) -> State:
        trainer = copy.copy(first.trainer)
        trainer.optimizer = clipped(optax.adam(rate), clip)  # with a number in its place the same tree of moments
        return trainer.steps(state, store, items)

    return jax.jit(jax.vmap(one, in_axes=(0, None if shared else 0, 0, 0)), donate_argnums=0)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaf: jnp.stack(leaf), *trees)


def _apart(state: State, count: int) -> list[State]:
    """The states of the members, as NumPy arrays of their own (the next update reuses the buffers); keys as keys."""
    host = jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.array(leaf), state)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(count)]
