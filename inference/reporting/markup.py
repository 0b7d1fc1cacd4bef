"""HTML of the reports: one self-contained page, no script, no outside resource; every text is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

MARKS = {"ok": "\u2713 ok", "warn": "! warn", "fail": "\u2717 fail"}


def badge(verdict: str, count: int | None = None) -> str:
    """A coloured verdict; the word is in it, so the colour carries nothing alone."""
    number = "" if count is None else f"{count} "
    mark, word = MARKS[verdict].split(" ")
    return f'<span class="badge {verdict}">{mark} {number}{word}</span>'


def number(value: Any) -> str:
    """A number for a table: four significant digits, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value != value:
        return "unknown"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.4g}"


def facts(rows: Mapping[str, Any]) -> str:
    """A two-column table of names and values."""
    body = "".join(f"<tr><th scope=row>{escape(str(k))}</th><td>{escape(number(v))}</td></tr>" for k, v in rows.items())
    return f'<div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of plain values, escaped; narrow screens show each row as a block."""
    head = "".join(f"<th scope=col>{escape(h)}</th>" for h in header)

    def cell(name: str, value: Any) -> str:
        kind = " class=number" if isinstance(value, int | float) else ""
        return f'<td{kind} data-label="{escape(name)}">{escape(number(value))}</td>'

    body = "".join(f"<tr>{''.join(map(cell, header, row))}</tr>" for row in rows)
    return stack(head, body)


def stack(head: str, body: str) -> str:
    """A table from the HTML of its header cells and of its rows."""
    return f'<div class="scroll"><table class="stack"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Key numbers: (value, what it is)."""
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(what)}</span></div>' for v, what in values)
    return f'<div class="tiles">{cells}</div>'


def picture(png: bytes, alt: str, caption: str, width: int) -> str:
    """A figure with its PNG inside the page; ``width`` in CSS pixels."""
    data = base64.b64encode(png).decode()
    title, _, rest = caption.partition(". ")
    text = f"<b>{escape(title)}.</b> {escape(rest)}" if rest else escape(caption)
    return (
        f'<figure><div class="paper"><img width="{width}" alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def failure(what: str, error: str) -> str:
    """What stands where something could not be made."""
    return f'<div class="error" role="note"><b>{escape(what)} could not be drawn.</b><pre>{escape(error)}</pre></div>'


def page(title: str, body: str) -> str:
    """The whole document."""
    css = resources.files("inference.reporting").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
