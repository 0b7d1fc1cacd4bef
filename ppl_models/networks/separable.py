"""Image layers made of matrix products, slices and additions only: fast on a CPU, also inside ``scan`` and ``vmap``.

XLA's convolution on CPUs loses its fast path inside loops; here a k x k convolution is one matrix product over the k
horizontal taps for all k output rows at once, then k shifted additions.  Layout (batch, height, width, channel).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channel"]


def separable_convolution(
    x: Image, kernel: Float[Array, "k k c_in c_out"], *, periodic: bool = False
) -> Float[Array, "batch height width c_out"]:
    """The 'same' convolution (cross-correlation, stride 1) of an odd kernel, without ``lax.conv``.

    Beyond the edge lie zeros, or with ``periodic`` the pixels of the opposite edge.
    """
    k, _, c_in, c_out = kernel.shape
    B, H, W, _ = x.shape
    if k == 1:
        # Flattened: the gradient of a four-dimensional product contracts three axes, several times slower.
        return (x.reshape(-1, c_in) @ kernel[0, 0]).reshape(B, H, W, c_out)
    half = k // 2
    mode = "wrap" if periodic else "constant"
    padded = jnp.pad(x, ((0, 0), (0, 0), (half, half), (0, 0)), mode=mode)
    taps = jnp.concatenate([padded[:, :, i : i + W] for i in range(k)], axis=-1)  # (B, H, W, k C)
    # One product for every row of the kernel: (k C, k O), kernel rows side by side.
    matrix = kernel.transpose(1, 2, 0, 3).reshape(k * c_in, k * c_out)
    rows = (taps.reshape(-1, k * c_in) @ matrix).reshape(B, H, W, k * c_out)
    rows = jnp.pad(rows, ((0, 0), (half, half), (0, 0), (0, 0)), mode=mode)
    return sum(rows[:, i : i + H, :, i * c_out : (i + 1) * c_out] for i in range(k))  # type: ignore[return-value]


Convolution = Literal["product", "lax"]
"""``"product"``: matrix products, fast everywhere; ``"lax"``: XLA's convolution, on a CPU a quarter faster from some 64
channels on and smaller, but many times slower inside ``scan``."""


def lax_convolution(
    x: Image, kernel: Float[Array, "k k c_in c_out"], stride: int = 1, *, periodic: bool = False
) -> Float[Array, "batch new_height new_width c_out"]:
    """The 'same' convolution by XLA; with a stride of 2 the windows are centred on pixels 0, 2, 4, .."""
    edge = (len(kernel) // 2,) * 2
    if periodic:
        x, edge = jnp.pad(x, ((0, 0), edge, edge, (0, 0)), mode="wrap"), (0, 0)
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (edge, edge), dimension_numbers=layout)


class SeparableConv(nnx.Module):
    """k x k 'same' convolution with bias; weights N(0, scale^2 / fan_in), zero for ``scale = 0``.

    ``convolution`` says how, ``periodic`` what lies beyond the edge; :func:`convolve_by` and :func:`on_a_torus` set
    them for a whole network.
    """

    def __init__(self, c_in: int, c_out: int, k: int = 3, *, scale: float = 1.0, rngs: nnx.Rngs) -> None:
        if k % 2 == 0:
            raise ValueError(f"a 'same' convolution has an odd kernel, got k={k}")
        draw = rngs.params.normal((k, k, c_in, c_out)) if scale else jnp.zeros((k, k, c_in, c_out))
        self.kernel = nnx.Param(draw * (scale / (k * k * c_in) ** 0.5))
        self.bias = nnx.Param(jnp.zeros(c_out))
        self.convolution: Convolution = "product"
        self.periodic = False

    @property
    def by_lax(self) -> bool:
        """Whether XLA's convolution is asked for, and worth it: not for 1 x 1 kernels."""
        return self.convolution == "lax" and len(self.kernel[...]) > 1

    def __call__(self, x: Image) -> Float[Array, "batch height width c_out"]:
        convolve = lax_convolution if self.by_lax else separable_convolution
        return convolve(x, self.kernel[...], periodic=self.periodic) + self.bias[...][None, None, None]


def convolve_by(module: nnx.Module, convolution: Convolution) -> None:
    """Set how every :class:`SeparableConv` below ``module`` convolves, in place; its parameters stay as they are."""
    module.set_attributes(SeparableConv, convolution=convolution, raise_if_not_found=False)


def on_a_torus(module: nnx.Module) -> None:
    """Make every :class:`SeparableConv` below ``module`` periodic, in place.

    The network then moves with its input by whole pixels of its coarsest grid, if its other parts do.
    """
    module.set_attributes(SeparableConv, periodic=True, raise_if_not_found=False)


def pool(x: Image) -> Float[Array, "batch half_height half_width channel"]:
    """Mean over 2 x 2 blocks: the Haar projection to the next coarser grid."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


def upsample(x: Image) -> Float[Array, "batch double_height double_width channel"]:
    """Each pixel repeated in a 2 x 2 block."""
    B, H, W, C = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)


def rms_norm(x: Image, gain: Float[Array, " channel"]) -> Float[Array, "batch height width channel"]:
    """``gain * x / rms(x)``, the root mean square over the channels of each pixel."""
    return x * (gain[None, None, None] / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6))
