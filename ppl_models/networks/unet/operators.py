"""The U-Nets for PDE operators and masks: Residual U-Net and Multi-ResNet of the paper's Table 1.

Williams et al., NeurIPS 2023, arXiv 2305.19638.  Widths ``w_l = width 2^l``, l = 0 at the finest of ``levels`` levels:

    lift       block(c_in -> w_0)
    residual   V_l is pooled to the next grid, block(w_l -> w_{l+1}) there
    Multi-ResNet   V_l is pooled and its channels tiled to w_{l+1}: no parameter
    decoder    conv3 (w_{l+1} -> w_l) on the coarse grid, repeated 2 x 2, joined to the skip, block(2 w_l -> w_l), then
               ``n_extra`` residual blocks of w_l; ``n_extra=3`` spends the saved parameters here
    head       conv3 (w_0 -> c_out)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from flax import nnx

from ppl_models.networks.separable import Convolution, SeparableConv, convolve_by
from ppl_models.networks.time_embedding import TimeEmbedding
from ppl_models.networks.unet.blocks import Attention, Modulated, PlainBlock, ResidualPlainBlock
from ppl_models.networks.unet.lifted import LiftedUNet
from ppl_models.networks.unet.operator import Identity, Space, UNetOperator
from ppl_models.networks.unet.parts import Blocks, Join, Pool, Tile

Encoder = Literal["learned", "pool"]


@dataclass(frozen=True)
class OperatorUNet:
    """A U-Net for image-to-image maps as data: (batch, H, W, ``c_in``) -> (batch, H, W, ``c_out``).

    H and W are multiples of ``2 ** (levels - 1)``.

    ``encoder``       ``"learned"`` (Residual U-Net) or ``"pool"`` (Multi-ResNet).
    ``n_extra``       residual blocks more in each decoder.
    ``pass_details``  decoders also read the three Haar bands that the pooling before them dropped.
    ``attention``     levels (0 is the finest) whose decoder ends in attention; so does a learned encoder's.
    ``embedding``     width of a time embedding for each level, which modulates its blocks; ``None``: no condition.

    ``convolution``   ``"lax"`` for training steps on a CPU, ``"product"`` inside ``scan``: the same parameters.

    >>> OperatorUNet(12, 3).parameter_count
    34531971
    """

    c_in: int
    c_out: int
    width: int = 64
    levels: int = 5
    encoder: Encoder = "learned"
    n_extra: int = 0
    pass_details: bool = False
    attention: tuple[int, ...] = ()
    embedding: int | None = None
    convolution: Convolution = "product"

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention", tuple(self.attention))
        for name in ("c_in", "c_out", "width", "levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"OperatorUNet: {name} must be at least 1, got {getattr(self, name)}")
        if self.n_extra < 0 or (self.embedding is not None and self.embedding < 1):
            raise ValueError(f"OperatorUNet: n_extra and embedding cannot be negative or empty, got {self}")
        if self.encoder not in ("learned", "pool"):
            raise ValueError(f"OperatorUNet: encoder is 'learned' or 'pool', got {self.encoder!r}")
        if any(not 0 <= level < self.levels for level in self.attention):
            raise ValueError(f"OperatorUNet: attention names levels 0..{self.levels - 1}, got {self.attention}")

    @property
    def parameter_count(self) -> int:
        """Number of parameters; none is drawn."""
        return nnx.eval_shape(lambda: self.build(nnx.Rngs(0))).parameter_counts()["total"]

    def check(self, height: int, width: int) -> None:
        """Raise ``ValueError`` for images that cannot be halved this often."""
        factor = 2 ** (self.levels - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"{self.levels} levels halve an image {self.levels - 1} times, so height and width must be multiples "
                f"of {factor}, got {height} x {width}; use fewer levels, or pad the images"
            )

    def build(self, rngs: nnx.Rngs) -> LiftedUNet:
        """The network with starting weights from ``rngs``."""
        widths = [self.width * 2**level for level in range(self.levels)]
        learned = self.encoder == "learned"

        def block(c_in: int, c_out: int, residual: bool = False) -> nnx.Module:
            made: Any = ResidualPlainBlock(c_out, rngs=rngs) if residual else PlainBlock(c_in, c_out, rngs=rngs)
            return made if self.embedding is None else Modulated(made, c_out, self.embedding, rngs=rngs)

        def attended(level: int) -> list[nnx.Module]:
            return [Attention(widths[level], heads=1, groups=1, rngs=rngs)] if level in self.attention else []

        def encoder(level: int) -> nnx.Module:
            if not learned or level == 0:
                return Identity()
            return Blocks([block(widths[level - 1], widths[level]), *attended(level)])

        def decoder(level: int) -> nnx.Module:
            w, below = widths[level], widths[level + 1]
            bands = (w if learned else self.width) if self.pass_details else 0
            narrow = SeparableConv(below + 3 * bands, w, rngs=rngs)
            extra = [block(w, w, residual=True) for _ in range(self.n_extra)]
            return Join(narrow, [block(2 * w, w), *extra, *attended(level)], bands)

        def projection(level: int) -> nnx.Module:
            return Pool(None if learned else Tile(widths[level + 1]))

        lift = PlainBlock(self.c_in, self.width, rngs=rngs)
        down = list(reversed(range(self.levels)))  # coarse to fine
        unet = UNetOperator(
            [Space((None, None, widths[max(level - 1, 0)] if learned else widths[level])) for level in down],
            [Space((None, None, widths[level])) for level in down],
            [encoder(level) for level in down],
            [decoder(level) for level in down[1:]],
            [projection(level) for level in down[1:]],
            Identity(),
            [] if self.embedding is None else [TimeEmbedding(self.embedding, rngs=rngs) for _ in down],
        )
        none: list[Any] = [None] * (self.levels - 1)
        net = LiftedUNet([*none, lift], unet, [*none, SeparableConv(self.width, self.c_out, rngs=rngs)])
        convolve_by(net, self.convolution)
        return net


def _table_1(c_in: int, c_out: int, width: int) -> tuple[OperatorUNet, OperatorUNet, OperatorUNet]:
    return (
        OperatorUNet(c_in, c_out, width),
        OperatorUNet(c_in, c_out, width, encoder="pool"),
        OperatorUNet(c_in, c_out, width, encoder="pool", n_extra=3),
    )


TASKS = {"navier_stokes": (12, 3, 64), "shallow_water": (6, 3, 64), "wmh": (2, 1, 16)}
"""Table 1's tasks: channels in, channels out, width."""

TABLE_1: dict[str, OperatorUNet] = {
    f"{task}_{kind}": net
    for task, sizes in TASKS.items()
    for kind, net in zip(("residual", "multi_resnet", "multi_resnet_saved"), _table_1(*sizes), strict=True)
}
"""The networks of Table 1: Residual U-Net, Multi-ResNet, and Multi-ResNet with the saved parameters in its decoder."""
