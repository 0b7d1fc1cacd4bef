"""Split conformal intervals: a predictive sd, mended on data that the model was not fitted to.

The score of a pixel is s = |y - mean| / sd, the interval mean +- q sd.  With n validation data that are exchangeable
with the test datum (trajectories, where their steps are data), and alpha = 1 - level:

    by = "pixel"    q_p, the ceil((n + 1) level)-th smallest of the n scores at pixel p: each pixel is covered with
                    probability in [level, level + 1/(n + 1)], over validation and test data (Vovk, Gammerman & Shafer
                    2005, *Algorithmic Learning in a Random World*; Lei et al. 2018, JASA 113, theorem 2)
    by = "field"    one q, the least with n/(n + 1) R(q) + 1/(n + 1) <= alpha, R(q) the mean share of pixels with s > q:
                    the expected share of a field that is missed is at most alpha (Angelopoulos et al., "Conformal Risk
                    Control", ICLR 2024, theorem 1)
    by = "whole"    the same rule for the score max_p s: the whole field is covered with probability at least level
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Num

By = Literal["pixel", "field", "whole"]


@dataclass(frozen=True)
class Conformal:
    """``factor`` of the predictive sd, a number or one a pixel; ``level``, ``by`` as asked; ``n`` validation data."""

    factor: np.ndarray
    level: float
    by: str
    n: int


def conformal(
    truth: Num[np.ndarray, "n ..."],
    mean: Num[np.ndarray, "n ..."],
    sd: Num[np.ndarray, "..."],
    *,
    level: float = 0.9,
    by: By = "field",
) -> Conformal:
    """The factor of ``sd`` under which intervals keep their level; see the module's text for ``by``.

    ``truth``, ``mean``, ``sd``  validation data (n, ...) and their predictions; ``sd`` broadcasts.  For a roll-out, one
    call a step, whose data are trajectories.

    Raises ``ValueError`` for too few data: level 0.9 needs n >= 9.
    """
    if by not in get_args(By):
        raise ValueError(f"by is one of {', '.join(get_args(By))}, got {by!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; try 0.9")
    scores = _scores(truth, mean, sd)
    n = len(scores)
    rank = math.ceil((n + 1) * level - 1e-9)
    if rank > n:
        least = math.ceil(level / (1 - level) - 1e-9)
        raise ValueError(f"level {level:g} needs at least {least} validation data, got {n}; give more, or ask for less")
    if by == "pixel":
        factor = np.sort(scores, axis=0)[rank - 1]
    elif by == "whole":
        factor = np.sort(scores.reshape(n, -1).max(1))[rank - 1]
    else:
        # Missed pixels allowed in all n data together: n R(q) <= (n + 1) alpha - 1 fields.
        flat = np.sort(scores.reshape(-1))
        per_field = flat.size // n
        allowed = math.floor(((n + 1) * (1 - level) - 1) * per_field + 1e-9)
        factor = flat[flat.size - 1 - allowed]
    return Conformal(np.asarray(factor), level, by, n)


def interval(mean: Any, sd: Any, level: float | Conformal = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the predictive interval of each pixel: of the Normal law at a level, or a :class:`Conformal` one."""
    if isinstance(level, Conformal):
        factor = level.factor
    else:
        from scipy.stats import norm

        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}; try 0.9")
        factor = np.asarray(norm.ppf(0.5 + level / 2))
    half = factor * np.asarray(sd, np.float64)
    return np.asarray(mean, np.float64) - half, np.asarray(mean, np.float64) + half


def coverage(
    truth: Num[np.ndarray, "n ..."], mean: Any, sd: Any, level: float | Conformal = 0.9
) -> Float[np.ndarray, " n"]:
    """Share of the pixels of each datum that lie in their interval."""
    low, high = interval(mean, sd, level)
    y = np.asarray(truth, np.float64)
    return ((low <= y) & (y <= high)).reshape(len(y), -1).mean(1)


def _scores(truth: Any, mean: Any, sd: Any) -> np.ndarray:
    y, m = np.asarray(truth, np.float64), np.asarray(mean, np.float64)
    if y.shape != m.shape or not len(y):
        raise ValueError(f"truth and mean must have one shape (n, ...), got {y.shape} and {m.shape}")
    s = np.broadcast_to(np.asarray(sd, np.float64), y.shape)
    if not (s > 0).all() or not np.isfinite(m).all():
        raise ValueError("sd must be positive and mean finite: the prediction itself is broken")
    return np.abs(y - m) / s
