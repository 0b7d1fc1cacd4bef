"""Does NUTS through the ODE of a diffusion prior, by `inference.sampling.condition`, find the exact posterior?"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.diffusion_condition import exact_posteriors
from benchmarks.harness import Claim


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: d = 2 alone."""
    yield from exact_posteriors(quick, ("nuts",), (2,) if quick else (2, 16))
