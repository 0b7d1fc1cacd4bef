"""What of a datum is known: all of it, some of its pixels, its cluster in some facet.

Stored data are one array.  Where pixels may be missing, -1 stands for one.  Where facets have known clusters, a datum
is its pixels as one row followed by a label for each labelled facet, in the order of the facets, -1 for unknown: see
:func:`pack`.  Prepared data have the same layout, pixels on the scale of the likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from ppl_models.program import did_you_mean

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE

MISSING = -1


def labelled(spec: MFCVAE) -> tuple[str, ...]:
    """Names of the facets whose clusters may be observed."""
    return tuple(facet.name for facet in spec.facets if facet.labelled)


def stored_shape(spec: MFCVAE) -> tuple[int, ...]:
    """Shape of one stored datum: that of the image, or (pixels + labels,) with labelled facets."""
    names = labelled(spec)
    return (math.prod(spec.shape) + len(names),) if names else spec.shape


def pack(
    spec: MFCVAE,
    x: Any,
    labels: Mapping[str, Any] | None = None,
    missing: Any = None,
) -> Num[np.ndarray, "n ..."]:
    """Stored data of images ``x`` (n, *shape) with what is known and missing of them.

    ``labels``   the cluster of each datum by labelled facet, -1 where unknown; a facet left out is unknown throughout.
    ``missing``  True where a pixel is missing; needs ``spec.missing``.

    Raises ``ValueError`` for a facet that is not labelled, labels out of range, or shapes that disagree.
    """
    x, names = np.asarray(x), labelled(spec)
    if x.shape[1:] != spec.shape:
        raise ValueError(f"x must have shape (n, {', '.join(map(str, spec.shape))}), got {x.shape}")
    x = x.astype("int16") if x.dtype.kind in "uib" else x
    if missing is not None:
        if not spec.missing:
            raise ValueError("missing pixels need a spec that expects them; set missing=True")
        if np.shape(missing) != x.shape:
            raise ValueError(f"missing must have the shape of x, {x.shape}, got {np.shape(missing)}")
        x = np.where(missing, np.asarray(MISSING, x.dtype), x)
    labels = labels or {}
    for name in labels:
        if name not in names:
            raise ValueError(
                f"facet {name!r} takes no labels{did_you_mean(name, names)}; set labelled=True in its Facet "
                f"(labelled: {', '.join(names) or 'none'})"
            )
    if not names:
        return x
    columns = [np.asarray(labels.get(name, np.full(len(x), MISSING))) for name in names]
    for name, column in zip(names, columns, strict=True):
        if column.shape != (len(x),):
            raise ValueError(f"labels of facet {name!r} must have shape ({len(x)},), got {column.shape}")
    return np.concatenate([x.reshape(len(x), -1), np.stack(columns, 1).astype(x.dtype)], 1)


def unpack(spec: MFCVAE, x: Any) -> tuple[Any, dict[str, Any]]:
    """(n, *stored_shape) to pixels (n, *shape) and labels by facet (n,); NumPy or JAX."""
    names = labelled(spec)
    if not names:
        return x, {}
    D = math.prod(spec.shape)
    return x[:, :D].reshape(-1, *spec.shape), {name: x[:, D + i] for i, name in enumerate(names)}


def check(spec: MFCVAE, x: Any) -> None:
    """Raise ``ValueError`` for stored data that the spec does not describe."""
    x = np.asarray(x)
    if x.shape[1:] != stored_shape(spec):
        hint = "; pack(spec, x, labels=...) makes it" if labelled(spec) else ""
        spec.likelihood.check(x, stored_shape(spec), spec.levels)
        raise ValueError(f"data must have shape (n, {', '.join(map(str, stored_shape(spec)))}), got {x.shape}{hint}")
    pixels, labels = unpack(spec, x)
    gone = pixels == MISSING
    spec.likelihood.check(np.where(gone, 0, pixels) if spec.missing else pixels, spec.shape, spec.levels)
    if spec.missing and gone.all():
        raise ValueError("every pixel of the data is missing; -1 marks a missing pixel")
    clusters = {facet.name: facet.clusters for facet in spec.facets}
    for name, c in labels.items():
        if not ((c == np.floor(c)) & (c >= MISSING) & (c < clusters[name])).all():
            raise ValueError(
                f"labels of facet {name!r} must be whole numbers 0..{clusters[name] - 1}, or -1 for unknown, "
                f"got values from {c.min()} to {c.max()}"
            )


def prepare(spec: MFCVAE, x: Array, key: Key[Array, ""], training: bool) -> Float[Array, "batch ..."]:
    """The likelihood's ``prepare`` on the pixels that are there; -1 stays where one is missing, and labels stay."""
    pixels, labels = unpack(spec, x)
    if spec.missing:
        gone = pixels == MISSING
        ready = spec.likelihood.prepare(jnp.where(gone, 0, pixels), key, training, spec.levels)
        ready = jnp.where(gone, float(MISSING), ready)
    else:
        ready = spec.likelihood.prepare(pixels, key, training, spec.levels)
    if not labels:
        return ready
    known = jnp.stack([c.astype(ready.dtype) for c in labels.values()], 1)
    return jnp.concatenate([ready.reshape(len(ready), -1), known], 1)


def encoder_shape(spec: MFCVAE) -> tuple[int, ...]:
    """Shape of what the encoder sees of a datum."""
    if not spec.missing:
        return spec.shape
    return (*spec.shape[:2], 2 * spec.shape[2]) if len(spec.shape) == 3 else (*spec.shape, 2)


def encoder_input(spec: MFCVAE, pixels: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """The pixels; where some may be missing, 0 for those and a second channel that is 1 for the others."""
    if not spec.missing:
        return pixels
    there = (pixels >= 0).astype(pixels.dtype)
    parts = (pixels * there, there)
    return jnp.concatenate(parts, -1) if len(spec.shape) == 3 else jnp.stack(parts, -1)
