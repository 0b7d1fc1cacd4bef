"""Networks of a surrogate: layouts as data, the frame that scales fields, and the two together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.networks.fno import FNO as FNOModule
from ppl_models.networks.separable import on_a_torus
from ppl_models.networks.unet import OperatorUNet

SD_RATE = 8.0
"""Scale of the table of log sigma: its entries fall by several nats in a fit, the weights of a network do not."""

Field = Float[Array, "n height width channel"]
Out = Float[Array, "n height width output"]


# ------------------------------------------------------------------------------------------------- layouts
@dataclass(frozen=True)
class UNet:
    """The U-Net for PDE operators and masks (:class:`ppl_models.networks.unet.OperatorUNet`).

    ``width``         channels on the finest of ``levels`` grids; each coarser one has twice as many.
    ``encoder``       ``"learned"``: Residual U-Net; ``"pool"``: Multi-ResNet, whose encoder has no parameter.
    ``n_extra``       residual blocks more in each decoder; 3 spends what a Multi-ResNet saves.
    ``pass_details``  decoders also read what pooling drops, the Haar bands.
    ``boundary``      what convolutions find beyond the edge: ``"zero"``, or the opposite edge, ``"periodic"``.
    """

    width: int = 8
    levels: int = 4
    encoder: Literal["learned", "pool"] = "learned"
    n_extra: int = 0
    pass_details: bool = False
    boundary: Literal["zero", "periodic"] = "zero"
    kind: Literal["unet"] = "unet"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        self.operator(1, 1)

    @property
    def words(self) -> str:
        """The network in one line."""
        kind = "Residual U-Net" if self.encoder == "learned" else "Multi-ResNet"
        return f"{kind} on {self.levels} grids: Uᵢ(v) = Dᵢ(Uᵢ₋₁(Pᵢ₋₁ Eᵢ v) | Eᵢ v)"

    def operator(self, c_in: int, c_out: int) -> OperatorUNet:
        """The U-Net for numbers of channels; raises ``ValueError`` for fields that cannot be."""
        return OperatorUNet(c_in, c_out, self.width, self.levels, self.encoder, self.n_extra, self.pass_details)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` for fields that cannot be halved this often."""
        self.operator(shape[2], 1).check(*shape[:2])

    def build(self, c_in: int, outputs: int, silent: bool, rngs: nnx.Rngs) -> nnx.Module:
        """The module (n, H, W, c_in) -> (n, H, W, outputs); ``silent``: it starts as zero."""
        net = self.operator(c_in, outputs).build(rngs)
        head: Any = net.heads[-1]
        if silent:
            kernel = head.kernel
            kernel[...] = jnp.zeros_like(kernel[...])
        if self.boundary == "periodic":
            on_a_torus(net)
        return net


@dataclass(frozen=True)
class FNO:
    """The Fourier neural operator (:class:`ppl_models.networks.fno.FNO`): ``layers`` of ``width`` channels.

    ``modes``    wave numbers kept in each direction.
    ``padding``  zeros beyond the last row and column, for fields that are not periodic.
    """

    width: int = 16
    modes: int = 6
    layers: int = 4
    padding: int = 0
    kind: Literal["fno"] = "fno"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if min(self.width, self.modes, self.layers) < 1 or self.padding < 0:
            raise ValueError(f"FNO: width, modes, layers must be at least 1 and padding at least 0, got {self}")

    @property
    def words(self) -> str:
        """The network in one line."""
        return f"Fourier neural operator, {self.layers} layers of {self.width} channels: v ← gelu(W v + F⁻¹(R · F v))"

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` for fields with too few wave numbers."""
        if 2 * self.modes > min(shape[:2]) + self.padding:
            raise ValueError(f"FNO: {self.modes} modes need at least {2 * self.modes} points a side, got {shape[:2]}")

    def build(self, c_in: int, outputs: int, silent: bool, rngs: nnx.Rngs) -> nnx.Module:
        """The module (n, H, W, c_in) -> (n, H, W, outputs); it starts as zero, ``silent`` or not."""
        return FNOModule(
            c_in, outputs, width=self.width, modes=self.modes, layers=self.layers, padding=self.padding, rngs=rngs
        )


# --------------------------------------------------------------------------------------------------- frame
class Frame(nnx.Module):
    """Units of the fields: ``x~ = x exp(-log_width) - centre`` and, for real y, ``mean = base + scale net(x~)``.

    ``centre``, ``log_width`` (C_x,) of the inputs; ``log_scale`` (C_y,) of the output about its base; ``mean``
    (H, W, C_y) a field in units of that scale (logits for masks); ``log_sd`` log sigma in that unit over
    :data:`SD_RATE`, one a pixel or one a channel.  All start at zero and are set from the training data before the
    first update.
    """

    def __init__(self, spec: Any) -> None:
        (H, W, C), c_in = spec.shape["y"], spec.shape["x"][2]
        normal = spec.likelihood.kind == "normal"
        if spec.standardise:
            self.centre, self.log_width = nnx.Param(jnp.zeros(c_in)), nnx.Param(jnp.zeros(c_in))
            if normal:
                self.log_scale = nnx.Param(jnp.zeros(C))
        if spec.base == "mean":
            self.mean = nnx.Param(jnp.zeros((H, W, C)))
        if normal and spec.likelihood.scale != "fixed":
            self.log_sd = nnx.Param(jnp.zeros((C,) if spec.likelihood.scale == "channel" else (H, W, C)))


class Scaled(nnx.Module):
    """The network in its frame: ``(loc, log_sd)`` of y, or ``(logits, None)`` of a mask."""

    def __init__(self, spec: Any, rngs: nnx.Rngs) -> None:
        self.channels, self.base_kind, self.standardise = spec.shape["y"][2], spec.base, spec.standardise
        self.normal = spec.likelihood.kind == "normal"
        self.scale_kind = spec.likelihood.scale if self.normal else ""
        self.sd = spec.likelihood.sd if self.normal else 1.0
        self.frame = Frame(spec)
        self.net = spec.network.build(spec.shape["x"][2], spec.outputs, spec.standardise, rngs)

    def base(self, x: Field) -> Any:
        """What is predicted without the network, in the units of y."""
        if self.base_kind == "persistence":
            return x[..., : self.channels]
        return self.frame.mean[...][None] * self.scale if self.base_kind == "mean" else 0.0

    @property
    def scale(self) -> Any:
        """Size of y about its base, a number a channel."""
        return jnp.exp(self.frame.log_scale[...])[None, None, None] if self.normal and self.standardise else 1.0

    def __call__(self, x: Field) -> tuple[Out, Array | None]:
        frame, inner = self.frame, x
        if self.standardise:
            inner = x * jnp.exp(-frame.log_width[...])[None, None, None] - frame.centre[...][None, None, None]
        out = self.net(inner)
        loc = self.base(x) + self.scale * out[..., : self.channels]
        if not self.normal:
            return loc, None
        if self.scale_kind == "fixed":
            return loc, jnp.full((), math.log(self.sd))
        table = SD_RATE * frame.log_sd[...]
        log_sd = table[None] if table.ndim == 3 else table[None, None, None]
        if self.scale_kind == "input":
            log_sd = log_sd + out[..., self.channels :]
        return loc, log_sd + (jnp.log(self.scale) if self.standardise else 0.0)
