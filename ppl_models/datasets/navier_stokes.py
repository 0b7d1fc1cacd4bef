"""Two-dimensional Navier-Stokes in vorticity on the periodic unit square, pseudo-spectral, in JAX.

    w_t + u . grad w = nu lap w + f,    -lap psi = w,    u = (psi_y, -psi_x)

Fields are (N, N), the first axis x, the second y, at the nodes i / N.  Space: Fourier series, products on the grid with
the 2/3 rule (Orszag 1971).  Time: the viscous term exactly by its integrating factor, the rest by classical
Runge-Kutta of order 4 (Canuto, Hussaini, Quarteroni & Zang 2006, *Spectral Methods*, section 3.3).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Fields = Float[Array, "n N N"] | Float[np.ndarray, "n N N"]


def solve_navier_stokes(
    w_0: Fields,
    forcing: Fields,
    *,
    viscosity: float,
    frames: int,
    interval: float = 1.0,
    steps: int = 20,
) -> Float[Array, "n frames_and_one N N"]:
    """Vorticity at times 0, interval, ..., frames * interval, one row a trajectory; jitted, all trajectories at once.

    ``w_0``        vorticity at the start; its mean is removed, and so is what lies beyond two thirds of the grid's
                   largest wave number.
    ``forcing``    f, constant in time.
    ``viscosity``  nu.
    ``steps``      time steps in an interval.

    Raises ``ValueError`` for fields that are not square or not of one shape, and for numbers below 1.
    """
    if jnp.ndim(w_0) != 3 or jnp.shape(w_0) != jnp.shape(forcing) or w_0.shape[1] != w_0.shape[2] or w_0.shape[1] < 4:
        raise ValueError(
            f"w_0 and forcing must both be (n, N, N) with N at least 4, got {jnp.shape(w_0)} and {jnp.shape(forcing)}"
        )
    if frames < 1 or steps < 1 or not interval > 0 or not viscosity >= 0:
        raise ValueError(
            f"frames and steps must be at least 1, interval above 0, viscosity at least 0; got frames {frames}, "
            f"steps {steps}, interval {interval}, viscosity {viscosity}"
        )
    return _evolve(jnp.asarray(w_0), jnp.asarray(forcing), viscosity, interval / steps, frames, steps)


@partial(jax.jit, static_argnames=("frames", "steps"))
def _evolve(w_0: Array, forcing: Array, viscosity: Any, h: Any, frames: int, steps: int) -> Array:
    N = w_0.shape[-1]
    rows, columns = jnp.fft.fftfreq(N, 1 / N)[:, None], jnp.arange(N // 2 + 1)[None, :]
    keep = (3 * jnp.abs(rows) < N) & (3 * columns < N)
    k_x, k_y = 2 * jnp.pi * rows, 2 * jnp.pi * columns
    square = k_x**2 + k_y**2
    inverse = jnp.where(square > 0, 1 / jnp.where(square > 0, square, 1), 0)
    half = jnp.exp(-viscosity * square * h / 2)  # of viscosity over half a step
    whole = half * half
    to_waves, to_grid = jnp.fft.rfft2, partial(jnp.fft.irfft2, s=(N, N))
    f = keep * to_waves(forcing)

    def slope(w: Array) -> Array:
        psi = inverse * w
        transport = to_grid(1j * k_y * psi) * to_grid(1j * k_x * w) - to_grid(1j * k_x * psi) * to_grid(1j * k_y * w)
        return f - keep * to_waves(transport)

    def step(w: Array, _: None) -> tuple[Array, None]:
        a = slope(w)
        b = slope(half * (w + h / 2 * a))
        c = slope(half * w + h / 2 * b)
        d = slope(whole * w + h * half * c)
        return whole * (w + h / 6 * a) + h / 3 * half * (b + c) + h / 6 * d, None

    def frame(w: Array, _: None) -> tuple[Array, Array]:
        w, _ = jax.lax.scan(step, w, None, length=steps)
        return w, to_grid(w)

    start = keep * (square > 0) * to_waves(w_0)
    _, later = jax.lax.scan(frame, start, None, length=frames)
    return jnp.concatenate([to_grid(start)[:, None], jnp.moveaxis(later, 0, 1)], axis=1)
