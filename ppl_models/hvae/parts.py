"""What cells are made of: images between grids, convolutions, and VDVAE's residual block.

Layout (batch, height, width, channel).  Initial weights U(-b, b) with b = 1/sqrt(fan in), biases zero.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from ppl_models.networks.activations import gelu
from ppl_models.networks.dropout import Drop, no_drop
from ppl_models.networks.separable import lax_convolution, separable_convolution

Image = Float[Array, "batch height width channel"]
Part = Float[Array, "batch height width _"]
Mapped = Float[Array, "batch height width c_out"]
Resized = Float[Array, "batch new_height new_width channel"]


def pool(x: Image, k: int) -> Resized:
    """Mean over k x k blocks: the L2 projection on images that are constant on them."""
    B, H, W, C = x.shape
    return x if k == 1 else x.reshape(B, H // k, k, W // k, k, C).mean((2, 4))


def upsample(x: Image, k: int) -> Resized:
    """Each pixel repeated in a k x k block (nearest neighbour): keeps the root mean square over pixels."""
    B, H, W, C = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (B, H, k, W, k, C)).reshape(B, k * H, k * W, C)


def rms(x: Image) -> Float[Array, " batch"]:
    """Root mean square over pixels and channels: the state as a function on the unit square, whatever the grid."""
    return jnp.sqrt(jnp.mean(x * x, axis=(1, 2, 3)))


def normalised(x: Image) -> Image:
    """``x / RMS(x)`` over pixels and channels; 0 stays 0, and its gradient finite."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=(1, 2, 3), keepdims=True) + 1e-6)


def constant(value: float, *shape: int) -> nnx.Param:
    """A parameter that starts at one value."""
    return nnx.Param(jnp.asarray(np.full(shape, value, "float32")))


def _convolve(x: Part, kernel: Array) -> Mapped:
    """Matrix products on a CPU, where XLA's convolution is slow in loops and its gradient outside them; else XLA's."""
    lax = len(kernel) > 1 and jax.default_backend() != "cpu"
    return lax_convolution(x, kernel) if lax else separable_convolution(x, kernel)


@jax.checkpoint
def _convolve_gelu(x: Part, kernel: Array) -> Mapped:
    # Kept for the backward pass is x alone; GELU, its derivative and the taps of a 3 x 3 kernel are computed again.
    return _convolve(gelu(x), kernel)


class Traced:
    """Starting weights of a traced key, by JAX: a build that is only asked for its shapes allocates nothing."""

    def __init__(self, key: Key[Array, ""]) -> None:
        self.key = key

    def _next(self) -> Key[Array, ""]:
        self.key, key = jax.random.split(self.key)
        return key

    def uniform(self, low: float, high: float, size: tuple[int, ...]) -> Array:
        """Numbers of [low, high)."""
        return jax.random.uniform(self._next(), size, minval=low, maxval=high)

    def integers(self, high: int) -> Array:
        """A whole number below ``high``."""
        return jax.random.randint(self._next(), (), 0, high - 1)


Source = np.random.Generator | Traced
"""Where starting weights come from."""


def weights_from(key: Key[Array, ""]) -> Source:
    """Starting weights of a key: by NumPy, or of a traced key by JAX."""
    if isinstance(key, jax.core.Tracer):
        return Traced(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


class Conv(nnx.Module):
    """``k x k`` convolution with bias; ``inputs`` are stacked along the channels without being copied."""

    def __init__(self, c_in: int, c_out: int, k: int, *, scale: float = 1.0, rng: Source) -> None:
        bound = scale / math.sqrt(k * k * c_in)
        shape = (k, k, c_in, c_out)
        # Drawn by NumPy: JAX would compile a program for every shape, which takes longer than the first fit.
        self.kernel = nnx.Param(jnp.asarray(rng.uniform(-bound, bound, shape) if scale else np.zeros(shape), "float32"))
        self.bias = constant(0.0, c_out)

    def __call__(self, *inputs: Part, activated: bool = False) -> Mapped:
        """The convolution of the inputs, or with ``activated`` of GELU of them."""
        kernel, bias, at = self.kernel[...], self.bias[...], 0
        convolve = _convolve_gelu if activated else _convolve
        parts = []
        for x in inputs:
            parts.append(convolve(x, kernel[:, :, at : at + x.shape[-1]]))
            at += x.shape[-1]
        return sum(parts[1:], parts[0]) + bias[None, None, None]


class Block(nnx.Module):
    """``c4(g(c3(g(c2(g(c1(g(x))))))))``, g = GELU: 1x1, two of 3x3 (1x1 where the grid is 2x2 or less), 1x1.

    ``scale`` multiplies the last layer's initial weights; ``drop`` acts on its input.
    """

    def __init__(self, c_in: int, mid: int, c_out: int, res: int, *, scale: float = 1.0, rng: Source) -> None:
        k = 3 if res > 2 else 1
        self.c1 = Conv(c_in, mid, 1, rng=rng)
        self.c2 = Conv(mid, mid, k, rng=rng)
        self.c3 = Conv(mid, mid, k, rng=rng)
        self.c4 = Conv(mid, c_out, 1, scale=scale, rng=rng)

    def __call__(self, *inputs: Part, drop: Drop = no_drop) -> Mapped:
        h = self.c1(*inputs, activated=True)
        h = self.c3(self.c2(h, activated=True), activated=True)
        return self.c4(h, activated=True) if drop is no_drop else self.c4(drop(gelu(h)))
