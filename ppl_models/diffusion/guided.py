"""The U-Nets of ``networks/unet`` as denoisers' networks: every level a network of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from flax import nnx
from jaxtyping import Array, Float

from ppl_models.networks.unet import ScoreUNet
from ppl_models.networks.unet.score import Down


@dataclass(frozen=True)
class GuidedUNet:
    """U-Net with the blocks of guided diffusion for images (H, W) or (H, W, C); ``down="none"``: a Multi-ResNet.

    ``base``         channels; ``base * multipliers[l]`` at level l, 0 the finest; each level halves the image.
    ``down``         ``"none"``: no learned encoder, the image averaged 2 x 2, its noise level lowered by log 2 each
                     time (Multi-ResNet); ``"pool"``, ``"stride"``: residual blocks on the way down.
    ``blocks``       a level on the way down; one more on the way up.
    ``heads``        of the attention at the coarsest level; 0 for none.
    ``groups``       of channels in the norms.
    ``preconditioned``  each level corrects the repeated answer of the coarser one; multipliers must be equal.
    ``coarse_heads``  every level answers, so that each is a model of its own resolution (:func:`~.stages`); else only
                     the finest has a head.
    ``frozen``       so many of the coarsest levels get no gradient.

    Williams et al., NeurIPS 2023, arXiv 2305.19638; blocks: Dhariwal and Nichol, 2021, arXiv 2105.05233.
    """

    base: int = 16
    multipliers: tuple[int, ...] = (1, 2)
    down: Down = "none"
    blocks: int = 1
    heads: int = 0
    groups: int = 8
    preconditioned: bool = False
    coarse_heads: bool = False
    frozen: int = 0
    kind: Literal["guided_unet"] = "guided_unet"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        self.score(1, 1)  # its checks
        if not 0 <= self.frozen <= len(self.multipliers):
            raise ValueError(f"GuidedUNet: frozen counts levels, 0 to {len(self.multipliers)}, got {self.frozen}")

    def score(self, channels: int, outputs: int) -> ScoreUNet:
        """The network of images of so many channels, with ``outputs`` numbers a value at the finest level."""
        return ScoreUNet(
            channels=channels,
            outputs=channels * outputs,
            base=self.base,
            multipliers=self.multipliers,
            down=self.down,
            blocks=self.blocks,
            heads=self.heads,
            groups=self.groups,
            preconditioned=self.preconditioned,
            pool_noise=self.down == "none",
            coarse_outputs=channels if self.coarse_heads else 0,
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` for data that are not images, or too small to halve this often."""
        if len(shape) not in (2, 3):
            raise ValueError(f"a GuidedUNet takes images (H, W) or (H, W, C), got shape {shape}; try the MLP network")
        self.score(1, 1).check(*shape[:2])

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """The module (n, *shape), (n,) -> (n, *shape, outputs)."""
        return _LeveledNetwork(shape, outputs, self, rngs)


class _LeveledNetwork(nnx.Module):
    """The finest level of a ``LiftedUNet`` for (H, W) or (H, W, C), ``outputs`` numbers for each value of the image."""

    def __init__(self, shape: tuple[int, ...], outputs: int, layout: GuidedUNet, rngs: nnx.Rngs) -> None:
        self.shape, self.outputs, self.frozen = tuple(shape), outputs, layout.frozen
        self.net = layout.score(shape[2] if len(shape) == 3 else 1, outputs).build(rngs)

    def __call__(self, x: Float[Array, " n *shape"], level: Float[Array, " n"]) -> Float[Array, " n *shape_outputs"]:
        net = self.net.hold(self.frozen) if self.frozen else self.net
        out = net(x.reshape(x.shape[0], *self.shape[:2], -1), level)
        return out.reshape(x.shape[0], *self.shape, self.outputs)
