"""Baselines as data: what each reads, how it is learnt, and the settings among which validation data choose."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]
"""Rows (n, d) -> log density or log mass of each, (n,), nats."""


@dataclass(frozen=True)
class Candidates:
    """One baseline with the settings among which validation data choose."""

    name: str
    learn: Callable[..., Score]
    settings: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class View:
    """What a group of baselines reads of the data, flattened; ``constant`` is added to each log p, nats."""

    train: np.ndarray
    validation: np.ndarray
    both: np.ndarray
    test: np.ndarray
    candidates: list[Candidates]
    constant: float = 0.0


def grid(**values: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    """Every combination of the values."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


def choose(view: View, candidates: Candidates) -> tuple[Mapping[str, Any], np.ndarray]:
    """The setting with the highest validation log density, and log p (n,) of the test data after refitting with it."""
    settings = candidates.settings
    means = [_validated(view, candidates, s) if len(settings) > 1 else 0.0 for s in settings]
    setting = settings[int(np.argmax(np.nan_to_num(means, nan=-np.inf)))]
    return setting, candidates.learn(view.both, **setting)(view.test) + view.constant


def _validated(view: View, candidates: Candidates, setting: Mapping[str, Any]) -> float:
    """Mean validation log density; -inf where the setting has no density, of too high a rank for few data, say."""
    try:
        return float(candidates.learn(view.train, **setting)(view.validation).mean())
    except np.linalg.LinAlgError:
        return -np.inf
