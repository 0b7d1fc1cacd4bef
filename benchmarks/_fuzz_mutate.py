"""Inputs that are almost right: bytes changed here and there, and JSON values replaced by ones that nobody expects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

TOKENS = (
    b"NaN", b"-1", b"1e999", b"null", b"\0", b"\xff\xfe", b'"', b"'", b",", b"\n", b"\r", b"{", b"[", b"]", b"}",
    b"\\u0000", b"0x1f", b"1_0", b"\xd9\xa3", b"true", b"../../etc/passwd", b"__import__('os').system('false')", b"%s",
    b";", b"\t", b"99999999999999999999", b"-0.0", b"=cmd|' /C calc'!A0", b"\xef\xbb\xbf",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**70, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "x" * 3000, "\0",
    "é",    "nan", "1", [], {}, [[]], [0], [-1, 2], {"a": 1}, {"kind": "x"}, {"": None},
)  # fmt: skip


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: a bit, a byte, a slice cut, doubled or moved, a word put in, the end cut."""
    out = bytearray(raw)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(out) + 1))
        to = min(len(out), at + int(rng.geometric(0.1)))
        how = int(rng.integers(0, 8))
        if how == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif how == 1 and at < len(out):
            out[at] = int(rng.integers(0, 256))
        elif how == 2:
            del out[at:to]
        elif how == 3:
            out[at:at] = out[at:to] * int(rng.integers(1, 4))
        elif how == 4:
            out[at:at] = TOKENS[int(rng.integers(0, len(TOKENS)))]
        elif how == 5:
            out[at:to] = TOKENS[int(rng.integers(0, len(TOKENS)))]
        elif how == 6 and rng.random() < 0.3:
            del out[at:]
        else:
            part = bytes(out[at:to])
            del out[at:to]
            other = int(rng.integers(0, len(out) + 1))
            out[other:other] = part
    return bytes(out)


def mutate_json(value: Any, rng: np.random.Generator) -> Any:
    """The value with one part of it replaced, removed, added, or wrapped in many brackets."""
    copy = json.loads(json.dumps(value))
    places = [(None, None), *_places(copy)]
    parent, name = places[int(rng.integers(0, len(places)))]
    if parent is None:
        return copy if rng.random() < 0.7 else odd(rng)
    how = rng.random()
    if how < 0.7:
        parent[name] = odd(rng)
    elif how < 0.8:
        del parent[name]
    elif how < 0.9 and isinstance(parent, dict):
        parent[f"{name}x"] = parent.pop(name)
    elif isinstance(parent, list):
        parent.insert(name, odd(rng))
    else:
        parent[name] = [parent[name]]
    return copy


def odd(rng: np.random.Generator) -> Any:
    return ODD[int(rng.integers(0, len(ODD)))]


def _places(value: Any) -> list[tuple[Any, Any]]:
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, name) for name, _ in pairs] + [place for _, part in pairs for place in _places(part)]


def deep(rng: np.random.Generator) -> str:
    """JSON of brackets within brackets."""
    n = int(rng.integers(10, 200_000))
    return '{"family": ' + "[" * n + "]" * n + "}"


def pick(choices: Sequence[Any], rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(0, len(choices)))]
