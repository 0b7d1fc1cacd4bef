"""The graph of a NumPyro model, drawn with matplotlib: no graphviz binary is needed.

Circles are random variables (shaded: observed), dashed ellipses deterministic values, small dots parameters, rounded
boxes plates; an arrow says that the density of the site at its head reads the value at its tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference.reporting.style import BLUE, INK, MUTED, ORANGE, PAPER, canvas, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW, _COLUMN = 1.45, 1.75
"""Distance of rows and columns of nodes, in inches."""


@dataclass(frozen=True)
class Node:
    """A site at (x, y) in inches; ``kind``: latent, observed, deterministic or param; ``law``: its distribution."""

    name: str
    kind: str
    law: str
    x: float
    y: float


_INLINE = "jax_use_simplified_jaxpr_constants"


def relations(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Sites and their parents, by :func:`numpyro.infer.inspect.get_model_relations` (shapes only, no array work)."""
    from numpyro.infer.inspect import get_model_relations

    try:
        return get_model_relations(model, model_args=args, model_kwargs=kwargs)
    except AssertionError:
        # NumPyro before 0.22 takes the weights that a model closes over for its arguments, unless JAX inlines them.
        import jax

        before = getattr(jax.config, _INLINE)
        jax.config.update(_INLINE, True)
        try:
            return get_model_relations(model, model_args=args, model_kwargs=kwargs)
        finally:
            jax.config.update(_INLINE, before)


def _parents(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Parents of every drawn site: other sites, and the parameters that its own density reads directly.

    A network used far up reaches everything below it; a parameter is attached to a site only where none of the
    site's parents reads it already, which is where it enters the graph.
    """
    sites = {name: list(up) for name, up in found["sample_sample"].items()}
    for name, params in found["sample_param"].items():
        above = {p for parent in sites[name] for p in found["sample_param"].get(parent, ())}
        sites[name] += [p for p in params if p not in above]
    return sites


def layout(found: Mapping[str, Any]) -> tuple[dict[str, Node], list[tuple[str, str]], dict[str, list[str]]]:
    """Place the sites of a model: (nodes by name, edges (parent, child), sites of each plate).

    A site's row is the length of the longest path that leads to it; within a row, sites are ordered by the mean
    place of their parents.  Parameters stand outside the plates, near the first site that reads them.
    """
    up = _parents(found)
    order = list(found["sample_sample"])
    depth: dict[str, int] = {}

    def row_of(name: str, path: tuple[str, ...] = ()) -> int:
        if name in path:  # a cycle cannot come from a program; be safe against a broken relation
            return 0
        if name not in depth:
            above = [row_of(p, (*path, name)) for p in up[name] if p in up]
            depth[name] = 1 + max(above) if above else 0
        return depth[name]

    for name in order:
        row_of(name)
    params = list(dict.fromkeys(p for parents in up.values() for p in parents if p not in up))
    readers = {p: [name for name in order if p in up[name]] for p in params}
    rows: dict[int, list[str]] = {}
    for name in order:
        rows.setdefault(depth[name], []).append(name)
    place: dict[str, float] = {}
    for level in sorted(rows):
        names = rows[level]

        def wish(name: str, names: list[str] = names) -> float:
            above = [place[p] for p in up[name] if p in place]
            return sum(above) / len(above) if above else names.index(name) - (len(names) - 1) / 2

        names = sorted(names, key=wish)
        middle = sum(wish(n) for n in names) / len(names) if level else 0.0
        for i, name in enumerate(names):
            place[name] = middle + i - (len(names) - 1) / 2
    left, last = min(place.values(), default=0.0), max(rows, default=0)
    nodes: dict[str, Node] = {}
    for name in order:
        law = found["sample_dist"].get(name, "")
        kind = "observed" if name in found["observed"] else "deterministic" if law == "Deterministic" else "latent"
        law = "" if kind == "deterministic" else law
        nodes[name] = Node(name, kind, law, place[name] * _COLUMN, (last - depth[name]) * _ROW)
    taken: dict[tuple[str, int], int] = {}
    for name in params:
        first = min(readers[name], key=depth.__getitem__)
        if depth[first] == 0:  # above the plate, straight over its reader
            slot = taken.setdefault((first, 0), 0)
            at = nodes[first].x + 0.35 * slot, nodes[first].y + 1.0
            taken[first, 0] += 1
        else:  # left of the plate, half a row higher: the arrow runs between two rows
            slot = taken.setdefault(("", depth[first]), 0)
            at = (left - 0.75) * _COLUMN, (last - depth[first] + 0.5) * _ROW - 0.3 * slot
            taken["", depth[first]] += 1
        nodes[name] = Node(name, "param", "", *at)
    edges = [(parent, child) for child, parents in up.items() for parent in parents]
    return nodes, edges, {name: list(sites) for name, sites in found["plate_sample"].items() if sites}


def _size(node: Node) -> tuple[float, float]:
    """Half width and half height of a node's shape, inches."""
    if node.kind == "param":
        return 0.055, 0.055
    return max(0.45, 0.047 * len(node.name) + 0.2, 0.033 * len(node.law) + 0.18), 0.33


def _arrow(axis: Any, tail: Node, head: Node, bend: float) -> None:
    from matplotlib.patches import FancyArrowPatch

    def rim(node: Node, dx: float, dy: float) -> tuple[float, float]:
        a, b = _size(node)
        length = 1 / math.sqrt((dx / a) ** 2 + (dy / b) ** 2)
        return node.x + dx * length, node.y + dy * length

    dx, dy = head.x - tail.x, head.y - tail.y
    length = math.hypot(dx, dy) or 1.0
    # Leave and arrive on the side to which the arrow bends, or its ends are hidden by the shapes.
    across = (dy / length * bend * 1.2, -dx / length * bend * 1.2)
    dx, dy = dx / length, dy / length
    start, end = rim(tail, dx + across[0], dy + across[1]), rim(head, -dx + across[0], -dy + across[1])
    axis.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=10,
            lw=0.9,
            shrinkA=0,
            shrinkB=1.5,
            color=ORANGE if tail.kind == "param" else MUTED,
            connectionstyle=f"arc3,rad={bend}",
            zorder=2,
        )
    )


@styled
def model_graph(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Figure:
    """Draw the graph of ``model(*args, **kwargs)``: random variables, deterministic values, parameters, plates.

    >>> figure = model_graph(program.model, x[:2])  # doctest: +SKIP
    """
    from matplotlib.patches import Ellipse, FancyBboxPatch

    nodes, edges, plates = layout(relations(model, *args, **kwargs))
    boxes = {}
    for inset, (name, sites) in enumerate(sorted(plates.items(), key=lambda item: -len(item[1]))):
        inside, pad = [nodes[s] for s in sites], 0.27 - 0.07 * min(inset, 3)
        x0, x1 = min(n.x - _size(n)[0] for n in inside) - pad, max(n.x + _size(n)[0] for n in inside) + pad
        boxes[name] = x0, min(n.y for n in inside) - 0.5 - pad, x1, max(n.y for n in inside) + 0.36 + pad
    around = [*boxes.values(), *((n.x - a, n.y - b, n.x + a, n.y + b) for n in nodes.values() for a, b in [_size(n)])]
    x0, y0 = (min(box[i] for box in around) - 0.12 for i in (0, 1))
    x1, y1 = (max(box[i] for box in around) + 0.12 for i in (2, 3))
    if any(n.kind == "param" for n in nodes.values()):
        x0, y1 = x0 - 0.35, y1 + 0.1  # room for their names
    figure, axes = canvas(x1 - x0 + 0.1, y1 - y0 + 0.1)
    axis = axes[0, 0]
    axis.set_axis_off()
    axis.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
    for name, (left, low, right, high) in boxes.items():
        axis.add_patch(
            FancyBboxPatch(
                (left, low), right - left, high - low, boxstyle="round,pad=0,rounding_size=0.14", fc="#f5f7fa",
                ec="#aab3bf", lw=1, zorder=0,
            )
        )  # fmt: skip
        label = name.removesuffix("__CLONE")
        axis.text(right - 0.1, low + 0.06, f"plate {label}", ha="right", va="bottom", fontsize=8, color=MUTED, zorder=3)
    for tail, head in edges:
        a, b = nodes[tail], nodes[head]
        blocked = any(
            n.kind != "param" and n.name not in (tail, head) and abs(n.x - a.x) < 0.5 and a.y > n.y > b.y
            for n in nodes.values()
        )
        _arrow(axis, a, b, 0.32 if blocked and abs(a.x - b.x) < 0.5 and a.kind != "param" else 0.0)
    for node in nodes.values():
        half_width, half_height = _size(node)
        if node.kind == "param":
            axis.plot(node.x, node.y, "o", ms=5, color=ORANGE, zorder=3)
            axis.text(node.x, node.y + 0.08, node.name.removesuffix("$params"), ha="center", va="bottom",
                      fontsize=7.5, color=MUTED)  # fmt: skip
            continue
        face = {"observed": "#cfe3f3", "latent": PAPER, "deterministic": PAPER}[node.kind]
        axis.add_patch(
            Ellipse(
                (node.x, node.y), 2 * half_width, 2 * half_height, fc=face, lw=1.2, zorder=3,
                ec=BLUE if node.kind == "observed" else INK, ls="--" if node.kind == "deterministic" else "-",
            )
        )  # fmt: skip
        lift = 0.07 if node.law else 0.0
        axis.text(node.x, node.y + lift, node.name, ha="center", va="center", fontsize=9.5, zorder=4)
        axis.text(node.x, node.y - 0.12, node.law, ha="center", va="center", fontsize=6.5, color=MUTED, zorder=4)
    return figure
