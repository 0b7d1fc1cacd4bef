"""Darcy flow on the unit square: -div(a grad u) = f with u = 0 on the boundary, by finite volumes.

Cells of side h = 1/N; ``a``, ``f`` and ``u`` belong to their middles.  Between two cells the coefficient is the
harmonic mean 2 a a' / (a + a'), exact in one dimension for a coefficient that jumps at the face; the boundary lies
h / 2 beyond the middle of an outer cell.  Second order for smooth coefficients (Eymard, Gallouet & Herbin 2000, ch. 3).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def solve_darcy(a: Float[np.ndarray, "N N"], f: Float[np.ndarray, "N N"] | float = 1.0) -> Float[np.ndarray, "N N"]:
    """The solution at the middles of the cells, in float64, by a sparse direct solver.

    Raises ``ValueError`` for a coefficient that is not square, or not positive and finite.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import splu

    a = np.asarray(a, float)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not np.isfinite(a).all() or not (a > 0).all():
        raise ValueError(f"a must be (N, N), positive and finite, got shape {a.shape}, least {a.min(initial=np.inf)}")
    N = len(a)
    right = np.broadcast_to(np.asarray(f, float), a.shape)
    down = 2 * a[:-1] * a[1:] / (a[:-1] + a[1:])
    across = 2 * a[:, :-1] * a[:, 1:] / (a[:, :-1] + a[:, 1:])
    total = np.zeros_like(a)
    for faces, first, last in ((down, np.s_[:-1], np.s_[1:]), (across, np.s_[:, :-1], np.s_[:, 1:])):
        total[first] += faces
        total[last] += faces
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        total[edge] += 2 * a[edge]
    beside = np.pad(across, ((0, 0), (0, 1))).ravel()[:-1]  # no face between the end of a row and the next one
    matrix = diags([total.ravel(), -beside, -beside, -down.ravel(), -down.ravel()], [0, 1, -1, N, -N], format="csc")
    return splu(matrix * N**2, permc_spec="MMD_AT_PLUS_A").solve(right.ravel()).reshape(N, N)


def solve_darcy_in_pixels(a: Float[np.ndarray, "N N"], f: float = 1.0, *, refine: int = 2) -> Float[np.ndarray, "N N"]:
    """The mean of the solution over each pixel, for a coefficient that is constant on pixels.

    Every pixel is cut into ``refine`` x ``refine`` cells for the solution, and the solution is averaged over them.
    """
    if refine < 1:
        raise ValueError(f"refine must be at least 1, got {refine}")
    N = len(a)
    fine = solve_darcy(np.repeat(np.repeat(a, refine, 0), refine, 1), f)
    return fine.reshape(N, refine, N, refine).mean((1, 3))


def permeability(rng: np.random.Generator, n: int, side: int) -> np.ndarray:
    """Where the permeability is high, (n, side, side) bool: a Gaussian field with covariance (9 - lap)^-2 above 0.

    Neumann conditions: a cosine series with standard deviations 1 / (pi^2 |k|^2 + 9), the mean left out (Li et al.,
    *Fourier Neural Operator*, ICLR 2021, section 5.2).
    """
    from scipy.fft import idctn

    k = np.arange(side)
    spread = 1 / (np.pi**2 * (k[:, None] ** 2 + k[None, :] ** 2) + 9)
    spread[0, 0] = 0
    waves = rng.normal(size=(n, side, side)) * spread  # of orthonormal cosines; a common factor does not matter
    return np.asarray(idctn(waves, axes=(1, 2), norm="ortho")) >= 0
