"""What is known of a data set before it is read, and the checks of a request that need only that."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np


def _nowhere() -> str | None:
    return None


@dataclass(frozen=True)
class Info:
    """A data set in words and numbers; making one reads no pixels.

    ``name``        what :func:`ppl_models.datasets.load` takes.
    ``shape``       shape of one datum; a mapping of shapes where a datum is several arrays (``x`` given, ``y`` scored).
    ``levels``      number of grey levels of the stored bytes (17 for values 0..16), ``None`` for float data.
    ``sizes``       split -> number of data (for generated sets: the number that ``n=None`` gives).
    ``factors``     factor -> names of its values, in the order of the integers; empty where the file names none.
    ``description``, ``licence``, ``provenance``  for a reader and for the data card of a run.
    ``how_to_get``  every way to get the set, one line each.
    ``where``       ``where()`` returns the place it would be read from, or ``None``; looks at file names only.
    """

    name: str
    shape: Any
    levels: int | None
    sizes: Mapping[str, int]
    factors: Mapping[str, tuple[str, ...]]
    description: str
    licence: str
    provenance: str
    how_to_get: tuple[str, ...]
    where: Callable[[], str | None] = field(default=_nowhere, repr=False, compare=False)

    def __post_init__(self) -> None:
        if "train" not in self.sizes or any(size < 1 for size in self.sizes.values()):
            raise ValueError(f"data set {self.name!r}: sizes must hold 'train' and be positive, got {dict(self.sizes)}")
        if self.levels is not None and not 2 <= self.levels <= 256:
            raise ValueError(f"data set {self.name!r}: levels must be 2..256 for bytes, got {self.levels}")
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))
        object.__setattr__(self, "factors", MappingProxyType(dict(self.factors)))

    def available(self) -> bool:
        """Whether the set is on this machine: a look at names and packages, never at contents."""
        return self.where() is not None

    @property
    def held_out(self) -> str:
        """The split to evaluate on: ``"test"`` where the set has one, else ``"heldout"``.

        A set that came without a test split has our own hold-out instead, and it is never called "test".
        """
        return "test" if "test" in self.sizes else next((split for split in self.sizes if split != "train"), "train")


def whole(value: object, what: str, least: int) -> int:
    """Return ``value`` as an int of at least ``least``; ``ValueError`` for anything else (bool and 3.0 included)."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")
    return number


def check_split(info: Info, split: str) -> None:
    """Raise ``ValueError`` for a split that the set does not have, naming those it has."""
    if split in info.sizes:
        return
    from ppl_models.program import did_you_mean  # imported late: an error may take the time, an import may not

    splits = ", ".join(f"{key!r} ({size:,})" for key, size in info.sizes.items())
    hint = did_you_mean(str(split), info.sizes)
    if split == "test":
        hint = f"; it came without a test split: evaluate on {info.held_out!r}, and report it under that name"
    raise ValueError(f"data set {info.name!r} has no split {split!r}{hint}; its splits: {splits}")


def subset(size: int, n: int | None, seed: int, what: str) -> slice | np.ndarray:
    """Return the index of a seeded subset: the first ``n`` of ``default_rng(seed).permutation(size)``.

    ``n=None`` keeps all data in stored order.  Subsets of one seed are nested.  Raises ``ValueError`` for an ``n``
    outside 1..size.
    """
    seed = whole(seed, "seed", 0)
    if n is None:
        return slice(None)
    n = whole(n, "n", 1)
    if n > size:
        raise ValueError(f"n must be at most {size:,}, the size of {what}, got {n:,}; leave n out to take all")
    return np.random.default_rng(seed).permutation(size)[:n]
