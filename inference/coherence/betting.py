"""Tests that may be read after every symbol: bets against coherence, whose wealth is an e-process.

A bettor starts with wealth 1 and before each draw stakes a fraction f of it on a payoff v >= -1 whose conditional mean
is not above zero under the null.  Its wealth prod_i (1 + f v_i) is then a non-negative supermartingale, so that the
chance of its ever reaching 1 / alpha is at most alpha (Ville): one may look at every step and stop when one likes.
The wealth told, E_t, is the average over bettors who differ in direction and fraction (a mixture; Shafer and Vovk,
Game-Theoretic Foundations for Probability and Finance, 2019; Ramdas, Gruenwald, Vovk, Shafer, Statist. Sci. 38, 2023;
fractions on a grid as in Waudby-Smith and Ramdas, JRSS-B 86, 2024, section 4).  Three nulls, for a stream z_1, z_2, ...
of a rule's own draws; g(z) are indicators of symbols, or of ``z <= c`` for real ones, p_t = E[g(Z_t) | past]:

    martingale  E[p_{t+1} - p_t | z_{1:t-1}] = 0           payoff x_t (p_{t+1} - p_t), over its largest loss
    draws       E[g(Z_{t+1}) - g(Z_t) | z_{1:t-1}] = 0     the same of draws, for rules that show no probabilities
    order       the stream is exchangeable                 q(z_{1:t}) / max_theta prod_i theta(z_i)

x_t in [-1, 1] is known before draw t: a constant, the last innovation, the side of 1/2, the way back to the mean so
far.  A payoff of ``draws`` takes two symbols; between the two its worst case is told, so that stopping there is allowed
too.  q is a mixture of a first-order Markov predictor and of ones that forget (Krichevsky and Trofimov's rule of each;
universal inference, Ramdas, Ruf, Larsson, Koolen, Int. J. Approx. Reasoning 141, 2022).  An exchangeable rule is a
martingale, not the other way round: ``order`` also accuses a moving average, which is none of the other two's business.

One path shows little of a slow drift, because no bet can lose more than its stake while p moves by 1/n: for those the
tests over many paths (``calibrated_tests``) or :attr:`Bets.together` have the power.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped

from inference.coherence._call import call
from inference.coherence._symbols import outcomes, probabilities
from inference.coherence.paths import fitting_context
from ppl_models.program import Predictor

FRACTIONS = (0.03, 0.1, 0.3, 0.6, 0.95)
"""Shares of the wealth that a bettor stakes."""
LEAST = 0.05
"""A payoff is divided by its largest possible loss, or by this where that is less: rounding must not be magnified."""
BLOCK = 150
"""Steps whose stakes are multiplied before a logarithm is taken: no double overflows so soon."""
MEMORIES = (10.0, 50.0)
"""Symbols after which the forgetful predictors of the order test have lost a share 1 - 1/e."""


def log_wealth(
    payoffs: Float[np.ndarray, "*stream step bet"],
    *,
    pending: Float[np.ndarray, "*stream step bet"] | None = None,
) -> Float[np.ndarray, "*stream step"]:
    """Log of ``E_t = mean_{b, f} prod_{i <= t} (1 + f v_ib)`` over bets b and fractions f of :data:`FRACTIONS`.

    ``payoffs``   v >= -1 of each bet at each step, with conditional mean <= 0 under the null; 0 where nothing is paid.
    ``pending``   the worst that a bet still open after a step can pay; counted at that step only.

    Raises ``ValueError`` for a payoff below -1 or one that is not finite.

    >>> log_wealth(np.ones((10, 1)))[-1]  # ten wins
    5.1...
    """
    return _wealth(payoffs, pending)[0]


def _wealth(payoffs: Any, pending: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """:func:`log_wealth` of each stream; and of all (the first axis) bet on side by side: the streams are independent,
    so E_t multiplies over them before it averages over bets.
    """
    payoffs = np.asarray(payoffs, np.float64)
    for values in (payoffs,) if pending is None else (payoffs, np.asarray(pending, np.float64)):
        if not np.isfinite(values).all() or (values < -1 - 1e-6).any():
            raise ValueError(
                f"payoffs must be finite and at least -1, got values from {np.nanmin(values):g} to "
                f"{np.nanmax(values):g}; divide each by the largest loss that was possible before it was known"
            )
    T = payoffs.shape[-2]
    stakes = [(b, f) for b in range(payoffs.shape[-1]) for f in FRACTIONS]
    held = np.zeros((*payoffs.shape[:-2], len(stakes)))  # log wealth of each bettor at the start of a block
    each, together = np.empty(payoffs.shape[:-1]), np.full(T, -np.inf)
    for start in range(0, T, BLOCK):
        block = slice(start, start + BLOCK)
        most = held.max(-1, keepdims=True)
        total: Any = 0.0
        for i, (b, f) in enumerate(stakes):
            before = held[..., i : i + 1].copy()
            wealth = (1 + f * payoffs[..., block, b]).cumprod(-1)
            held[..., i] += np.log(wealth[..., -1])
            if pending is not None:
                wealth = wealth * (1 + f * pending[..., block, b])
            total = total + np.exp(before - most) * wealth
            gain = (np.log(wealth) + before).sum(0) if wealth.ndim > 1 else np.log(wealth) + before
            together[block] = np.logaddexp(together[block], gain)
        each[..., block] = np.log(total) + most
    return each - np.log(len(stakes)), together - np.log(len(stakes))


def _both_ways(
    x: Float[np.ndarray, "*stream step direction"], y: Float[np.ndarray, "*stream step"], low: Any, high: Any
) -> Float[np.ndarray, "*stream step bet"]:
    """Payoffs ``+-x y`` over the largest loss, where y lies between ``-low`` and ``high``."""
    low, high = (np.maximum(a, LEAST)[..., None] for a in np.broadcast_arrays(low, high))
    up = x * y[..., None]
    return np.concatenate([up / np.where(x > 0, low, high), -up / np.where(x > 0, high, low)], -1)


def martingale_payoffs(
    g: Num[np.ndarray, "*stream step"], p: Float[np.ndarray, "*stream step_1"]
) -> Float[np.ndarray, "*stream step bet"]:
    """Bets on ``p_{t+1} - p_t`` of one feature g in [0, 1]; p its predictive means before each draw and after all."""
    g, p = np.asarray(g, np.float64), np.asarray(p, np.float64)
    now = p[..., :-1]
    innovation = (g - now) / np.maximum(np.maximum(now, 1 - now), LEAST)
    back = now.cumsum(-1) / np.arange(1, now.shape[-1] + 1) - now
    x = np.stack([np.ones_like(now), _later(innovation), 2 * now - 1, back], -1)
    return _both_ways(x, np.diff(p, axis=-1), now, 1 - now)


def draw_payoffs(g: Num[np.ndarray, "*stream step"]) -> tuple[np.ndarray, np.ndarray]:
    """Bets on ``g(Z_{t+1}) - g(Z_t)`` of one feature in [0, 1], and what they can still lose between the two draws."""
    g = np.asarray(g, np.float64)
    count = np.arange(1, g.shape[-1] + 1)
    mean, recent = _later(g.cumsum(-1) / count), _later(g) - 0.5
    for back in range(1, 5):
        recent = recent + np.where(count > back + 1, _later(g, back + 1) - 0.5, 0.0)
    x = np.stack([np.ones_like(g), _later(g) - mean, recent / 5 + 0.5 - mean], -1)
    paid, worst = [], []
    for phase in (0, 1):
        opens = ((count - 1) % 2 == phase)[:, None] & (count < g.shape[-1])[:, None]
        stake = np.where(opens, x, 0.0)
        stake[..., 0, :] = np.where(opens[0], x[..., 0, :] * [1.0, 0.0, 0.0], 0.0)  # nothing has been seen yet
        pays = _both_ways(_later(stake.swapaxes(-1, -2)).swapaxes(-1, -2), g - _later(g), 1.0, 1.0)
        up, down = stake * -g[..., None], stake * (1 - g)[..., None]
        worst.append(np.concatenate([np.minimum(up, down), np.minimum(-up, -down)], -1))
        paid.append(pays)
    return np.concatenate(paid, -1), np.concatenate(worst, -1)


def _later(values: Float[np.ndarray, "*stream step"], steps: int = 1) -> Float[np.ndarray, "*stream step"]:
    """Values of ``steps`` steps before; zeros at the start."""
    return np.concatenate([np.zeros_like(values[..., :steps]), values[..., :-steps]], -1)


def log_order(z: Int[np.ndarray, "stream step"], K: int) -> Float[np.ndarray, "stream step"]:
    """Log of ``q(z_{1:t}) / max_theta prod_i theta(z_i)`` after each symbol out of 0..K-1."""
    z = np.asarray(z)
    S, T = z.shape
    rows, keep = np.arange(S), np.exp(-1 / np.asarray(MEMORIES))
    pairs, faded, counts = np.zeros((S, K, K)), np.zeros((S, len(keep), K)), np.zeros((S, K))
    log_q, found = np.zeros((S, 1 + len(keep))), np.empty((S, T))
    for t in range(T):
        after = pairs[rows, z[:, t - 1]] if t else np.zeros((S, K))
        seen = np.concatenate([after[:, None], faded], 1) + 0.5
        log_q += np.log(seen[rows, :, z[:, t]] / seen.sum(-1))
        if t:
            pairs[rows, z[:, t - 1], z[:, t]] += 1
        faded *= keep[:, None]
        faded[rows, :, z[:, t]] += 1
        counts[rows, z[:, t]] += 1
        best = (counts * np.log(np.maximum(counts, 1) / (t + 1))).sum(-1)
        found[:, t] = np.logaddexp.reduce(log_q, -1) - np.log(log_q.shape[-1]) - best
    return found


@dataclass(frozen=True)
class Bets:
    """Wealth after every symbol of several streams of one rule.

    ``log_e``     test -> (stream, step): log E_t, nats.
    ``together``  test -> (step,): the streams bet on side by side, one null for all of them; not of ``order``.
    ``level``     alpha: an alarm is E_t >= 1 / alpha.
    """

    log_e: Mapping[str, Float[np.ndarray, "stream step"]]
    together: Mapping[str, Float[np.ndarray, " step"]]
    level: float

    def alarm(self, test: str) -> Float[np.ndarray, " stream"]:
        """Symbols read at the first alarm of each stream; NaN where there is none."""
        return first(self.log_e[test] >= -np.log(self.level))

    def p_values(self, test: str) -> Float[np.ndarray, "stream step"]:
        """``min(1, 1 / max_{i <= t} E_i)``: a p-value at every t, and at any time chosen by looking."""
        return np.exp(-np.maximum(np.maximum.accumulate(self.log_e[test], -1), 0.0))

    @property
    def table(self) -> pd.DataFrame:
        """One row a test: share of streams with an alarm, symbols read at the median alarm (of all streams; infinite
        where fewer than half have one), median log10 E at the end, and log10 E of the streams together.
        """
        rows = {}
        for test, log_e in self.log_e.items():
            alarm = self.alarm(test)
            rows[test] = {
                "alarms": float(np.isfinite(alarm).mean()),
                "median_step": float(np.median(np.where(np.isnan(alarm), np.inf, alarm))),
                "log10_e": float(np.median(log_e[:, -1])) / np.log(10),
                "log10_e_together": float(self.together[test][-1]) / np.log(10) if test in self.together else np.nan,
            }
        table = pd.DataFrame(rows).T.rename_axis("test")
        streams, steps = next(iter(self.log_e.values())).shape
        table.attrs.update(method="betting", streams=streams, steps=steps, level=self.level)
        return table


def first(reached: Bool[np.ndarray, "stream step"]) -> Float[np.ndarray, " stream"]:
    """One plus the first step where something is true; NaN where it never is."""
    return np.where(reached.any(-1), reached.argmax(-1) + 1.0, np.nan)


def bets_on(
    g: Num[np.ndarray, "stream step feature"],
    p: Float[np.ndarray, "stream step_1 feature"] | None = None,
    labels: Int[np.ndarray, "stream step"] | None = None,
    *,
    symbols: int | None = None,
    level: float = 0.05,
) -> Bets:
    """Bet on recorded streams: features g in [0, 1] of the draws, and their predictive means p where the rule has any.

    ``labels`` are symbols 0..K-1, K = ``symbols``, for the test of order; K is 2 for one feature, else that many.  All
    three come from :func:`predictive_paths` of a finite rule (``paths.g``, ``paths.p``, ``paths.z``), or from a model
    that cannot be traced.  Raises ``ValueError`` for numbers outside their range and shapes that do not fit.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}; .05 is usual")
    g = np.asarray(g, np.float64)
    for name, values in (("g", g), ("p", p)):
        if values is not None and not ((np.asarray(values) >= -1e-6) & (np.asarray(values) <= 1 + 1e-6)).all():
            raise ValueError(
                f"{name} must lie in [0, 1] to be bet on, got {np.min(values):g} to {np.max(values):g}; use indicators "
                "of symbols, or of z <= c for a few fixed c"
            )
    if g.ndim != 3 or g.shape[1] < 2:
        raise ValueError(f"g must have shape (stream, step, feature) with two steps or more, got {g.shape}")
    S, T, F = g.shape
    if p is not None and np.shape(p) != (S, T + 1, F):
        raise ValueError(
            f"p must have shape {(S, T + 1, F)}: one entry before each draw, one after the last, got {np.shape(p)}"
        )
    each = range(F)
    log_e, together = {}, {}
    if p is not None:
        p = np.clip(np.asarray(p, np.float64), 0.0, 1.0)
        payoffs = np.concatenate([martingale_payoffs(g[..., f], p[..., f]) for f in each], -1)
        log_e["martingale"], together["martingale"] = _wealth(payoffs)
    paid, worst = (np.concatenate(part, -1) for part in zip(*(draw_payoffs(g[..., f]) for f in each), strict=True))
    log_e["draws"], together["draws"] = _wealth(paid, worst)
    if labels is not None:
        K = symbols or max(2, F)
        if np.shape(labels) != (S, T) or np.min(labels) < 0 or np.max(labels) >= K:
            raise ValueError(
                f"labels must have shape {(S, T)} and hold symbols 0..{K - 1}, got {np.shape(labels)}, "
                f"{np.min(labels)} to {np.max(labels)}; say how many there are with symbols="
            )
        log_e["order"] = log_order(labels, K)
    return Bets(log_e, together, level)


def _walk(
    predictor: Predictor, context: Array, keys: Array, *, steps: int
) -> tuple[Shaped[Array, "stream step feature"], Shaped[Array, "stream step_1 feature"], Shaped[Array, "stream step"]]:
    start = predictor.init(context)
    fn = predictor.predict(start)
    K = outcomes(fn)
    if K is None:
        cuts = fn.mean + jnp.sqrt(fn.variance) * jnp.array([-0.7, 0.0, 0.7])
        cuts = jnp.floor(cuts) if fn.is_discrete else cuts

    def means(state: Any) -> Array:
        fn = predictor.predict(state)
        if K is None:
            return fn.cdf(cuts)
        return probabilities(fn)[1:] if K == 2 else probabilities(fn)

    def step(state: Any, key: Array) -> tuple[Any, tuple[Array, ...]]:
        z = predictor.predict(state).sample(key)
        if K is None:
            g, label = (z <= cuts).astype(float), (z > cuts).sum()
        else:
            label = z.astype(jnp.int32)
            g = jax.nn.one_hot(label, K)[1:] if K == 2 else jax.nn.one_hot(label, K)
        return predictor.update(state, z if K is None else label), (g, means(state), label)

    def one(key: Array) -> tuple[Array, ...]:
        last, (g, p, label) = jax.lax.scan(step, start, jax.random.split(key, steps))
        return g, jnp.concatenate([p, means(last)[None]]), label

    found: Any = jax.vmap(one)(keys)
    return found


def bet(
    predictor: Predictor, context: Any, *, key: Key[Array, ""], steps: int = 1000, streams: int = 1, level: float = 0.05
) -> Bets:
    """Let a rule continue a context (n,) in ``streams`` independent streams, and bet against its coherence.

    For real symbols and counts g(z) are [z <= c] at the mean of the first prediction and .7 standard deviations on
    either side; their predictive distribution needs a ``cdf``.

    >>> bets = bet(parse_rule("sticky:0.1"), np.array([0, 1, 1]), key=jax.random.key(0), streams=20)
    >>> bets.table.loc["martingale", "alarms"], bets.alarm("martingale")[0]
    (1.0, ...)
    """
    for name, value in (("steps", steps), ("streams", streams)):
        if not isinstance(value, int | np.integer) or value < (2 if name == "steps" else 1):
            raise ValueError(f"{name} must be a whole number, steps of 2 and streams of 1 or more, got {value!r}")
    context, fn = fitting_context(predictor, context, ahead=steps)
    keys = jax.random.split(key, streams)
    g, p, labels = (np.asarray(a) for a in call(_walk, predictor, context, keys, steps=steps))
    if not np.isfinite(p).all():
        raise ValueError(f"a predicted probability of {fn.text} is not finite, so nothing can be bet on it")
    return bets_on(g, p, labels, symbols=fn.K or g.shape[-1] + 1, level=level)
