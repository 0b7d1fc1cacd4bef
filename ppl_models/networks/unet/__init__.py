"""U-Nets: the object of six parts, its presets, and blocks to build others.

UNetOperator        U = (V, W, E, D, P, U_0), each part a field to swap; ``unet.at(i)`` is U_i
LiftedUNet          the same between data and answer, at each resolution
OperatorUNet        Residual U-Net and Multi-ResNet for PDE operators and masks; TABLE_1
ScoreUNet           score networks for diffusion models; SCORE
UNet                a small residual U-Net of a noisy image
precondition        decoders as corrections of the coarser U-Net; resnet_form
"""

from ppl_models.networks.unet.blocks import (
    Attention,
    GroupNorm,
    GuidedBlock,
    Modulated,
    PlainBlock,
    ResidualPlainBlock,
)  # fmt: skip
from ppl_models.networks.unet.lifted import HatHead, LiftedUNet, map_levels
from ppl_models.networks.unet.operator import Fixed, Identity, Space, UNetOperator, parameter_count
from ppl_models.networks.unet.operators import TABLE_1, TASKS, OperatorUNet
from ppl_models.networks.unet.parts import (
    Blocks,
    Join,
    Last,
    Pool,
    PoolNoise,
    Stride,
    Tile,
    Trail,
    TrailBottleneck,
    TrailDecoder,
    tile,
)  # fmt: skip
from ppl_models.networks.unet.preconditioning import Embed, Preconditioned, ResNetForm, precondition, resnet_form
from ppl_models.networks.unet.score import SCORE, Head, ScoreUNet
from ppl_models.networks.unet.small import ResidualBlock, UNet

__all__ = [
    "SCORE", "TABLE_1", "TASKS", "Attention", "Blocks", "Embed", "Fixed", "GroupNorm", "GuidedBlock", "HatHead", "Head",
    "Identity", "Join", "Last", "LiftedUNet", "Modulated", "OperatorUNet", "PlainBlock", "Pool", "PoolNoise",
    "Preconditioned",
    "ResNetForm", "ResidualBlock", "ResidualPlainBlock", "ScoreUNet", "Space", "Stride", "Tile", "Trail",
    "TrailBottleneck", "TrailDecoder", "UNet", "UNetOperator", "map_levels",
    "parameter_count", "precondition", "resnet_form", "tile",
]  # fmt: skip
