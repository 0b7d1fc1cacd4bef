"""Progressive training: facets enter one after another, the deepest first (the paper's code; pro-VLAE, 2002.10549)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array


@dataclass(frozen=True)
class Progressive:
    """Stage s lets in the facet ``r = s`` counted from the deepest, r = J - 1 - j.

    ``epochs``    length of each stage in epochs, one stage a facet.
    ``batches``   updates an epoch.
    ``fade_in``   updates over which the facet of a stage enters.
    ``pretrain``  weight g0 of the KL of a facet that has not entered yet.

    In stage s, t updates after its start, with ``a = min(t / fade_in, 1)`` and ``g = g0 + a (1 - g0)`` (both 1 in
    stage 0): facet r < s has (alpha, gamma) = (1, 1), r = s has (a, g), r > s has (0, g0).  alpha multiplies the
    facet's rung in the decoder (knob ``fade_<facet>``), gamma the KL of its site.
    """

    epochs: tuple[int, ...]
    batches: int
    fade_in: int
    pretrain: float = 0.0
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", tuple(self.epochs))
        if not self.epochs or any(not isinstance(n, int) or n < 1 for n in self.epochs):
            raise ValueError(f"epochs lists the length of each stage, integers >= 1, got {self.epochs}")
        for name, value in (("batches", self.batches), ("fade_in", self.fade_in)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a number of updates >= 1, got {value!r}")
        if not 0 <= self.pretrain <= 1:
            raise ValueError(f"pretrain is a weight between 0 and 1, got {self.pretrain}")

    @property
    def steps(self) -> int:
        """Updates of all stages together."""
        return self.batches * sum(self.epochs)

    def coefficients(self, step: ArrayLike, facet: int) -> tuple[Array, Array]:
        """(alpha, gamma) of the facet (0 the shallowest) at an update; traced steps do not compile anew."""
        starts = self.batches * np.concatenate([[0], np.cumsum(self.epochs[:-1])])
        depth = len(self.epochs) - 1 - facet
        step = jnp.asarray(step)
        if depth == 0:
            return jnp.ones(()), jnp.ones(())
        begun = step >= starts[depth]
        alpha = jnp.where(begun, jnp.minimum((step - starts[depth]) / self.fade_in, 1.0), 0.0)
        # The next stage takes a facet as entered, whether or not its own fade was over.
        if depth + 1 < len(starts):
            alpha = jnp.where(step >= starts[depth + 1], 1.0, alpha)
        gamma = jnp.where(begun, self.pretrain + alpha * (1.0 - self.pretrain), self.pretrain)
        return alpha, gamma

    def weights(self, facet: int, name: str) -> dict[str, Any]:
        """The two schedules of a facet: its knob and the weight of its site."""

        def alpha(step: ArrayLike, j: int) -> Array:
            return self.coefficients(step, j)[0]

        def gamma(step: ArrayLike, j: int) -> Array:
            return self.coefficients(step, j)[1]

        return {f"fade_{name}": partial(alpha, j=facet), f"z_{name}": partial(gamma, j=facet)}
