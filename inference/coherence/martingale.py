"""Martingale posteriors: what the rule believes about the long run, read off its own predictions.

    paths    theta_j = functional(z_{1:n} and path j), j = 1..J (Fong, Holmes and Walker, JRSS-B 2023, arXiv 2103.15671)
    hybrid   a short path, then theta_j from the law of the limit given the path: mean p_{n+N+1} of path j, variance
             V_j / (n + N)
    context  no path at all: mean p_{n+1}, variance by :func:`context_variance`

with V_n the mean of k^2 ||p_k - p_{k-1}||^2 over k = 1..n, for then sqrt(n) (theta - p_n) is asymptotically N(0, V_n)
(Fortini and Petrone's predictive central limit theorem).  V_j is the same over the second half of path j, divided by
the mean square of g(Z_k) - p_k there and multiplied by the predictive variance at the end: a rule that moves by a
known share of each innovation has no noise in it, however rare a symbol is.  The law is a Dirichlet of this mean and
total variance for symbols, a Beta for two, a Normal for real ones.

V_n / n itself is too small at small n (.81 of the Beta posterior's variance at n = 50 on average, uniform prior), for
k^2 stands where (k + c)^2 should, c the weight of the prior: intervals of 95 % held theta in .908 of data sets.  So the
context's variance is not that, but what the same moves say of the rule's shares.  For Beta-Bernoulli updating and the
mean ``paths`` and ``hybrid`` tend to the Beta posterior, ``context`` is it.  For the Polya urn ``paths`` is the
Bayesian bootstrap.  A rule that is not a martingale still gives draws: check coherence before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Key, Num

from inference.coherence._call import call
from inference.coherence._symbols import check_context, expected, features, match_context, symbols_of
from inference.coherence.calibrated import is_finite
from inference.coherence.paths import Paths, fitting_context, paths_tree, predictive_paths
from ppl_models.program import HostPredictor, Predictor

Functional = Callable[[Num[Array, " sequence"]], Float[Array, "*theta"]]


def mean(sequence: Num[Array, " sequence"]) -> Float[Array, ""]:
    """The mean of a sequence: the long-run frequency of a binary one."""
    return jax.numpy.mean(sequence.astype(float))


def _tail_variance(paths: Paths) -> Float[np.ndarray, " J"]:
    """``V_j / (n + N)`` of each path, V_j by its second half's ratio of squared moves to squared innovations."""
    finite, n = is_finite(paths.names), len(paths.context)
    p, g = (np.asarray(a if finite else a[..., :1], float) for a in (paths.p, paths.g))
    N, half = g.shape[1], g.shape[1] // 2
    k = n + np.arange(half + 1, N + 1)
    moved = (k**2 * np.sum(np.diff(p, axis=1) ** 2, -1)[:, half:]).sum(1)
    innovation = np.sum((g - p[:, :-1]) ** 2, -1)[:, half:].sum(1)
    end = np.asarray(paths.p[:, -1], float)
    variance = (end * (1 - end)).sum(1) if finite else end[:, 1] - end[:, 0] ** 2
    ratio = np.divide(moved, innovation, out=np.zeros_like(moved), where=innovation > 0)
    return ratio * variance / (n + N)


def _along(predictor: Predictor, context: Array) -> Float[Array, "n_1 feature"]:
    start = predictor.init(context[:0])

    def step(state: Any, z: Array) -> tuple[Any, Array]:
        return predictor.update(state, z), expected(predictor.predict(state))

    last, p = jax.lax.scan(step, start, context)
    return jax.numpy.concatenate([p, expected(predictor.predict(last))[None]])


def context_variance(
    predictor: Predictor | HostPredictor, context: Any
) -> tuple[Float[np.ndarray, " feature"], float, tuple[str, ...]]:
    """``p_{n+1}``, Var theta summed over features, and their names: the posterior of theta without any path.

    p_k is the rule's prediction after k symbols, updated one by one from an empty context.  It moves by the share
    w_k = |p_k - p_{k-1}| / |g(z_k) - p_{k-1}| of each innovation, and 1 / w_k = alpha k + beta is fitted to the context
    (non-negative least squares of |g - p_{k-1}| on k |p_k - p_{k-1}| and |p_k - p_{k-1}|).  A martingale that moves by
    such shares, whose predictive variance v_n is that of the next symbol, has

        Var theta = v_n (1 - prod_{k > n} (1 - w_k^2)),

    which is exact for Beta, Dirichlet and Normal updating (alpha = 1, beta the weight of the prior: v_n / (n + beta +
    1)) and for a moving average (alpha = 0: v_n, for it ends at 0 or 1).
    """
    if isinstance(predictor, HostPredictor):
        names = tuple(predictor.names)
        given = match_context(check_context(context), symbols_of(names))
        p = np.asarray(predictor.score([given[:k] for k in range(len(given) + 1)]), float)
    else:
        given, fn = fitting_context(predictor, context)
        names = fn.names
        p = np.asarray(call(_along, predictor, given), float)
    n = len(given)
    if n < 2:
        raise ValueError(f"the variance from the context alone needs at least 2 symbols, got {n}; draw paths instead")
    K = symbols_of(names)
    variance = float((p[-1] * (1 - p[-1])).sum() if K is not None else p[-1, 1] - p[-1, 0] ** 2)
    p = p if K is not None else p[:, :1]
    g = np.asarray(features(jax.numpy.asarray(given), names), float)[:, : p.shape[1]]
    moved, innovation = (np.linalg.norm(a, axis=1) for a in (np.diff(p, axis=0), g - p[:-1]))
    return p[-1], variance * _settled(moved, innovation), names


def _settled(moved: Float[np.ndarray, " n"], innovation: Float[np.ndarray, " n"]) -> float:
    """``1 - prod_{k > n} (1 - w_k^2)``, 1 / w_k = alpha k + beta, by gamma functions: prod (1 - 1 / (alpha k + beta)^2)
    = Gamma(x)^2 / (Gamma(x - 1 / alpha) Gamma(x + 1 / alpha)) with x = n + 1 + beta / alpha.
    """
    from scipy.optimize import nnls
    from scipy.special import gammaln

    n = len(moved)
    if not moved.any():
        return 0.0
    scale = moved.max()  # so that a rule that hardly moves is fitted as well as one that does
    (alpha, beta), _ = nnls(np.stack([np.arange(1, n + 1) * moved, moved], 1) / scale, innovation)
    alpha, beta = alpha / scale, beta / scale
    if alpha * (n + 1) + beta <= 1 or alpha < 1e-6 * beta:  # all at once, or a share that never falls
        return 1.0
    x, step = n + 1 + beta / alpha, 1 / alpha
    return float(-np.expm1(2 * gammaln(x) - gammaln(x - step) - gammaln(x + step)))


def limit_law(
    mean: Float[np.ndarray, "J feature"], variance: Float[np.ndarray, " J"], rng: np.random.Generator, *, finite: bool
) -> Float[np.ndarray, "J feature"]:
    """Draw theta with this mean and total variance: Dirichlet (Beta for one feature) or Normal."""
    if not finite:
        return rng.normal(mean, np.sqrt(variance)[:, None])
    full = np.concatenate([1 - mean, mean], 1) if mean.shape[1] == 1 else mean
    full = np.clip(full, 1e-12, None)
    # Var theta_k = m_k (1 - m_k) / (s + 1); the variance of one feature is half of that of two.
    most = (full * (1 - full)).sum(1) / (2 if mean.shape[1] == 1 else 1)
    strength = np.maximum(most / np.maximum(variance, 1e-30) - 1, 1e-3)
    # A gamma variable of small shape a is that of a + 1 times U^(1/a); in logarithms it cannot underflow to 0 / 0.
    shape = full * strength[:, None]
    log_gamma = np.log(rng.standard_gamma(shape + 1)) + np.log1p(-rng.random(shape.shape)) / shape
    gamma = np.exp(log_gamma - log_gamma.max(1, keepdims=True))
    theta = gamma / gamma.sum(1, keepdims=True)
    return theta[:, 1:] if mean.shape[1] == 1 else theta


def martingale_posterior(
    predictor: Predictor | HostPredictor,
    context: Any,
    *,
    key: Key[Array, ""],
    steps: int = 1000,
    draws: int = 1000,
    functional: Functional = mean,
    part: Literal["full", "imputed"] = "full",
    chains: int = 4,
    scheme: Literal["paths", "hybrid", "context"] = "paths",
) -> Any:
    """Martingale posterior of a functional of the whole population, as an ArviZ DataTree.

    ``functional``  of one sequence (n + steps,), or of the imputed part (steps,) with ``part="imputed"``.
    ``steps``       N: theta_j still carries the noise of a finite path, of variance about Var(z)/(n + N).
    ``chains``      draws are i.i.d.; cut into four pseudo-chains so that ArviZ's R-hat and ESS mean something.

    ``scheme``      ``"paths"``; ``"hybrid"``, where ``steps`` may be 50; ``"context"``, which draws no path.  The last
                    two are of the long-run mean of g, one number for two symbols and for real ones, K for K symbols.

    Groups: posterior/theta; posterior_predictive/z, sample_stats/p and log_p, observed_data/z_context; for symbols
    log_likelihood/z_context, log p(z_i | theta) of the context, so that ``az.loo`` and ``az.compare`` work (not for a
    functional of one's own).

    >>> tree = martingale_posterior(BetaBernoulli(), np.array([1, 0, 1]), steps=500, key=jax.random.key(0))
    >>> tree["posterior"]["theta"].shape
    (4, 250)
    """
    if part not in ("full", "imputed"):
        raise ValueError(f"part must be 'full' (context and path) or 'imputed' (path only), got {part!r}")
    if draws % chains:
        raise ValueError(f"draws must be a multiple of chains={chains}, got {draws}")
    if scheme not in ("paths", "hybrid", "context"):
        raise ValueError(f"scheme must be 'paths', 'hybrid' or 'context', got {scheme!r}")
    if scheme != "paths" and (functional is not mean or part != "full"):
        raise ValueError(f"scheme={scheme!r} knows the law of the long-run mean only; leave out functional and part")
    path_key, tail_key = (key, key) if scheme == "paths" else jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(tail_key)).astype(np.uint32))
    paths = None
    if scheme == "context":
        found, variance, names = context_variance(predictor, context)
        given, steps = np.asarray(context), 0
        theta = limit_law(np.tile(found, (draws, 1)), np.full(draws, variance), rng, finite=is_finite(names))
    else:
        paths = predictive_paths(predictor, context, steps=steps, paths=draws, key=path_key, others=0)
        given, names = paths.context, paths.names
        theta = _limits(paths, rng) if scheme == "hybrid" else _functional(paths, functional, part)
    if scheme != "paths" and theta.shape[1] == 1:
        theta = theta[:, 0]
    import arviz as az
    import xarray as xr

    if paths is not None:
        tree = paths_tree(paths, chains=chains)
    else:
        tree = az.from_dict({"observed_data": {"z_context": given}}, dims={"z_context": ["position"]})

    def group(name: str, values: np.ndarray, dims: list[str]) -> xr.DataTree:
        cut = values.reshape(chains, draws // chains, *values.shape[1:])
        coords = {"chain": np.arange(chains), "draw": np.arange(draws // chains)}
        return xr.DataTree(xr.Dataset({name: (["chain", "draw", *dims], cut)}, coords=coords))

    tree["posterior"] = group("theta", theta, [f"theta_{i}" for i in range(theta.ndim - 1)])
    if functional is mean and is_finite(names) and len(given) and (theta.ndim == 2 or len(names) == 1):
        tree["log_likelihood"] = group("z_context", _log_likelihood(theta, given), ["position"])
    tree.attrs.update(steps=steps, n=len(given), part=part, scheme=scheme)
    return tree


def _functional(paths: Paths, functional: Functional, part: str) -> np.ndarray:
    sequence = paths.z
    if part == "full":
        sequence = np.concatenate([np.broadcast_to(paths.context, (len(sequence), len(paths.context))), sequence], 1)
    return np.asarray(jax.jit(jax.vmap(functional))(sequence))


def _limits(paths: Paths, rng: np.random.Generator) -> Float[np.ndarray, "J feature"]:
    if paths.samples_only:
        raise ValueError("the hybrid scheme reads the rule's probabilities, which these paths lack; use scheme='paths'")
    finite = is_finite(paths.names)
    p = np.asarray(paths.p if finite else paths.p[..., :1], float)
    return limit_law(p[:, -1], _tail_variance(paths), rng, finite=finite)


def _log_likelihood(theta: np.ndarray, z: np.ndarray) -> Float[np.ndarray, "J n"]:
    chance = np.stack([1 - theta, theta], 1) if theta.ndim == 1 else theta
    with np.errstate(divide="ignore"):
        return np.log(chance)[:, z.astype(int)]
