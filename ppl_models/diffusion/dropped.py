"""Dropout of a denoiser's hidden units, in training only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpyro

from ppl_models.networks.dropout import Dropout
from ppl_models.networks.pure import Apply
from ppl_models.program import knob

if TYPE_CHECKING:
    from ppl_models.diffusion.spec import Diffusion


def hidden_share(spec: Diffusion) -> float:
    """The share of hidden units that training drops; 0 for networks without dropout."""
    return float(getattr(spec.network, "dropout", 0.0))


def dropping(spec: Diffusion, apply: Apply) -> Callable[..., Any]:
    """``apply`` with dropout where the training loop has switched it on and there is a source of randomness."""
    share = knob("dropout", 0.0)
    if not hidden_share(spec) or (isinstance(share, float | int) and share == 0):
        return apply
    key = numpyro.prng_key()
    return apply if key is None else lambda params, *given: apply(params, *given, drop=Dropout(share, key))
