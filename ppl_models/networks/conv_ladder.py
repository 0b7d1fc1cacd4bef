"""A ladder of 4 x 4 convolutions: each latent block leaves the encoder, and enters the decoder, at its own resolution.

For widths ``w_0..w_{J-1}`` (shallow to deep) and rung widths ``r_0 = w_0``, ``r_j = 2 w_j``, at sizes
``H_j = H / 2^(j+1)``; ``s2`` halves the size, ``s1`` takes one pixel off it, ``T`` is a transposed convolution:

    encoder   h_j = s2(h_{j-1}: w_{j-1} -> w_j);  rung 0: s2(w_0), s1(w_0);  rung j: s2(w_j), s2(2 w_j);  a head each
    decoder   deepest first:  h = T3 s1(T4 s2([fade_j rung_j(z_j), h]: -> 2 r_{j-1}): -> r_{j-1}),  last  T4 s2(h: -> C)

where ``rung_j(z_j)`` is a dense layer to the map ``(H_j, W_j, r_j)``.  A layer is linear map, activation, norm, in this
order.  With ``norm="batch"`` and ``weight_norm`` it is the network of the multi-facet clustering VAE (Falck et al.,
2021, arXiv 2106.05241, after pro-VLAE, arXiv 2002.10549), whose last layer, too, ends in activation and norm.  With
another norm the last layer is linear: a norm of each datum by itself would take its brightness away.

Batch statistics are running averages unless the module was put in training mode: ``module.train()``, ``module.eval()``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from ppl_models.networks.mlp import NONE, Activation, Extra, GaussianHead, Outputs

Norm = Literal["layer", "batch", "none"]
Image = Float[Array, "batch height width c_in"]
Map = Float[Array, "batch new_height new_width c_out"]
Kernel = Float[Array, "k k c_in c_out"]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


# -------------------------------------------------------------------------------------------- linear maps
def convolution(x: Image, kernel: Kernel, stride: int) -> Map:
    """``y[i] = sum_t w[t] x[stride i + t - 1]`` in both directions: zero padding of one pixel."""
    k, (B, *size, _) = len(kernel), x.shape
    H, W = ((n + 2 - k) // stride + 1 for n in size)
    if min(H, W) >= k:
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)
    # Smaller than the kernel, where XLA's gradient on a CPU is up to forty times slower than a product of patches.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [x[:, a : a + stride * H : stride, b : b + stride * W : stride] for a in range(k) for b in range(k)]
    patches = jnp.concatenate(taps, axis=-1).reshape(B * H * W, -1)
    return (patches @ kernel.reshape(-1, kernel.shape[-1])).reshape(B, H, W, -1)


def transposed_convolution(x: Image, kernel: Kernel, stride: int) -> Map:
    """``y[stride i + t - 1] += w[t] x[i]`` in both directions, cut to size ``stride (n - 1) + k - 2``.

    The adjoint of :func:`convolution`, itself one where the stride is 1 and k = 3.
    """
    return convolution(x, kernel[::-1, ::-1], 1) if stride == 1 and len(kernel) == 3 else _scatter(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scatter(x: Image, kernel: Kernel, stride: int) -> Map:
    # The gradients are written as a convolution and the kernel gradient of one: those that JAX derives by itself are
    # dilated convolutions, up to fifty times slower on a CPU.  The price: no forward-mode derivative.
    edge = (len(kernel) - 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel[::-1, ::-1], (1, 1), (edge, edge), lhs_dilation=(stride, stride), dimension_numbers=_LAYOUT
    )


def _forward(x: Image, kernel: Kernel, stride: int) -> tuple[Map, tuple[Image, Kernel]]:
    return _scatter(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Image, Kernel], g: Map) -> tuple[Image, Kernel]:
    x, kernel = saved
    dx, pull = jax.vjp(lambda swapped: convolution(g, swapped, stride), kernel.swapaxes(2, 3))
    return dx, pull(x)[0].swapaxes(2, 3)


_scatter.defvjp(_forward, _backward)


class Linear(nnx.Module):
    """``W h + b`` for a dense map, a convolution or a transposed one; ``W`` from N(0, 1 / fan_in), ``b`` zero.

    ``kernel``       (c_in, c_out), or (k, k, c_in, c_out).
    ``stride``       of a convolution; negative for a transposed one.
    ``weight_norm``  ``W = gain v / |v|`` for each output; the gain starts at ``|v|``.
    """

    def __init__(self, kernel: Sequence[int], stride: int = 1, *, weight_norm: bool = False, rngs: nnx.Rngs) -> None:
        # An output of a transposed convolution meets one tap in stride^2.
        fan_in = math.prod(kernel[:-1]) / max(1, -stride) ** 2
        self.kernel = nnx.Param(rngs.params.normal(tuple(kernel)) * fan_in**-0.5)
        self.bias = nnx.Param(jnp.zeros(kernel[-1]))
        self.gain = nnx.Param(self._length()) if weight_norm else None
        self.stride = stride
        self.target: float | None = None  # set while data_init runs

    def _length(self) -> Float[Array, " c_out"]:
        return jnp.sqrt(jnp.sum(jnp.square(self.kernel[...]), axis=range(self.kernel[...].ndim - 1)))

    def __call__(self, h: Float[Array, "batch *_ c_in"]) -> Float[Array, "batch *_ c_out"]:
        kernel = self.kernel[...]
        if self.gain is not None:
            kernel = kernel * (self.gain[...] / self._length()).reshape((1,) * (kernel.ndim - 1) + (-1,))
        if kernel.ndim == 2:
            out = h @ kernel
        elif self.stride > 0:
            out = convolution(h, kernel, self.stride)
        else:
            out = transposed_convolution(h, kernel, -self.stride)
        out = out + self.bias[...].reshape((1,) * (out.ndim - 1) + (-1,))
        return out if self.target is None else _calibrate(self, out, self.target)


class LayerNorm(nnx.Module):
    """``scale (h - mean) / sd + bias``, mean and deviation of each datum over its whole map, scale and bias by channel.

    ``nnx.GroupNorm`` of one group, pixels summed first: two thirds of its CPU time.  More groups would take the mean
    colour out of a datum sooner.
    """

    def __init__(self, channels: int) -> None:
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, h: Image) -> Image:
        mean = h.mean((1, 2)).mean(-1, keepdims=True)
        variance = jnp.maximum((h * h).mean((1, 2)).mean(-1, keepdims=True) - mean * mean, 0.0)
        scale = self.scale[...][None] * jax.lax.rsqrt(variance + 1e-5)
        shift = self.bias[...][None] - mean * scale
        return h * scale[:, None, None] + shift[:, None, None]


class Layer(nnx.Module):
    """``norm(activation(W h + b))``."""

    def __init__(
        self,
        kernel: Sequence[int],
        stride: int,
        activation: Activation,
        norm: Norm,
        *,
        weight_norm: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.linear = Linear(kernel, stride, weight_norm=weight_norm, rngs=rngs)
        self.activation = activation
        self.norm = _norm(norm, kernel[-1], rngs)

    def __call__(self, h: Image) -> Map:
        h = self.activation(self.linear(h))
        return h if self.norm is None else self.norm(h)


class Rung(nnx.Module):
    """A latent block to a feature map: ``norm(activation(W z + b))`` in the given (height, width, channels).

    Batch statistics are those of each entry of the map, as published; layer norm has a scale a channel.
    """

    def __init__(
        self, dim: int, shape: tuple[int, int, int], activation: Activation, norm: Norm, *, rngs: nnx.Rngs
    ) -> None:
        size = math.prod(shape)
        self.linear = Linear((dim, size), rngs=rngs)
        self.activation, self.shape = activation, shape
        self.by_entry = norm == "batch"
        self.norm = _norm(norm, size if self.by_entry else shape[-1], rngs)

    def __call__(self, z: Float[Array, "batch dim"]) -> Map:
        h = self.activation(self.linear(z))
        if self.norm is not None and self.by_entry:
            h = self.norm(h)
        h = h.reshape(-1, *self.shape)
        return h if self.norm is None or self.by_entry else self.norm(h)


def _norm(kind: Norm, features: int, rngs: nnx.Rngs) -> Any:
    if kind == "batch":
        # Running averages unless somebody says train(): a program that is only read never moves its statistics.
        return nnx.BatchNorm(features, use_running_average=True, momentum=0.9, epsilon=1e-5, rngs=rngs)
    return LayerNorm(features) if kind == "layer" else None


# ------------------------------------------------------------------------------------------------- ladders
def image_size(shape: Sequence[int], facets: int) -> tuple[int, int, int]:
    """Height, width and channels of a datum; raises ``ValueError`` if a ladder of so many facets does not fit it."""
    if len(shape) not in (2, 3):
        raise ValueError(
            f"a convolutional ladder needs images, shape (height, width) or (height, width, channels), got "
            f"{tuple(shape)}; take MLPLadder for other data"
        )
    height, width = shape[:2]
    factor = 2**facets
    if height % factor or width % factor or min(height, width) < 4 * factor:
        raise ValueError(
            f"a convolutional ladder of {facets} facets halves images {facets} times to at least 4 x 4, so height and "
            f"width must be multiples of {factor} and at least {4 * factor}, got {height} x {width}; use fewer facets, "
            "pad the images, or take MLPLadder"
        )
    return height, width, shape[2] if len(shape) == 3 else 1


def _rung_widths(widths: Sequence[int]) -> tuple[int, ...]:
    return (widths[0], *(2 * w for w in widths[1:]))


class ConvLadderEncoder(nnx.Module):
    """Images (batch, height, width[, channels]) to one Gaussian for each latent block."""

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        dims: Sequence[int],
        activation: Activation,
        extras: Sequence[Extra] = (),
        *,
        norm: Norm = "layer",
        weight_norm: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = image_size(shape, len(widths))

        def layer(c_in: int, c_out: int, stride: int = 2) -> Layer:
            return Layer((4, 4, c_in, c_out), stride, activation, norm, weight_norm=weight_norm, rngs=rngs)

        self.blocks = nnx.List([layer(a, b) for a, b in zip((channels, *widths[:-1]), widths, strict=True)])
        outs = _rung_widths(widths)
        self.rungs = nnx.List(
            [
                nnx.List([layer(w, w), layer(w, r, 2 if j else 1)])
                for j, (w, r) in enumerate(zip(widths, outs, strict=True))
            ]
        )
        heads = []
        for j, (r, dim, extra) in enumerate(zip(outs, dims, extras or (NONE,) * len(dims), strict=True)):
            h, w = (n >> (j + 2) for n in (height, width))
            sides = (h // 2, w // 2) if j else (h - 1, w - 1)
            heads.append(GaussianHead(math.prod(sides) * r, dim, extra, rngs=rngs))
        self.heads = nnx.List(heads)

    def features(self, x: Float[Array, "batch height width ..."]) -> tuple[Float[Array, "batch _"], ...]:
        """What each head reads."""
        h, found = x.reshape(*x.shape[:3], -1), []
        for block, (first, second) in zip(self.blocks, self.rungs, strict=True):
            h = block(h)
            found.append(second(first(h)).reshape(len(x), -1))
        return tuple(found)

    def __call__(self, x: Float[Array, "batch height width ..."]) -> tuple[Outputs, ...]:
        return tuple(head(h) for head, h in zip(self.heads, self.features(x), strict=True))


class ConvLadderDecoder(nnx.Module):
    """Latent blocks and their fades to images (batch, *shape); a fade multiplies what its rung adds to the chain."""

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        dims: Sequence[int],
        activation: Activation,
        *,
        norm: Norm = "layer",
        rngs: nnx.Rngs,
    ) -> None:
        height, width, channels = image_size(shape, len(widths))
        self.shape = tuple(shape)
        outs, deepest = _rung_widths(widths), len(widths) - 1
        self.rungs = nnx.List(
            [
                Rung(dim, (height >> (j + 1), width >> (j + 1), r), activation, norm, rngs=rngs)
                for j, (dim, r) in enumerate(zip(dims, outs, strict=True))
            ]
        )

        def layer(k: int, c_in: int, c_out: int, stride: int) -> Layer:
            return Layer((k, k, c_in, c_out), -stride, activation, norm, rngs=rngs)

        def merged(j: int) -> int:
            return outs[j] if j == deepest else 2 * outs[j]

        self.blocks = nnx.List(
            [
                nnx.List([layer(4, merged(j), 2 * outs[j - 1], 2), layer(3, 2 * outs[j - 1], outs[j - 1], 1)])
                for j in range(1, deepest + 1)
            ]
        )
        self.out: Any = (
            layer(4, merged(0), channels, 2) if norm == "batch" else Linear((4, 4, merged(0), channels), -2, rngs=rngs)
        )

    def __call__(self, zs: Sequence[Float[Array, "batch _"]], fades: Sequence[Any]) -> Float[Array, "batch ..."]:
        deepest = len(self.rungs) - 1
        h = fades[deepest] * self.rungs[deepest](zs[deepest])
        for j in reversed(range(deepest)):
            for layer in self.blocks[j]:
                h = layer(h)
            h = jnp.concatenate([fades[j] * self.rungs[j](zs[j]), h], axis=-1)
        return self.out(h).reshape(-1, *self.shape)


# ----------------------------------------------------------------------------------------------- data init
def _calibrate(linear: Any, out: Float[Array, "batch ..."], target: float) -> Float[Array, "batch ..."]:
    """Rescale a linear map so that its outputs ``out`` have mean 0 and deviation ``target``; return those outputs."""
    axes = tuple(range(out.ndim - 1))
    mean = out.mean(axes)
    factor = target / jnp.sqrt(out.var(axes) + jnp.asarray(1e-5, out.dtype))
    if getattr(linear, "gain", None) is None:
        linear.kernel[...] = linear.kernel[...] * factor.reshape((1,) * (linear.kernel[...].ndim - 1) + (-1,))
    else:
        linear.gain[...] = linear.gain[...] * factor
    linear.bias[...] = (linear.bias[...] - mean) * factor
    row = (1,) * len(axes) + (-1,)
    return (out - mean.reshape(row)) * factor.reshape(row)


def data_init(
    encoder: ConvLadderEncoder,
    decoder: ConvLadderDecoder,
    x: Float[Array, "batch height width ..."],
    key: Key[Array, ""],
    *,
    target: float = 0.1,
) -> None:
    """Rescale every linear map in place, first to last, to outputs of mean 0 and deviation ``target`` on a batch ``x``.

    The published start of the convolutional models (Salimans and Kingma 2016, arXiv 1602.07868).  ``x`` as the model
    scores it; call it on ``program.views.modules`` before the fit.  ``z`` is drawn from the posteriors that it makes.
    """

    def run(encoder: ConvLadderEncoder, decoder: ConvLadderDecoder, x: Array, key: Array) -> None:
        keys, zs = jax.random.split(key, len(encoder.heads)), []
        for head, h, k in zip(encoder.heads, encoder.features(x), keys, strict=True):
            for linear in (head.loc, head.log_scale):
                _calibrate(linear, linear(h), target)
            loc, log_scale = head(h)[:2]
            zs.append(loc + jnp.exp(log_scale) * jax.random.normal(k, loc.shape))
        decoder(zs, [1.0] * len(zs))

    for module in (encoder, decoder):
        module.train()
        module.set_attributes(Linear, target=target)
    try:
        nnx.jit(run)(encoder, decoder, x, key)
    finally:
        for module in (encoder, decoder):
            module.eval()
            module.set_attributes(Linear, target=None)
