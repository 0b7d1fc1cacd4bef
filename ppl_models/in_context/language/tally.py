"""What is seen of a language model on the way, beside the draws."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Tally:
    """What was seen on the way: requests, paths drawn again, and the mass of the outcomes before renormalising.

    A small mass means that the rule tested is not what the model would write.
    """

    requests: int = 0
    drawn: int = 0
    redrawn: int = 0
    masses: list[float] = field(default_factory=list)

    def row(self) -> dict[str, int | float]:
        """In one row; the mass NaN where none was told."""
        mass = np.asarray(self.masses or [np.nan])
        return {
            "requests": self.requests, "paths": self.drawn, "redrawn": self.redrawn,
            "mass_mean": float(mass.mean()), "mass_least": float(mass.min()),
        }  # fmt: skip
