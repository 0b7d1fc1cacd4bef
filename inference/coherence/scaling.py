"""Does a rule grow surer as Bayes does?  The scaling of its long-run uncertainty with the length of the context.

Let V(n) be the variance of the long-run mean theta of g(Z) given n symbols, W(n) = Var(g(Z_{n+1})) - V(n) what is left
within one theta.  For exact Bayes under a conjugate prior of an exponential family (Diaconis and Ylvisaker, Ann.
Statist. 7, 1979)

    U(n) = V(n) / W(n) = 1 / (n + c),     c >= 0 the number of symbols that the prior is worth:

a + b for Beta(a, b), noise^2 / scale^2 for a Normal mean.  Fitted here is ``log U = log C - beta log(n + c)``:

    beta = 1, C = 1   as exact Bayes;  beta = 1, C != 1   fractional Bayes, each symbol counted 1 / C times;
    beta <= 0         a finite memory of about 1 / U symbols, which more context does not lengthen.

V comes from predictive paths without the 1/N noise of a path's mean: under exchangeability Cov(Z_a, Z_b) = V for every
pair a < b, and E[Z_b | past] = p_b, so V is the mean over pairs of the covariance of Z_a and p_b over paths.  The
published study (Falck, Wang and Holmes, ICML 2024, arXiv 2406.00793, T_3) reads the interquartile range of path means
instead, of whose square two thirds are the noise of N = n/2 symbols, and whose level depends on the prior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key

from inference.coherence._call import call
from inference.coherence._symbols import feature_names, features
from inference.coherence.calibrated import is_finite
from inference.coherence.paths import Paths, draw_path, fitting_context, host_paths
from ppl_models.program import HostPredictor, Predictor

SIZES = (20, 50, 100, 200, 400)
STEPS = 40
SILENT = 1e-7
"""A U below this is rounding."""
LEVEL = 0.05
_REACH = np.geomspace(1e-3, 5.0, 80)


class Spread(NamedTuple):
    """V and W of one context, summed over features."""

    between: Float[Array, ""]
    within: Float[Array, ""]


def spread(
    g: Float[Array, "J N feature"], p: Float[Array, "J step_1 feature"], *, finite: bool, drawn: bool = False
) -> Spread:
    """V and W from paths; of real symbols those of z.  ``drawn``: without probabilities, from the draws alone."""
    if not finite:
        g = g[..., :1]
    if drawn:
        later, pairs = g[:, 1:], g.shape[1] * (g.shape[1] - 1) / 2
        total = jnp.sum(jnp.var(g, axis=(0, 1)))
    else:
        later, pairs = p[:, 1:, : g.shape[2]], g.shape[1] * (g.shape[1] + 1) / 2
        first = p[0, 0]
        total = jnp.sum(first * (1 - first)) if finite else first[1] - first[0] ** 2
    before = jnp.cumsum(g, 1)[:, : later.shape[1]]
    # Centred first: a product of sums in single precision would lose what is looked for.
    before, later = before - before.mean(0), later - later.mean(0)
    between = jnp.sum(before * later) / (g.shape[0] - 1) / pairs
    return Spread(between, total - between)


def spread_of(paths: Paths) -> Spread:
    """:func:`spread` of one context's paths."""
    return spread(jnp.asarray(paths.g), jnp.asarray(paths.p), finite=is_finite(paths.names), drawn=paths.samples_only)


def _start(predictor: Predictor, contexts: Array) -> Any:
    return jax.vmap(predictor.init)(contexts)


def _continue(predictor: Predictor, states: Any, keys: Array, *, steps: int, paths: int) -> Spread:
    """Apart from :func:`_start`, so that contexts of another length need no compilation of the paths."""

    def one(item: tuple[Any, Array]) -> Spread:
        state, key = item
        fn = predictor.predict(state)
        drawn = jax.vmap(lambda k: draw_path(predictor, state, k, steps))(jax.random.split(key, paths))
        names = feature_names(fn)
        return spread(features(drawn.z, names), drawn.p, finite=is_finite(names))

    return jax.lax.map(one, (states, keys), batch_size=min(8, keys.shape[0]))


# ------------------------------------------------------------------------------------------------ the fit
class Curve(NamedTuple):
    """``log U = log C - beta log(n + c)`` of each row of log U: parameters and weighted sum of squares."""

    beta: np.ndarray
    C: np.ndarray
    c: np.ndarray
    sse: np.ndarray


def fit_curve(
    n: Float[np.ndarray, " size"],
    log_u: Float[np.ndarray, "row size"],
    weights: Float[np.ndarray, "row size"],
    *,
    most: float,
    beta: np.ndarray | float | None = None,
    C: float | None = None,
) -> Curve:
    """Weighted least squares over c in [0, ``most``], and over beta and C where they are not given."""
    row = np.arange(len(log_u))
    w, y = weights[:, None], log_u[:, None]
    c = np.broadcast_to(np.concatenate([[0.0], np.geomspace(most / 400, most, 60)]), (len(log_u), 61))
    for _ in range(6):
        x = np.log(n + c[..., None])
        middle_x, middle_y = ((w * v).sum(-1, keepdims=True) / w.sum(-1, keepdims=True) for v in (x, y))
        if beta is None:
            slope = -(w * (x - middle_x) * (y - middle_y)).sum(-1) / (w * (x - middle_x) ** 2).sum(-1)
        else:
            slope = np.broadcast_to(np.reshape(beta, (-1, 1)), c.shape)
        log_c = (middle_y + slope[..., None] * middle_x)[..., 0] if C is None else np.full(c.shape, np.log(C))
        sse = (w * (y - log_c[..., None] + slope[..., None] * x) ** 2).sum(-1)
        best = sse.argmin(1)
        found = Curve(slope[row, best], np.exp(log_c[row, best]), c[row, best], sse[row, best])
        low, high = c[row, np.maximum(best - 1, 0)], c[row, np.minimum(best + 1, c.shape[1] - 1)]
        c = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 31)
    return found


@dataclass(frozen=True)
class Scaling:
    """What was found.

    ``table``    one row a length n: ``steps``; ``contexts``; ``between`` V, ``within`` W, their ratio ``u`` with the
                 standard error of its logarithm over contexts, and ``symbols`` = 1 / U, what the rule's confidence
                 is worth.
    ``beta``     with ``interval`` (95 %) and ``p_value`` of beta = 1, c and C being fitted.
    ``C, c``     fitted with beta = 1; ``p_level`` of C = 1.
    """

    table: pd.DataFrame
    beta: float
    interval: tuple[float, float]
    p_value: float
    C: float
    c: float
    p_level: float

    @property
    def kind(self) -> str:
        """``"bayes"``, ``"fractional"``, ``"finite memory"``, ``"other rate"``, ``"undecided"`` or ``"no spread"``."""
        if np.isnan(self.beta):
            return "no spread"
        if self.p_value >= LEVEL:
            if self.interval[0] < 0.5 or self.interval[1] > 1.5:
                return "undecided"
            return "bayes" if self.p_level >= LEVEL else "fractional"
        return "finite memory" if self.interval[1] < 0.5 else "other rate"

    @property
    def verdict(self) -> str:
        """The finding in one sentence."""
        low, high = self.interval
        rate = f"beta = {self.beta:.2f} ({low:.2f} to {high:.2f}, Bayes 1)"
        if self.kind == "no spread":
            seen = self.table.index[self.table["u"] <= np.maximum(2 * self.table["se"], SILENT)]
            return (
                f"No uncertainty about the long run can be told from zero at n = {', '.join(map(str, seen))}: a frozen "
                "rule, or too few paths."
            )
        if self.kind == "undecided":
            return f"Too noisy to tell the rate: {rate}; take more contexts, more paths or lengths further apart."
        if self.kind == "bayes":
            return f"Grows surer as exact Bayes does with a prior worth {self.c:.3g} symbols: {rate}."
        if self.kind == "fractional":
            return (
                f"Grows surer at the rate of Bayes at another level, each symbol counted {1 / self.C:.2g} times "
                f"(fractional Bayes): {rate}."
            )
        if self.kind == "finite memory":
            symbols = self.table["symbols"].iloc[-1]
            return f"A finite memory: {rate}; {self.table.index[-1]} symbols are worth {symbols:.3g}."
        return f"Grows surer at another rate than Bayes: {rate}."

    def row(self) -> dict[str, Any]:
        """The numbers in one row."""
        low, high = self.interval
        return {
            "beta": self.beta, "beta_low": low, "beta_high": high, "p_value": self.p_value, "C": self.C, "c": self.c,
            "p_level": self.p_level, "kind": self.kind,
        }  # fmt: skip


def fit_scaling(
    between: Mapping[int, np.ndarray], within: Mapping[int, np.ndarray], steps: Mapping[int, int]
) -> Scaling:
    """The fit to V and W of several contexts of each length n (at least 3 lengths, 3 contexts each).

    U is the ratio of the means over contexts; its error is that over contexts.  The p-values refer the differences of
    weighted squares to F(1, contexts - 1), the fewest contexts of a length.  At 20 contexts of each of 5 lengths exact
    Bayes is rejected at 5 % in 4 to 5.5 % (beta = 1) and in 7 to 8 % (C = 1), the weights being estimated.
    """
    from scipy.stats import f as F

    rows = []
    df = min(len(v) for v in between.values()) - 1
    for n in sorted(between):
        v, w = np.asarray(between[n], float), np.asarray(within[n], float)
        if not (np.isfinite(v).all() and np.isfinite(w).all()):
            raise ValueError(
                f"the variances at n = {n} are not finite: the rule has no second moment there, or does not tell the "
                "probabilities of all symbols; take longer contexts, or another predictor"
            )
        u = v.mean() / w.mean()
        # Error of a ratio of means (Cochran, Sampling Techniques, 1977, equation 6.13).
        se = np.std(v - u * w, ddof=1) / np.sqrt(len(v)) / abs(w.mean())
        rows.append((n, steps[n], len(v), v.mean(), w.mean(), u, se, 1 / u if u > 0 else np.nan))
    names = ["n", "steps", "contexts", "between", "within", "u", "se", "symbols"]
    table = pd.DataFrame(rows, columns=names).set_index("n")
    u, se = table["u"].to_numpy(), table["se"].to_numpy()
    if not (u > np.maximum(2 * se, SILENT)).all():
        return Scaling(table, *(np.nan, (np.nan, np.nan), np.nan, np.nan, np.nan, np.nan))
    n = table.index.to_numpy(float)
    # A rule of equal U after every context has no scatter: rounding stands in for it.
    log_u, weights = np.log(u)[None], np.maximum(se / u, 1e-6)[None] ** -2
    most = float(n.max()) / 2
    free = fit_curve(n, log_u, weights, most=most)
    straight = fit_curve(n, log_u, weights, most=most, beta=1.0)
    bayes = fit_curve(n, log_u, weights, most=most, beta=1.0, C=1.0)
    beta, ends = float(free.beta[0]), []
    for reach in (-_REACH, _REACH):  # the values of beta that the test does not reject, outwards from the best
        along = fit_curve(
            n, np.repeat(log_u, len(reach), 0), np.repeat(weights, len(reach), 0), most=most, beta=beta + reach
        )
        out = along.sse - free.sse[0] > F.ppf(1 - LEVEL, 1, df)
        ends.append(beta + reach[out.argmax() if out.any() else -1])
    return Scaling(
        table,
        beta=beta,
        interval=(float(ends[0]), float(ends[1])),
        p_value=float(F.sf(max(0.0, straight.sse[0] - free.sse[0]), 1, df)),
        C=float(straight.C[0]),
        c=float(straight.c[0]),
        p_level=float(F.sf(max(0.0, bayes.sse[0] - straight.sse[0]), 1, df)),
    )


def uncertainty_scaling(
    predictor: Predictor | HostPredictor,
    contexts: Mapping[int, Any] | Sequence[Any],
    *,
    key: Key[Array, ""],
    paths: int = 200,
    steps: int | None = STEPS,
    told: Callable[[int, int], None] | None = None,
) -> Scaling:
    """Fit how the long-run uncertainty of a predictor falls with the length of its context.

    ``contexts``  arrays (contexts, n) of at least three lengths n, three or more contexts each; 20 for a claim.  Take
                  independent ones for each length.
    ``steps``     N of every path; ``None`` for n/2 as published.  V does not depend on N for an exchangeable rule;
                  with one N for all n, a finite memory has beta = 0.
    ``told``      called with (lengths done, lengths in all).

    c is sought between 0 and half the longest context: a stronger prior cannot be told from a finite memory there.
    ``ValueError`` for fewer lengths or contexts, or fewer than 10 paths.

    >>> rng = np.random.default_rng(0)
    >>> contexts = [rng.integers(0, 2, (20, n)) for n in (20, 50, 100, 200, 400)]
    >>> uncertainty_scaling(BetaBernoulli(2.0, 2.0), contexts, key=jax.random.key(0)).kind
    'bayes'
    """
    given = [np.asarray(part) for part in (contexts.values() if isinstance(contexts, Mapping) else contexts)]
    by_n = {part.shape[1]: part for part in given if part.ndim == 2}
    if len(by_n) < max(3, len(given)) or min(len(part) for part in by_n.values()) < 3 or min(by_n) < 4:
        shapes = [part.shape for part in given]
        raise ValueError(
            f"contexts must be arrays (contexts, n) of at least 3 different lengths n >= 4, each of 3 contexts or "
            f"more, got shapes {shapes}"
        )
    if paths < 10:
        raise ValueError(f"a variance over paths needs at least 10 paths, got {paths}; 200 is usual")
    if steps is not None and steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}: the covariance is one of pairs of symbols")
    between, within, lengths = {}, {}, {}
    for done, n in enumerate(sorted(by_n)):
        N = max(2, n // 2) if steps is None else steps
        keys = jax.random.split(jax.random.fold_in(key, n), len(by_n[n]))
        if isinstance(predictor, HostPredictor):
            every = [
                spread_of(host_paths(predictor, row, steps=N, paths=paths, key=k))
                for row, k in zip(by_n[n], keys, strict=True)
            ]
            found = Spread(jnp.stack([s.between for s in every]), jnp.stack([s.within for s in every]))
        else:
            checked, _ = fitting_context(predictor, by_n[n], ndim=2, ahead=N)
            states = call(_start, predictor, checked)
            found = call(_continue, predictor, states, keys, steps=N, paths=paths)
        between[n], within[n], lengths[n] = np.asarray(found.between), np.asarray(found.within), N
        if told is not None:
            told(done + 1, len(by_n))
    return fit_scaling(between, within, lengths)
