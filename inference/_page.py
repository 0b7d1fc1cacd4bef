"""HTML of the reports: one self-contained page, no script, no outside resource; every text is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b2430;--muted:#5b6675;--line:#dfe4ea;--soft:#f5f7fa;
--ok:#00674a;--okbg:#e3f4ee;--warn:#8a5a00;--warnbg:#fdf1d8;--fail:#a83c00;--failbg:#fde6db;--link:#005c93}
@media (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e6eaf0;--muted:#9aa6b5;--line:#303843;--soft:#1c2229;
--ok:#5fd0a8;--okbg:#12332a;--warn:#f0c060;--warnbg:#3a2e12;--fail:#ff9a6b;--failbg:#40200f;--link:#7cc4f2}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3em}
h2{font-size:1.25rem;margin:2.4em 0 .5em;padding-bottom:.25em;border-bottom:2px solid var(--line)}
h3{font-size:1rem;margin:1.4em 0 .4em}
p{margin:.5em 0;max-width:78ch} a{color:var(--link)} .muted{color:var(--muted)} .small{font-size:.875rem}
nav{font-size:.9rem;margin:.8em 0} nav a{margin-right:1.1em;white-space:nowrap}
pre,code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.875rem}
pre{background:var(--soft);border:1px solid var(--line);border-radius:8px;padding:12px 14px;overflow-x:auto;margin:.6em 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:1em 0}
.tile{background:var(--soft);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:1.2rem;line-height:1.25} .tile span{font-size:.8125rem;color:var(--muted)}
.badge{display:inline-block;border-radius:99px;padding:1px 11px;font-weight:650;font-size:.875rem;white-space:nowrap}
.badge.ok{color:var(--ok);background:var(--okbg)} .badge.warn{color:var(--warn);background:var(--warnbg)}
.badge.fail{color:var(--fail);background:var(--failbg)}
.finding{border-left:4px solid var(--line);padding:4px 0 4px 14px;margin:12px 0}
.finding.warn{border-color:var(--warn)} .finding.fail{border-color:var(--fail)} .finding p{margin:.2em 0}
.scroll{overflow-x:auto} table{border-collapse:collapse;width:100%;font-size:.9rem;margin:.6em 0}
th,td{text-align:left;vertical-align:top;padding:7px 10px;border-bottom:1px solid var(--line)}
th{font-size:.8125rem;color:var(--muted);font-weight:600} td.number{font-variant-numeric:tabular-nums;white-space:nowrap}
table.facts{width:auto} table.facts th{width:15em;font-weight:500}
figure{margin:1.2em 0;break-inside:avoid}
figure .paper{background:#fff;border:1px solid var(--line);border-radius:8px;padding:8px;overflow-x:auto;text-align:center}
figure img{max-width:100%;height:auto;vertical-align:middle} figcaption{font-size:.9rem;color:var(--muted);margin-top:.5em;max-width:85ch}
figcaption b{color:var(--ink)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:0 22px;align-items:start}
.error{border:1px solid var(--fail);background:var(--failbg);color:var(--fail);border-radius:8px;padding:10px 14px;margin:1em 0}
.error pre{background:none;border:0;padding:0;margin:.3em 0 0;color:inherit;white-space:pre-wrap}
@media (max-width:720px){table.stack thead{display:none} table.stack tr{display:block;border-bottom:2px solid var(--line);padding:6px 0}
table.stack td{display:block;border:0;padding:2px 4px} table.stack td[data-label]::before{content:attr(data-label) ": ";color:var(--muted)}
table.facts th{width:auto}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--muted:#444;--line:#ccc;--soft:#f6f6f6;--ok:#00674a;--okbg:#fff;
--warn:#8a5a00;--warnbg:#fff;--fail:#a83c00;--failbg:#fff} main{max-width:none;padding:0} nav{display:none} h2{break-after:avoid}}
""".strip()

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
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{" class=number" if isinstance(v, int | float) else ""} data-label="{escape(h)}">{escape(number(v))}</td>'
            for h, v in zip(header, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
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
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
