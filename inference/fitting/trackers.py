"""Trackers of experiments as callbacks of a fit: TensorBoard, MLflow, Weights & Biases; each needs an extra.

    fit(program, x, steps=2000, key=key, callbacks=[TensorBoard("runs/digits/tensorboard")])

Each is imported when it is made, not before.  Where a service asks who you are, its own environment variables and its
log-in command say so: no key is taken or written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from inference.fitting.callbacks import Watcher


class TensorBoard(Watcher):
    """Scalars for ``tensorboard --logdir FOLDER``, by ``tensorboardX``: extra ``tensorboard``."""

    def __init__(self, folder: str | Path) -> None:
        self.module, self.folder = _module("tensorboardX", "tensorboard"), str(folder)

    def begin(self, facts: Mapping[str, Any]) -> None:
        self.writer = self.module.SummaryWriter(self.folder)  # not before: a run folder starts empty
        self.writer.add_text("fit", "    " + json.dumps(facts, indent=2, default=str).replace("\n", "\n    "))

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, info: Mapping[str, Any]) -> None:
        self.writer.add_text("end", json.dumps(info, default=str))
        self.writer.close()


class MLflow(Watcher):
    """A run of MLflow with its parameters and metrics: extra ``mlflow``.

    ``options``  of ``mlflow.start_run``: ``experiment_id``, ``run_name``; ``run_id`` to go on with one.
    """

    def __init__(self, **options: Any) -> None:
        self.mlflow, self.options = _module("mlflow", "mlflow"), options

    def begin(self, facts: Mapping[str, Any]) -> None:
        self.run = self.mlflow.start_run(**self.options)
        self.mlflow.log_params({name: str(value)[:500] for name, value in _flat(facts)})

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(figures), step=step)

    def end(self, info: Mapping[str, Any]) -> None:
        self.mlflow.set_tags({name: str(value) for name, value in info.items()})
        failed = info["stopped"] not in ("steps", "patience", "callback")
        self.mlflow.end_run("KILLED" if failed else "FINISHED")


class WeightsAndBiases(Watcher):
    """A run of Weights & Biases: extra ``wandb``.

    ``options``  of ``wandb.init``: ``project``, ``name``, ``mode="offline"``; ``id`` and ``resume`` to go on with one.
    """

    def __init__(self, **options: Any) -> None:
        self.wandb, self.options = _module("wandb", "wandb"), options

    def begin(self, facts: Mapping[str, Any]) -> None:
        self.run = self.wandb.init(config=dict(facts), **self.options)

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def end(self, info: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(info))
        self.run.finish()


def _module(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this tracker needs {name}: pip install 'ppl-models[{extra}]'") from error


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested dicts by their names, joined by dots."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
