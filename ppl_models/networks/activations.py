"""Activations with derivatives written by hand, cheaper on a CPU than those that are derived."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact ``x Phi(x)``, Phi the normal distribution function; with its own derivative, half the cost of erfc's."""
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    cdf = 0.5 * (1.0 + erf(x * math.sqrt(0.5)))
    return x * cdf, t * (cdf + x * jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi)))
