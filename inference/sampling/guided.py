"""Guidance without a classifier: two denoisers, with and without a condition, as one.

    D_w(x, t) = D(x, t) + (1 + w) (D(x, t | c) - D(x, t))

J. Ho, T. Salimans, *Classifier-Free Diffusion Guidance*, 2022, arXiv 2207.12598, eq. 6.  As scores:
``(1 + w) grad log p_t(x | c) - w grad log p_t(x)``.  ``w = 0`` is the condition alone.  No diffusion has this score at
all times, so that what is drawn is not p(x | c)^(1 + w) / p(x)^w either: it depends on the sampler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Array

from inference.sampling.protocols import Denoise


@dataclass(frozen=True)
class Guided:
    """``D_w`` of the denoisers ``given`` (p(x | c)) and ``free`` (p(x)) with the weight ``w``: itself a ``Denoise``.

    Raises ``ValueError`` for a weight below 0 or not finite.

    >>> import jax.numpy as jnp
    >>> from inference.sampling import Guided
    >>> toward = Guided(lambda x, t: 0 * x + 2.0, lambda x, t: 0 * x + 1.0, 0.5)
    >>> float(toward(jnp.zeros((1, 1)), 0.5)[0, 0])  # 1 + 1.5 (2 - 1)
    2.5
    """

    given: Denoise
    free: Denoise
    w: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.w < math.inf:
            raise ValueError(f"w is the weight of the guidance, at least 0 and finite, got {self.w!r}; usual: 0 to 4")

    def __call__(self, x: Array, t: Array) -> Array:
        """Data (n, *shape) at one time; two calls of a network, one where there is no guidance."""
        given = self.given(x, t)
        if self.w == 0:
            return given
        free = self.free(x, t)
        return free + (1 + self.w) * (given - free)
