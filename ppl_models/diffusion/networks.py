"""Denoisers: a network's output turned into ``E[x_0 | x]`` with what is known of the data built in.

``x = cos(phi) x_0 + sin(phi) eps``; the networks read ``x`` and ``l = log tan(phi)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Int

from ppl_models.networks.dropout import Drop, no_drop
from ppl_models.networks.score_mlp import ScoreMLP
from ppl_models.networks.unet import UNet as UNetModule

NARROW = 0.25
"""Boxes of a half-width below this many noise deviations are treated as Gaussians of the same variance."""

WINDOW = 10
"""Boxes on either side of x that are taken exactly where there are many."""

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

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, classes: int | None = None) -> nnx.Module:
        """The module (n, *shape), (n,) -> (n, *shape, outputs); with ``classes`` it takes labels (n,) too."""
        return ScoreMLP(
            shape, outputs, width=self.width, depth=self.depth, embedding=self.embedding, classes=classes, rngs=rngs
        )


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

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, classes: int | None = None) -> nnx.Module:
        """The module (n, *shape), (n,) -> (n, *shape, outputs); with ``classes`` it takes labels (n,) too."""
        return _ImageNetwork(shape, outputs, self, rngs, classes)


class _ImageNetwork(nnx.Module):
    """A :class:`UNetModule` for (H, W) or (H, W, C), with ``outputs`` numbers for each value of the image."""

    def __init__(
        self, shape: tuple[int, ...], outputs: int, layout: UNet, rngs: nnx.Rngs, classes: int | None = None
    ) -> None:
        self.shape, self.outputs = tuple(shape), outputs
        channels = shape[2] if len(shape) == 3 else 1
        self.unet = UNetModule(
            (*shape[:2], channels),
            channels * outputs,
            widths=layout.widths,
            blocks=layout.blocks,
            embedding=layout.embedding,
            classes=classes,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, " n *shape"],
        level: Float[Array, " n"],
        label: Int[Array, " n"] | None = None,
        drop: Drop = no_drop,
    ) -> Float[Array, " n *shape_outputs"]:
        out = self.unet(x.reshape(x.shape[0], *self.shape[:2], -1), level, label, drop)
        return out.reshape(x.shape[0], *self.shape, self.outputs)

    def features(
        self,
        x: Float[Array, " n *shape"],
        level: Float[Array, " n"],
        label: Int[Array, " n"] | None = None,
        drop: Drop = no_drop,
    ) -> Float[Array, "n height width width_0"]:
        """What the last layer reads, a vector a pixel; the output is ``features @ kernel + bias``."""
        return self.unet.features(x.reshape(x.shape[0], *self.shape[:2], -1), level, label, drop)

    @property
    def readout(self) -> tuple[Array, Array]:
        """``kernel`` (width_0, channels * outputs) and ``bias`` of the last layer."""
        return self.unet.head.kernel[...][0, 0], self.unet.head.bias[...]


# ----------------------------------------------------------------------------------------------- denoisers
class GreyDenoiser(nnx.Module):
    """``E[x_0 | x]`` for dequantised grey levels: ``x_0`` is uniform in one of ``levels`` known boxes.

    With ``P(k | x) ~ softmax_k(net_k(x, l) + table_k) mass_k(x)``, ``mass_k`` the probability of box k under
    N(x / cos, tan^2), and ``D = sum_k P(k | x) E[x_0 | x_0 in box k, x]``: the edges of the boxes are exact at every
    noise level, and the network only has to say which level a pixel has, given the others.  The table is one row of
    logits for each pixel; with a silent network the model is independent pixels with those frequencies, exactly.
    """

    def __init__(
        self,
        layout: Any,
        shape: Sequence[int],
        levels: int,
        centre: float,
        scale: float,
        *,
        rngs: nnx.Rngs,
        classes: int | None = None,
    ) -> None:
        self.net = layout.build(tuple(shape), levels, rngs, **_known(classes))
        self.table = nnx.Param(jnp.zeros((*shape, levels)))
        self.levels, self.centre, self.scale = levels, centre, scale

    def logits(
        self, x: Float[Array, " n *shape"], phi: Float[Array, " n"], *label: Int[Array, " n"], **drop: Any
    ) -> Float[Array, " n *shape_levels"]:
        """Log weight of each grey level of each pixel, before the pixel's own noisy value is taken into account."""
        return self.net(x, level_of(phi), *label, **drop) + TABLE_RATE * self.table[...][None]

    def __call__(
        self, x: Float[Array, " n *shape"], phi: Float[Array, " n"], *label: Int[Array, " n"], **drop: Any
    ) -> Float[Array, " n *shape"]:
        """``E[x_0 | x]``, given a label where the network knows classes, and ``drop=`` where it has dropout."""
        wide = (-1, *(1,) * (x.ndim - 1))
        cos, sin = jnp.cos(phi).reshape(wide), jnp.sin(phi).reshape(wide)
        if x.ndim == 3 and isinstance(self.net, _ImageNetwork):
            kernel, bias = self.net.readout
            head = PixelHead(self.levels, self.centre, self.scale)
            shared = (kernel, bias, TABLE_RATE * self.table[...], cos, sin)
            return by_pixel(head, (self.net.features(x, level_of(phi), *label, **drop), x), shared)
        return box_mean(
            x, self.logits(x, phi, *label, **drop), *boxes(self.levels, self.centre, self.scale, x.dtype), cos, sin
        )


def _known(classes: int | None) -> dict[str, int]:
    return {} if classes is None else {"classes": classes}


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
    nothing is lost far from x.  Narrow boxes: Gaussians of variance ``width^2 / 12``.  Where there are many boxes, side
    by side, wide ones further than ``WINDOW`` of them from x are points: 5 deviations or more away, they weigh 1e-5 of
    the others at most, unless logits differ by as much.
    """
    ratio = cos / sin
    narrow = ratio * width / 2 < NARROW
    levels = lower.shape[-1]
    inner = lower.reshape((1,) * x.ndim + (-1,))
    var = width**2 / 12
    if levels <= 2 * (2 * WINDOW + 1):
        rough_log_mass, rough_mean = gaussians(x, inner + width / 2, width, var, cos, sin)
        log_mass, mean = truncated(x, inner, width, narrow, cos, sin)
        pick = narrow[..., None]
        weights = jax.nn.softmax(logits + jnp.where(pick, rough_log_mass, log_mass), axis=-1)
        return (weights * jnp.where(pick, rough_mean, mean)).sum(-1)
    nearest = jnp.clip(jnp.floor((x / jnp.maximum(cos, 1e-6) - lower[0]) / width), WINDOW, levels - 1 - WINDOW)
    own = jax.lax.stop_gradient(nearest).astype(int)[..., None] + jnp.arange(-WINDOW, WINDOW + 1)
    outside = jnp.abs(jnp.arange(levels) - own[..., WINDOW, None]) > WINDOW
    near_inner = lower[own]
    near_log_mass, near_mean = truncated(x, near_inner, width, narrow, cos, sin)
    near_rough_log_mass, near_rough_mean = gaussians(x, near_inner + width / 2, width, var, cos, sin)
    rough_log_mass, rough_mean = gaussians(x, inner + width / 2, width, jnp.where(narrow, var, 0.0), cos, sin)
    pick = narrow[..., None]
    near = jnp.take_along_axis(logits, own, -1) + jnp.where(pick, near_rough_log_mass, near_log_mass)
    far = jnp.where(outside, logits + rough_log_mass, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.maximum(near.max(-1), far.max(-1)))[..., None]
    near, far = jnp.exp(near - largest), jnp.exp(far - largest)
    total = (near * jnp.where(pick, near_rough_mean, near_mean)).sum(-1) + (far * rough_mean).sum(-1)
    return total / (near.sum(-1) + far.sum(-1))


def gaussians(x: Array, middle: Array, width: float, var: Any, cos: Array, sin: Array) -> tuple[Array, Array]:
    """Log mass of each box under x, and ``E[x_0 | box, x]``, for Gaussians of variance ``var`` in their places."""
    total = (sin**2 + cos**2 * var)[..., None]
    residual = x[..., None] - cos[..., None] * middle
    scale = jnp.log(jnp.maximum(cos, 1e-30) * width)[..., None] - 0.5 * jnp.log(2 * math.pi * total)
    return scale - 0.5 * residual**2 / total, middle + (cos * var)[..., None] / total * residual


def truncated(x: Array, inner: Array, width: float, narrow: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """The same exactly; finite, and nothing else, where the boxes are ``narrow``."""
    safe = jnp.where(narrow, 2 * NARROW / width, cos / sin)[..., None]
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
    return log_mass, jnp.clip(mean, inner, inner + width)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def by_pixel(fn: Callable[..., Array], own: Any, shared: Any) -> Array:
    """``fn(own, shared)``, a number for each pixel from its own features and numbers that all pixels share.

    A derivative in ``own`` alone is a product with one row of slopes a pixel, which are found once for all directions:
    contracting the Jacobian of a head of hundreds of logits a pixel costs no more than the features do.  The leaves of
    ``own`` have the axes of the result, and at most a further one, of the features.
    """
    return fn(own, shared)


@partial(by_pixel.defjvp, symbolic_zeros=True)
def _along(fn: Callable[..., Array], primals: Any, tangents: Any) -> tuple[Array, Array]:
    own, shared = primals
    still = [isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(tangents[1])]
    moved = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype) if isinstance(t, SymbolicZero) else t, tangents)
    if not all(still):
        return jax.jvp(fn, primals, tuple(moved))
    out, back = jax.vjp(lambda own: fn(own, shared), own)
    (slopes,) = back(jnp.ones_like(out))

    def along(slope: Array, change: Array) -> Array:
        return (slope * change).reshape(*out.shape, -1).sum(-1)

    return out, jnp.stack(jax.tree.leaves(jax.tree.map(along, slopes, moved[0]))).sum(0)


@dataclass(frozen=True)
class PixelHead:
    """``E[x_0 | x]`` of each pixel from its features: logits of the grey levels, and :func:`box_mean` of them."""

    levels: int
    centre: float
    scale: float

    def __call__(self, own: tuple[Array, Array], shared: tuple[Array, ...]) -> Array:
        """``own``: features (n, H, W, F) and x (n, H, W); ``shared``: kernel, bias, table, cos, sin."""
        (h, x), (kernel, bias, table, cos, sin) = own, shared
        logits = (h.reshape(-1, h.shape[-1]) @ kernel).reshape(*x.shape, self.levels) + bias + table
        return box_mean(x, logits, *boxes(self.levels, self.centre, self.scale, x.dtype), cos, sin)


def boxes(levels: int, centre: float, scale: float, dtype: Any) -> tuple[Float[Array, " levels"], float]:
    """Lower edges of the boxes of ``x_0``, and their width."""
    return (jnp.arange(levels, dtype=dtype) / levels - centre) / scale, 1 / (levels * scale)


PREDICTIONS = ("v", "x", "eps")
"""What the network of a :class:`RealDenoiser` may predict."""


class RealDenoiser(nnx.Module):
    """``E[x_0 | x]`` by a network that predicts the velocity (silent, it is N(0, I)), the datum or the noise.

    ``"v"``: ``cos(phi) x - sin(phi) net``;  ``"x"``: ``net``;  ``"eps"``: ``(x - sin(phi) net) / cos(phi)``.
    """

    def __init__(
        self,
        layout: Any,
        shape: Sequence[int],
        *,
        prediction: str = "v",
        rngs: nnx.Rngs,
        classes: int | None = None,
    ) -> None:
        self.net, self.prediction = layout.build(tuple(shape), 1, rngs, **_known(classes)), prediction

    def __call__(
        self, x: Float[Array, " n *shape"], phi: Float[Array, " n"], *label: Int[Array, " n"], **drop: Any
    ) -> Float[Array, " n *shape"]:
        """``E[x_0 | x]``, given a label where the network knows classes, and ``drop=`` where it has dropout."""
        wide = (-1, *(1,) * (x.ndim - 1))
        cos, sin = jnp.cos(phi).reshape(wide), jnp.sin(phi).reshape(wide)
        found = self.net(x, level_of(phi), *label, **drop)[..., 0]
        if self.prediction == "x":
            return found
        if self.prediction == "eps":
            return (x - sin * found) / cos
        return cos * x - sin * found
