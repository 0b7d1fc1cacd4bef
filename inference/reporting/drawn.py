"""Figures of a page: drawn one by one, saved as PNG, embedded; one that fails leaves its error and is counted."""

from __future__ import annotations

import io
import re
import traceback
from collections.abc import Callable
from html import escape
from pathlib import Path

from inference.reporting import markup
from inference.reporting.section import Section
from ppl_models.program import Panel

DPI = 110


class Drawn:
    """Draws figures to PNG files and HTML, and keeps account of those that failed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failed, self.names = folder, list[str](), set[str]()

    def panel(self, panel: Panel) -> str:
        """One figure as HTML; the error text in its place if drawing fails."""
        try:
            figure = panel.draw()
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI)
            (self.folder / f"{self._file(panel.name)}.png").write_bytes(buffer.getvalue())
            alt = f"Figure: {panel.name}. {panel.caption}"
            # Width of the drawing in CSS pixels at 96 an inch: text keeps its size from figure to figure.
            return markup.picture(buffer.getvalue(), alt, panel.caption, round(float(figure.get_size_inches()[0]) * 96))
        except Exception as error:  # one figure must never take the page with it
            return self._fail(panel.name, error)

    def _fail(self, name: str, error: Exception) -> str:
        self.failed.append(name)
        last = traceback.extract_tb(error.__traceback__)[-1]
        return markup.failure(name, f"{type(error).__name__}: {error}\n(in {last.name}, {Path(last.filename).name})")

    def _file(self, name: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "figure"
        unique, count = base, 2
        while unique in self.names:
            unique, count = f"{base}_{count}", count + 1
        self.names.add(unique)
        return unique

    def text(self, name: str, make: Callable[[], str]) -> str:
        """HTML that ``make`` returns; the error text in its place if it fails."""
        try:
            return make()
        except Exception as error:  # as for a figure
            return self._fail(name, error)

    def section(self, section: Section) -> str:
        """A heading, an introduction and its figures, or nothing if it has none."""
        try:
            html = "\n".join(self.panel(panel) for panel in section.panels())
        except Exception as error:  # the list of figures itself could not be made
            html = self._fail(section.title, error)
        if html and section.paired:
            html = f'<div class="pair">{html}</div>'
        if section.text is not None:
            html += self.text(section.title, section.text)
        if not html:
            return ""
        return f'<h2 id="{section.anchor}">{escape(section.title)}</h2><p>{escape(section.intro)}</p>{html}'

    def problems(self) -> str:
        """A line at the top that names the figures that are missing."""
        if not self.failed:
            return ""
        names, count = escape(", ".join(self.failed)), len(self.failed)
        return (
            f'<div class="error" role="alert"><b>{count} part(s) of this page could not be drawn:</b> {names}. '
            "The errors stand where the figures would be; everything else is complete.</div>"
        )
