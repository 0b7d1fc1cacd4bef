"""The idx format of the MNIST family: two zero bytes, a type (8 = unsigned byte), the number of dimensions, each
size as a big-endian 32-bit integer, then the bytes in C order."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

_UBYTE = 8


def header(shape: tuple[int, ...]) -> bytes:
    """Return the idx header of an unsigned-byte array of this shape."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, _UBYTE, len(shape), *shape)


def sha256(array: np.ndarray) -> str:
    """Return the sha256 of the idx file (uncompressed) that would hold this array of bytes.

    Every checksum of pixels and labels in this package is of this form, so it does not depend on how a file was
    compressed or who wrote it.
    """
    digest = hashlib.sha256(header(array.shape))
    digest.update(np.ascontiguousarray(array, dtype=np.uint8))
    return digest.hexdigest()


def read(path: Path) -> UInt8[np.ndarray, "*shape"]:
    """Read an idx file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Raises ``ValueError`` for a torn or foreign file: bad gzip data, a wrong magic number, a length that is not
    what the header declares.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is torn or not gzip ({error}); install or copy it again") from error
    if len(data) < 4 or data[:3] != bytes((0, 0, _UBYTE)):
        raise ValueError(f"{path} is not an idx file of bytes: it starts with {data[:4].hex(' ')}, expected 00 00 08")
    ndim = data[3]
    start = 4 + 4 * ndim
    shape = struct.unpack_from(f">{ndim}I", data, 4) if len(data) >= start else ()
    if len(data) - start != math.prod(shape) or len(shape) != ndim:
        raise ValueError(
            f"{path} is torn: its header declares shape {shape}, {math.prod(shape)} bytes, but "
            f"{max(len(data) - start, 0)} follow; install or copy it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
