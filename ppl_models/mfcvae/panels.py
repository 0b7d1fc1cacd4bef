"""Figures of a fitted multi-facet clustering VAE: how sure its assignments are, what each cluster holds, what it
generates, what a facet changes in a datum, what it agrees with.

A ``fit`` is what :mod:`ppl_models.mfcvae.use` takes; all pictures share its compiled encoder and decoder.  Where rows
are clusters a picture shows at most ``ROWS`` of them, and its caption says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ppl_models.distributions import Columns, Counts
from ppl_models.mfcvae import panels_counts, panels_table
from ppl_models.mfcvae.checks import assignment_probabilities, normalised_mutual_information
from ppl_models.mfcvae.use import Assignment, decode, encode, sample, top_examples, traverse
from ppl_models.program import Panel

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE

ROWS, COLUMNS = 12, 12
KEPT, STEPS = 5, 8
"""Data whose other facets a swap or a traversal keeps; points of a line between two clusters."""
MAX_LEVELS = 32
"""A factor with more distinct values than this is not shown as a table."""


def panels(spec: MFCVAE, fit: Any, x: Any, factors: Mapping[str, Any] | None, tree: Any) -> list[Panel]:
    """All figures; those of images only where a datum is an image, (H, W), (H, W, 1) or (H, W, 3); of a table its own.

    ``x`` are the stored data whose posterior ``tree`` holds, in the same order; ``factors`` name -> known values.
    """
    names = tuple(facet.name for facet in spec.facets)
    p = {name: assignment_probabilities(tree, name) for name in names}
    found = [_assignments_panel(tree, p)] if any(facet.clusters > 1 for facet in spec.facets) else []
    if isinstance(spec.likelihood, Columns):
        found += panels_table.panels(spec, fit, tree)
    elif isinstance(spec.likelihood, Counts):
        found += panels_counts.panels(spec, p, x)
    elif _is_image(spec.shape):
        x = np.asarray(x)[: len(p[names[0]])]
        images = _images(x / (spec.levels - 1), spec.shape)
        for name in names:
            found += [_examples_panel(name, p[name], images), _samples_panel(spec, name, p[name], fit)]
            kept = _kept(name, p)
            found += [_swaps_panel(spec, name, p[name], fit, x, images, kept)] if len(names) > 1 else []
            found += [_traversal_panel(spec, name, p[name], fit, x, kept)] if p[name].shape[1] > 1 else []
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


def _draw_mosaic(tiles: Any, row_labels: list[str], title: str, column_labels: list[str] | None = None) -> Any:
    from matplotlib.figure import Figure

    rows, columns, H, W, _ = tiles.shape
    picture = mosaic(tiles)
    # Laid out by hand, in inches: the labels keep their margin whatever the shape of the picture.
    label, top, edge, width, height = 1.9, 0.55 if column_labels else 0.35, 0.1, 0.5 * columns * W / H, 0.5 * rows
    total_width, total_height = label + width + edge, top + height + edge
    figure = Figure(figsize=(total_width, total_height))
    axes = figure.add_axes((label / total_width, edge / total_height, width / total_width, height / total_height))
    axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks((np.arange(rows) + 0.5) * picture.shape[0] / rows, row_labels, fontsize=8)
    axes.xaxis.tick_top()
    centres = (np.arange(columns) + 0.5) * picture.shape[1] / columns
    axes.set_xticks(centres if column_labels else [], column_labels or [], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def _rows(p: Float[np.ndarray, "n K"]) -> tuple[list[int], list[str], int]:
    """Used clusters by mean confidence of their members, their labels, and how many are used in all."""
    label, members = p.argmax(1), top_examples(p, 1)
    order = list(members)[:ROWS]
    text = [f"cluster {c}: {np.mean(label == c):.0%}, p = {p[label == c, c].mean():.2f}" for c in order]
    return order, text, len(members)


def _shown(order: list[int], used: int, K: int) -> str:
    rest = f"; {len(order)} of them are shown" if len(order) < used else ""
    return f"{used} of {K} clusters are used{rest}."


def _examples_panel(name: str, p: Float[np.ndarray, "n K"], images: Float[np.ndarray, "n H W C"]) -> Panel:
    order, text, used = _rows(p)

    def draw() -> Any:
        tiles = np.full((len(order), COLUMNS, *images.shape[1:]), np.nan)
        examples = top_examples(p, COLUMNS)
        for r, c in enumerate(order):
            tiles[r, : len(examples[c])] = images[examples[c]]
        return _draw_mosaic(tiles, text, f"facet {name}: most certain data of each cluster")

    caption = (
        f"Facet {name}: one row a cluster, its most certain data first, with its share of the data and the mean "
        f"responsibility p of its members. {_shown(order, used, p.shape[1])} Good: a row agrees in one property that "
        "you can name, and varies in the others."
    )
    return Panel(f"{name}_examples", caption, draw)


def _samples_panel(spec: MFCVAE, name: str, p: Float[np.ndarray, "n K"], fit: Any) -> Panel:
    order, text, used = _rows(p)

    def draw() -> Any:
        generated = sample(fit, name, order, COLUMNS, key=jax.random.key(0)).x
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


def _spread(p: Float[np.ndarray, "n K"], n: int) -> list[int]:
    """At most ``n`` data: the most certain one of each cluster, then the second of each, and so on."""
    examples = list(top_examples(p, n).values())
    return [int(found[rank]) for rank in range(n) for found in examples if rank < len(found)][:n]


def _kept(name: str, p: Mapping[str, Float[np.ndarray, "n K"]]) -> list[int]:
    """Data that differ in another facet than ``name``: in the one with the most used clusters."""
    others = [q for other, q in p.items() if other != name] or [p[name]]
    return _spread(max(others, key=lambda q: len(np.unique(q.argmax(1)))), KEPT)


def _swaps_panel(
    spec: MFCVAE, name: str, p: Float[np.ndarray, "n K"], fit: Any, x: Any, images: Any, kept: list[int]
) -> Panel:
    donors = _spread(p, COLUMNS - 1)

    def draw() -> Any:
        rows, columns = len(kept), len(donors)
        z = encode(fit, x[kept + donors])
        mixed = {other: np.repeat(value[:rows], columns, axis=0) for other, value in z.items()}
        mixed[name] = np.tile(z[name][rows:], (rows, 1))
        swapped = _images(decode(fit, mixed).reshape(rows, columns, *spec.shape), spec.shape)
        tiles = np.full((rows + 1, columns + 1, *images.shape[1:]), np.nan)
        tiles[0, 1:], tiles[1:, 0], tiles[1:, 1:] = images[donors], images[kept], swapped
        text = [f"{name} from these", *(f"datum {i}" for i in kept)]
        return _draw_mosaic(tiles, text, f"facet {name}: exchanged between data")

    caption = (
        f"Facet {name} exchanged. Left column and top row: data. Inside: the datum of the row decoded with the {name} "
        "latent of the datum of the column, the other facets its own. Good: a column takes one property from the "
        "datum above it, a row keeps all others of the datum at its left. Rows that do not change: the facet has no "
        "effect; columns that are all alike: it holds everything."
    )
    return Panel(f"{name}_swaps", caption, draw)


def _traversal_panel(spec: MFCVAE, name: str, p: Float[np.ndarray, "n K"], fit: Any, x: Any, kept: list[int]) -> Panel:
    sizes = np.bincount(p.argmax(1), minlength=p.shape[1])
    order = [int(c) for c in np.argsort(-sizes, kind="stable")[: COLUMNS - 1] if sizes[c]]
    ends = (order[0], order[1]) if len(order) > 1 else None

    def draw() -> Any:
        blocks = [traverse(fit, x[kept], name, clusters=order)]
        blocks += [traverse(fit, x[kept], name, between=ends, steps=STEPS)] if ends else []
        width = 1 + max(len(block.stops) for block in blocks)
        tiles = np.full((len(blocks) * len(kept), width, *_images(blocks[0].plain[0], spec.shape).shape), np.nan)
        for b, block in enumerate(blocks):
            rows = slice(b * len(kept), (b + 1) * len(kept))
            tiles[rows, 0] = _images(block.plain, spec.shape)
            tiles[rows, 1 : 1 + len(block.stops)] = _images(block.x, spec.shape)
        line = [f"datum {i}: {ends[0]} to {ends[1]}" for i in kept] if ends else []
        columns = ["own", *map(str, order), *[""] * (width - 1 - len(order))]
        text = [f"datum {i}: clusters" for i in kept] + line
        return _draw_mosaic(tiles, text, f"facet {name}: moved through its clusters", columns)

    walk = f" Lower rows: {STEPS} points on the line between the means of the two largest." if ends else ""
    caption = (
        f"Facet {name} moved, the other facets kept. First column: the datum decoded from its own latents. Upper rows: "
        f"its {name} latent put at the mean of each used cluster, the largest first (numbers above).{walk} Good: along "
        "a row one property changes, the same for every row, and nothing else; along a line it changes step by step "
        "and every step is a possible datum."
    )
    return Panel(f"{name}_traversal", caption, draw)


# -------------------------------------------------------------------------------------------- assignments
def _assignments_panel(tree: Any, p: Mapping[str, Float[np.ndarray, "n K"]]) -> Panel:
    shown = {name: q for name, q in p.items() if q.shape[1] > 1}
    once = {name: np.asarray(tree["posterior"][f"resp_{name}"].values, float)[0, 0] for name in shown}

    def draw() -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.0 + 3.2 * len(shown), 4.4), layout="constrained")
        grid = figure.subplots(2, len(shown), squeeze=False)
        for (sure, spread), (name, q) in zip(grid.T, shown.items(), strict=True):
            for values, look in (
                (q, {"color": "#9ecae1", "label": "averaged over z"}),
                (once[name], {"histtype": "step", "color": "black", "label": "at one draw of z"}),
            ):
                found = Assignment(name, values, "average")
                sure.hist(found.probability, bins=np.linspace(0, 1, 21), **look)
                spread.hist(found.entropy, bins=np.linspace(0, np.log(q.shape[1]), 21), **look)
            sure.set(xlabel="probability of the label", ylabel="data")
            spread.set(xlabel=f"entropy (nats; log {q.shape[1]} at the right end)", ylabel="data")
            sure.set_title(f"facet {name}: {np.mean(q.max(1)):.2f} on average", fontsize=10, loc="left")
        grid[0, 0].legend(fontsize=8)
        return figure

    caption = (
        "How sure the assignments are: for each datum the probability of its most probable cluster, and the entropy of "
        "its cluster probabilities. Filled: averaged over the posterior of z, as assign gives them. Outline: at one "
        "draw of z. Good: most data near probability 1 and entropy 0, and both shapes alike; an outline further right "
        "is over-confidence, which only the average avoids."
    )
    return Panel("assignments", caption, draw)


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
    from sklearn.metrics.cluster import contingency_matrix

    names = list(known)
    figure = Figure(figsize=(4.6 * len(labels), 4.8), layout="constrained")
    for axes, (facet, label), scores in zip(
        figure.subplots(1, len(labels), squeeze=False)[0], labels.items(), nmi, strict=True
    ):
        best = names[int(np.argmax(scores[: len(names)]))]
        coded, levels = known[best]
        used, table = np.unique(label), contingency_matrix(label, coded)  # rows: the used clusters, by number
        size = table.sum(1)
        share = table / size[:, None]
        order = np.lexsort((-share.max(1), share.argmax(1)))
        axes.imshow(share[order], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(levels)), levels, fontsize=8)
        axes.set_yticks(range(len(used)), [f"{used[i]} ({size[i]})" for i in order], fontsize=7)
        axes.set_xlabel(best)
        axes.set_ylabel("cluster (data in it)")
        axes.set_title(f"facet {facet}, NMI with {best} {scores[names.index(best)]:.2f}", fontsize=10, loc="left")
    return figure
