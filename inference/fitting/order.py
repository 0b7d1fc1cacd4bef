"""The order in which an epoch visits the rows of a data set: a permutation by the key and the epoch alone."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Integer

HELD = 2**26
"""Rows up to which the permutation of an epoch is held in memory, 4 bytes a row."""
_ROUNDS = 6


class Order:
    """Row numbers 0..size-1, shuffled anew in each epoch by ``fold_in(key, epoch)``.

    Up to :data:`HELD` rows the permutation is NumPy's, held for one epoch at a time.  Beyond, nothing is held: a
    position is encrypted to its row by a Feistel network on 2 b bits, 4^b >= size, walked until it falls below size
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", section 3), which is a permutation too.
    """

    def __init__(self, size: int, key: jax.Array, held: int = HELD) -> None:
        self.size, self.key, self.hold = size, key, size <= held
        self._epoch, self._rows = -1, np.zeros(0, np.int32)

    def at(self, epoch: int, positions: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """Rows at positions 0..size-1 of an epoch."""
        if not self.hold:
            return _encrypt(positions, self.size, self._seed(epoch))
        if epoch != self._epoch:
            self._rows = np.random.default_rng(self._seed(epoch)).permutation(self.size).astype(np.int32)
            self._epoch = epoch
        return self._rows[positions]

    def _seed(self, epoch: int) -> np.ndarray:
        return np.asarray(jax.random.key_data(jax.random.fold_in(self.key, epoch)))


def _encrypt(positions: np.ndarray, size: int, seed: np.ndarray) -> np.ndarray:
    half = np.uint64(max(1, (max(1, size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.default_rng(seed).integers(0, 2**63, _ROUNDS, dtype=np.uint64)
    found = positions.astype(np.uint64)
    outside = np.ones(len(found), bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        found[outside] = (left << half) | right
        outside = found >= np.uint64(size)
    return found.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Bits of 64-bit words stirred (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
