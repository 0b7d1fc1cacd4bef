"""Read a GGUF file, which nobody vouches for: every length in it is checked before it is believed.

Layout (little-endian): magic ``GGUF``, version 3 (u32), number of tensors and of fields (u64); the fields, each a name,
a kind (u32) and a value; the tensors, each a name, its dimensions (u32, then u64 each, the fastest first), its encoding
(u32) and the offset (u64) into the data, which begin at the next multiple of ``general.alignment``.  A text is a length
(u64) and UTF-8.  Quantised tensors are decoded by the package ``gguf``, which is imported when the first one is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

MAGIC, VERSION = b"GGUF", 3
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
TRUTH, TEXT, LIST = 7, 8, 9
"""Kinds of a value; those of ``SCALARS`` beside them."""
ENCODINGS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 6: ("Q5_0", 32, 22), 8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip
"""Encodings that are read: name, numbers and bytes of one block."""
MOST = 1 << 20
"""Fields, tensors, entries of a list: more than so many is a damaged file."""


class Entry(NamedTuple):
    """One tensor: its shape (out, in), encoding, and place in the file."""

    shape: tuple[int, ...]
    encoding: int
    start: int
    size: int


@dataclass(frozen=True)
class GGUF:
    """What a file holds: ``fields`` by name (numbers, texts, lists), ``tensors`` by name; see :func:`parse`."""

    raw: memoryview
    fields: dict[str, Any]
    tensors: dict[str, Entry]

    def tensor(self, name: str) -> Float32[np.ndarray, "..."]:
        """One tensor as float32.  ``ValueError`` where the file has none of that name."""
        if name not in self.tensors:
            raise ValueError(f"the file has no tensor {name!r} among its {len(self.tensors)}; is it another model?")
        entry = self.tensors[name]
        label, block, size = ENCODINGS[entry.encoding]
        data = np.frombuffer(self.raw, np.uint8, entry.size, entry.start)
        if label in ("F32", "F16"):
            return data.view("<f4" if label == "F32" else "<f2").astype(np.float32).reshape(entry.shape)
        rows = data.reshape(*entry.shape[:-1], entry.shape[-1] // block * size)
        return decoder()(rows, entry.encoding)

    def number(self, name: str) -> int | float:
        """A field that must be a number."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the file's field {name!r} must be a number, got {value!r}")
        return value


def decoder() -> Any:
    """The function (rows of bytes, encoding) -> float32 of the package ``gguf``."""
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise ImportError("quantised weights need the package gguf: pip install 'ppl-models[llm]'") from error
    return lambda rows, encoding: dequantize(rows, GGMLQuantizationType(encoding))


def parse(raw: bytes | bytearray | memoryview) -> GGUF:
    """Read the header of a whole file.  Raises ``ValueError`` where it is damaged, cut or of another version."""
    cursor = _Cursor(memoryview(raw).cast("B"))
    if bytes(cursor.take(4, "magic")) != MAGIC:
        raise ValueError("not a GGUF file: it does not begin with 'GGUF'; give the path of a .gguf file")
    version = cursor.scalar(4)
    if version != VERSION:
        raise ValueError(
            f"GGUF version {version} is not read, expected {VERSION}; convert the file with the gguf tools"
        )
    tensors, fields = cursor.count("tensors"), cursor.count("fields")
    held: dict[str, Any] = {}
    for _ in range(fields):
        name = cursor.text()
        if name in held:
            raise ValueError(f"damaged GGUF file: the field {name!r} stands there twice")
        held[name] = cursor.value(cursor.scalar(4))
    found = [cursor.described() for _ in range(tensors)]
    align = held.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1 or align & (align - 1):
        raise ValueError(f"damaged GGUF file: general.alignment must be a power of two, got {align!r}")
    start = -(-cursor.at // align) * align
    return GGUF(cursor.raw, held, dict(_placed(found, start, len(cursor.raw))))


def _placed(found: list[tuple[str, Entry]], start: int, end: int) -> Iterator[tuple[str, Entry]]:
    seen = set()
    for name, entry in found:
        if name in seen:
            raise ValueError(f"damaged GGUF file: the tensor {name!r} stands there twice")
        seen.add(name)
        first = start + entry.start
        if first + entry.size > end:
            raise ValueError(
                f"the GGUF file is cut: tensor {name!r} needs bytes up to {first + entry.size:,}, the file has "
                f"{end:,}; fetch it again"
            )
        yield name, entry._replace(start=first)


class _Cursor:
    """A place in a file; every step says what it wants and fails where the file ends before."""

    def __init__(self, raw: memoryview) -> None:
        self.raw, self.at = raw, 0

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self.raw) - self.at:
            raise ValueError(
                f"the GGUF file is cut or damaged: {what} at byte {self.at:,} takes {size:,} bytes, "
                f"{len(self.raw) - self.at:,} are left; fetch it again"
            )
        self.at += size
        return self.raw[self.at - size : self.at]

    def scalar(self, kind: int) -> Any:
        code = SCALARS[kind]
        value = np.frombuffer(self.take(int(code[2:]), "a number"), code)[0].item()
        return bool(value) if kind == TRUTH else value

    def count(self, what: str) -> int:
        n: int = self.scalar(10)
        if n > MOST:
            raise ValueError(f"damaged GGUF file: {n:,} {what}, more than {MOST:,}")
        return n

    def text(self) -> str:
        (size,) = struct.unpack("<Q", self.take(8, "the length of a text"))
        raw = self.take(size, "a text")
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"damaged GGUF file: a text before byte {self.at:,} is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind != LIST:
            if kind not in SCALARS:
                raise ValueError(f"damaged GGUF file: a value of the unknown kind {kind} before byte {self.at:,}")
            return self.scalar(kind)
        inner, n = self.scalar(4), self.count("entries of a list")
        if inner == TEXT:
            return [self.text() for _ in range(n)]
        if inner not in SCALARS:
            raise ValueError(f"damaged GGUF file: a list of the kind {inner} before byte {self.at:,}")
        code = SCALARS[inner]
        return np.frombuffer(self.take(n * int(code[2:]), "a list"), code)

    def described(self) -> tuple[str, Entry]:
        name, dims = self.text(), self.scalar(4)
        if not 1 <= dims <= 4:
            raise ValueError(f"damaged GGUF file: tensor {name!r} has {dims} dimensions, expected 1 to 4")
        shape = tuple(self.scalar(10) for _ in range(dims))[::-1]
        encoding, start = self.scalar(4), self.scalar(10)
        if encoding not in ENCODINGS:
            known = ", ".join(label for label, _, _ in ENCODINGS.values())
            raise ValueError(f"tensor {name!r} has the encoding number {encoding}, which is not read; expected {known}")
        _, block, size = ENCODINGS[encoding]
        if 0 in shape or shape[-1] % block:
            raise ValueError(
                f"damaged GGUF file: tensor {name!r} of shape {shape} is no whole number of blocks of {block}"
            )
        return name, Entry(shape, encoding, start, prod(shape) // block * size)
