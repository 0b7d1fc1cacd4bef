"""One look for every figure: a colour-blind safe palette, quiet axes, no pyplot and no global state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

INK, MUTED, GRID, PAPER = "#1b2430", "#5b6675", "#e3e7ed", "#ffffff"
# Okabe and Ito's palette: told apart with every common form of colour blindness, and in grey.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
CYCLE = (BLUE, ORANGE, GREEN, RED, PINK, SKY, "#7a5195", MUTED, YELLOW, INK)

_RC: dict[str, Any] = {
    "font.size": 9.5, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.labelsize": 9.5, "axes.labelcolor": INK, "axes.edgecolor": "#aab3bf", "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.facecolor": PAPER, "figure.facecolor": PAPER, "savefig.facecolor": PAPER,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.6, "image.cmap": "gray",
}  # fmt: skip


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: draw under the house style and leave the caller's matplotlib settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        import matplotlib as mpl
        from cycler import cycler

        settings: Any = {**_RC, "axes.prop_cycle": cycler(color=CYCLE)}
        with mpl.rc_context(settings):
            return draw(*args, **kwargs)

    return wrapper


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Any, Any]:
    """Return a figure of ``width`` x ``height`` inches, free of pyplot, and its 2-D array of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def note(axis: Any, text: str) -> None:
    """Write ``text`` in the middle of an empty axis."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, wrap=True, transform=axis.transAxes)
