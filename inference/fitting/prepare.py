"""From the arguments of a fit to what runs it: everything checked, the run folder made, nothing compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from inference.fitting.arguments import check_arguments, check_dispatch, plain, same_run
from inference.fitting.callbacks import Watchers
from inference.fitting.checkpoint import checkpoints
from inference.fitting.folder import RunFolder, versions
from inference.fitting.loop import Evaluate, Loop
from inference.fitting.loss import make_loss
from inference.fitting.placement import MeshLike, as_placement, check_batch
from inference.fitting.sources import as_source, stored
from inference.fitting.trainer import Trainer, make_optimizer, scheduled
from ppl_models.program import Program


@contextlib.contextmanager
def prepared(
    program: Program,
    data: Any,
    *,
    steps: int,
    key: Array,
    batch_size: int,
    learning_rate: Any,
    optimizer: Any,
    clip: float | None,
    weights: Mapping[str, Any] | None,
    objective: str,
    particles: int | None,
    sleep: Any,
    average: float | None,
    validation: Any,
    validate_every: int | None,
    patience: int | None,
    out: str | Path | None,
    card: Mapping[str, Any] | None,
    checkpoint_every: int | None,
    resume: bool,
    progress: bool,
    steps_per_dispatch: int | str,
    callbacks: Sequence[Any],
    mesh: MeshLike,
    evaluate: Evaluate | None = None,
) -> Iterator[tuple[Loop, Array, bool]]:
    """The loop of a fit, the key that it starts from, and whether it goes on; its folder is held until the end.

    The arguments are those of :func:`inference.fit`.

    ``evaluate``  scores held-out data in place of the validator that the loop would make.
    """
    validate_every = validate_every or max(1, steps // 20) if isinstance(steps, int) and steps > 0 else validate_every
    check_arguments(
        steps, key, average, patience, validation, validate_every=validate_every, checkpoint_every=checkpoint_every
    )
    check_dispatch(steps_per_dispatch)
    place = as_placement(mesh)
    check_batch(place, batch_size)
    rules = scheduled(program, weights)
    chosen = make_optimizer(learning_rate, optimizer, clip)
    watchers = Watchers(callbacks if place.writes else ())
    loss = make_loss(program, objective, particles, sleep, rules)
    data_key, train_key, validation_key = jax.random.split(key, 3)
    source = as_source(data, program, batch_size, data_key)
    held_out = None if validation is None else stored(program, validation, "validation data")
    folder = None if out is None else RunFolder(out)
    arguments = {
        "steps": steps, "batch_size": batch_size, "learning_rate": plain(learning_rate),
        "optimizer": plain(optimizer), "clip": clip, "weights": {n: plain(w) for n, w in (weights or {}).items()},
        "objective": objective, "particles": loss.particles, "sleep": plain(sleep), "average": average,
        "validate_every": validate_every, "patience": patience, "checkpoint_every": checkpoint_every,
        "steps_per_dispatch": steps_per_dispatch, "key": np.asarray(jax.random.key_data(key)).tolist(),
        "validation": held_out is not None,
    }  # fmt: skip
    if folder is None and resume:
        raise ValueError("resume=True needs out=, the folder of the run to continue")
    if folder is not None and resume:
        same_run(folder, program, arguments)
    elif folder is not None and place.writes:
        folder.create()
    with contextlib.nullcontext() if folder is None or not place.writes else folder.held():
        if folder is not None and not resume and place.writes:
            folder.write_spec(program.spec)
            folder.write_run({"arguments": arguments, "card": dict(card or {}), "versions": versions(), "info": {}})
        place.connect()
        # A run that was killed before its first checkpoint starts again, with the same numbers.
        begun = folder is not None and resume and bool(checkpoints(folder.checkpoint))
        trainer = Trainer(program, source, chosen, rules, average, loss, place)
        yield (
            Loop(
                trainer, folder, held_out, validation_key, arguments, dict(card or {}), progress, watchers, evaluate
            ),
            train_key,
            begun,
        )  # fmt: skip
