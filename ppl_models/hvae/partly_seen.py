"""Images of which some pixels are missing: the same program, scoring those that are there.

    p(x_there, z) = p(z) prod_{i there} p(x_i | z),     q(z | x_there) = q(z | x with the missing pixels filled in)

p is exact: given z the pixels are independent, so those that are missing drop out of the product.  q was trained on
whole images and sees a guess in their place, so it is a start for :func:`inference.refine`, which optimises it for each
image, and its k-hat says whether the weights can be trusted.  Draws of missing pixels from p(x | z), weighted by
exp(log_weight), are draws from p(x_missing | x_there).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from numpyro.distributions import Distribution, Independent
from numpyro.primitives import Messenger

from ppl_models.program import Observation, Posterior, Program, Views


class _Seen(Messenger):
    """Score the observed site of a program where ``there`` is true."""

    def __init__(self, fn: Any, site: str, there: Array) -> None:
        super().__init__(fn)
        self.site, self.there = site, there

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] == self.site and msg["is_observed"]:
            msg["fn"] = seen(msg["fn"], self.there)


def seen(law: Distribution, there: Array) -> Distribution:
    """A law of images (batch, *shape) of independent pixels, with the pixels masked that are not ``there``."""
    base = law
    while isinstance(base, Independent):
        base = base.base_dist
    if base.event_shape:  # a colour is one value of three
        there = there[..., 0]
    return base.mask(there).to_event(there.ndim - 1)


def partly_seen(program: Program, fill: Any = None) -> Program:
    """``program`` for data ``{"x": grey levels (n, *shape), "there": bool (n, *shape)}``; other pixels do not matter.

    ``fill`` (*shape) in stored grey levels is what the posterior sees in place of missing pixels: the mean of the
    training images, say; default the middle level.  Parameters are those of ``program``:

    >>> part = dataclasses.replace(fitted, program=partly_seen(fitted.program, x.mean(0)))
    >>> data = {"x": images, "there": there}
    >>> refined = inference.refine(part, data, key=key)
    >>> tree = inference.posterior(refined, data, draws=400, predictive_draws=400, key=key)   # log_weight, x
    >>> inference.evidence(refined, data, key=key)       # log p(x_there) and its k-hat

    Raises ``ValueError`` for a program whose datum is not one image of independent pixels, for a ``fill`` of another
    shape, and, before any work, for masks of another shape, without a pixel, or that split a colour.
    """
    shape, inner = program.shape, program.observation
    spec_law = getattr(getattr(program.spec, "likelihood", None), "kind", "")
    if not isinstance(shape, tuple) or not shape or not all(isinstance(n, int) for n in shape) or inner.columns:
        raise ValueError(
            f"partly_seen is for programs of one image, a datum of one shape, got {shape}; rows of a table with "
            "missing entries go into their own program as they are"
        )
    levels = program.spec.levels
    grey = np.full(shape, (levels - 1) // 2, "float32") if fill is None else np.asarray(fill, "float32")
    if grey.shape != shape:
        raise ValueError(f"fill is one image in stored grey levels, expected shape {shape}, got {grey.shape}")
    guess = np.clip(np.round(grey), 0, levels - 1)
    (site,) = program.observed
    colours = spec_law == "logistic_mixture" and len(shape) == 3 and shape[-1] == 3

    def check(x: Any) -> None:
        inner.check(x["x"])
        there = np.asarray(x["there"])
        if there.shape != np.shape(x["x"]) or there.dtype != bool:
            raise ValueError(
                f"there says of each pixel whether it was seen: bool of shape {np.shape(x['x'])}, got {there.dtype} of "
                f"shape {there.shape}"
            )
        empty = ~there.reshape(len(there), -1).any(1)
        if empty.any():
            raise ValueError(f"image {int(empty.argmax())} has no pixel that is there; draw it from the model alone")
        if colours and (there != there[..., :1]).any():
            raise ValueError("there must be the same for the three channels of a pixel: they are one value of the law")

    def prepare(x: Any, key: Key[Array, ""], training: bool) -> dict[str, Array]:
        there = jnp.asarray(x["there"], bool)
        filled = jnp.where(there, jnp.asarray(x["x"], "float32"), guess)
        return {"x": inner.prepare(filled, key, training), "there": there}

    def model(x: Any = None, *, size: int | None = None) -> Any:
        if x is None or x.get("x") is None:
            return program.model(size=size)
        with _Seen(None, site, jnp.asarray(x["there"], bool)):
            return program.model(x["x"])

    def posterior(x: Any, *, size: int | None = None) -> Posterior:
        assert program.posterior is not None
        return program.posterior(x["x"], size=size)

    return dataclasses.replace(
        program,
        model=model,
        posterior=posterior,
        shape={site: shape, "there": shape},
        observation=Observation(
            f"{inner.line}; of the pixels that are there",
            prepare=prepare,
            check=check,
            drawn=lambda values: {"x": values[site], "there": jnp.ones(values[site].shape, bool)},
        ),
        views=Views(program.views.density, program.views.modules),
    )
