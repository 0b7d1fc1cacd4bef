"""What several commands take, and the checks of those arguments; nothing here imports JAX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from tyro.conf import Positional, UseAppendAction, arg

from inference.cli.common import UsageError


def opt(metavar: str, unset: str | None = None) -> Any:
    """Return tyro's options of an argument: its placeholder, and what leaving it out means."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {unset})" if unset else None)


@runtime_checkable
class Command(Protocol):
    """One command of the line: a frozen dataclass of its arguments that can run."""

    def run(self) -> None: ...


@dataclass(frozen=True)
class Common:
    """What every command takes."""

    plugin: Annotated[UseAppendAction[tuple[Path, ...]], opt("FILE.py")] = ()
    """Python file that registers families of your own with `ppl_models.program.register(...)`."""
    debug: bool = False
    """Show the traceback of an error, and the warnings of the libraries below."""


@dataclass(frozen=True)
class Evaluation:
    """How a fitted run is checked on held-out data."""

    no_evaluate: bool = False
    """Stop after the fit: no posterior, evidence, diagnosis and report."""
    test_n: Annotated[int, opt("N")] = 500
    """Evaluate on the first N of the held-out data [data]."""
    particles: Annotated[int, opt("K")] = 512
    """Draws from q(z | x) a datum, for its importance-weighted log p(x) [draws]."""
    draws: Annotated[int, opt("S")] = 100
    """Posterior draws a datum kept in posterior.nc [draws]."""
    calibration: Annotated[int | None, opt("N", "not checked")] = None
    """Also check the posterior on N data drawn from the model itself, whose latents are known [data]."""
    refine: Literal["none", "flagged", "all"] = "flagged"
    """Held-out data whose posterior is optimised by itself: none, those with k-hat > 0.7, or all."""
    quiet: bool = False
    """No progress on stderr."""


@dataclass(frozen=True)
class Tracking:
    """Where else a fit is reported while it runs."""

    track: Annotated[UseAppendAction[tuple[Literal["tensorboard", "mlflow", "wandb"], ...]], opt("NAME")] = ()
    """Also report to a tracker: tensorboard (DIR/tensorboard), mlflow or wandb, which know their own log-in."""


@dataclass(frozen=True)
class Devices:
    """Which devices share the work of a fit, and which processes; docs/devices.md says how to start them."""

    mesh: Annotated[str | None, opt("AXIS=N[,AXIS=N]", "one device")] = None
    """Devices along each axis: data=8 shares every batch, data=4,model=2 large parameters too [devices]."""
    distributed: bool = False
    """This is one of several processes of one fit: all are started with the same command line. They find one another
    by what SLURM, Open MPI, Kubernetes or a TPU pod tells JAX, or by the three options below."""
    coordinator: Annotated[str | None, opt("HOST:PORT", "as the cluster says")] = None
    """Where process 0 listens; needs --distributed."""
    num_processes: Annotated[int | None, opt("N", "as the cluster says")] = None
    """How many processes there are; needs --distributed [processes]."""
    process_id: Annotated[int | None, opt("N", "as the cluster says")] = None
    """Which of them this is, from 0; needs --distributed."""


Run = Annotated[Positional[Path], opt("DIR")]


def check_at_least(least: int, **options: int | None) -> None:
    """Raise :class:`UsageError` for the first option below ``least``; ``None`` passes."""
    for name, value in options.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def check_evaluation(options: Evaluation) -> None:
    """Raise :class:`UsageError` for numbers with which nothing can be estimated."""
    check_at_least(2, particles=options.particles)
    check_at_least(1, draws=options.draws, test_n=options.test_n)
    check_at_least(10, calibration=options.calibration)
