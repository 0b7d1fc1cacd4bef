"""Trackers that a command names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.cli.common import UsageError


def trackers(names: Sequence[str], out: Path) -> list[Any]:
    """The callbacks of these trackers, in the order of their names; a usage error where one is not installed."""
    from inference.fitting import MLflow, TensorBoard, WeightsAndBiases

    makers = {
        "tensorboard": lambda: TensorBoard(out / "tensorboard"),
        "mlflow": lambda: MLflow(run_name=out.name),
        "wandb": lambda: WeightsAndBiases(name=out.name),
    }
    try:
        return [makers[name]() for name in sorted(set(names))]
    except ImportError as error:
        raise UsageError(str(error)) from error
