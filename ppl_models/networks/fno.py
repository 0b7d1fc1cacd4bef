"""The Fourier neural operator on a grid (Li et al., "Fourier Neural Operator for Parametric Partial Differential
Equations", ICLR 2021, arXiv 2010.08895, equations 2-5).

    v_0 = lift(x, position),   v_{l+1} = gelu(W_l v_l + F^-1(R_l . F v_l)),   y = project(v_L)

F is the Fourier transform over the two spatial axes; R_l multiplies the channels of every wave vector of the lowest
``modes`` in each direction by a complex matrix of its own, and all others by zero.  The last layer has no ``gelu``.
Layout (batch, height, width, channel).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.networks.separable import Image


class SpectralConv(nnx.Module):
    """``F^-1(R . F v)``: the convolution of a periodic field with a kernel of few wave vectors.

    ``kernel`` (2, 2 modes, modes, c_in, c_out) holds real and imaginary parts of R at the wave vectors (k_1, k_2) with
    -modes <= k_1 < modes (0, 1, .., modes - 1, -modes, .., -1) and 0 <= k_2 < modes; those with k_2 < 0 follow, for
    fields are real.
    """

    def __init__(self, c_in: int, c_out: int, modes: int, *, rngs: nnx.Rngs) -> None:
        if modes < 1:
            raise ValueError(f"modes must be at least 1, got {modes}")
        self.modes = modes
        draw = rngs.params.normal((2, 2 * modes, modes, c_in, c_out))
        self.kernel = nnx.Param(draw / (2 * modes * c_in) ** 0.5)

    def __call__(self, v: Image) -> Float[Array, "batch height width c_out"]:
        _, H, W, _ = v.shape
        m = self.modes
        if 2 * m > H or 2 * m > W:
            raise ValueError(f"a field of {H}x{W} has wave numbers below {min(H, W) // 2}; modes must not exceed it")
        waves = jnp.fft.rfft2(v, axes=(1, 2))
        low = jnp.concatenate([waves[:, :m, :m], waves[:, H - m :, :m]], axis=1)
        kernel = jax.lax.complex(self.kernel[0], self.kernel[1])
        low = jnp.einsum("bhwi,hwio->bhwo", low, kernel)
        full = jnp.zeros((v.shape[0], H, W // 2 + 1, kernel.shape[-1]), low.dtype)
        full = full.at[:, :m, :m].set(low[:, :m]).at[:, H - m :, :m].set(low[:, m:])
        return jnp.fft.irfft2(full, s=(H, W), axes=(1, 2))


class FNO(nnx.Module):
    """(batch, height, width, c_in) -> (batch, height, width, outputs).

    ``padding``  zeros added after the last row and column before the first layer, and cut off after the last: for
                 fields that are not periodic (section 5.2 of the paper).
    The positions i / height and j / width are two further inputs.  The last layer starts at zero, so the output does.
    """

    def __init__(
        self,
        c_in: int,
        outputs: int,
        *,
        width: int = 16,
        modes: int = 6,
        layers: int = 4,
        padding: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        if width < 1 or layers < 1 or padding < 0:
            raise ValueError(
                f"width and layers must be at least 1, padding at least 0; got {width}, {layers}, {padding}"
            )
        self.padding = padding
        self.lift = nnx.Linear(c_in + 2, width, rngs=rngs)
        self.spectral = nnx.List([SpectralConv(width, width, modes, rngs=rngs) for _ in range(layers)])
        self.local = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(layers)])
        self.first = nnx.Linear(width, 2 * width, rngs=rngs)
        self.last = nnx.Linear(2 * width, outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Image) -> Float[Array, "batch height width outputs"]:
        B, H, W, _ = x.shape
        rows = jnp.broadcast_to(jnp.arange(H)[:, None, None] / H, (B, H, W, 1))
        columns = jnp.broadcast_to(jnp.arange(W)[:, None] / W, (B, H, W, 1))
        v = self.lift(jnp.concatenate([x, rows, columns], axis=-1))
        v = jnp.pad(v, ((0, 0), (0, self.padding), (0, self.padding), (0, 0)))
        for i, (spectral, local) in enumerate(zip(self.spectral, self.local, strict=True)):
            v = spectral(v) + local(v)
            v = jax.nn.gelu(v) if i + 1 < len(self.local) else v
        return self.last(jax.nn.gelu(self.first(v[:, :H, :W])))
