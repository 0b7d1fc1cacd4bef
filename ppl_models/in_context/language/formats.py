"""How symbols are written for a language model, and read again from what it writes.

    format      a sequence           symbols                          probabilities
    BERNOULLI   0,1,1,               0, 1: one token each             of every symbol
    GAUSSIAN    -0.3,1.2,            numbers of one decimal           none, several tokens a number: draws only
    RECORDS     yes,no (a line)      2 x + y: attribute x, symptom y  of the symptom given the attribute drawn

The prompts of the publication were not released; these are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Num


@dataclass(frozen=True)
class Format:
    """One way of writing a sequence.

    ``words``      of one slot's outcomes, each one token of the model; empty for numbers.
    ``slots``      tokens a symbol, apart from separators: with two, symbol = 2 (first) + second.
    ``inner``      between the slots of a symbol; ``separator`` after every symbol.
    ``preface``    text before the sequence; a model that is given no text at all may refuse.
    ``tokens``     tokens a symbol at most, separators included.
    ``decimals``   of numbers.
    """

    words: tuple[str, ...] = ("0", "1")
    separator: str = ","
    inner: str = ","
    slots: int = 1
    preface: str = ""
    tokens: int = 2
    decimals: int = 1

    def __post_init__(self) -> None:
        if self.words and (len(set(self.words)) != len(self.words) or len(self.words) < 2):
            raise ValueError(f"words must be two or more different ones, got {self.words}")
        if self.slots not in (1, 2) or not self.separator:
            raise ValueError(f"a symbol has 1 or 2 slots and a separator, got {self.slots} and {self.separator!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """The features of a predictive distribution over these symbols."""
        if not self.words:
            return ("z", "z^2")
        K = len(self.words) ** self.slots
        return ("z=1",) if K == 2 else tuple(f"z={k}" for k in range(K))

    def write(self, z: Num[np.ndarray, " n"]) -> str:
        """The prompt: preface and sequence, a separator at its end."""
        return self.preface + "".join(self._symbol(value) + self.separator for value in np.asarray(z).tolist())

    def _symbol(self, value: int | float) -> str:
        if not self.words:
            return f"{round(value, self.decimals) + 0.0:.{self.decimals}f}"  # never -0.0
        digits = np.unravel_index(int(value), (len(self.words),) * self.slots)
        return self.inner.join(self.words[int(d)] for d in digits)

    def word(self, token: str) -> int | None:
        """Which word a token is, spaces and separators around it aside: `` 1``, ``1`` and ``,1`` are one outcome."""
        bare = self.bare(token)
        return self.words.index(bare) if bare in self.words else None

    def bare(self, token: str) -> str:
        """A token without spaces and separators."""
        return token.strip(" \n\t" + self.separator + self.inner)

    def numbers(self, text: str) -> list[float]:
        """The whole numbers written, up to the first piece that is none; a last one without separator is left out."""
        found: list[float] = []
        for piece in text.split(self.separator)[:-1]:
            try:
                value = float(piece)
            except ValueError:
                break
            if not np.isfinite(value):
                break
            found.append(value)
        return found

    def symbols(self, digits: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Symbols of the outcomes of whole groups of slots."""
        groups = np.asarray(digits[: len(digits) // self.slots * self.slots], np.int64).reshape(-1, self.slots)
        return (groups @ len(self.words) ** np.arange(self.slots - 1, -1, -1)).astype(np.int32)


BERNOULLI = Format()
GAUSSIAN = Format(words=(), tokens=6)
RECORDS = Format(
    words=("no", "yes"), separator="\n", slots=2, tokens=4,
    preface="Records of patients, one a line: whether the attribute is present, whether the symptom is.\n",
)  # fmt: skip
