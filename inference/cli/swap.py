"""``ppl-models swap``: exchange one facet between data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from inference.cli import facets
from inference.cli.arguments import Common, Run, check_at_least, opt
from inference.cli.common import (
    usage,
)


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Exchange one facet between held-out data: a picture of the data before and after.

    Writes figures/swap_NAME.png.

    Examples:
      ppl-models swap runs/digits --facet digit
    """

    folder: Run
    """Run folder."""
    facet: Annotated[str, opt("NAME")]
    """Facet to exchange."""
    n: Annotated[int, opt("N")] = 6
    """Pairs of data, the first 2 N held-out ones [pairs]."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the picture and print where."""
        swap(self)


def swap(command: Swap) -> None:
    """Write a picture: one row a pair of data, decoded as they are and with one facet exchanged."""
    check_at_least(1, n=command.n)
    fitted, run, x = facets.opened(command, "swap", 2 * command.n)
    with usage():
        found = run(fitted, x[: command.n], x[command.n :], command.facet)
    parts = (found.a, found.b, found.a_swapped, found.b_swapped)
    titles = ["a", "b", f"a, {command.facet} of b", f"b, {command.facet} of a"]
    print(facets.save_grid(fitted, f"swap_{command.facet}", np.stack([part.x for part in parts], 1), titles))
