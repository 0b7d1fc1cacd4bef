"""What of a datum is known: all of it, some of its pixels, its cluster in some facet.

Stored data are one array (n, *shape) where all pixels and no labels are known.  Otherwise a datum is a dict: ``x`` the
pixels; ``there``, where pixels may be missing, True for those that are known; ``c_<facet>``, for each labelled facet,
its cluster, -1 where unknown; ``library``, for counts, the library size of the row, which is given and not scored.
:func:`pack` makes it.  Prepared data have the same layout, pixels on the scale of the
likelihood, 0 where missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ppl_models.distributions import Columns, Counts
from ppl_models.program import did_you_mean, encode_frame

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE

UNKNOWN = -1
THERE, LIBRARY = "there", "library"


def labelled(spec: MFCVAE) -> tuple[str, ...]:
    """Names of the facets whose clusters may be observed."""
    return tuple(facet.name for facet in spec.facets if facet.labelled)


def table(spec: MFCVAE) -> bool:
    """Whether the data are rows of a table."""
    return isinstance(spec.likelihood, Columns)


def datum_shape(spec: MFCVAE) -> Any:
    """Shape of one datum: that of the image, or of each array of the dict."""
    names, masked = labelled(spec), spec.missing or table(spec)
    if isinstance(spec.likelihood, Counts):
        return {**spec.likelihood.datum_shape(spec.shape), **{f"c_{name}": () for name in names}}
    if not names and not masked:
        return spec.shape
    there = {THERE: spec.shape} if masked else {}
    return {"x": spec.shape, **there, **{f"c_{name}": () for name in names}}


def pack(spec: MFCVAE, x: Any, labels: Mapping[str, Any] | None = None, missing: Any = None) -> Any:
    """Stored data of images ``x`` (n, *shape) with what is known and missing of them; of rows of a table or of counts,
    which are a dict already, with their labels.

    ``labels``   the cluster of each datum by labelled facet, -1 where unknown; a facet left out is unknown throughout.
    ``missing``  True where a pixel is missing; needs ``spec.missing``.

    Raises ``ValueError`` for a facet that is not labelled, labels out of range, or shapes that disagree.
    """
    names = labelled(spec)
    found = {name: np.asarray(leaf) for name, leaf in (x if isinstance(x, Mapping) else {"x": x}).items()}
    x = found["x"]
    if x.shape[1:] != spec.shape:
        raise ValueError(f"x must have shape (n, {', '.join(map(str, spec.shape))}), got {x.shape}")
    if missing is not None:
        if not spec.missing:
            raise ValueError("missing pixels need a spec that expects them; set missing=True")
        if np.shape(missing) != x.shape:
            raise ValueError(f"missing must have the shape of x, {x.shape}, got {np.shape(missing)}")
    if spec.missing:
        there = np.ones(x.shape, bool) if missing is None else ~np.asarray(missing, bool)
        found = {"x": np.where(there, x, np.zeros((), x.dtype)), THERE: there}
    labels = labels or {}
    for name in labels:
        if name not in names:
            raise ValueError(
                f"facet {name!r} takes no labels{did_you_mean(name, names)}; set labelled=True in its Facet "
                f"(labelled: {', '.join(names) or 'none'})"
            )
    for name in names:
        column = np.asarray(labels.get(name, np.full(len(x), UNKNOWN)))
        if column.shape != (len(x),):
            raise ValueError(f"labels of facet {name!r} must have shape ({len(x)},), got {column.shape}")
        found[f"c_{name}"] = column
    return found if len(found) > 1 else x


def unpack(x: Any) -> tuple[Any, Any, dict[str, Any]]:
    """(pixels, where they are known or ``None``, labels by facet) of stored or prepared data; NumPy or JAX."""
    if not isinstance(x, Mapping):
        return x, None, {}
    labels = {name.removeprefix("c_"): value for name, value in x.items() if name.startswith("c_")}
    return x.get("x"), x.get(THERE), labels


def library(spec: MFCVAE, x: Any, n: int) -> Array | None:
    """Library sizes (n,) of data or of inputs alone; the typical one where there are none; ``None`` but for counts."""
    if not isinstance(spec.likelihood, Counts):
        return None
    return jnp.full(n, spec.likelihood.library) if x is None else jnp.asarray(x[LIBRARY], "float32")


def check(spec: MFCVAE, x: Any) -> None:
    """Raise ``ValueError`` for stored data that the spec does not describe."""
    pixels, there, labels = unpack(x)
    if isinstance(spec.likelihood, Columns):
        spec.likelihood.check({"x": pixels, THERE: there})
    elif isinstance(spec.likelihood, Counts):
        spec.likelihood.check(x)
    else:
        spec.likelihood.check(pixels, spec.shape, spec.levels)
    if there is not None and not np.asarray(there).any():
        raise ValueError("every pixel of the data is missing; 'there' is True where a pixel is known")
    clusters = {facet.name: facet.clusters for facet in spec.facets}
    for name, c in labels.items():
        c = np.asarray(c)
        if not ((c == np.floor(c)) & (c >= UNKNOWN) & (c < clusters[name])).all():
            raise ValueError(
                f"labels of facet {name!r} must be whole numbers 0..{clusters[name] - 1}, or -1 for unknown, "
                f"got values from {c.min()} to {c.max()}"
            )


def prepare(spec: MFCVAE, x: Any, key: Key[Array, ""], training: bool) -> Any:
    """The likelihood's ``prepare`` on the pixels; 0 where one is missing; labels as whole numbers."""
    pixels, there, labels = unpack(x)
    known = {f"c_{name}": c.astype("int32") for name, c in labels.items()}
    if isinstance(spec.likelihood, Columns | Counts):
        return {**spec.likelihood.prepare(x, key, training), **known}
    ready = spec.likelihood.prepare(pixels, key, training, spec.levels)
    if not isinstance(x, Mapping):
        return ready
    found = {"x": ready, **known}
    if there is not None:
        found |= {"x": jnp.where(there.astype(bool), ready, 0.0), THERE: there.astype(bool)}
    return found


def drawn(spec: MFCVAE, values: Mapping[str, Array]) -> Any:
    """Prepared data of a draw of the model: nothing is missing."""
    if not isinstance(shape := datum_shape(spec), Mapping):
        return values["x"]
    found = {THERE: jnp.ones_like(values["x"], bool), **values}
    if isinstance(spec.likelihood, Counts) and LIBRARY not in found:
        found[LIBRARY] = jnp.full(values["x"].shape[:-1], spec.likelihood.library)
    return {name: found[name] for name in shape}


def read(spec: MFCVAE, x: Any) -> Any:
    """Rows of a DataFrame as stored data, where the spec is that of a table; anything else as it is."""
    if isinstance(spec.likelihood, Columns) and hasattr(x, "columns") and not isinstance(x, Mapping):
        return encode_frame(spec.likelihood.columns, x)
    return x


def encoder_shape(spec: MFCVAE) -> tuple[int, ...]:
    """Shape of what the encoder sees of a datum."""
    if isinstance(spec.likelihood, Columns):
        return (spec.likelihood.features,)
    if isinstance(spec.likelihood, Counts):
        return (spec.likelihood.features(spec.shape),)
    if not spec.missing:
        return spec.shape
    return (*spec.shape[:2], 2 * spec.shape[2]) if len(spec.shape) == 3 else (*spec.shape, 2)


def encoder_input(spec: MFCVAE, x: Any) -> Float[Array, "batch ..."]:
    """The pixels; where some may be missing, 0 for those and a second channel that is 1 for the others."""
    if isinstance(spec.likelihood, Columns | Counts):
        return spec.likelihood.encode(x)
    pixels, there, _ = unpack(x)
    if there is None:
        return pixels
    parts = (pixels, there.astype(pixels.dtype))
    return jnp.concatenate(parts, -1) if len(spec.shape) == 3 else jnp.stack(parts, -1)
