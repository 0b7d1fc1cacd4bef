"""What a hierarchy observes: an array of grey levels, or rows of a table, ``{"x": (n, D), "there": (n, D)}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl_models.distributions import Columns
from ppl_models.program import Observation, encode_frame

if TYPE_CHECKING:
    from ppl_models.hvae.spec import HVAE


def observation(spec: HVAE) -> Observation:
    """What of the stored data is scored, and in which unit."""
    likelihood = spec.likelihood
    if isinstance(likelihood, Columns):
        return Observation(
            likelihood.observation(),
            prepare=likelihood.prepare,
            check=likelihood.check,
            read=lambda x: _rows(likelihood, x),
            features=likelihood.numbers,
            drawn=lambda values: {"x": values["x"], "there": jnp.ones_like(values["x"], bool)},
            columns=likelihood.columns,
        )
    return Observation(
        likelihood.observation(spec.shape, spec.levels),
        prepare=lambda x, key, training: likelihood.prepare(x, key, training, spec.levels),
        check=lambda x: likelihood.check(x, spec.shape, spec.levels),
        bits_offset=likelihood.bits_offset(spec.levels),
    )


def _rows(likelihood: Columns, x: Any) -> Any:
    """Rows of a DataFrame as stored data; anything else as it is."""
    if hasattr(x, "columns") and not isinstance(x, Mapping):
        return encode_frame(likelihood.columns, x)
    return x


def encoder_input(spec: HVAE, x: Any) -> Float[Array, "batch ..."]:
    """What the encoder sees of prepared data: the values themselves, or the features of rows (batch, features)."""
    return spec.likelihood.encode(x) if isinstance(spec.likelihood, Columns) else x
