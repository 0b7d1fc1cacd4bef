"""Do learned encoders matter for a flow, and do roll-outs of surrogates know how wrong they are?

The comparison of ``pde_unets`` on Navier-Stokes trajectories: one step of unit time is learned, and rolled out.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Claim
from benchmarks.pde_unets import claims, navier_stokes


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: one seed, five steps of a small network, ten trajectories."""
    yield from claims("navier_stokes", "Navier-Stokes 32x32", navier_stokes(quick), quick)
