"""Block strings: the notation of VDVAE for a pyramid of cells, parsed and checked before anything is built.

    enc   "8x2,8d2,4x2,4d4,1x1"   bottom-up:  2 cells at 8x8; a cell at 8x8, then pool by 2; ...; 1 cell at 1x1
    dec   "1x1,4m1,4x2,8m4,8x2"   top-down:   1 cell at 1x1; a cell at 4x4 that mixes the 1x1 state in; ...

``RxN`` is N plain cells at resolution R and ``R`` is one; ``RdK`` (encoder) is a cell at R followed by average pooling
by K; ``RmC`` (decoder) is a cell at R that first adds the state of the coarser resolution C.  ``RxNrG`` is N plain
cells of which each G in a row use the same weights: depth by repetition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_TOKEN = re.compile(r"(?P<res>\d+)(?:(?P<kind>[a-z])(?P<number>\d+))?(?:r(?P<repeat>\d+))?")


class EncoderCell(NamedTuple):
    """A residual block at resolution ``res``; its output is pooled by ``down`` (1: not at all).

    Cells of the same ``tied`` above 0 use the same weights.
    """

    res: int
    down: int = 1
    tied: int = 0


class DecoderCell(NamedTuple):
    """A stochastic cell at resolution ``res`` that first adds the state of ``mixin`` (0: of none).

    Cells of the same ``tied`` above 0 use the same weights.
    """

    res: int
    mixin: int = 0
    tied: int = 0


def _tokens(text: str, side: str, other: str) -> list[tuple[str, int, str, int, int]]:
    """(token, R, kind, number, G) of each token, G 1 where there is none; ``other`` is the letter of this side."""
    if not text.strip():
        raise ValueError(f"{side} is empty, expected block tokens such as '8x2,8d2,4x1' or, for dec, '4x1,8m4,8x2'")
    found = []
    for token in (part.strip() for part in text.split(",")):
        match = _TOKEN.fullmatch(token)
        legal = f"'8' (one cell at 8x8), '8x4' (four), '8x4r2' (four, tied in twos) or '8{other}2' " + (
            "(a cell, then pooling by 2)" if other == "d" else "(a cell that mixes in the state at 2x2)"
        )
        if match is None or match["kind"] not in (None, "x", other):
            wrong = match is not None and match["kind"] in ("d", "m")
            hint = f"; '{match['kind']}' belongs to {'enc' if other == 'm' else 'dec'}" if match and wrong else ""
            raise ValueError(f"{side} has the block {token!r}, expected tokens like {legal}{hint}")
        res, kind, number = int(match["res"]), match["kind"] or "x", int(match["number"] or 1)
        repeat = int(match["repeat"] or 1)
        if res < 1 or number < 1 or repeat < 1:
            raise ValueError(f"{side} has the block {token!r}: its numbers must be at least 1; write {legal}")
        if match["repeat"] and not (kind == "x" and repeat <= number):
            raise ValueError(
                f"{side} has the block {token!r}: 'r' ties plain cells of one token, so at most {number} of '{res}x"
                f"{number}'; write '{res}x{max(repeat, number)}r{repeat}'"
            )
        found.append((token, res, kind, number, repeat))
    return found


def _ties(number: int, repeat: int, before: int) -> list[int]:
    """Of each plain cell of a token, the number of the cell, from 1, whose weights it uses; 0 where none is tied."""
    return [0] * number if repeat == 1 else [1 + before + i - i % repeat for i in range(number)]


def parse_encoder(text: str) -> tuple[EncoderCell, ...]:
    """Cells bottom-up.  Raises ``ValueError`` where a token is malformed or does not start where the last ended."""
    cells: list[EncoderCell] = []
    at: int | None = None
    for token, res, kind, number, repeat in _tokens(text, "enc", "d"):
        if at is not None and res != at:
            raise ValueError(
                f"enc {text!r}: {token!r} is at resolution {res}, but the blocks before it leave {at}; "
                f"write '{at}...' there, or pool first with '{at}dK'"
            )
        at = res
        if kind == "x":
            cells += [EncoderCell(res, tied=tied) for tied in _ties(number, repeat, len(cells))]
            continue
        if number < 2 or res % number:
            raise ValueError(
                f"enc {text!r}: {token!r} pools {res}x{res} by {number}; K must be at least 2 and divide {res}"
            )
        cells.append(EncoderCell(res, number))
        at = res // number
    return tuple(cells)


def parse_decoder(text: str) -> tuple[DecoderCell, ...]:
    """Cells top-down.  Raises ``ValueError`` where the state of a coarser resolution would be lost or is not there.

    A resolution after the first must open with ``RmC``: without it the states above would reach nothing.
    """
    cells: list[DecoderCell] = []
    for token, res, kind, number, repeat in _tokens(text, "dec", "m"):
        at = cells[-1].res if cells else None
        if at is not None and res < at:
            raise ValueError(
                f"dec {text!r}: {token!r} goes back from resolution {at} to {res}; dec runs coarse to fine"
            )
        if kind == "x":
            if at is not None and res != at:
                raise ValueError(
                    f"dec {text!r}: resolution {res} opens with {token!r}, so the state at {at} would be lost; "
                    f"open it with '{res}m{at}'"
                )
            cells += [DecoderCell(res, tied=tied) for tied in _ties(number, repeat, len(cells))]
            continue
        known = sorted({cell.res for cell in cells})
        if number not in known or number >= res:
            raise ValueError(
                f"dec {text!r}: {token!r} mixes in resolution {number}, expected a coarser one that comes before it "
                f"(there are {known or 'none'})"
            )
        if res % number:
            raise ValueError(f"dec {text!r}: {token!r} repeats {number}x{number} pixels to {res}x{res}: not a multiple")
        if at is not None and res > at and number != at:
            raise ValueError(
                f"dec {text!r}: {token!r} skips resolution {at}, whose state would be lost; open with '{res}m{at}'"
            )
        cells.append(DecoderCell(res, number))
    return tuple(cells)


def groups(cells: Sequence[EncoderCell | DecoderCell], share: bool) -> tuple[int, ...]:
    """For each cell, the number of the weights it uses; with ``share`` all plain cells of a resolution use the same."""
    seen: dict[tuple[int, ...], int] = {}
    found = []
    for i, cell in enumerate(cells):
        plain = cell.down == 1 if isinstance(cell, EncoderCell) else cell.mixin == 0
        key = (cell.res,) if share and plain else (cell.res, cell.tied - 1 if cell.tied else i)
        found.append(seen.setdefault(key, len(seen)))
    return tuple(found)


def refine(text: str, times: int = 1) -> str:
    """A ``dec`` string with twice the cells at every resolution, ``times`` over, and the same weights if tied.

    Of n plain cells and one that mixes in, m = 0 or 1 of it, come 2 n + m plain ones beside it.  Raises ``ValueError``
    where a resolution has no plain cell, whose weights the new ones would use.
    """
    cells = parse_decoder(text)
    sides = list(dict.fromkeys(cell.res for cell in cells))
    tokens = []
    for side in sides:
        here = [cell for cell in cells if cell.res == side]
        mixins = [cell for cell in here if cell.mixin]
        plain = len(here) - len(mixins)
        if not plain or len(mixins) > 1:
            raise ValueError(
                f"dec {text!r} has {plain} plain cells and {len(mixins)} that mix in at resolution {side}, expected at "
                f"least one plain and at most one other; add '{side}x1'"
            )
        tokens += [f"{side}m{cell.mixin}" for cell in mixins]
        tokens.append(f"{side}x{len(here) * 2**times - len(mixins)}")
    return ",".join(tokens)
