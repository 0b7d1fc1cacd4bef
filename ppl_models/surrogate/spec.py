"""One surrogate of an operator as a table row: the fields it maps, the law of its output, the network that maps them.

Williams, Falck et al., "A Unified Framework for U-Net Design and Analysis", NeurIPS 2023, arXiv 2305.19638.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Array, Key
from pydantic import Field

from ppl_models.program import Program, build
from ppl_models.surrogate.networks import FNO, UNet

Network = Annotated[UNet | FNO, Field(discriminator="kind")]
Scale = Literal["pixel", "channel", "input", "fixed"]
Base = Literal["mean", "persistence", "zero"]


@dataclass(frozen=True)
class Normal:
    """``y ~ Normal(U(x), sigma)``, every pixel and channel by itself.

    ``scale``  what sigma depends on: ``"pixel"``, one learned number a pixel and channel; ``"channel"``, one a channel;
               ``"input"``, pixel, channel and x: the network gives it too (heteroscedastic); ``"fixed"``, ``sd``.
    ``sd``     sigma of ``"fixed"``; the fit is then that of least squares.
    """

    scale: Scale = "pixel"
    sd: float = 1.0
    kind: Literal["normal"] = "normal"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not 0 < self.sd < math.inf:
            raise ValueError(f"Normal: sd must be positive and finite, got {self.sd}")


@dataclass(frozen=True)
class Bernoulli:
    """``y ~ Bernoulli(sigmoid(U(x)))``, every pixel of a mask by itself; masks are stored as 0 and 1."""

    kind: Literal["bernoulli"] = "bernoulli"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


Likelihood = Annotated[Normal | Bernoulli, Field(discriminator="kind")]


@dataclass(frozen=True)
class Surrogate:
    """A network U from input fields x to the law of an output field y.

    ``shape``        ``{"x": (H, W, C_x), "y": (H, W, C_y)}``.
    ``network``      :class:`UNet` (residual, or Multi-ResNet) or :class:`FNO`.
    ``likelihood``   :class:`Normal` or :class:`Bernoulli`.
    ``base``         what the network's output is added to: ``"mean"``, a learned field, at first the mean of the
                     training data; ``"persistence"``, the first C_y channels of x; ``"zero"``, nothing.
    ``standardise``  whether inputs and outputs are shifted and scaled, channel by channel, by learned numbers that
                     start from the training data.  Without it the network reads x and gives y as they are.

    A new model predicts its base: the last layer of the network starts at zero where ``standardise`` is set.

    >>> Surrogate({"x": (16, 16, 2), "y": (16, 16, 1)}, UNet(width=8, levels=2)).shape["y"]
    (16, 16, 1)
    """

    shape: Mapping[str, tuple[int, ...]]
    network: Network = UNet()
    likelihood: Likelihood = field(default_factory=Normal)
    base: Base = "mean"
    standardise: bool = True
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        shape = {name: tuple(size) for name, size in self.shape.items()}
        whole = all(isinstance(n, int) and n > 0 for size in shape.values() for n in size)
        if set(shape) != {"x", "y"} or any(len(size) != 3 for size in shape.values()) or not whole:
            raise ValueError(
                f"shape must be {{'x': (H, W, channels), 'y': (H, W, channels)}}, got {shape}; a single field is "
                "stored with one channel, (H, W, 1)"
            )
        object.__setattr__(self, "shape", {"x": shape["x"], "y": shape["y"]})
        if shape["x"][:2] != shape["y"][:2]:
            raise ValueError(
                f"x and y must lie on one grid, got {shape['x'][:2]} and {shape['y'][:2]}; resample one of them"
            )
        if self.base == "persistence" and (shape["x"][2] < shape["y"][2] or self.likelihood.kind == "bernoulli"):
            raise ValueError(
                f"base 'persistence' predicts real y by the first {shape['y'][2]} channels of x, got shape {shape} and "
                f"likelihood {self.likelihood.kind!r}; choose base 'mean'"
            )
        if self.base == "mean" and not self.standardise:
            raise ValueError("base 'mean' starts from the training data; with standardise=False choose 'zero'")
        self.network.check(shape["x"])

    @property
    def outputs(self) -> int:
        """Numbers that the network gives a pixel: those of the mean, and of the scale where that depends on x."""
        doubled = self.likelihood.kind == "normal" and self.likelihood.scale == "input"
        return self.shape["y"][2] * (2 if doubled else 1)

    def build(self, key: Key[Array, ""] | None = None) -> Program:
        """Draw the starting weights from ``key`` (default: ``jax.random.key(0)``) and return the program."""
        return build(self, key)


def _square(side: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {"x": (side, side, inputs), "y": (side, side, 1)}


def _table1() -> dict[str, Surrogate]:
    """The networks of the paper's Table 1 with its losses: least squares, and Bernoulli for masks."""
    tasks: dict[str, tuple[dict[str, tuple[int, ...]], int, Normal | Bernoulli]] = {
        "navier_stokes": ({"x": (128, 128, 12), "y": (128, 128, 3)}, 64, Normal("fixed")),
        "shallow_water": ({"x": (96, 192, 6), "y": (96, 192, 3)}, 64, Normal("fixed")),
        "wmh": ({"x": (208, 208, 2), "y": (208, 208, 1)}, 16, Bernoulli()),
    }
    kinds: dict[str, dict[str, Any]] = {
        "residual": {},
        "multi_resnet": {"encoder": "pool"},
        "multi_resnet_saved": {"encoder": "pool", "n_extra": 3},
    }
    return {
        f"table1_{task}_{kind}": Surrogate(shape, UNet(width=width, levels=5, **how), law, "zero", standardise=False)
        for task, (shape, width, law) in tasks.items()
        for kind, how in kinds.items()
    }


PRESETS = {
    "tiny": Surrogate(_square(8, 1), UNet(width=4, levels=2)),
    "darcy": Surrogate(_square(32, 1), UNet(width=8, levels=4)),
    "navier_stokes": Surrogate(_square(32, 2), UNet(width=8, levels=4, boundary="periodic"), base="persistence"),
    "masks": Surrogate(_square(32, 1), UNet(width=8, levels=4), Bernoulli()),
    "neuralop_darcy": Surrogate(_square(16, 1), UNet(width=8, levels=3)),
    "neuralop_burgers": Surrogate(_square(16, 1), UNet(width=8, levels=3), base="persistence"),
    "darcy_fno": Surrogate(_square(32, 1), FNO(width=16, modes=6, padding=6)),
    "navier_stokes_fno": Surrogate(_square(32, 2), FNO(width=16, modes=6), base="persistence"),
    **_table1(),
}
