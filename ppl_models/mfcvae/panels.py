"""Figures of a fitted multi-facet clustering VAE: what each cluster holds, what it generates, what it agrees with.

A ``fit`` is anything with ``params`` (trained parameters by site name) and ``model`` (the model with them
substituted).  Rows of a picture are clusters; a picture shows at most ``ROWS`` of them and its caption says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from numpyro import handlers

from ppl_models.mfcvae.checks import assignment_probabilities, contingency, normalised_mutual_information
from ppl_models.mfcvae.mixture import mixture
from ppl_models.program import Panel

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE

ROWS, COLUMNS = 12, 12
MAX_LEVELS = 32
"""A factor with more distinct values than this is not shown as a table."""


def panels(spec: MFCVAE, fit: Any, x: Any, factors: Mapping[str, Any] | None, tree: Any) -> list[Panel]:
    """All figures; those of images only where a datum is an image: (H, W), (H, W, 1) or (H, W, 3).

    ``x`` are the stored data whose posterior ``tree`` holds, in the same order; ``factors`` name -> known values.
    """
    names = tuple(facet.name for facet in spec.facets)
    p = {name: assignment_probabilities(tree, name) for name in names}
    found = []
    if _is_image(spec.shape):
        images = _images(np.asarray(x)[: len(p[names[0]])] / (spec.levels - 1), spec.shape)
        for j, name in enumerate(names):
            found += [_examples_panel(name, p[name], images), _samples_panel(spec, j, p[name], fit)]
    labels = {name: q.argmax(1) for name, q in p.items()}
    return [*found, *_agreement_panels(labels, factors or {})]


# ---------------------------------------------------------------------------------------------- pictures
def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))


def _images(x: Float[np.ndarray, "*n_and_shape"], shape: tuple[int, ...]) -> Float[np.ndarray, "*n H W C"]:
    """(..., H, W[, C]) -> (..., H, W, 3 or 1) in [0, 1]."""
    x = np.clip(x, 0.0, 1.0)
    return x if len(shape) == 3 else x[..., None]


def mosaic(tiles: Float[np.ndarray, "rows columns H W C"]) -> Float[np.ndarray, "height width 3"]:
    """One picture of a grid of images, with white seams; NaN tiles stay white."""
    rows, columns, H, W, _ = tiles.shape
    seam = max(1, H // 16)
    canvas = np.ones((rows * (H + seam) + seam, columns * (W + seam) + seam, 3))
    for r in range(rows):
        for c in range(columns):
            if not np.isnan(tiles[r, c]).any():
                top, left = seam + r * (H + seam), seam + c * (W + seam)
                canvas[top : top + H, left : left + W] = tiles[r, c]
    return canvas


def _draw_mosaic(tiles: Any, row_labels: list[str], title: str) -> Any:
    from matplotlib.figure import Figure

    rows, columns, H, W, _ = tiles.shape
    picture = mosaic(tiles)
    # Laid out by hand, in inches: the labels keep their margin whatever the shape of the picture.
    label, top, edge, width, height = 1.9, 0.35, 0.1, 0.5 * columns * W / H, 0.5 * rows
    total_width, total_height = label + width + edge, top + height + edge
    figure = Figure(figsize=(total_width, total_height))
    axes = figure.add_axes((label / total_width, edge / total_height, width / total_width, height / total_height))
    axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks((np.arange(rows) + 0.5) * picture.shape[0] / rows, row_labels, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def _rows(p: Float[np.ndarray, "n K"]) -> tuple[list[int], list[str], int]:
    """Used clusters by mean confidence of their members, their labels, and how many are used in all."""
    label = p.argmax(1)
    used = [c for c in range(p.shape[1]) if (label == c).any()]
    confidence = {c: p[label == c, c].mean() for c in used}
    order = sorted(used, key=lambda c: -confidence[c])[:ROWS]
    text = [f"cluster {c}: {np.mean(label == c):.0%}, p = {confidence[c]:.2f}" for c in order]
    return order, text, len(used)


def top_examples(p: Float[np.ndarray, "n K"], cluster: int, n: int) -> Int[np.ndarray, " found"]:
    """Indices of at most ``n`` members of a cluster, the most certain first."""
    members = np.flatnonzero(p.argmax(1) == cluster)
    return members[np.argsort(-p[members, cluster], kind="stable")][:n]


def _shown(order: list[int], used: int, K: int) -> str:
    rest = f"; {len(order)} of them are shown" if len(order) < used else ""
    return f"{used} of {K} clusters are used{rest}."


def _examples_panel(name: str, p: Float[np.ndarray, "n K"], images: Float[np.ndarray, "n H W C"]) -> Panel:
    order, text, used = _rows(p)

    def draw() -> Any:
        tiles = np.full((len(order), COLUMNS, *images.shape[1:]), np.nan)
        for r, c in enumerate(order):
            index = top_examples(p, c, COLUMNS)
            tiles[r, : len(index)] = images[index]
        return _draw_mosaic(tiles, text, f"facet {name}: most certain data of each cluster")

    caption = (
        f"Facet {name}: one row a cluster, its most certain data first, with its share of the data and the mean "
        f"responsibility p of its members. {_shown(order, used, p.shape[1])} Good: a row agrees in one property that "
        "you can name, and varies in the others."
    )
    return Panel(f"{name}_examples", caption, draw)


def generate(
    spec: MFCVAE, fit: Any, facet: int, clusters: list[int], columns: int, *, key: Any
) -> Float[np.ndarray, "clusters columns ..."]:
    """Decoded means E[x | z] with ``z_facet ~ N(mu_c, S_c)``, a row a cluster.

    The other facets are drawn from their mixtures once a column, so a column repeats the same draw in every row.
    """
    rows, order = len(clusters), np.asarray(clusters)

    def decode(key: Any) -> Any:
        keys = jax.random.split(key, len(spec.facets) + 1)
        latents = {}
        for j, declared in enumerate(spec.facets):
            prior = mixture(fit.params[f"mixture_{declared.name}"])
            if j == facet:
                z = prior.components.sample(keys[j], (columns,))[:, order].swapaxes(0, 1)
            else:
                z = jnp.broadcast_to(prior.sample(keys[j], (columns,)), (rows, columns, declared.dim))
            latents[f"z_{declared.name}"] = z.reshape(rows * columns, declared.dim)
        model = handlers.condition(handlers.seed(fit.model, keys[-1]), data=latents)
        return handlers.trace(model).get_trace(size=rows * columns)["x"]["fn"].mean

    return np.asarray(jax.jit(decode)(key)).reshape(rows, columns, *spec.shape)


def _samples_panel(spec: MFCVAE, facet: int, p: Float[np.ndarray, "n K"], fit: Any) -> Panel:
    name = spec.facets[facet].name
    order, text, used = _rows(p)

    def draw() -> Any:
        generated = generate(spec, fit, facet, order, COLUMNS, key=jax.random.key(0))
        return _draw_mosaic(_images(generated, spec.shape), text, f"facet {name}: generated from each cluster")

    others = (
        " A column repeats one draw of the other facets. Good: a row keeps the property of its cluster, a column "
        "keeps everything else."
        if len(spec.facets) > 1
        else " Good: a row looks like the data of its cluster, sharper than their average."
    )
    caption = (
        f"Facet {name}: images generated from each cluster (same rows as above), z ~ N(μ, Σ) of that cluster, decoded "
        f"to the mean. {_shown(order, used, p.shape[1])}{others}"
    )
    return Panel(f"{name}_samples", caption, draw)


# ---------------------------------------------------------------------------------------------- agreement
def _agreement_panels(labels: Mapping[str, Int[np.ndarray, " n"]], factors: Mapping[str, Any]) -> list[Panel]:
    n = len(next(iter(labels.values())))
    known = {}
    for name, values in factors.items():
        values = np.asarray(values)[:n]
        levels, coded = np.unique(values, return_inverse=True)
        if values.ndim == 1 and len(values) == n and 1 < len(levels) <= MAX_LEVELS:
            known[name] = (coded, [f"{level:g}" if values.dtype.kind in "uif" else str(level) for level in levels])
    others = {f"facet {name}": (label, None) for name, label in labels.items()} if len(labels) > 1 else {}
    if not known and not others:
        return []
    columns: dict[str, Any] = {**known, **others}
    nmi = np.array([[normalised_mutual_information(a, b) for b, _ in columns.values()] for a in labels.values()])
    found = [
        Panel(
            "agreement",
            "Normalised mutual information of each facet's partition with each known factor and with each facet "
            "(0 = unrelated, 1 = the same partition). Good: every facet is high for another factor, and the facets "
            "are low for one another. The factors were not used in training.",
            partial(_draw_matrix, nmi, [f"facet {name}" for name in labels], list(columns)),
        )
    ]
    if known:
        found.append(
            Panel(
                "clusters_by_factor",
                "For each facet and the factor it agrees with most: the share of each factor value within each "
                "cluster (rows sum to 1, clusters ordered by their main value). Good: each row has one dark cell. "
                "Several rows for one value are splits, a row with several values is a merge.",
                partial(_draw_tables, labels, known, nmi),
            )
        )
    return found


def _draw_matrix(values: Float[np.ndarray, "rows columns"], rows: list[str], columns: list[str]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + 0.9 * len(columns), 1.4 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (r, c), value in np.ndenumerate(values):
        axes.text(c, r, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black", fontsize=9)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_title("normalised mutual information", fontsize=10, loc="left")
    return figure


def _draw_tables(labels: Mapping[str, Any], known: Mapping[str, Any], nmi: Float[np.ndarray, "facets columns"]) -> Any:
    from matplotlib.figure import Figure

    names = list(known)
    figure = Figure(figsize=(4.6 * len(labels), 4.8), layout="constrained")
    for axes, (facet, label), scores in zip(
        figure.subplots(1, len(labels), squeeze=False)[0], labels.items(), nmi, strict=True
    ):
        best = names[int(np.argmax(scores[: len(names)]))]
        coded, levels = known[best]
        table = contingency(label, coded)
        used = np.flatnonzero(table.sum(1))
        share = table[used] / table[used].sum(1, keepdims=True)
        order = np.lexsort((-share.max(1), share.argmax(1)))
        axes.imshow(share[order], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(levels)), levels, fontsize=8)
        axes.set_yticks(range(len(used)), [f"{used[i]} ({table[used[i]].sum()})" for i in order], fontsize=7)
        axes.set_xlabel(best)
        axes.set_ylabel("cluster (data in it)")
        axes.set_title(f"facet {facet}, NMI with {best} {scores[names.index(best)]:.2f}", fontsize=10, loc="left")
    return figure
