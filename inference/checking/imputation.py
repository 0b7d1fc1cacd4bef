"""Missing entries of the rows of a table, drawn from what is there: p(x_missing | x_there).

    z_k ~ m(z) = q(z | x_there) / 2 + p(z) / 2,   w_k = p(x_there, z_k) / m(z_k),   x_k ~ p(x_missing | z_k, x_there)

and draws are taken from the pairs (z_k, x_k) in proportion to w_k (sampling importance resampling, Rubin 1987, "The
calculation of posterior distributions by data augmentation: comment"), with one uniform number a row (systematic
resampling): the more particles, the closer to the exact conditional law.  Half of the particles come from the prior
because q of a row that lacks much is rough and may miss a mode; no weight exceeds 2 p(x_there | z_k) then (Hesterberg
1995, "Weighted average importance sampling and defensive mixture distributions").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from numpyro.handlers import seed, substitute, trace

from inference.checking.per_datum import (
    GENERATE,
    check_count,
    check_key,
    compiled,
    draw_one,
    pair_key,
    pairs_at_once,
    prepare_one,
    sweep,
)
from inference.fitting.objectives import joint_draw
from inference.fitting.sources import stored
from ppl_models.program import Column, Program, decode_frame, take

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 4 * 2**30
"""Bytes that the draws may take."""
_RESAMPLE = 1_000_003


@dataclass(frozen=True, eq=False)
class Imputation:
    """Draws of the E missing entries of a table of n rows and D columns.

    ``columns``  of the table.
    ``x``        ``there`` (n, D): its stored numbers, and where they are there.
    ``row``      ``column`` (E,): the missing entries, row by row.
    ``draws``    (S, E) stored numbers; those of one row and one s belong together.
    ``ess``      (n,) effective sample size (sum w)^2 / sum w^2 of the particles of each row, NaN where none is missing.
    ``index``    of the rows.
    """

    columns: tuple[Column, ...]
    x: Float[np.ndarray, "n D"]
    there: Bool[np.ndarray, "n D"]
    row: Int[np.ndarray, " E"]
    column: Int[np.ndarray, " E"]
    draws: Float[np.ndarray, "S E"]
    ess: Float[np.ndarray, " n"]
    index: Any

    def complete(self, s: int) -> dict[str, np.ndarray]:
        """Stored data whose missing entries are the s-th draw: one of the tables of a multiple imputation."""
        return self._with(self.draws[s])

    def estimate(self) -> Float[np.ndarray, " E"]:
        """Stored number of each missing entry: the median of its draws, of a class the most frequent one."""
        return self._quantiles((0.5,))[0]

    def filled(self) -> pd.DataFrame:
        """The columns in the units of the file, missing entries replaced by their estimates."""
        return decode_frame(self.columns, self._with(self.estimate())["x"], None, self.index)

    def frame(self, interval: float = 0.9) -> pd.DataFrame:
        """One row a missing entry, in the units of the file.

        ``index, column``   where it is.
        ``value``           its median, or its most probable class.
        ``lower``, ``upper``  of the central interval of this probability; missing for classes.
        ``probability``     of that class; NaN for numbers.

        Raises ``ValueError`` unless the interval is between 0 and 1.
        """
        import pandas as pd

        if not 0 < interval < 1:
            raise ValueError(f"interval is a probability between 0 and 1, got {interval}; try 0.9")
        cells = np.full((3, len(self.row)), None, object)
        probability = np.full(len(self.row), np.nan)
        stored_cells = self._quantiles((0.5, (1 - interval) / 2, (1 + interval) / 2))
        for d, column in enumerate(self.columns):
            mine = self.column == d
            for q in range(1 if column.values else 3):  # classes have no interval
                cells[q, mine] = pd.Series(column.decode(stored_cells[q][mine])).astype(object)
            if column.values:
                probability[mine] = (self.draws[:, mine] == stored_cells[0][mine]).mean(0)
        names = np.asarray([column.name for column in self.columns], object)
        value, lower, upper = (pd.Series(cell, dtype=object) for cell in cells)
        return pd.DataFrame(
            {
                "index": np.asarray(self.index)[self.row], "column": names[self.column], "value": value,
                "lower": lower, "upper": upper, "probability": probability,
            }
        )  # fmt: skip

    def _with(self, entries: np.ndarray) -> dict[str, np.ndarray]:
        x = self.x.copy()
        x[self.row, self.column] = entries
        return {"x": x, "there": np.ones_like(self.there)}

    def _quantiles(self, at: Sequence[float]) -> Float[np.ndarray, "Q E"]:
        """Quantiles of the draws; of classes the most frequent one, of counts values that were drawn."""
        found = np.zeros((len(at), len(self.row)), "float32")
        for d, column in enumerate(self.columns):
            mine = self.column == d
            draws = self.draws[:, mine]
            if not mine.any():
                continue
            if column.values:
                counts = np.stack([(draws == code).sum(0) for code in range(len(column.values))])
                found[:, mine] = counts.argmax(0)
            else:
                # With S exchangeable draws the k-th smallest is exceeded with probability 1 - k / (S + 1).
                found[:, mine] = np.quantile(draws, at, axis=0, method="weibull")
                if column.kind == "count":
                    found[:, mine] = np.quantile(draws, at, axis=0, method="inverted_cdf")
        return found


def impute(
    fit: Any,
    x: Any,
    *,
    draws: int = 100,
    particles: int | None = None,
    key: jax.Array,
    chunk: int | None = None,
    progress: bool = True,
) -> Imputation:
    """Draw the missing entries of the rows ``x`` of a table (stored data, or a DataFrame) from p(x_missing | x_there).

    ``draws``      S, of each missing entry.
    ``particles``  K, draws of z a row that these are taken from, half from q, half from the prior; default: 20 times
                   as many, at least 2,000.

    Whatever the fit knows is used as it is: the uncertainty is that of the entries, not of the parameters.  A row's
    draws depend on the key and its number alone.

    Raises ``ValueError`` for a program whose data are no rows of a table, whose law cannot draw missing entries
    (``sample_missing``), rows of which nothing is missing, and draws that would take more than 4 GiB.

    >>> found = impute(fit, frame, key=jax.random.key(0))
    >>> found.frame(interval=0.9), found.filled()
    """
    check_count("draws", draws, 1)
    particles = max(20 * draws, 2000) if particles is None else particles
    check_count("particles", particles, 2)
    pairs = particles // 2
    check_key(key)
    program = fit.program
    columns = program.observation.columns
    if not columns:
        raise ValueError(
            f"only entries of a table can be imputed, this program scores {program.observation.line!r}; "
            "fit one with a likelihood of columns"
        )
    index = getattr(x, "index", None)
    x = stored(program, x)
    there, values = np.asarray(x["there"], bool), np.asarray(program.scored(x), "float32")
    at, column = np.nonzero(~there)
    if not at.size:
        raise ValueError(f"nothing is missing in these {len(there):,} rows; empty the cells that are to be drawn")
    if (size := draws * at.size * 4) > LARGEST:
        raise ValueError(
            f"{draws} draws of {at.size:,} missing entries would take {size / 2**30:.1f} GiB, the limit is "
            f"{LARGEST / 2**30:.0f} GiB; take fewer draws, or pass a part of the rows"
        )
    chosen = np.unique(at)
    found = np.empty((draws, at.size), "float32")
    ess = np.full(len(there), np.nan)
    first = np.searchsorted(at, chosen)
    last = np.append(first[1:], at.size)
    waiting: list[Any] = []
    kernel = _kernel(program)
    blocks = sweep(
        lambda datum, index: kernel(
            fit.params, fit.mutable, key, take(x, chosen[datum]), chosen[datum].astype("uint32"), index
        ),
        len(chosen), pairs, pairs_at_once(program, chunk), what="missing entries", progress=progress,
    )  # fmt: skip
    for where, part, block in blocks:
        waiting.append(block)
        if part.stop < pairs:
            continue
        log_weight, drawn = (
            np.concatenate(leaves, 1).reshape(len(leaves[0]), 2 * pairs, *leaves[0].shape[3:])
            for leaves in zip(*waiting, strict=True)
        )
        waiting = []
        members = chosen[where]
        weight, picked = _resample(log_weight, key, members, draws)
        ess[members] = 1 / (weight**2).sum(1)
        for r in range(len(members)):
            entries = slice(first[where.start + r], last[where.start + r])
            found[:, entries] = drawn[r][picked[r]][:, column[entries]]
    names = np.arange(len(there)) if index is None else index
    return Imputation(columns, values, there, at, column, found, ess, names)


def _kernel(program: Program) -> Any:
    """``(params, mutable, key, x, datum, draw) -> (log weight, row)``, each with leading axes (datum, draw, 2): of one
    z from q and one from the prior."""
    site, given = program.observed[0], program.observation.given

    def one(params: Any, mutable: Any, key: jax.Array, x: Any, datum: jax.Array, index: jax.Array) -> Any:
        x = prepare_one(program, key, x, datum)
        fixed = {**params, **{name: dict(state) for name, state in (mutable or {}).items()}}

        def at(z: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Log weight of z, and a row drawn given z and what is there."""
            found = joint_draw(program, {**params, **z}, key, x, mutable=mutable)
            with trace() as sites, seed(rng_seed=key), substitute(data={**fixed, **z}):
                program.model(x)
            law = sites[site]["fn"]
            if not hasattr(law, "sample_missing"):
                raise ValueError(
                    f"the law of site {site!r}, {type(law).__name__}, cannot draw missing entries: it has no "
                    "sample_missing(key, value)"
                )
            prior, lik, q = (sum(part.values(), jnp.zeros(1)) for part in (found.log_prior, found.log_lik, found.log_q))
            mixture = jnp.logaddexp(prior, q) - math.log(2)
            return (prior + lik - mixture)[0], law.sample_missing(key, sites[site]["value"])[0]

        def draw(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            prior_key, *keys = jax.random.split(pair_key(key, GENERATE, datum, i), 3)
            own = draw_one(program, params, mutable, key, x, datum, i).latents
            with trace() as sites, seed(rng_seed=prior_key), substitute(data=fixed):
                program.model({name: x[name] for name in given}) if given else program.model(size=1)
            fresh = {name: sites[name]["value"] for name in own}
            both = [at(z, k) for z, k in zip((own, fresh), keys, strict=True)]
            return jax.tree.map(lambda *leaf: jnp.stack(leaf), *both)

        return jax.vmap(draw)(index)

    return compiled(jax.vmap(one, in_axes=(None, None, None, 0, 0, None)))


def _resample(
    log_weight: Float[np.ndarray, "R K"], key: jax.Array, members: Int[np.ndarray, " R"], draws: int
) -> tuple[Float[np.ndarray, "R K"], Int[np.ndarray, "R S"]]:
    """Normalised weights, and which particles are taken; of a row whose weights are not finite, all alike."""
    log_weight = log_weight.astype("float64")
    most = log_weight.max(1, keepdims=True)
    broken = ~np.isfinite(most[:, 0]) | np.isnan(log_weight).any(1)
    log_weight[broken], most[broken] = 0.0, 0.0
    weight = np.exp(log_weight - most)
    weight /= weight.sum(1, keepdims=True)
    each = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, _RESAMPLE), row)))
    u = np.asarray(each(jnp.asarray(members, "uint32")), "float64")
    places = (u[:, None] + np.arange(draws)) / draws
    picked = (np.cumsum(weight, 1)[:, None, :] < places[:, :, None]).sum(-1)
    return weight, np.minimum(picked, weight.shape[1] - 1)
