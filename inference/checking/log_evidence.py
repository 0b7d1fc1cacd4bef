"""Held-out evidence of every datum: an importance-weighted estimate of log p(x), with what it takes to believe it.

    log p(x) ~ log (1/S) sum_s w_s,   w_s = p(x, z_s) / q(z_s | x),   z_s ~ q(z | x)

The average weight is unbiased for p(x), so the estimate is a lower bound of log p(x) in expectation, tighter with
more particles (Burda, Grosse & Salakhutdinov 2016, "Importance weighted autoencoders", eq. 8); its mean log weight is
the ELBO.  Annealing (:mod:`inference.checking.annealing`) puts bridges between q and the posterior where q is far
from it.  All values are natural logarithms (nats) of a density or mass of one datum, of the data as the program's
``observation`` line describes them: tables with different lines cannot be compared.
"""

from __future__ import annotations

import io
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

from inference.checking.annealed_evidence import PARTICLES, annealed, settings_of
from inference.checking.log_weights import Weigher, summarise as summarise
from inference.checking.optimise import Settings
from inference.checking.per_datum import (
    check_count,
    check_key,
    checksums as checksums,
    compiled,
    locals_of,
    pairs_at_once,
    params_checksum,
    placed,
    prepare_one,
    sweep,
)
from inference.checking.psis import KHAT_BAD, SMALLEST
from inference.checking.refinement import AMORTISED, REFINED, mended, plan
from inference.fitting.folder import write_text
from inference.fitting.record import json_object
from inference.fitting.sources import stored
from ppl_models.program import rows, take

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("datum", "x_crc", "log_px", "se", "elbo", "ess", "khat", "estimator")
REFINE = ("flagged", "all", "none")
"""What ``evidence(..., refine=...)`` takes."""
ATTRIBUTES = ("observation", "particles", "dims", "bits_offset", "estimator")
OPTIONAL = ("refine", "solver", "params_crc")
"""Attributes that tables of earlier versions do not have."""
CRC = "crc"
"""In evidence.json: the CRC-32 of its other entries and of the text of evidence.csv."""


def evidence(
    fit: Any,
    x: Any,
    *,
    particles: int | None = None,
    key: jax.Array,
    chunk: int | None = None,
    refine: str = "flagged",
    method: str = "importance",
    temperatures: int = 16,
    transitions: int = 1,
    leapfrog: int = 4,
    start: str = "posterior",
    progress: bool = True,
) -> pd.DataFrame:
    """Table of log p(x) and its reliability, one row a datum of the stored data ``x`` (n, *shape).

    =============  ======  =======================================================================================
    column         unit    meaning
    =============  ======  =======================================================================================
    ``datum``              row of ``x``
    ``x_crc``              CRC-32 of the stored datum's bytes: two tables scored the same data if these agree
    ``log_px``     nats    log of the average importance weight
    ``se``         nats    its Monte Carlo standard error (delta method: sd(w) / (sqrt(S) mean(w)))
    ``elbo``       nats    average log weight, at most ``log_px``; the gap is what the posterior loses (annealed: what
                           the path loses)
    ``ess``        draws   effective sample size (sum w)^2 / sum w^2, of ``particles``
    ``khat``               Pareto shape of the weights; above 0.7 do not trust the row, above 0.5 with care
    ``estimator``          whose draws these are: the guide's, ``amortised``, or those of a posterior ``refined`` for
                           this datum; ``exact`` where there are none; ``ais`` and ``smc`` where they were annealed
    =============  ======  =======================================================================================

    A program without latents, or with its own ``log_prob``, is scored exactly: ``se`` is 0, or what the program states
    where its density is an estimate (random probes, an adaptive solver; ``attrs["solver"]`` says which); ``elbo``,
    ``ess`` and ``khat`` are nan; ``attrs["estimator"]`` is ``"exact"`` instead of ``method``.  ``attrs`` further hold
    ``observation``, ``particles``, ``refine``, ``params_crc`` (of the fit's parameters: whether a table is still
    that of a run) and what :func:`bits_per_dim` needs: ``dims`` (numbers in a datum), ``bits_offset``.

    ``fit``       what :func:`inference.fit` returns: anything with ``program``, ``params`` and ``mutable``; or what
                  :func:`inference.refine` returned for these data, whose posteriors are then used as they are.
    ``particles`` S, at least 2, by default 512, of annealing 64 chains; k-hat needs 25 and is worth reading from a few
                  hundred on.
    ``chunk``     (datum, particle) pairs evaluated at once: lower it if memory runs out.  It does not change the
                  numbers beyond float rounding, for every pair has a key of its own; nor do later rows of ``x``.
    ``refine``    the rows whose posterior is optimised for that datum (:func:`inference.refine` with its defaults):
                  ``"flagged"``, those whose k-hat exceeds 0.7; ``"all"``; ``"none"``.  Pilot draws decide whether a
                  row is better for it, the draws reported are fresh; a row that is not stays as it was, flagged.
                  A refined row's ``elbo`` is that of its refined posterior.  An annealed row starts there.
    ``method``    ``"importance"``; ``"ais"``, annealed importance sampling with Hamiltonian transitions (Neal 2001); or
                  ``"smc"``, the same with resampling (Del Moral, Doucet & Jasra 2006).  For rows that no q fits, at
                  about ``2 temperatures x transitions x leapfrog`` times the cost of a draw.
    ``temperatures``, ``transitions``, ``leapfrog``   steps from the start to p(z | x), Hamiltonian transitions at each,
                  leapfrog steps in each.  Step sizes and temperatures are found by pilot chains.
    ``start``     of the path: ``"posterior"``, q(z | x), or ``"prior"``, which is much further away, and owes nothing
                  to the guide but its coordinates.  Chains from q may never reach a mode that q does not know.

    Raises ``ValueError`` before any work for data the program cannot score, for arguments out of range, and for
    annealing with a latent whose posterior has no map from noise (discrete, or a mixture).  Rows
    whose estimate is not finite stay in the table and are reported by one ``RuntimeWarning``.

    >>> table = evidence(fit, x_test, particles=512, key=jax.random.key(0))
    >>> table.log_px.mean(), (table.khat > 0.7).mean(), (table.estimator == "refined").mean()
    """
    settings = settings_of(method, temperatures, transitions, leapfrog, start)
    particles = PARTICLES[method] if particles is None else particles
    check_count("particles", particles, 2)
    check_key(key)
    if refine not in REFINE:
        raise ValueError(f"refine must be one of {', '.join(REFINE)}, got {refine!r}")
    program = fit.program
    pairs = pairs_at_once(program, chunk)
    x = stored(program, x)
    exact = program.exact.log_prob is not None or not program.latents
    if exact:
        log_px, se, work = _exact_log_px(fit, x, key, pairs, progress)
        values = _exactly(log_px, se)
    elif method != "importance":
        values = annealed(
            fit, x, settings, method, refine=refine, particles=particles, key=key, pairs=pairs, progress=progress
        )
    else:
        local = locals_of(fit, x)
        weigh = Weigher(fit, pairs, progress=progress, kernel=None if local is None else fit.kernel)
        values = weigh.summary(x, particles, key, local=local)
        estimator = np.full(rows(x), AMORTISED, object) if local is None else fit.estimators(x)
        if local is None and refine != "none":
            at, fresh = _mend(fit, x, values, refine, particles=particles, key=key, pairs=pairs, progress=progress)
            estimator[at] = REFINED
            for name, column in fresh.items():
                values[name][at] = column
        values = {**values, "estimator": estimator}
    table = _table(program, x, values, particles=int(particles), estimator="exact" if exact else method)
    if not exact:
        table.attrs["refine"] = refine if locals_of(fit, x) is None else "all"
    if program.exact.solver:
        table.attrs["solver"] = program.exact.solver + work if exact else program.exact.solver
    table.attrs["params_crc"] = params_checksum(fit)
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


def _mend(
    fit: Any, x: Any, values: Mapping[str, np.ndarray], which: str, *, particles: int, key: Any, pairs: int,
    progress: bool,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
    """The rows that refinement made better, and their columns from fresh draws."""
    chosen = np.flatnonzero(~(values["khat"] <= KHAT_BAD) & np.isfinite(values["log_px"]))
    if which == "all":
        chosen = np.arange(rows(x))
    parts = plan(fit, x) if chosen.size and particles >= SMALLEST else None
    if parts is None or not parts.size:
        return np.arange(0), {}
    part, before = take(x, chosen), {name: column[chosen] for name, column in values.items()}
    weigh = Weigher(fit, pairs, progress=progress, what="evidence of refined posteriors")
    found = mended(
        weigh, part, chosen, parts, Settings(), before=before, particles=particles, key=key, pairs=pairs,
        progress=progress,
    )  # fmt: skip
    if not found.better.any():
        return np.arange(0), {}
    fresh = weigh.summary(part, particles, key, local=found.local, index=chosen)
    return chosen[found.better], {name: column[found.better] for name, column in fresh.items()}


def exact_table(program: Any, x: Any, log_px: np.ndarray) -> pd.DataFrame:
    """The table of :func:`evidence` for a log p(x) known without error, of the data as ``program`` scores them.

    ``x`` the stored data (n, *shape), ``log_px`` nats, (n,).  For scores from elsewhere: another library's density, a
    closed form.  Raises ``ValueError`` unless there is one value a datum.
    """
    x, log_px = stored(program, x), np.asarray(log_px, np.float64)
    if log_px.shape != (rows(x),):
        raise ValueError(f"log_px has shape {log_px.shape}, expected ({rows(x)},): one value for each datum of x")
    return _table(program, x, _exactly(log_px), particles=0, estimator="exact")


def _exactly(log_px: np.ndarray, se: np.ndarray | None = None) -> dict[str, np.ndarray]:
    blank, how = np.full(len(log_px), np.nan), np.full(len(log_px), "exact", object)
    se = np.zeros(len(log_px)) if se is None else se
    return {"log_px": log_px, "se": se, "elbo": blank, "ess": blank, "khat": blank, "estimator": how}


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


def bits_per_dim(table: pd.DataFrame) -> float:
    """Mean code length of a stored number in bits, -mean log2 p(x) / D + bits_offset; nan where the score is none.

    Lower is better.  Only a probability mass, or a density of dequantised data, is a code length: see
    ``Program.observation.bits_offset``.
    """
    offset = table.attrs["bits_offset"]
    if offset is None:
        return math.nan
    return -float(table["log_px"].mean()) / (table.attrs["dims"] * math.log(2)) + offset


def _exact_log_px(fit: Any, x: Any, key: jax.Array, pairs: int, progress: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """log p(x) of each datum where the program knows it, or has no latents, its standard error (nats, (data,)), and
    in words what a datum took on average where the program counts it."""
    program = fit.program
    if program.exact.log_prob is None:
        log_px = Weigher(fit, pairs, progress=progress)(x, 1, key)[:, 0].astype(np.float64)
        return log_px, np.zeros(len(log_px)), ""

    def one(params: Any, key: jax.Array, x: Any, datum: jax.Array, index: jax.Array) -> Any:
        x = prepare_one(program, key, x, datum)
        found, se, work = program.exact.estimate_and_work(params, jax.random.fold_in(key, datum), x)
        whole = {"log_px": found, "se": se, **{f"work {name}": value for name, value in work.items()}}
        return {name: jnp.broadcast_to(value[0], index.shape) for name, value in whole.items()}

    kernel, out = compiled(jax.vmap(one, in_axes=(None, None, 0, 0, None))), dict[str, np.ndarray]()
    place, params, _ = placed(fit)
    key = place.store(key)
    blocks = sweep(
        lambda datum, index: kernel(params, key, *place.rows((take(x, datum), datum)), index),
        rows(x), 1, pairs, what="evidence", progress=progress, place=place,
    )  # fmt: skip
    for found, _, values in blocks:
        for name, value in values.items():
            out.setdefault(name, np.empty(rows(x)))[found] = value[:, 0]
    work = [f"{out[name].mean():.0f} {name.removeprefix('work ')}" for name in out if name.startswith("work ")]
    return out["log_px"], out["se"], f"; on average {', '.join(work)} a datum" if work else ""


def save_evidence(table: pd.DataFrame, folder: str | Path) -> Path:
    """Write ``evidence.csv`` and its description ``evidence.json`` into an existing folder; return the CSV's path.

    Floats are written so that they read back bit for bit.  Each file replaces an older one in one step, and the
    description holds the CRC-32 of both: should only one of them have been written, reading says so.
    """
    check_table(table, "table")
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; create it first")
    known = {name: table.attrs[name] for name in (*ATTRIBUTES, *OPTIONAL) if name in table.attrs}
    text = table.to_csv(index=False, na_rep="nan", lineterminator="\n")
    texts = {
        "evidence.json": json.dumps({**known, CRC: _crc(known, text)}, indent=2) + "\n",
        "evidence.csv": text,
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / "evidence.csv"


def read_evidence(folder: str | Path) -> pd.DataFrame:
    """Read back what :func:`save_evidence` wrote, ``attrs`` included.

    Raises ``ValueError`` if a file is missing, torn, not an evidence table, or not the one that was written with the
    other (a table without a checksum, of an earlier version, is taken as it is).
    """
    import pandas as pd

    folder = Path(folder)
    for name in ("evidence.csv", "evidence.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; write both with save_evidence(evidence(fit, x, ...), folder)")
    try:
        text = (folder / "evidence.csv").read_text(encoding="utf-8")
        attrs = json_object((folder / "evidence.json").read_text(encoding="utf-8"), "evidence.json", "")
        crc = attrs.pop(CRC, None)  # a version that wrote none knew no params_crc either
        if crc != _crc(attrs, text) and not (crc is None and "params_crc" not in attrs):
            raise ValueError("evidence.csv is not the table that evidence.json describes: one of them has changed")
        # Python's own float() is exact; which parser of pandas is, depends on its version.
        table = pd.read_csv(io.StringIO(text), converters=dict.fromkeys(COLUMNS[2:-1], float))
        table.attrs = attrs
        if "estimator" not in table:  # written before posteriors were refined
            table["estimator"] = "exact" if table.attrs.get("estimator") == "exact" else AMORTISED
    except ValueError as error:  # pandas' parser errors and JSON's are both ValueErrors
        raise ValueError(f"the evidence in {folder} cannot be read ({error}); compute it again") from error
    check_table(table, f"{folder / 'evidence.csv'}")
    return table


def _crc(attrs: Mapping[str, Any], text: str) -> int:
    return zlib.crc32(text.encode(), zlib.crc32(json.dumps(attrs, sort_keys=True).encode()))


def check_table(table: Any, what: str) -> None:
    """Raise ``ValueError`` unless ``table`` has the columns and attrs of :func:`evidence`."""
    missing = [name for name in COLUMNS[:-1] if name not in getattr(table, "columns", ())]
    if missing:
        raise ValueError(f"{what} is not an evidence table: column(s) {', '.join(missing)} missing; see evidence()")
    lost = [name for name in ATTRIBUTES if name not in table.attrs]
    if lost:
        raise ValueError(
            f"{what} has lost its description (attrs {', '.join(lost)}); read it with read_evidence(folder), and keep "
            "table.attrs when making a new table from it"
        )
