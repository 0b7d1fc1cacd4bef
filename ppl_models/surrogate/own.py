"""Data of a surrogate's own: the heat equation, an operator with a closed form.

    x_c = a smooth periodic field of unit variance       spectrum E |c_k|^2 proportional to exp(-|k|^2 / 8)
    h_c = exp(t lap) x_c                                 the Fourier coefficient k times exp(-4 pi^2 |k|^2 t), t = 1/400
    y_c ~ N(h_c, .1^2), or for masks Bernoulli(sigmoid(3 h_c))

on the unit square; output channel c comes from input channel c mod C_x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

if TYPE_CHECKING:
    from ppl_models.surrogate.spec import Surrogate

TIME, NOISE, STEEPNESS = 1 / 400, 0.1, 3.0


def _square_wave_numbers(height: int, width: int) -> Float[Array, "height half_width"]:
    rows, columns = jnp.fft.fftfreq(height, 1 / height), jnp.arange(width // 2 + 1)
    return rows[:, None] ** 2 + columns[None, :] ** 2


def flow(x: Float[Array, "n height width channel"], time: float = TIME) -> Float[Array, "n height width channel"]:
    """``exp(time lap) x`` on the periodic unit square."""
    H, W = x.shape[1:3]
    decay = jnp.exp(-4 * jnp.pi**2 * time * _square_wave_numbers(H, W))[None, :, :, None]
    return jnp.fft.irfft2(decay * jnp.fft.rfft2(x, axes=(1, 2)), s=(H, W), axes=(1, 2))


def heat(spec: Surrogate, key: Key[Array, ""], n: int) -> dict[str, Array]:
    """``n`` data of the spec's shape, as stored; it can be jitted."""
    field_key, noise_key = jax.random.split(key)
    (H, W, c_in), c_out = spec.shape["x"], spec.shape["y"][2]
    spread = jnp.exp(-_square_wave_numbers(H, W) / 16)
    full = jnp.exp(-(jnp.fft.fftfreq(H, 1 / H)[:, None] ** 2 + jnp.fft.fftfreq(W, 1 / W)[None, :] ** 2) / 8)
    spread = (spread * jnp.sqrt(H * W / full.sum()))[None, :, :, None]
    noise = jnp.fft.rfft2(jax.random.normal(field_key, (n, H, W, c_in)), axes=(1, 2))
    x = jnp.fft.irfft2(spread * noise, s=(H, W), axes=(1, 2))
    h = flow(x)[..., jnp.arange(c_out) % c_in]
    if spec.likelihood.kind == "bernoulli":
        y = jax.random.bernoulli(noise_key, jax.nn.sigmoid(STEEPNESS * h)).astype("uint8")
        return {"x": x, "y": y}
    return {"x": x, "y": h + NOISE * jax.random.normal(noise_key, h.shape)}
