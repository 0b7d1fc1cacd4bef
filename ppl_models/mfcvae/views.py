"""Named views: the part of a datum that a facet's encoder sees.  The likelihood always scores the whole datum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl_models.networks.mlp import whole


def contrast(x: Float[Array, "batch H W C"]) -> Float[Array, "batch H W"]:
    """Each pixel's distance to the image's mean colour, ``|x_i - mean_i x_i|``: where something is, not its colour."""
    return jnp.sqrt(((x - x.mean((1, 2), keepdims=True)) ** 2).sum(-1) + 1e-12)


def coarse(x: Float[Array, "batch H W C"]) -> Float[Array, "batch 4 4 C"]:
    """Mean colours of a 4 x 4 grid of blocks: what colours there are, not their outlines."""
    B, H, W, C = x.shape
    return x.reshape(B, 4, H // 4, 4, W // 4, C).mean((2, 4))


VIEWS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {"whole": whole, "contrast": contrast, "coarse": coarse}
)
