"""What the command line says about one predictor: the verdict, the table, and files on request."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pandas as pd

from inference.coherence._symbols import check_context, match_context, symbols_of
from inference.coherence.paths import fitting_context
from inference.coherence.report import Coherence, coherence, published
from ppl_models.program import HostPredictor, Predictor

LARGEST = 1e9
"""Of a symbol: symbols are counted by int32 or measured by float32."""
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
FREQUENCIES = (0.3, 0.5, 0.7)


def symbols_fitting(predictor: Predictor | HostPredictor, contexts: np.ndarray, steps: int = 0) -> int | None:
    """Number K of symbols that a predictor speaks of, ``None`` for real ones.

    Raises ``ValueError`` where the contexts (contexts, n) hold others, or are too long for ``steps`` more.
    """
    if not isinstance(predictor, HostPredictor):
        return fitting_context(predictor, contexts, ndim=2, ahead=steps)[1].K
    K = symbols_of(tuple(predictor.names))
    match_context(check_context(contexts, "contexts", ndim=2), K)
    return K


def default_contexts(predictor: Predictor | HostPredictor, contexts: int, n: int, seed: int) -> np.ndarray:
    """Contexts (contexts, n) for a check: binary symbols of frequency .3, .5, .7 in turn; K symbols of frequencies
    uniform on the simplex; real ones of unit variance about -1, 0, 1 in turn.
    """
    rng = np.random.default_rng(seed)
    turn = np.arange(contexts) % 3
    K = symbols_fitting(predictor, np.zeros((1, n), np.int32))
    if K is None:
        return rng.normal(turn[:, None] - 1.0, 1.0, (contexts, n)).astype(np.float32)
    if K == 2:
        return (rng.random((contexts, n)) < np.asarray(FREQUENCIES)[turn][:, None]).astype(np.int32)
    return np.stack([rng.choice(K, n, p=rng.dirichlet(np.ones(K))) for _ in range(contexts)]).astype(np.int32)


def parse_context(text: str) -> np.ndarray:
    """A context written as digits, ``"0110"``, or as numbers between commas, ``"0.3,-1.2"``.

    >>> parse_context("0110").tolist()
    [0, 1, 1, 0]
    """
    parts = [part.strip() for part in text.split(",") if part.strip()] if "," in text else list(text.strip())
    if not all(_NUMBER.fullmatch(part) for part in parts):
        raise ValueError(f"a context is digits ('0110') or numbers between commas ('0.3,-1.2'), got {text!r}")
    values = [float(part) for part in parts]
    if not all(abs(value) <= LARGEST for value in values):
        raise ValueError(f"a context holds numbers of at most {LARGEST:g}, got {text!r}")
    return check_context(np.asarray([int(v) for v in values] if all(v == int(v) for v in values) else values))


def _write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; a name that exists is a whole file."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        table.to_csv(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def coherence_command(
    predictor: Predictor | HostPredictor,
    *,
    label: str,
    context: str | None = None,
    contexts: int = 20,
    n: int = 20,
    steps: int = 40,
    paths: int = 100,
    depth: int | None = None,
    method: Literal["calibrated", "falck2024", "both"] = "calibrated",
    seed: int = 0,
    out: Path | None = None,
) -> Coherence | None:
    """Check one predictor and print what was found.

    ``label``     what to call it.
    ``context``   one context, written as in :func:`parse_context`; else ``contexts`` of ``n`` symbols are drawn.
    ``steps``     symbols a path; ``paths`` paths a context.
    ``depth``     of the exact tree (finite symbols); 0 leaves it out.
    ``method``    the calibrated tests, the published T1-T3, or both.
    ``out``       folder for ``coherence.csv`` (summary), ``contexts.csv`` and, if asked for, ``falck2024.csv``.
    """
    if method not in ("calibrated", "falck2024", "both"):
        raise ValueError(f"method must be 'calibrated', 'falck2024' or 'both', got {method!r}")
    if contexts < 1 or n < 0:
        raise ValueError(f"contexts must be at least 1 and n at least 0, got {contexts} and {n}")
    if context is None:
        given = default_contexts(predictor, contexts, n, seed)
    else:
        given = parse_context(context)[None]
    key, reference_key = jax.random.split(jax.random.key(seed))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    print(f"{label}: {len(given)} context(s) of {given.shape[1]} symbols, {paths} paths of {steps} steps")
    found = None
    if method != "falck2024":
        found = coherence(predictor, given, key=key, steps=steps, paths=paths, depth=depth)
        print(f"\n{found.verdict}\n")
        shown = found.summary.drop(columns="meaning")
        print(shown.to_string(float_format=lambda v: f"{v:.3g}", na_rep=""))
        print("\n" + "\n".join(f"{name}: {m}" for name, m in found.summary["meaning"].items()))
        if out is not None:
            _write(found.summary, out / "coherence.csv")
            _write(found.contexts, out / "contexts.csv")
    if method != "calibrated":
        table = published(predictor, given, key=reference_key, steps=steps, paths=paths)
        share = table.groupby("statistic", sort=False)[["inside"]].mean()
        share["value, mean"] = table.groupby("statistic", sort=False)["value"].mean()
        print("\nPublished tests: share of contexts inside the 95 % band of the reference Bayes model")
        print(share.to_string(float_format=lambda v: f"{v:.3g}", na_rep="undefined"))
        if out is not None:
            _write(table, out / "falck2024.csv")
    return found
