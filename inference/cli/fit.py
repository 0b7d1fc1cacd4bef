"""``ppl-models fit``: fit a family to data, then check it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from inference.cli import devices, files, runs
from inference.cli.arguments import (
    Common,
    Devices,
    Evaluation,
    Tracking,
    check_at_least,
    check_evaluation,
    opt,
)
from inference.cli.common import (
    UsageError,
    claim,
    clear,
    load_plugins,
    read_spec,
    say,
    usage,
)
from inference.cli.track import trackers

VALIDATION = "(default: 0) (of a table: a seventh)"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit a family to data, then check it on held-out data.

    Writes a run folder: spec.json, run.json, history.csv, checkpoint/, posterior.nc, evidence.csv,
    diagnosis.csv, report.html, figures/. The spec's shape and levels are set from a data set that is named.
    Ctrl-C leaves a run that `ppl-models resume DIR` continues.

    Examples:
      ppl-models fit mfcvae:digits --data digits --out runs/digits
      ppl-models fit mfcvae:digits --data digits --out runs/stop --validation 200 --patience 5
      ppl-models fit my_spec.toml --data facets --out runs/mine --steps 5000 --seed 1
      ppl-models fit in_context:coin --data own --out runs/coin
      ppl-models fit mine:tiny --plugin mine.py --data digits --out runs/plug
    """

    model: Annotated[Positional[str], opt("FAMILY[:PRESET]|SPEC.json|SPEC.toml")]
    """What to fit: a family (`ppl-models families`; the preset defaults to tiny) or a spec file."""
    data: Annotated[str, opt("NAME|own")]
    """Data set by name (`ppl-models data list`), or own: draws of the program itself, fresh in every batch."""
    out: Annotated[Path, opt("DIR")]
    """Run folder to make."""
    steps: Annotated[int, opt("N")] = 2000
    """Updates of the parameters [steps]."""
    batch_size: Annotated[int, opt("N")] = 128
    """Data in one update [data]."""
    learning_rate: Annotated[float, opt("RATE")] = 1e-3
    """Step size of Adam."""
    seed: Annotated[int, opt("N")] = 0
    """Seed of the initial weights, the minibatches and all draws; equal seeds give equal runs."""
    n: Annotated[int | None, opt("N", "all")] = None
    """Fit to a random subset of N of the training data [data]."""
    validation: Annotated[int | None, arg(metavar="N", help_behavior_hint=VALIDATION)] = None
    """Keep the last N of the training data out of the fit, and choose the best step by them [data]."""
    validate_every: Annotated[int | None, opt("N", "chosen from --steps")] = None
    """Steps between two validations [steps]."""
    patience: Annotated[int | None, opt("N", "never stop early")] = None
    """Stop after N validations without improvement; needs --validation [validations]."""
    average: Annotated[float | None, opt("DECAY", "the weights as they are")] = None
    """Evaluate an exponential average of the weights with this decay a step, e.g. 0.999."""
    clip: Annotated[float | None, opt("NORM", "no clipping")] = None
    """Largest global norm of the gradient, longer ones are scaled down [nats a datum per unit parameter]."""
    objective: Literal["elbo", "iwae", "dreg"] = "elbo"
    """What is maximised: the ELBO; the importance-weighted bound (Burda et al. 2016); the same by doubly
    reparameterised gradients (Tucker et al. 2019)."""
    train_particles: Annotated[int | None, opt("K", "8")] = None
    """Draws from q(z | x) a datum of the bound that iwae and dreg maximise [draws]."""
    sleep: Annotated[float, opt("WEIGHT")] = 0.0
    """Weight of the sleep phase: the posterior also learns from the model's own draws (Hinton et al. 1995)."""
    checkpoint_every: Annotated[int | None, opt("N", "chosen from --steps")] = None
    """Steps between two checkpoints [steps]."""
    labels: Annotated[str | None, opt("COLUMN", "none")] = None
    """Column of a table (--data FILE.csv|.tsv|.parquet), or of the cells of FILE.h5ad, kept out of the model: to score
    clusters against."""
    columns: Annotated[str | None, opt("NAME=KIND,...", "as found")] = None
    """Kinds of columns of a table: real, positive, count, binary, categorical, or drop."""
    index: Annotated[str | None, opt("COLUMN", "the number of the row")] = None
    """Column of a table that names its rows."""
    top: Annotated[int | None, opt("N", "all")] = None
    """Keep the N most variable columns of a matrix of counts (--data FILE.h5ad|.npz) [columns]."""
    clusters: Annotated[str | None, opt("K[,K...]", "as in the spec")] = None
    """Number of clusters of every facet, or one number a facet."""
    overwrite: bool = False
    """Replace the run that --out already holds."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    devices: Devices = field(default_factory=Devices)
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Fit, evaluate, say where to look."""
        fit(self)


def check_numbers(command: Fit) -> None:
    """Raise :class:`UsageError` naming the option whose value cannot be meant."""
    check_at_least(
        1, steps=command.steps, batch_size=command.batch_size, n=command.n, validate_every=command.validate_every,
        patience=command.patience, checkpoint_every=command.checkpoint_every,
        train_particles=command.train_particles,
    )  # fmt: skip
    check_at_least(0, validation=command.validation, seed=command.seed)
    check_evaluation(command.evaluation)
    if not 0 < command.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate must be positive and finite, got {command.learning_rate}; try 1e-3")
    if command.average is not None and not 0 < command.average < 1:
        raise UsageError(f"--average is a decay between 0 and 1, got {command.average}; try 0.999")
    if command.clip is not None and not 0 < command.clip < float("inf"):
        raise UsageError(f"--clip must be positive and finite, got {command.clip}; leave it out for no clipping")
    if command.train_particles is not None and command.objective == "elbo":
        raise UsageError(
            f"--train-particles {command.train_particles} is for the bounds of --objective iwae and dreg; add one of "
            "them, or leave it out (--particles sets the draws of the evaluation)"
        )
    if not 0 <= command.sleep < float("inf"):
        raise UsageError(f"--sleep is a weight, at least 0 and finite, got {command.sleep}; 0 turns it off")
    if command.data == runs.OWN and command.n is not None:
        raise UsageError(
            f"--n {command.n} takes a subset of a data set; --data {runs.OWN} draws every batch anew: leave it out"
        )
    file = files.of_name(command.data)
    kind = {"parquet": "table"}.get(file.KIND, file.KIND) if file else None
    for name, which in {"labels": "", "columns": "table", "index": "table", "top": "counts"}.items():
        if getattr(command, name) is not None and (file is None or which not in ("", kind)):
            wanted = "counts, --data FILE.h5ad|.npz" if which == "counts" else "a table, --data FILE.csv|.tsv|.parquet"
            raise UsageError(f"--{name} is for {wanted}, got --data {command.data}")
    validated = command.validation or (file and command.validation is None)
    for name, value in (("--patience", command.patience), ("--validate-every", command.validate_every)):
        if value is not None and not validated:
            raise UsageError(f"{name} needs validation data; add --validation N, or leave {name} out")


def load_for(
    command: Fit, plugins: Sequence[Mapping[str, str]], take: Callable[[], None]
) -> tuple[Any, dict[str, Any], runs.Data, int]:
    """The program, its data card, the data and the size of a batch that the command names.

    ``take`` makes sure of the output folder, once all names are known to be good.
    """

    spec = read_spec(command.model)
    if command.clusters is not None:
        spec = runs.with_clusters(spec, command.clusters)
    sizes: dict[str, Any] = {"validation": command.validation or 0, "test_n": command.evaluation.test_n}
    batch_size = command.batch_size
    if command.data == runs.OWN:
        program = runs.build(spec, command.seed)
        card = runs.own_card(program, plugins=plugins, **sizes)
        take()
        data = runs.load_data(card, program.observation.sampler)
    elif (file := files.of_name(command.data)) is not None:
        sizes["validation"] = command.validation
        of_columns = {"columns": command.columns, "index": command.index}
        choices: dict[str, dict[str, Any]] = {
            "table": of_columns,
            "parquet": of_columns,
            "counts": {"top": command.top},
            "rows": {},
        }
        sizes |= choices[file.KIND]
        card = file.make_card(
            command.data, labels=command.labels, n=command.n, seed=runs.DATA_SEED, plugins=plugins, **sizes
        )
        spec = runs.fitted_to(spec, card)
        take()
        program = runs.build(spec, command.seed)
        data = runs.data_of(program, card)
        if batch_size > (most := data.size):
            say(f"batch size {batch_size} -> {most}, all rows to fit")
            batch_size = most
    else:
        card = runs.make_card(command.data, n=command.n, plugins=plugins, **sizes)
        spec = runs.fitted_to(spec, card)
        card = runs.labelled(card, spec)
        take()
        data = runs.load_data(card, None)
        if command.batch_size > (most := data.size):
            raise UsageError(
                f"--batch-size {command.batch_size} is more than the {most:,} data to fit; give at most {most}"
            )
        program = runs.build(spec, command.seed)
    return program, card, data, batch_size


def check_data(command: Fit, program: Any, data: runs.Data) -> None:
    """Raise :class:`UsageError` for an objective or data that the program cannot have; before any long work."""
    from inference.fitting.loss import make_loss
    from inference.fitting.sources import stored
    from inference.fitting.trainer import scheduled

    with usage():
        make_loss(program, command.objective, command.train_particles, command.sleep, scheduled(program, None))
        for name, x in (("training data", data.train), ("held-out data", data.test)):
            if not callable(x):
                stored(program, x, name)


def fit(command: Fit) -> None:
    """Fit what the command names, evaluate it, and say where to look."""
    check_numbers(command)
    first = devices.begin(command.devices)
    plugins = load_plugins(command.common.plugin)

    def take() -> None:
        if first:
            claim(command.out, overwrite=command.overwrite)

    program, card, data, batch_size = load_for(command, plugins, take)
    import jax

    from inference.fitting import fit as run_fit

    key, place = jax.random.key(command.seed), devices.place(command.devices, batch_size)
    callbacks = trackers(command.tracking.track, command.out) if first else ()
    check_data(command, program, data)
    # Everything that can be refused has been: only now is an earlier run given up.
    if first:
        clear(command.out)
    with runs.resumable(command.out):
        fitted = run_fit(
            program, data.fitted_to, steps=command.steps, key=key, batch_size=batch_size,
            learning_rate=command.learning_rate, clip=command.clip, average=command.average,
            objective=command.objective, particles=command.train_particles, sleep=command.sleep,
            validation=data.validation, validate_every=command.validate_every, patience=command.patience,
            out=command.out, card=card, checkpoint_every=command.checkpoint_every,
            progress=not command.evaluation.quiet, callbacks=callbacks, mesh=place,
        )  # fmt: skip
        devices.finish(command.devices, first, fitted, data, command.evaluation)
