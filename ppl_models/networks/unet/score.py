"""U-Nets of a noisy image and its noise level: the blocks of guided diffusion, with or without a learned encoder.

Per level two blocks down, three up with the states of the way down joined; attention between two blocks at the bottom;
a time embedding and a head for each level, so that each level is a network of its own; the lift tiles channels.
Blocks: Dhariwal and Nichol, 2021, arXiv 2105.05233; the encoder without parameters: Williams et al., NeurIPS 2023,
arXiv 2305.19638 (Multi-ResNet).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.networks.separable import Convolution, Image, SeparableConv, convolve_by
from ppl_models.networks.time_embedding import TimeEmbedding
from ppl_models.networks.unet.blocks import Attention, GroupNorm, GuidedBlock
from ppl_models.networks.unet.lifted import LiftedUNet
from ppl_models.networks.unet.operator import Identity, Space, UNetOperator
from ppl_models.networks.unet.parts import (
    Last,
    Pool,
    PoolNoise,
    Stride,
    Tile,
    Trail,
    TrailBottleneck,
    TrailDecoder,
)  # fmt: skip
from ppl_models.networks.unet.preconditioning import precondition

Down = Literal["stride", "pool", "none"]


class Head(nnx.Module):
    """``conv_1x1 silu(norm w)``, zero at the start."""

    def __init__(self, channels: int, outputs: int, groups: int, *, rngs: nnx.Rngs) -> None:
        self.norm = GroupNorm(channels, math.gcd(channels, groups))
        self.conv = SeparableConv(channels, outputs, 1, scale=0.0, rngs=rngs)

    def __call__(self, w: Image) -> Float[Array, "batch height width outputs"]:
        return self.conv(jax.nn.silu(self.norm(w)))


@dataclass(frozen=True)
class ScoreUNet:
    """A U-Net (batch, H, W, ``channels``), levels (batch,) -> (batch, H, W, ``outputs``) as data.

    ``base``         features of the time embedding; width ``base * multipliers[l]`` at level l, 0 the finest.
    ``down``         ``"stride"``: blocks and a strided convolution on the way down, a convolution after repeating on
                     the way up; ``"pool"``: blocks and average pooling, no convolution on the way up; ``"none"``: no
                     encoder, averages with tiled channels (Multi-ResNet), a convolution on the way up.
    ``blocks``       on the way down; one more on the way up.
    ``heads``        of the attention at the bottom; 0 for none.
    ``groups``       of channels in the norms, where they divide the channels; else the greatest common divisor.
    ``preconditioned``  every decoder is a correction of the repeated coarse answer; widths must be equal.
    ``pool_noise``   with ``down="none"``: what is pooled is scaled back to variance preserving, its level lowered by
                     log 2 a halving, so every level reads what it would read as a network of its own.
    ``coarse_outputs``  numbers a pixel of the heads of all levels but the finest; ``None``: as ``outputs``; 0: none.
    ``convolution``  ``"lax"`` for training steps on a CPU, ``"product"`` inside ``scan``: the same parameters.

    Presets of the published sizes: ``SCORE``.

    >>> ScoreUNet(down="none").parameter_count
    1557507
    """

    channels: int = 1
    outputs: int = 1
    base: int = 32
    multipliers: tuple[int, ...] = (2, 2, 2)
    down: Down = "stride"
    blocks: int = 2
    heads: int = 4
    groups: int = 32
    convolution: Convolution = "product"
    preconditioned: bool = False
    pool_noise: bool = False
    coarse_outputs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"ScoreUNet: multipliers are positive, one a level, got {self.multipliers}")
        for name in ("channels", "outputs", "blocks", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"ScoreUNet: {name} must be at least 1, got {getattr(self, name)}")
        if self.base < 2 or self.base % 2:
            raise ValueError(f"ScoreUNet: base is an even number (sines and cosines), got {self.base}")
        if self.down not in ("stride", "pool", "none"):
            raise ValueError(f"ScoreUNet: down is 'stride', 'pool' or 'none', got {self.down!r}")
        if self.heads < 0 or (self.heads and self.base * self.multipliers[-1] % self.heads):
            raise ValueError(f"ScoreUNet: heads must divide the coarsest width or be 0, got {self.heads}")
        if self.preconditioned and len(set(self.multipliers)) > 1:
            raise ValueError(
                f"ScoreUNet: preconditioned adds the coarse answer to the fine one, so all multipliers must be equal, "
                f"got {self.multipliers}; try {(max(self.multipliers),) * len(self.multipliers)}"
            )
        if self.pool_noise and self.down != "none":
            raise ValueError(
                f"ScoreUNet: pool_noise rescales noisy images; with down={self.down!r} learned features are pooled; "
                "use down='none'"
            )
        if self.coarse_outputs is not None and self.coarse_outputs < 0:
            raise ValueError(f"ScoreUNet: coarse_outputs must be at least 0, got {self.coarse_outputs}")

    @property
    def parameter_count(self) -> int:
        """Number of parameters; none is drawn."""
        return nnx.eval_shape(lambda: self.build(nnx.Rngs(0))).parameter_counts()["total"]

    def check(self, height: int, width: int) -> None:
        """Raise ``ValueError`` for images that cannot be halved this often."""
        factor = 2 ** (len(self.multipliers) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"{len(self.multipliers)} levels halve the image, so height and width must be multiples of {factor}, "
                f"got {height} x {width}; use fewer multipliers, or pad the images"
            )

    def build(self, rngs: nnx.Rngs) -> LiftedUNet:
        """The network with starting weights from ``rngs``; it starts as the zero function."""
        widths, embedding = [self.base * m for m in self.multipliers], 4 * self.base
        bottom = len(widths) - 1
        learned = self.down != "none"

        def block(c_in: int, c_out: int) -> GuidedBlock:
            return GuidedBlock(c_in, c_out, embedding, groups=self.groups, rngs=rngs)

        def entering(level: int) -> int:  # channels of V_level
            return widths[max(level - 1, 0)] if learned else widths[level]

        def encoder(level: int) -> nnx.Module:
            w = widths[level]
            if not learned:
                return Identity()
            return Trail([block(entering(level) if k == 0 else w, w) for k in range(self.blocks)])

        def decoder(level: int) -> TrailDecoder:
            w = widths[level]
            below = w if level == bottom else widths[level + 1]
            convolved = level < bottom and self.down != "pool"
            conv = SeparableConv(below, below, rngs=rngs) if convolved else None
            states = [w] * self.blocks + [entering(level)]
            arriving = [below] + [w] * self.blocks
            ups = [block(h + state, w) for h, state in zip(arriving, states, strict=True)]
            return TrailDecoder(conv, ups, resize=level < bottom)

        def projection(level: int) -> nnx.Module:
            if not learned:
                tiled = Tile(widths[level + 1])
                return PoolNoise(tiled) if self.pool_noise else Pool(tiled)
            return Last(Pool() if self.down == "pool" else Stride(widths[level], rngs=rngs))

        def middle() -> list[nnx.Module]:
            w = widths[bottom]
            attention = [Attention(w, self.heads, groups=self.groups, rngs=rngs)] if self.heads else []
            return [block(w, w), *attention, block(w, w)]

        down = list(reversed(range(len(widths))))  # coarse to fine
        spaces = [Space((None, None, entering(level))) for level in down]
        unet = UNetOperator(
            spaces,
            [Space((None, None, widths[level])) for level in down],
            [encoder(level) for level in down],
            [decoder(level) for level in down[1:]],
            [projection(level) for level in down[1:]],
            TrailBottleneck(middle(), decoder(bottom)),
            [TimeEmbedding(embedding, features=self.base, rngs=rngs) for _ in down],
        )
        if self.preconditioned:
            unet = precondition(unet)
        lifts: list[Any] = [Tile(entering(level)) for level in down]
        coarse = self.outputs if self.coarse_outputs is None else self.coarse_outputs
        outputs = [coarse] * bottom + [self.outputs]
        heads = [Head(widths[k], n, self.groups, rngs=rngs) if n else None for k, n in zip(down, outputs, strict=True)]
        net = LiftedUNet(lifts, unet, heads)
        convolve_by(net, self.convolution)
        return net


SCORE: dict[str, ScoreUNet] = {
    "residual": ScoreUNet(),
    "pooled": ScoreUNet(down="pool"),
    "multi_resnet": ScoreUNet(down="none"),
    "residual_4": ScoreUNet(multipliers=(2, 2, 2, 2)),
    "multi_resnet_4": ScoreUNet(multipliers=(2, 2, 2, 2), down="none"),
}
"""The score networks of the paper's code for MNIST (28 x 28: three levels; 32 x 32: four)."""
