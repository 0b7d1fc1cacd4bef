"""What a surrogate has to beat: persistence, and linear regression between principal components.

Both are fitted to plain arrays and give a mean and an sd of every pixel, like a surrogate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from ppl_models.surrogate.use import Prediction

Fields = Num[np.ndarray, "_ _ _ _"]


@dataclass(frozen=True)
class Persistence:
    """y = the first channels of x; ``sd`` (H, W, C) of what is wrong with that."""

    sd: np.ndarray

    @classmethod
    def fit(cls, x: Fields, y: Fields) -> Persistence:
        """The root mean square of y - x of each pixel."""
        return cls(np.sqrt(((np.asarray(y, float) - np.asarray(x, float)[..., : y.shape[-1]]) ** 2).mean(0)))

    def predict(self, x: Fields) -> Prediction:
        """Mean and sd of y."""
        mean = np.asarray(x, float)[..., : self.sd.shape[-1]]
        return Prediction(mean, np.broadcast_to(self.sd, mean.shape))


@dataclass(frozen=True)
class PCARegression:
    """Ridge regression from the leading principal components of x to those of y.

    y = y_mean + V_y B' V_x' (x - x_mean), ``weights`` B (k_x, k_y); ``sd`` (H, W, C) of the validation residuals.
    """

    x_mean: np.ndarray
    x_basis: np.ndarray
    y_mean: np.ndarray
    y_basis: np.ndarray
    weights: np.ndarray
    sd: np.ndarray

    @classmethod
    def fit(
        cls,
        x: Fields,
        y: Fields,
        x_validation: Fields,
        y_validation: Fields,
        *,
        ranks: tuple[int, ...] = (16, 32, 64, 128, 256),
        ridges: tuple[float, ...] = (1e-6, 1e-4, 1e-2, 1e-1, 1.0),
    ) -> PCARegression:
        """Rank (of x and y alike) and ridge (a share of the variance of the first component) with the least error on
        the validation data, of which the sd is also taken."""
        a, b = _flat(x), _flat(y)
        x_mean, y_mean = a.mean(0), b.mean(0)
        x_basis, spread = _basis(a - x_mean, max(ranks))
        y_basis, _ = _basis(b - y_mean, max(ranks))
        s, t = (a - x_mean) @ x_basis, (b - y_mean) @ y_basis
        cross = s.T @ t
        held_s, held = (_flat(x_validation) - x_mean) @ x_basis, _flat(y_validation) - y_mean
        best: tuple[float, np.ndarray, np.ndarray] | None = None
        for rank in ranks:
            for ridge in ridges:
                # Components are uncorrelated: the normal equations are diagonal.
                weights = cross[:rank, :rank] / (spread[:rank, None] + ridge * spread[0])
                rows, columns = weights.shape
                residual = held - held_s[:, :rows] @ weights @ y_basis[:, :columns].T
                error = float((residual**2).mean())
                if best is None or error < best[0]:
                    best = error, weights, residual
        if best is None:
            raise ValueError(f"ranks and ridges must each hold a number to try, got {ranks} and {ridges}")
        _, weights, residual = best
        rows, columns = weights.shape
        sd = np.sqrt((residual**2).mean(0)).reshape(y.shape[1:])
        return cls(x_mean, x_basis[:, :rows], y_mean, y_basis[:, :columns], weights, sd)

    def predict(self, x: Fields) -> Prediction:
        """Mean and sd of y."""
        scores = (_flat(x) - self.x_mean) @ self.x_basis
        mean = (self.y_mean + scores @ self.weights @ self.y_basis.T).reshape(len(x), *self.sd.shape)
        return Prediction(mean, np.broadcast_to(self.sd, mean.shape))


def _flat(x: Fields) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _basis(centred: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading right singular vectors (d, rank) and squared singular values, by the smaller Gram matrix."""
    n, d = centred.shape
    small = centred @ centred.T if n < d else centred.T @ centred
    values, vectors = np.linalg.eigh(small)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    kept = values > values[0] * 1e-12
    values, vectors = values[kept], vectors[:, kept]
    if n < d:
        vectors = centred.T @ vectors / np.sqrt(values)
    return vectors, values
