"""Held-out evidence of every datum: an importance-weighted estimate of log p(x), with what it takes to believe it.

    log p(x) ~ log (1/S) sum_s w_s,   w_s = p(x, z_s) / q(z_s | x),   z_s ~ q(z | x)

The average weight is unbiased for p(x), so the estimate is a lower bound of log p(x) in expectation, tighter with
more particles (Burda, Grosse & Salakhutdinov 2016, "Importance weighted autoencoders", eq. 8); its mean log weight is
the ELBO.  All values are natural logarithms (nats) of a density or mass of one datum, of the data as the program's
``observation`` line describes them: tables with different lines cannot be compared.
"""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from inference.checking.per_datum import check_count, check_key, compiled, draw_one, pairs_at_once, prepare_one, sweep
from inference.checking.psis import pareto_k
from inference.fitting.folder import write_text
from inference.fitting.sources import stored
from ppl_models.program import rows, take

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("datum", "x_crc", "log_px", "se", "elbo", "ess", "khat")
ATTRIBUTES = ("observation", "particles", "dims", "bits_offset", "estimator")


def evidence(
    fit: Any, x: Any, *, particles: int = 512, key: jax.Array, chunk: int | None = None, progress: bool = True
) -> pd.DataFrame:
    """Table of log p(x) and its reliability, one row a datum of the stored data ``x`` (n, *shape).

    ==========  ======  ==========================================================================================
    column      unit    meaning
    ==========  ======  ==========================================================================================
    ``datum``           row of ``x``
    ``x_crc``           CRC-32 of the stored datum's bytes: two tables scored the same data if these agree
    ``log_px``  nats    log of the average importance weight
    ``se``      nats    its Monte Carlo standard error (delta method: sd(w) / (sqrt(S) mean(w)))
    ``elbo``    nats    average log weight, at most ``log_px``; the gap is what the posterior loses
    ``ess``     draws   effective sample size (sum w)^2 / sum w^2, of ``particles``
    ``khat``            Pareto shape of the weights; above 0.7 do not trust the row, above 0.5 with care
    ==========  ======  ==========================================================================================

    A program without latents, or with its own ``log_prob``, is scored exactly: ``se`` is 0; ``elbo``, ``ess`` and
    ``khat`` are nan; ``attrs["estimator"]`` is ``"exact"`` instead of ``"importance"``.  ``attrs`` further hold
    ``observation``, ``particles``, and what :func:`bits_per_dim` needs: ``dims`` (numbers in a datum), ``bits_offset``.

    ``fit``       what :func:`inference.fit` returns: anything with ``program``, ``params`` and ``mutable``.
    ``particles`` S, at least 2; k-hat needs 25 and is worth reading from a few hundred on.
    ``chunk``     (datum, particle) pairs evaluated at once: lower it if memory runs out.  It does not change the
                  numbers beyond float rounding, for every pair has a key of its own; nor do later rows of ``x``.

    Raises ``ValueError`` before any work for data the program cannot score and for arguments out of range.  Rows
    whose estimate is not finite stay in the table and are reported by one ``RuntimeWarning``.

    >>> table = evidence(fit, x_test, particles=512, key=jax.random.key(0))
    >>> table.log_px.mean(), (table.khat > 0.7).mean()
    """
    check_count("particles", particles, 2)
    check_key(key)
    program = fit.program
    pairs = pairs_at_once(program, chunk)
    x = stored(program, x)
    exact = program.exact.log_prob is not None or not program.latents
    if exact:
        log_px = _log_weights(fit, x, 1, key, pairs, progress)[:, 0].astype(np.float64)
        values = _exactly(log_px)
    else:
        values = summarise(_log_weights(fit, x, particles, key, pairs, progress))
    table = _table(program, x, values, particles=int(particles), estimator="exact" if exact else "importance")
    bad = np.flatnonzero(~np.isfinite(table["log_px"].to_numpy()))
    if bad.size:
        warnings.warn(
            f"log p(x) is not finite for {bad.size} of {len(table)} data (first: row {bad[0]}, "
            f"{table['log_px'].iloc[bad[0]]}); the model gives them no probability or overflows - look at these rows "
            "before using the table",
            RuntimeWarning,
            stacklevel=2,
        )
    return table


def exact_table(program: Any, x: Any, log_px: np.ndarray) -> pd.DataFrame:
    """The table of :func:`evidence` for a log p(x) known without error, of the data as ``program`` scores them.

    ``x`` the stored data (n, *shape), ``log_px`` nats, (n,).  For scores from elsewhere: another library's density, a
    closed form.  Raises ``ValueError`` unless there is one value a datum.
    """
    x, log_px = stored(program, x), np.asarray(log_px, np.float64)
    if log_px.shape != (rows(x),):
        raise ValueError(f"log_px has shape {log_px.shape}, expected ({rows(x)},): one value for each datum of x")
    return _table(program, x, _exactly(log_px), particles=0, estimator="exact")


def _exactly(log_px: np.ndarray) -> dict[str, np.ndarray]:
    blank = np.full(len(log_px), np.nan)
    return {"log_px": log_px, "se": np.zeros(len(log_px)), "elbo": blank, "ess": blank, "khat": blank}


def _table(program: Any, x: Any, values: Mapping[str, np.ndarray], *, particles: int, estimator: str) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame({"datum": np.arange(rows(x)), "x_crc": checksums(x), **values})
    table.attrs = {
        "observation": program.observation.line,
        "particles": particles,
        "dims": math.prod(program.scored_shape),
        "bits_offset": program.observation.bits_offset,
        "estimator": estimator,
    }
    return table


def checksums(x: Any) -> np.ndarray:
    """CRC-32 of each stored datum (n,), its arrays one after another: whether two tables hold the same data."""
    arrays = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(x)]
    found = np.zeros(rows(x), np.int64)
    for i in range(len(found)):
        for array in arrays:
            found[i] = zlib.crc32(array[i].tobytes(), int(found[i]))
    return found


def bits_per_dim(table: pd.DataFrame) -> float:
    """Mean code length of a stored number in bits, -mean log2 p(x) / D + bits_offset; nan where the score is none.

    Lower is better.  Only a probability mass, or a density of dequantised data, is a code length: see
    ``Program.observation.bits_offset``.
    """
    offset = table.attrs["bits_offset"]
    if offset is None:
        return math.nan
    return -float(table["log_px"].mean()) / (table.attrs["dims"] * math.log(2)) + offset


def summarise(log_weight: np.ndarray) -> dict[str, np.ndarray]:
    """Columns ``log_px, se, elbo, ess, khat`` from log weights (data, particles), in double precision."""
    particles = log_weight.shape[1]
    parts = []
    for start in range(0, len(log_weight), 4096):
        rows = log_weight[start : start + 4096].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            top = rows.max(axis=1)
            weight = np.exp(rows - np.where(np.isfinite(top), top, 0.0)[:, None])
            mean, square = weight.mean(axis=1), (weight**2).mean(axis=1)
            part = {
                "log_px": np.where(np.isfinite(top), top, 0.0) + np.log(mean),
                "se": weight.std(axis=1, ddof=1) / (np.sqrt(particles) * mean),
                "elbo": rows.mean(axis=1),
                "ess": particles * mean**2 / square,
            }
        part["khat"] = pareto_k(log_weight[start : start + 4096].T)
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _log_weights(fit: Any, x: Any, draws: int, key: jax.Array, pairs: int, progress: bool) -> np.ndarray:
    """Log weights (data, draws); for a program with ``log_prob``, its exact value in every draw."""
    program = fit.program

    def one(params: Any, mutable: Any, key: jax.Array, x: Any, datum: jax.Array, index: jax.Array) -> jax.Array:
        x = prepare_one(program, key, x, datum)
        if program.exact.log_prob is not None:
            return jnp.broadcast_to(program.exact.log_prob(params, jax.random.fold_in(key, datum), x)[0], index.shape)
        return jax.vmap(lambda i: draw_one(program, params, mutable, key, x, datum, i).log_weight[0])(index)

    kernel = compiled(jax.vmap(one, in_axes=(None, None, None, 0, 0, None)))
    out = np.empty((rows(x), draws), np.float32)
    blocks = sweep(
        lambda datum, index: kernel(fit.params, fit.mutable, key, take(x, datum), datum, index),
        rows(x), draws, pairs, what="evidence", progress=progress,
    )  # fmt: skip
    for index, columns, values in blocks:
        out[index, columns] = values
    return out


def save_evidence(table: pd.DataFrame, folder: str | Path) -> Path:
    """Write ``evidence.csv`` and its description ``evidence.json`` into an existing folder; return the CSV's path.

    Floats are written so that they read back bit for bit.  Each file replaces an older one in one step.
    """
    check_table(table, "table")
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; create it first")
    texts = {
        "evidence.json": json.dumps({name: table.attrs[name] for name in ATTRIBUTES}, indent=2) + "\n",
        "evidence.csv": table.to_csv(index=False, na_rep="nan"),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / "evidence.csv"


def read_evidence(folder: str | Path) -> pd.DataFrame:
    """Read back what :func:`save_evidence` wrote, ``attrs`` included.

    Raises ``ValueError`` if a file is missing, torn, or not an evidence table.
    """
    import pandas as pd

    folder = Path(folder)
    for name in ("evidence.csv", "evidence.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; write both with save_evidence(evidence(fit, x, ...), folder)")
    try:
        # Python's own float() is exact; which parser of pandas is, depends on its version.
        table = pd.read_csv(folder / "evidence.csv", converters=dict.fromkeys(COLUMNS[2:], float))
        table.attrs = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    except ValueError as error:  # pandas' parser errors and JSON's are both ValueErrors
        raise ValueError(f"the evidence in {folder} cannot be read ({error}); compute it again") from error
    check_table(table, f"{folder / 'evidence.csv'}")
    return table


def check_table(table: Any, what: str) -> None:
    """Raise ``ValueError`` unless ``table`` has the columns and attrs of :func:`evidence`."""
    missing = [name for name in COLUMNS if name not in getattr(table, "columns", ())]
    if missing:
        raise ValueError(f"{what} is not an evidence table: column(s) {', '.join(missing)} missing; see evidence()")
    lost = [name for name in ATTRIBUTES if name not in table.attrs]
    if lost:
        raise ValueError(
            f"{what} has lost its description (attrs {', '.join(lost)}); read it with read_evidence(folder), and keep "
            "table.attrs when making a new table from it"
        )
