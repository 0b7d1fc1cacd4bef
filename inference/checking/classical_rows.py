"""Baselines of a program of the rows of a table: what they read, and the settings that validation chooses among.

    independent       a product over columns
    gaussian          joint Gaussian of the real and positive (log) columns; the discrete ones independent
    factor-analysis   the same with covariance W W' + diag psi
    ppca              the same with covariance W W' + s^2 I of the standardised columns
    gaussian-mixture  sum_k pi_k N(x; m_k, S_k) times a product over discrete columns; without real and positive
                      columns it is called latent-class

Densities are in the units of the file, missing entries integrated out, and no scale is below its column's floor: the
rules of the program they stand beside.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from inference.checking.candidates import Candidates, View, grid
from inference.checking.row_factors import row_factors
from inference.checking.row_mixture import row_mixture

RIDGES = (1e-5, 1e-3, 1e-2, 3e-2, 0.1)
MOST = 10_000


def table_view(program: Any, x: Any, held_out: Any, joined: Any, x_test: Any, *, seed: int, quick: bool) -> View:
    """The view of stored rows; ``joined`` are ``x`` and ``held_out`` together.

    Raises ``ValueError`` where the program scores more than the columns (labels, say).
    """
    site = program.observed[0]
    if len(program.observed) > 1 or set(program.shape) != {site, "there"}:
        raise ValueError(
            f"no baseline shares the score {program.observation.line!r}: besides the columns of the table it scores "
            f"{', '.join(program.observed[1:]) or 'other arrays'}; leave labels out of the model to compare it"
        )
    train, held, both, test = (read_rows(program, a) for a in (x, held_out, joined, x_test))
    found = candidates(program.observation.columns, len(train), bool(np.isnan(both).any()), seed=seed, quick=quick)
    return View(train, held, both, test, found)


def most_rows(x: Any, columns: Any) -> int:
    """Rows that baselines are fitted to at most: EM visits every row some thousand times, and where entries are
    missing inverts a matrix for each."""
    G = sum(column.kind in ("real", "positive") for column in columns)
    return MOST if np.asarray(x["there"]).all() else min(MOST, max(2000, MOST * 50 // max(1, G * G)))


def read_rows(program: Any, x: Any) -> Float[np.ndarray, "n D"]:
    """Stored rows as numbers, NaN where an entry is missing."""
    there = np.asarray(x["there"], bool)
    return np.where(there, np.asarray(x[program.observed[0]], np.float64), np.nan)


def candidates(columns: Any, n: int, missing: bool, *, seed: int, quick: bool) -> list[Candidates]:
    """The baselines that columns of these kinds have; ``quick`` has few settings."""
    G = sum(column.kind in ("real", "positive") for column in columns)
    discrete = G < len(columns)
    mixture, factors = partial(row_mixture, columns), partial(row_factors, columns)
    pseudo = {"pseudo": [0.5]} if discrete else {}
    ridges = (1e-3, 3e-2) if quick else RIDGES
    found = [Candidates("independent", mixture, grid(components=[1], covariance=["diag"], ridge=[0.0], **pseudo))]
    if G > 1:
        found.append(Candidates("gaussian", mixture, grid(components=[1], ridge=ridges, **pseudo)))
    if G > 2:
        wanted = (1, 3, 8, 16) if quick else (1, 2, 3, 4, 6, 9, 14, 20, 30)
        ranks = [q for q in wanted if q < G]
        found.append(Candidates("factor-analysis", factors, grid(rank=ranks, **pseudo)))
        found.append(Candidates("ppca", factors, grid(rank=ranks, isotropic=[True], **pseudo)))
    most = max(1, n // 10)
    several = [k for k in ((2, 4, 8) if quick else (2, 3, 4, 6, 8)) if k <= most]
    common: dict[str, Any] = {"starts": [1 if quick else 3], "seed": [seed]}
    if not G:
        weights = [0.5] if quick else [0.1, 0.5, 2.0]
        settings = grid(components=[1, *several], pseudo=weights, **common)
        found.append(Candidates("latent-class", mixture, settings))
        return found
    wide = quick and missing  # full covariances are slow where every row lacks other entries
    shapes = [s for s in ("full", "tied", "diag") if G > 1 or s == "full"]
    shapes = ["diag"] if G > 40 else [s for s in shapes if s != "tied"] if quick else shapes
    settings = grid(components=[1], covariance=["full"], ridge=ridges, **pseudo)
    settings += grid(components=several[:2] if wide else several, covariance=shapes,
                     ridge=[1e-2] if quick else [1e-3, 1e-2, 0.1], **pseudo, **common)  # fmt: skip
    found.append(Candidates("gaussian-mixture", mixture, settings))
    return found
