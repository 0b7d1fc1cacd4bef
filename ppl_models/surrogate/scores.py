"""Scores of predicted fields (n, ...) and masks, in NumPy: errors, overlap, reliability."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped


def _same(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if a.shape != b.shape or a.ndim < 2 or not len(a):
        raise ValueError(f"truth and prediction must be fields (n, ...) of one shape, got {a.shape} and {b.shape}")
    return a.reshape(len(a), -1), b.reshape(len(b), -1)


def mse(truth: Shaped[np.ndarray, "n ..."], predicted: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, " n"]:
    """Mean squared error of each datum over its pixels and channels."""
    a, b = _same(truth, predicted)
    return np.asarray(((a - b) ** 2).mean(1))


def relative_l2(truth: Shaped[np.ndarray, "n ..."], predicted: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, " n"]:
    """``|predicted - truth| / |truth|`` of each datum, a ratio of norms, not squared; ``inf`` where truth is zero."""
    a, b = _same(truth, predicted)
    norm, error = np.linalg.norm(a, axis=1), np.linalg.norm(a - b, axis=1)
    return np.where(norm > 0, error / np.where(norm > 0, norm, 1.0), np.inf)


def dice(mask: Shaped[np.ndarray, "n ..."], probability: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, " n"]:
    """``2 |A and B| / (|A| + |B|)`` of the mask and the pixels of probability at least 1/2; 1 where both are empty."""
    a, b = _same(mask, np.asarray(probability) >= 0.5)
    size = a.sum(1) + b.sum(1)
    return np.where(size > 0, 2 * (a * b).sum(1) / np.maximum(size, 1), 1.0)


def soft_dice(
    mask: Shaped[np.ndarray, "n ..."], probability: Shaped[np.ndarray, "n ..."], *, smooth: float = 1.0
) -> Float[np.ndarray, " n"]:
    """``(2 sum m p + smooth) / (sum m + sum p + smooth)`` of each datum: Dice without a threshold."""
    a, b = _same(mask, probability)
    return np.asarray((2 * (a * b).sum(1) + smooth) / (a.sum(1) + b.sum(1) + smooth))


def reliability(
    mask: Shaped[np.ndarray, "n ..."], probability: Shaped[np.ndarray, "n ..."], *, bins: int = 10
) -> dict[str, np.ndarray]:
    """Pixels in ``bins`` equal bins of predicted probability: mean ``probability``, ``frequency`` of ones, ``share``.

    Entries of empty bins are nan.  ``ece`` (0-d), the expected calibration error, is the mean over pixels of
    |frequency - probability| of their bin (Guo et al., ICML 2017, equation 3).
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    a, p = (values.ravel() for values in _same(mask, probability))
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probabilities lie in 0..1, got {p.min():g} to {p.max():g}; pass the mean, not logits")
    which = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    total = np.where(count > 0, count, np.nan)
    mean, rate = (np.bincount(which, values, minlength=bins) / total for values in (p, a))
    ece = np.nansum(np.abs(rate - mean) * count) / len(p)
    return {"probability": mean, "frequency": rate, "share": count / len(p), "ece": np.asarray(ece)}
