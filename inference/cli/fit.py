"""``ppl-models fit`` and ``ppl-models resume``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.cli import runs
from inference.cli.common import (
    Interrupted,
    UsageError,
    claim,
    clear,
    is_run,
    load_plugins,
    read_run,
    read_spec,
    say,
    shell,
    start,
    usage,
)

if TYPE_CHECKING:
    from inference.cli.commands import Evaluation, Fit, Resume


def check_at_least(least: int, **options: int | None) -> None:
    """Raise :class:`UsageError` for the first option below ``least``; ``None`` passes."""
    for name, value in options.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def check_numbers(command: Fit) -> None:
    """Raise :class:`UsageError` naming the option whose value cannot be meant."""
    check_at_least(
        1, steps=command.steps, batch_size=command.batch_size, n=command.n, validate_every=command.validate_every,
        patience=command.patience, checkpoint_every=command.checkpoint_every,
    )  # fmt: skip
    check_at_least(0, validation=command.validation, seed=command.seed)
    check_evaluation(command.evaluation)
    if not 0 < command.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate must be positive and finite, got {command.learning_rate}; try 1e-3")
    if command.average is not None and not 0 < command.average < 1:
        raise UsageError(f"--average is a decay between 0 and 1, got {command.average}; try 0.999")
    if command.clip is not None and not 0 < command.clip < float("inf"):
        raise UsageError(f"--clip must be positive and finite, got {command.clip}; leave it out for no clipping")
    if command.data == runs.OWN and command.n is not None:
        raise UsageError(
            f"--n {command.n} takes a subset of a data set; --data {runs.OWN} draws every batch anew: leave it out"
        )
    for name, value in (("--patience", command.patience), ("--validate-every", command.validate_every)):
        if value is not None and not command.validation:
            raise UsageError(f"{name} needs validation data; add --validation N, or leave {name} out")


def check_evaluation(options: Evaluation) -> None:
    """Raise :class:`UsageError` for numbers with which nothing can be estimated."""
    check_at_least(2, particles=options.particles)
    check_at_least(1, draws=options.draws, test_n=options.test_n)


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Add the command that goes on to a Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not is_run(folder):
            raise
        raise Interrupted(f"{str(stop) or 'interrupted'}; continue: ppl-models resume {shell(folder)}") from None


def fit(command: Fit) -> None:
    """Fit what the command names, evaluate it, and say where to look."""
    check_numbers(command)
    plugins = load_plugins(command.common.plugin)
    spec = read_spec(command.model)
    sizes = {"validation": command.validation, "test_n": command.evaluation.test_n}
    if command.data == runs.OWN:
        program = build(spec, command.seed)
        card = runs.own_card(program, plugins=plugins, **sizes)
        claim(command.out, overwrite=command.overwrite)
        data = runs.load_data(card, program.observation.sampler)
    else:
        card = runs.make_card(command.data, n=command.n, plugins=plugins, **sizes)
        spec = runs.fitted_to(spec, card)
        claim(command.out, overwrite=command.overwrite)
        data = runs.load_data(card, None)
        if command.batch_size > len(data.train):
            raise UsageError(
                f"--batch-size {command.batch_size} is more than the {len(data.train):,} data to fit; "
                f"give at most {len(data.train)}"
            )
        program = build(spec, command.seed)
    import jax

    from inference.fitting import fit as run_fit
    from inference.fitting.sources import stored

    key = jax.random.key(command.seed)
    with usage():
        for name, x in (("training data", data.train), ("held-out data", data.test)):
            if not callable(x):
                stored(program, x, name)
    # Everything that can be refused has been: only now is an earlier run given up.
    clear(command.out)
    with resumable(command.out):
        fitted = run_fit(
            program, data.train, steps=command.steps, key=key, batch_size=command.batch_size,
            learning_rate=command.learning_rate, clip=command.clip, average=command.average,
            validation=data.validation, validate_every=command.validate_every, patience=command.patience,
            out=command.out, card=card, checkpoint_every=command.checkpoint_every,
            progress=not command.evaluation.quiet,
        )  # fmt: skip
        finish(fitted, data, command.evaluation)


def build(spec: Any, seed: int) -> Any:
    """Start JAX and build the program that a fit with this seed trains."""
    start()
    import jax

    with usage():
        return spec.build(jax.random.key(seed))


def resume(command: Resume) -> None:
    """Continue a run from its last checkpoint, evaluate it, and say where to look."""
    check_evaluation(command.evaluation)
    record = read_run(command.folder)
    card = runs.run_card(command.folder, command.common.plugin)
    start()
    from inference.fitting import load
    from inference.fitting.folder import RunFolder

    own = card["name"] == runs.OWN
    sampler = build(RunFolder(command.folder).read_spec(), 0).sampler if own else None
    data = runs.load_data(card, sampler, test_n=command.evaluation.test_n)
    with resumable(command.folder):
        if record["info"].get("stopped") in ("steps", "patience"):
            say(f"{command.folder} is fitted already: {record['info']['steps']:,} steps")
            fitted = load(command.folder)
        else:
            fitted = _go_on(command.folder, record, data, progress=not command.evaluation.quiet)
        finish(fitted, data, command.evaluation)


def _go_on(folder: Path, record: dict[str, Any], data: runs.Data, *, progress: bool) -> Any:
    """Continue from the last checkpoint; a run stopped before its first one starts again, with the same numbers."""
    import jax
    import jax.numpy as jnp

    from inference.fitting import fit as run_fit, resume as run_resume
    from inference.fitting.checkpoint import checkpoints
    from inference.fitting.folder import RunFolder

    if checkpoints(folder / "checkpoint"):
        return run_resume(folder, data.train, validation=data.validation, progress=progress)
    say(f"{folder} has no checkpoint yet: starting at step 0")
    arguments = {name: value for name, value in record["arguments"].items() if name not in ("key", "validation")}
    key = jax.random.wrap_key_data(jnp.asarray(record["arguments"]["key"], jnp.uint32))
    program = RunFolder(folder).read_spec().build(key)
    clear(folder)
    return run_fit(
        program, data.train, validation=data.validation, key=key, out=folder, card=record["card"], progress=progress,
        **arguments,
    )  # fmt: skip


def finish(fitted: Any, data: runs.Data, options: Evaluation) -> None:
    """Evaluate a fit unless told not to, and print what came of it."""
    folder = shell(fitted.folder)
    if options.no_evaluate:
        print(runs.fit_line(fitted))
        print(f"next: ppl-models resume {folder}   (evaluates it)")
        return
    found = runs.evaluate(fitted, data, particles=options.particles, draws=options.draws, progress=not options.quiet)
    runs.summarise(fitted, found)
    print(f"next: ppl-models sample {folder}; ppl-models compare {folder} OTHER")
