"""A rule, or a fitted model, watched over a stream: each symbol or row is scored before it is learnt from.

    log loss   -log p(z_t | past), nats; its running mean with a confidence sequence, and the entropy of the forecast
    PIT        u_t = F(z_t - | past) + v_t p(z_t | past), v_t uniform: independent uniforms if every forecast is right

(Dawid, JRSS-A 147, 1984; Czado, Gneiting, Held, Biometrics 65, 2009.)  That the PITs are uniform and independent is
tested by betting, so that the stream may be read at every step: payoffs 2u - 1 (too high or low), 6u^2 - 6u + 1 (too
wide or narrow) and (2u_t - 1)(2u_{t-1} - 1) (they follow each other), each of mean zero, see
:mod:`inference.coherence.betting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key, Num

from inference.coherence._call import call
from inference.coherence._symbols import match_context, outcomes, probabilities
from inference.coherence.betting import log_wealth
from inference.coherence.confidence import confidence_sequence
from inference.coherence.paths import fitting_context
from ppl_models.program import Predictor


def _along(predictor: Predictor, context: Array, z: Array, v: Array) -> tuple[Array, Array]:
    def step(state: Any, item: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        z, v = item
        fn = predictor.predict(state)
        K = outcomes(fn)
        if K is not None:
            p = probabilities(fn)
            below = jnp.where(jnp.arange(K) < z, p, 0.0).sum()
            return predictor.update(state, z), (jnp.log(p[z]), below + v * p[z])
        log_p = fn.log_prob(z)
        u = fn.cdf(z - 1) + v * jnp.exp(log_p) if fn.is_discrete else fn.cdf(z)
        return predictor.update(state, z), (log_p, u)

    return jax.lax.scan(step, predictor.init(context), (z, v))[1]


def prequential(predictor: Predictor, z: Any, *, key: Key[Array, ""], context: Any = ()) -> pd.DataFrame:
    """Score a stream z_1..z_T one symbol after another: a frame with ``log_p`` (nats) and ``pit``, one row a symbol.

    ``context``  symbols read before, not scored.  ``key`` draws the v_t of the PIT of symbols and counts.

    For exact Bayes the sum of ``log_p`` is the log evidence of the stream.  Raises ``ValueError`` for symbols that the
    rule does not know.

    >>> frame = prequential(BetaBernoulli(), np.array([0, 1, 1]), key=jax.random.key(0))
    >>> float(np.exp(frame["log_p"].sum()))  # B(3, 2) / B(1, 1) = 1/12
    0.0833...
    """
    context, fn = fitting_context(predictor, np.asarray(context), ahead=len(np.atleast_1d(z)), rows=True)
    z = np.asarray(z)
    if z.ndim != 1 or not len(z) or not np.isfinite(np.asarray(z, float)).all():
        raise ValueError(f"z must hold one or more finite symbols, one axis, got shape {z.shape}; drop missing ones")
    v = np.asarray(jax.random.uniform(key, (len(z),)))
    log_p, pit = call(_along, predictor, context, match_context(z, fn.K), v)
    index = pd.RangeIndex(1, len(z) + 1, name="t")
    return pd.DataFrame({"log_p": np.asarray(log_p, float), "pit": np.asarray(pit, float)}, index=index)


def prequential_rows(
    log_p: Any,
    rows: Num[np.ndarray, "n column"] | pd.DataFrame,
    draws: Num[np.ndarray, "*draw_and_row"],
    *,
    key: Key[Array, ""],
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The same frame for the rows of a table, in the order in which they came: ``log_p`` and a PIT for each column.

    ``log_p``  log p(row | fitted model), nats: ``evidence(fit, rows)`` or its column ``log_px``.
    ``rows``   stored numbers, (n, column); a missing entry is NaN, and so is its PIT.
    ``draws``  rows drawn from the same model: (draw, column) from its prior, as ``program.model(size=...)`` under a
               seed gives them; or (draw, n, column) where each row has its own law (given inputs).

    ``pit = (#{draws < x} + v (1 + #{draws = x})) / (draws + 1)``, which is uniform for any number of draws, ties
    included, if the row comes from where the draws do.

    >>> drawn = numpyro.infer.Predictive(fit.model, num_samples=1)(key, size=1000)["x"][0]
    >>> frame = prequential_rows(inference.evidence(fit, rows, key=key), rows, drawn, key=key)
    >>> watch(frame).attrs["alarm"] is None
    True
    """
    if names is None and isinstance(rows, pd.DataFrame):
        names = [str(name) for name in rows.columns]
    x, drawn = np.asarray(rows, np.float64), np.asarray(draws, np.float64)
    log_p = np.asarray(log_p["log_px"] if isinstance(log_p, pd.DataFrame) else log_p, np.float64)
    if x.ndim != 2 or log_p.shape != x.shape[:1]:
        raise ValueError(f"rows must have shape (n, column) and log_p one value a row, got {x.shape} and {log_p.shape}")
    if drawn.shape not in ((len(drawn), x.shape[1]), (len(drawn), *x.shape)):
        raise ValueError(
            f"draws must have shape (draw, {x.shape[1]}) or (draw, {len(x)}, {x.shape[1]}), got {drawn.shape}"
        )
    if drawn.ndim == 2:
        drawn = drawn[:, None]
    below, same = (np.zeros(x.shape) for _ in range(2))
    for one in drawn:  # (draw, n, column) at once would be the largest array of all
        below += one < x
        same += one == x
    v = np.asarray(jax.random.uniform(key, x.shape))
    pit = np.where(np.isnan(x), np.nan, (below + v * (1 + same)) / (len(drawn) + 1))
    names = [f"column {j}" for j in range(x.shape[1])] if names is None else list(names)
    columns = {"log_p": log_p} | {f"pit {name}": pit[:, j] for j, name in enumerate(names)}
    return pd.DataFrame(columns, index=pd.RangeIndex(1, len(x) + 1, name="t"))


def pit_payoffs(pit: Float[np.ndarray, " step"]) -> Float[np.ndarray, "step bet"]:
    """Bets against uniform, independent PITs of one stream; a missing one pays nothing."""
    u = np.where(np.isnan(pit), 0.5, pit)
    there = ~np.isnan(pit)
    place = np.where(there, 2 * u - 1, 0.0)
    spread = np.where(there, 6 * u**2 - 6 * u + 1, 0.0)
    after = place * np.concatenate([[0.0], place[:-1]])
    # The spread payoff lies in [-1/2, 1]: its two signs have largest losses 1/2 and 1.
    return np.stack([place, -place, 2 * spread, -spread, after, -after], -1)


def watch(
    frame: pd.DataFrame,
    *,
    bounds: tuple[float | int, float | int] | None = None,
    level: float = 0.95,
    best_at: int = 200,
) -> pd.DataFrame:
    """What may be said of a stream at every step: log loss with its confidence sequence, and evidence against the PITs.

    ``frame``   of :func:`prequential` or :func:`prequential_rows`.
    ``bounds``  of the log loss, where it has any (a rule whose probabilities stay above e: ``(0, -log e)``): the
                interval is then exact, else asymptotic.  ``level`` and ``best_at`` as in :func:`confidence_sequence`.

    Columns ``log_loss``, ``mean``, ``lower``, ``upper`` (nats), and for each column of PITs ``log_e ...``, the log
    wealth of bets against it.  ``log_e`` is that of all together, their average.  Alarm where it reaches
    ``-log(1 - level)``, at any time: of a right model this ever happens with a chance of at most 1 - level;
    ``attrs["alarm"]`` is the first such t, or ``None``.
    """
    pits = [name for name in frame.columns if str(name).startswith("pit")]
    if "log_p" not in frame.columns or not pits:
        raise ValueError(
            f"expected a frame of prequential or prequential_rows, with log_p and pit, got {list(frame.columns)}"
        )
    loss = -frame["log_p"].to_numpy()
    found = confidence_sequence(loss, bounds=bounds, level=level, best_at=best_at)
    made: dict[str, Any] = {"log_loss": loss} | {name: found[name].to_numpy() for name in found}
    each = {}
    for name in pits:
        values = frame[name].to_numpy(float)
        if ((values < -1e-6) | (values > 1 + 1e-6)).any():
            raise ValueError(f"{name!r} must lie in [0, 1], got {np.nanmin(values):g} to {np.nanmax(values):g}")
        each[name.replace("pit", "log_e", 1)] = log_wealth(pit_payoffs(np.clip(values, 0.0, 1.0)))
    if len(pits) > 1:
        made |= each
    made["log_e"] = np.logaddexp.reduce(list(each.values())) - np.log(len(each))
    table = pd.DataFrame(made, index=frame.index)
    reached = made["log_e"] >= -np.log1p(-level)
    table.attrs.update(
        level=level, kind=found.attrs["kind"], alarm=int(reached.argmax()) + 1 if reached.any() else None
    )
    return table
