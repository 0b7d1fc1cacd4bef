"""One diffusion model as a table row: the data it knows, the network that denoises, the ODE that scores."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from jaxtyping import Array, Key
from pydantic import Field

from ppl_models.diffusion.guided import GuidedUNet
from ppl_models.diffusion.networks import MLP, UNet
from ppl_models.distributions.ode import RK4, Adaptive
from ppl_models.program import Program, build

Network = Annotated[MLP | UNet | GuidedUNet, Field(discriminator="kind")]
OdeSolver = Annotated[RK4 | Adaptive, Field(discriminator="kind")]


@dataclass(frozen=True)
class Diffusion:
    """A diffusion model ``x = cos(phi) x_0 + sin(phi) eps``, trained on its denoising bound.

    ``shape``    of one datum.
    ``levels``   number of grey levels of stored images (17 for scikit-learn's digits), scored as
                 ``(grey + u) / levels``; ``None`` for real-valued data, scored as given.
    ``network``  :class:`UNet`, :class:`MLP` or :class:`GuidedUNet` (Multi-ResNets, staged training).
    ``centre``, ``scale``  the diffusion runs on ``(x - centre) / scale``; a rough mean and standard deviation of the
                 scored data (grey levels are scored on [0, 1]).
    ``level_mean``, ``level_spread``  training draws ``log tan(phi) ~ N(mean, spread^2)``.
    ``weight_cap``  largest importance weight in the gradient of the bound; its value is never capped.
    ``solver``   of the ODE, for samples and densities.
    ``probes``   random probes of the density's divergence, per datum; ``None`` for the exact trace.

    >>> Diffusion(shape=(2,), network=MLP(width=64)).probes is None
    True
    """

    shape: tuple[int, ...]
    levels: int | None = None
    network: Network = MLP()
    centre: float = 0.0
    scale: float = 1.0
    level_mean: float = -0.8
    level_spread: float = 1.2
    weight_cap: float = 8.0
    solver: OdeSolver = RK4(80, 1.75)
    probes: int | None = None
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise ValueError(f"shape must be positive integers, the shape of one datum, got {self.shape}; try (8, 8)")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels counts the grey levels of stored data, expected >= 2 or None, got {self.levels}")
        for field in ("scale", "level_spread", "weight_cap"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field} must be positive and finite, got {getattr(self, field)}")
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be at least 1, or None for the exact trace, got {self.probes}")
        self.network.check(self.shape)

    def build(self, key: Key[Array, ""] | None = None) -> Program:
        """Draw the starting weights from ``key`` (default: ``jax.random.key(0)``) and return the program."""
        return build(self, key)


DIGITS = Diffusion((8, 8), levels=17, centre=0.32, scale=0.36, network=UNet(widths=(24, 72)), probes=1)
TINY = dataclasses.replace(DIGITS, network=MLP(width=16, depth=1, embedding=8), solver=RK4(4, 1.75))
PLANE = Diffusion((2,), network=MLP(width=64), solver=RK4(40, 1.75))
FASHION = Diffusion((28, 28), levels=256, centre=0.29, scale=0.35, network=UNet(widths=(16, 32, 64)), probes=1)
DIGITS_MULTI_RESNET = dataclasses.replace(DIGITS, network=GuidedUNet(24, (2, 2), preconditioned=True))
FASHION_MULTI_RESNET = dataclasses.replace(FASHION, network=GuidedUNet(16, (1, 2, 4)))
TRIANGLE_DIGITS = Diffusion(
    (16, 16), levels=17, centre=0.17, scale=0.29, network=GuidedUNet(16, (1, 2, 2)), solver=RK4(40, 1.75), probes=1
)
PRESETS = {
    "tiny": TINY,
    "digits": DIGITS,
    "plane": PLANE,
    "fashion": FASHION,
    "digits_multi_resnet": DIGITS_MULTI_RESNET,
    "fashion_multi_resnet": FASHION_MULTI_RESNET,
    "triangle_digits": TRIANGLE_DIGITS,
}
