"""``ppl-models traverse``: move one facet through its clusters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from inference.cli import facets
from inference.cli.arguments import Common, Run, check_at_least, opt
from inference.cli.common import (
    usage,
)


@dataclass(frozen=True, kw_only=True)
class Traverse:
    """Move one facet of held-out data through its clusters, the other facets kept: a picture, one row a datum.

    Writes figures/traverse_NAME.png.

    Examples:
      ppl-models traverse runs/digits --facet digit
      ppl-models traverse runs/digits --facet digit --between 3 7 --steps 6
    """

    folder: Run
    """Run folder."""
    facet: Annotated[str, opt("NAME")]
    """Facet to move."""
    n: Annotated[int, opt("N")] = 6
    """Number of data, the first held-out ones [data]."""
    steps: Annotated[int, opt("N")] = 8
    """Clusters visited, or points between two of them."""
    order: Literal["share", "distance"] = "share"
    """The heaviest clusters first, or those nearest to the data."""
    between: Annotated[tuple[int, int] | None, opt("C D", "visit the clusters")] = None
    """Walk from the mean of cluster C to that of D instead."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the picture and print where."""
        traverse(self)


def traverse(command: Traverse) -> None:
    """Write a picture: one row a datum, decoded as it is and with one facet at each stop."""
    check_at_least(1, n=command.n, steps=command.steps)
    fitted, run, x = facets.opened(command, "traverse", command.n)
    with usage():
        found = run(fitted, x, command.facet, steps=command.steps, order=command.order, between=command.between)
    rows = np.concatenate([found.plain[:, None], found.x], 1)
    print(facets.save_grid(fitted, f"traverse_{command.facet}", rows, ["own", *found.stops]))
