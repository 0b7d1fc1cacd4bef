"""A section of the report: a heading, figures, and text after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ppl_models.program import Panel


@dataclass(frozen=True)
class Section:
    """A heading of the report with its figures; ``paired`` puts two beside each other where there is room."""

    anchor: str
    title: str
    intro: str
    panels: Callable[[], Sequence[Panel]]
    paired: bool = False
    text: Callable[[], str] | None = None
    """HTML after the figures, such as a table of rows."""
