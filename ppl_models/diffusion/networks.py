"""Denoisers: a network's output turned into ``E[x_0 | x]`` with what is known of the data built in.

``x = cos(phi) x_0 + sin(phi) eps``; the networks read ``x`` and ``l = log tan(phi)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from ppl_models.networks.dropout import Drop, no_drop
from ppl_models.networks.score_mlp import ScoreMLP
from ppl_models.networks.unet import UNet as UNetModule

NARROW = 0.25
"""Boxes of a half-width below this many noise deviations are treated as Gaussians of the same variance."""

FAR = 1000.0
"""Noise deviations beyond which a box is its nearest edge."""

TABLE_RATE = 4.0
"""Scale of the table of pixel frequencies: its entries move over several nats, the weights of a network do not."""


HALF_PI = 1.5707962
"""The largest float32 below pi/2: the next one lies above it, and its tangent is negative."""


def level_of(phi: Float[Array, " n"]) -> Float[Array, " n"]:
    """``l = log tan(phi)``, the noise level that networks read; finite at pi/2."""
    return jnp.log(jnp.tan(jnp.minimum(phi, HALF_PI)))


# ------------------------------------------------------------------------------------------------- layouts
@dataclass(frozen=True)
class MLP:
    """Fully connected: ``depth`` residual blocks of ``width`` units; any shape of data."""

    width: int = 128
    depth: int = 2
    embedding: int = 64
    kind: Literal["mlp"] = "mlp"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("width", "depth", "embedding"):
            if getattr(self, name) < 1:
                raise ValueError(f"MLP: {name} must be at least 1, got {getattr(self, name)}")

    def check(self, shape: tuple[int, ...]) -> None:
        """Any shape will do."""

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """The module (n, *shape), (n,) -> (n, *shape, outputs)."""
        return ScoreMLP(shape, outputs, width=self.width, depth=self.depth, embedding=self.embedding, rngs=rngs)


@dataclass(frozen=True)
class UNet:
    """Residual U-Net for images (H, W) or (H, W, C): channels per resolution, finest first.

    ``dropout``  share of hidden units dropped in each block while training; none in evaluation or stock ``SVI``.
    """

    widths: tuple[int, ...] = (24, 72)
    blocks: int = 1
    embedding: int = 64
    dropout: float = 0.0
    kind: Literal["unet"] = "unet"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or min(self.widths) < 1 or self.blocks < 1 or self.embedding < 1:
            raise ValueError(f"UNet: widths, blocks and embedding must be positive, got {self}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"UNet: dropout is a share of units, expected 0 <= dropout < 1, got {self.dropout}")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` for data that are not images, or too small to halve this often."""
        factor = 2 ** (len(self.widths) - 1)
        if len(shape) not in (2, 3) or shape[0] % factor or shape[1] % factor:
            raise ValueError(
                f"a UNet of {len(self.widths)} levels takes images (H, W) or (H, W, C) with H and W multiples of "
                f"{factor}, got shape {shape}; use fewer widths, or the MLP network"
            )

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """The module (n, *shape), (n,) -> (n, *shape, outputs)."""
        return _ImageNetwork(shape, outputs, self, rngs)


class _ImageNetwork(nnx.Module):
    """A :class:`UNetModule` for (H, W) or (H, W, C), with ``outputs`` numbers for each value of the image."""

    def __init__(self, shape: tuple[int, ...], outputs: int, layout: UNet, rngs: nnx.Rngs) -> None:
        self.shape, self.outputs = tuple(shape), outputs
        channels = shape[2] if len(shape) == 3 else 1
        self.unet = UNetModule(
            (*shape[:2], channels),
            channels * outputs,
            widths=layout.widths,
            blocks=layout.blocks,
            embedding=layout.embedding,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, " n *shape"], level: Float[Array, " n"], drop: Drop = no_drop
    ) -> Float[Array, " n *shape_outputs"]:
        out = self.unet(x.reshape(x.shape[0], *self.shape[:2], -1), level, drop)
        return out.reshape(x.shape[0], *self.shape, self.outputs)


# ----------------------------------------------------------------------------------------------- denoisers
class GreyDenoiser(nnx.Module):
    """``E[x_0 | x]`` for dequantised grey levels: ``x_0`` is uniform in one of ``levels`` known boxes.

    With ``P(k | x) ~ softmax_k(net_k(x, l) + table_k) mass_k(x)``, ``mass_k`` the probability of box k under
    N(x / cos, tan^2), and ``D = sum_k P(k | x) E[x_0 | x_0 in box k, x]``: the edges of the boxes are exact at every
    noise level, and the network only has to say which level a pixel has, given the others.  The table is one row of
    logits for each pixel; with a silent network the model is independent pixels with those frequencies, exactly.
    """

    def __init__(
        self, layout: Any, shape: Sequence[int], levels: int, centre: float, scale: float, *, rngs: nnx.Rngs
    ) -> None:
        self.net = layout.build(tuple(shape), levels, rngs)
        self.table = nnx.Param(jnp.zeros((*shape, levels)))
        self.levels, self.centre, self.scale = levels, centre, scale

    def logits(
        self, x: Float[Array, " n *shape"], phi: Float[Array, " n"], *drop: Drop
    ) -> Float[Array, " n *shape_levels"]:
        """Log weight of each grey level of each pixel, before the pixel's own noisy value is taken into account."""
        return self.net(x, level_of(phi), *drop) + TABLE_RATE * self.table[...][None]

    def __call__(
        self, x: Float[Array, " n *shape"], phi: Float[Array, " n"], *drop: Drop
    ) -> Float[Array, " n *shape"]:
        """``E[x_0 | x]``; ``drop``: the dropout of training, for a network that has one."""
        logits = self.logits(x, phi, *drop)
        lower = (jnp.arange(self.levels, dtype=x.dtype) / self.levels - self.centre) / self.scale
        wide = (-1, *(1,) * (x.ndim - 1))
        return box_mean(
            x, logits, lower, 1 / (self.levels * self.scale), jnp.cos(phi).reshape(wide), jnp.sin(phi).reshape(wide)
        )


def box_mean(
    x: Float[Array, "..."],
    logits: Float[Array, "... levels"],
    lower: Float[Array, " levels"],
    width: float,
    cos: Float[Array, "..."],
    sin: Float[Array, "..."],
) -> Float[Array, "..."]:
    """``E[x_0 | x]`` where ``x_0`` is uniform on ``[lower_k, lower_k + width]`` with log weight ``logits_k``.

    Wide boxes (half-width above ``NARROW`` noise deviations): truncated normals, with masses from the smaller tail, so
    nothing is lost far from x.  Narrow boxes: Gaussians of variance ``width^2 / 12``.
    """
    ratio = cos / sin
    narrow = ratio * width / 2 < NARROW
    # Both branches are evaluated; this one is given boxes that it can handle where the other is used.
    safe = jnp.where(narrow, 2 * NARROW / width, ratio)[..., None]
    inner = lower.reshape((1,) * x.ndim + (-1,))
    z = (x / sin)[..., None]
    low, high = safe * inner - z, safe * (inner + width) - z
    flip = low + high > 0
    right = jnp.where(flip, -low, high)
    # Boxes beyond FAR deviations have no weight beside nearer ones; in float32 their exponents would overflow.
    far = right < -FAR
    tail = -0.5 * jnp.where(far, right, -FAR) ** 2 - math.log(FAR) - 0.5 * math.log(2 * math.pi)
    # Clipped, not replaced: a compiler may round an edge at the bound twice, to this side of it and to that.
    right = jnp.maximum(right, -FAR)
    left = right - safe * width
    log_left, log_right = log_ndtr(left), log_ndtr(right)
    near_log_mass = log_right + jnp.log1p(-jnp.exp(log_left - log_right))
    log_mass = jnp.where(far, tail, near_log_mass)
    half_log = 0.5 * math.log(2 * math.pi)
    density = lambda y: jnp.exp(-0.5 * y**2 - half_log - near_log_mass)  # noqa: E731
    slope = density(right) - density(left)  # of the mass in the flipped variable, over the mass
    mean = (z - jnp.where(flip, -slope, slope)) / safe
    mean = jnp.where(far, jnp.where(flip, inner, inner + width), mean)
    mean = jnp.clip(mean, inner, inner + width)

    middle, var = inner + width / 2, width**2 / 12
    total = (sin**2 + cos**2 * var)[..., None]
    residual = x[..., None] - cos[..., None] * middle
    rough_log_mass = -0.5 * residual**2 / total
    rough_mean = middle + (cos[..., None] * var / total) * residual

    pick = narrow[..., None]
    weights = jax.nn.softmax(logits + jnp.where(pick, rough_log_mass, log_mass), axis=-1)
    return (weights * jnp.where(pick, rough_mean, mean)).sum(-1)


PREDICTIONS = ("v", "x", "eps")
"""What the network of a :class:`RealDenoiser` may predict."""


class RealDenoiser(nnx.Module):
    """``E[x_0 | x]`` by a network that predicts the velocity (silent, it is N(0, I)), the datum or the noise.

    ``"v"``: ``cos(phi) x - sin(phi) net``;  ``"x"``: ``net``;  ``"eps"``: ``(x - sin(phi) net) / cos(phi)``.
    """

    def __init__(self, layout: Any, shape: Sequence[int], *, prediction: str = "v", rngs: nnx.Rngs) -> None:
        self.net, self.prediction = layout.build(tuple(shape), 1, rngs), prediction

    def __call__(
        self, x: Float[Array, " n *shape"], phi: Float[Array, " n"], *drop: Drop
    ) -> Float[Array, " n *shape"]:
        """``E[x_0 | x]``; ``drop``: the dropout of training, for a network that has one."""
        wide = (-1, *(1,) * (x.ndim - 1))
        cos, sin = jnp.cos(phi).reshape(wide), jnp.sin(phi).reshape(wide)
        found = self.net(x, level_of(phi), *drop)[..., 0]
        if self.prediction == "x":
            return found
        if self.prediction == "eps":
            return (x - sin * found) / cos
        return cos * x - sin * found
