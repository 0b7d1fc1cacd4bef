"""Posteriors with reference draws: eight of posteriordb (Magnusson et al. 2024, arXiv 2407.04967).

``posteriordb_small.npz`` on the search path holds, for each posterior, the data of its Stan program and 10 chains of
1,000 thinned draws that passed posteriordb's own checks (largest R-hat 1.0009, least bulk ESS 9,240 of 10,000), so the
Monte Carlo error of a reference mean is about a hundredth of its standard deviation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ppl_models.datasets import npz
from ppl_models.datasets.locate import DATA_VARIABLE, find_npz, missing, places, verify_once

FILE = "posteriordb_small"
POSTERIORS = (
    "eight_schools_noncentered", "kidscore_momiq", "arK", "gp_regr", "garch11", "hmm_example", "low_dim_gauss_mix",
    "nes",
)  # fmt: skip
SHA256 = "99c601f9ba28b2a72e9a3c0ed355a6e8166819528a439b125a5f3503892b486c"


@dataclass(frozen=True)
class ReferencePosterior:
    """Data of a Stan program, and draws from its posterior.

    ``names``  of the p parameters, as Stan writes them: ``beta[1]``.
    ``draws``  (chain, draw, p) float32, the order that ArviZ reads.
    ``data``   the fields of the data block by name, as stored.
    """

    name: str
    names: tuple[str, ...]
    draws: Float[np.ndarray, "chain draw p"]
    data: Mapping[str, np.ndarray]


def reference_posterior(name: str, *, root: str | os.PathLike[str] | None = None) -> ReferencePosterior:
    """Read one of :data:`POSTERIORS`; ``root`` is searched before ``PPL_MODELS_DATA`` and the user cache.

    Raises ``ValueError`` for an unknown name and for a file that is torn or holds something else, and
    :class:`DataMissingError` where the file is not on this machine.  Never downloads.

    >>> found = reference_posterior("kidscore_momiq")
    >>> found.names, found.draws.shape
    (('beta[1]', 'beta[2]', 'sigma'), (10, 1000, 3))
    """
    if name not in POSTERIORS:
        raise ValueError(f"unknown reference posterior {name!r}; known: {', '.join(POSTERIORS)}")
    path = find_npz(FILE, root)
    if path is None:
        way = f"put {FILE}.npz into a directory and set {DATA_VARIABLE} to that directory"
        raise missing(FILE, (way,), places(FILE, root))
    verify_once(path, {"the file": SHA256}, lambda: {"the file": _sum(path)}, "copy it again")
    data = {key: key.removeprefix(f"{name}__data__") for key in npz.headers(path) if key.startswith(f"{name}__data__")}
    draws, names, *fields = npz.read_arrays(path, (f"{name}__draws", f"{name}__names", *data)).values()
    return ReferencePosterior(
        name, tuple(map(str, names)), np.ascontiguousarray(draws.transpose(0, 2, 1)),
        dict(zip(data.values(), fields, strict=True)),
    )  # fmt: skip


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
