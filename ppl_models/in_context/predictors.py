"""Exact Bayes predictors: conjugate updating, written down or found by tracing a NumPyro program.

    symbols   theta ~ prior                    z_t | theta          state after z_{1:n}
    binary    Beta(a, b)                       Bernoulli(theta)     (a + s, b + n - s)
    K-valued  Dirichlet(alpha_1..alpha_K)      Categorical(theta)   alpha + counts
    real      Normal(loc, scale)               Normal(theta, noise) precision and precision-weighted sum

Each is a martingale in its predictive probabilities and exchangeable: the reference for every coherence check.
Unknown variance, counts and mixtures of priors are in ``exact.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Shaped
from numpyro.handlers import seed, substitute, trace

from ppl_models.in_context._rule import check_positive, rule
from ppl_models.in_context.exact import GammaPoisson, Mixture, NormalInverseGamma, mixture_parts
from ppl_models.program import Predictor


class BetaState(NamedTuple):
    """Posterior Beta(a, b) of theta."""

    a: Float[Array, ""]
    b: Float[Array, ""]


@rule("a", "b")
class BetaBernoulli:
    """``theta ~ Beta(a, b)``, ``z_t ~ Bernoulli(theta)``: ``p(1 | z_{1:n}) = (a + s) / (a + b + n)``, s the ones.

    >>> rule = BetaBernoulli(1.0, 1.0)
    >>> float(rule.predict(rule.init(jnp.array([1, 0, 1]))).probs)  # (1 + 2) / (2 + 3)
    0.6...
    """

    a: Any = 1.0
    b: Any = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "a", "b")

    def init(self, context: Shaped[Array, " n"]) -> BetaState:
        ones = jnp.sum(jnp.asarray(context, jnp.result_type(float)))
        return BetaState(self.a + ones, self.b + context.shape[0] - ones)

    def predict(self, state: BetaState) -> dist.Distribution:
        return dist.Bernoulli(probs=state.a / (state.a + state.b))

    def update(self, state: BetaState, z: Shaped[Array, ""]) -> BetaState:
        return BetaState(state.a + z, state.b + 1 - z)

    def posterior(self, state: BetaState) -> dist.Distribution:
        """``p(theta | z_{1:n})``."""
        return dist.Beta(state.a, state.b)


@rule("alpha")
class DirichletCategorical:
    """``theta ~ Dirichlet(alpha)``, ``z_t ~ Categorical(theta)``: ``p(k | z_{1:n}) = (alpha_k + n_k) / sum``."""

    alpha: Any

    def __post_init__(self) -> None:
        check_positive(self, "alpha")

    def init(self, context: Shaped[Array, " n"]) -> Float[Array, " K"]:
        alpha = jnp.asarray(self.alpha, jnp.result_type(float))
        return alpha + jax.nn.one_hot(context, alpha.shape[0], dtype=alpha.dtype).sum(0)

    def predict(self, state: Float[Array, " K"]) -> dist.Distribution:
        return dist.Categorical(probs=state / state.sum())

    def update(self, state: Float[Array, " K"], z: Shaped[Array, ""]) -> Float[Array, " K"]:
        return state + jax.nn.one_hot(z, state.shape[0], dtype=state.dtype)

    def posterior(self, state: Float[Array, "*batch K"]) -> dist.Distribution:
        """``p(theta | z_{1:n})``."""
        return dist.Dirichlet(state)


class NormalState(NamedTuple):
    """Posterior N(theta; weighted / precision, 1 / precision)."""

    precision: Float[Array, ""]
    weighted: Float[Array, ""]


@rule("loc", "scale", "noise")
class NormalNormal:
    """``theta ~ N(loc, scale^2)``, ``z_t ~ N(theta, noise^2)``, ``noise`` known.

    ``1 / v_n = 1 / scale^2 + n / noise^2``, ``m_n = v_n (loc / scale^2 + sum z / noise^2)``, and
    ``z_{n+1} ~ N(m_n, v_n + noise^2)``.
    """

    loc: Any = 0.0
    scale: Any = 1.0
    noise: Any = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "scale", "noise")

    def init(self, context: Shaped[Array, " n"]) -> NormalState:
        total = jnp.sum(jnp.asarray(context, jnp.result_type(float)))
        precision = jnp.asarray(self.scale**-2 + context.shape[0] * self.noise**-2, total.dtype)
        return NormalState(precision, self.loc * self.scale**-2 + total * self.noise**-2)

    def predict(self, state: NormalState) -> dist.Distribution:
        return dist.Normal(state.weighted / state.precision, jnp.sqrt(1 / state.precision + self.noise**2))

    def update(self, state: NormalState, z: Shaped[Array, ""]) -> NormalState:
        return NormalState(state.precision + self.noise**-2, state.weighted + z * self.noise**-2)

    def posterior(self, state: NormalState) -> dist.Distribution:
        """``p(theta | z_{1:n})``."""
        return dist.Normal(state.weighted / state.precision, state.precision**-0.5)


# --------------------------------------------------------------------------------------- from a program
def _bare(fn: Any) -> Any:
    """The distribution under plates, ``to_event``, ``expand`` and masks."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


class _Match(NamedTuple):
    """A conjugate pair: which parameter of the likelihood is theta, what else it needs, the rule it makes."""

    prior: Any
    likelihood: tuple[Any, ...]
    is_theta: Callable[[Any], Any]
    constants: Callable[[Any], tuple[Any, ...]]
    make: Callable[..., Predictor]
    text: str


def _one(value: Any, what: str) -> float:
    values = np.unique(np.asarray(value, float))
    if values.size != 1:
        raise ValueError(
            f"{what} differs between elements ({values[0]:g} ... {values[-1]:g}), expected one value; the symbols of "
            "a sequence must be independent and identically distributed given theta"
        )
    return float(values[0])


_MATCHES = (
    _Match(
        dist.Beta,
        (dist.BernoulliProbs, dist.BernoulliLogits),
        lambda fn: fn.probs,
        lambda fn: (),
        lambda prior: BetaBernoulli(_one(prior.concentration1, "a"), _one(prior.concentration0, "b")),
        "Beta prior of the probs of a Bernoulli",
    ),
    _Match(
        dist.Dirichlet,
        (dist.CategoricalProbs, dist.CategoricalLogits),
        lambda fn: fn.probs,
        lambda fn: (),
        lambda prior: DirichletCategorical(tuple(np.asarray(prior.concentration, float).reshape(-1).tolist())),
        "Dirichlet prior of the probs of a Categorical",
    ),
    _Match(
        dist.Normal,
        (dist.Normal,),
        lambda fn: fn.loc,
        lambda fn: (fn.scale,),
        lambda prior, noise: NormalNormal(_one(prior.loc, "loc"), _one(prior.scale, "scale"), _one(noise, "noise")),
        "Normal prior of the loc of a Normal with known scale",
    ),
    _Match(
        dist.Gamma,
        (dist.Poisson,),
        lambda fn: fn.rate,
        lambda fn: (),
        lambda prior: GammaPoisson(_one(prior.concentration, "a"), _one(prior.rate, "b")),
        "Gamma prior of the rate of a Poisson",
    ),
)
_MIXTURES = dist.MixtureGeneral | dist.MixtureSameFamily


def _samples(model: Callable[..., Any], args: Any, kwargs: Any, data: dict[str, Any], key: int) -> list[Any]:
    with trace() as sites, seed(rng_seed=key), substitute(data=data):
        model(*args, **kwargs)
    return [(name, site) for name, site in sites.items() if site["type"] == "sample"]


def conjugate(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Predictor:
    """Return the exact predictor of a NumPyro program over one theta and one sequence, found by tracing it.

    The program draws theta once and then i.i.d. symbols given theta, in a plate or by ``.expand``.  It is traced as
    ``model(*args, **kwargs)``; a program of this package takes ``size=1``.  The prior may be a mixture of conjugate
    ones; a Normal with unknown mean and variance draws ``v ~ InverseGamma``, then ``m ~ Normal(loc, sqrt(v / count))``.
    The likelihood is recognised by its type and by *being* theta in the right parameter for two different values of
    theta, not by the text of the program.

    Raises ``ValueError`` if the program has other than two (three) sample sites, if no conjugate pair matches, or if
    the likelihood depends on theta in another way.

    >>> import numpyro
    >>> def coin():
    ...     theta = numpyro.sample("theta", dist.Beta(2.0, 3.0))
    ...     with numpyro.plate("t", 5):
    ...         numpyro.sample("z", dist.Bernoulli(theta))
    >>> conjugate(coin)
    BetaBernoulli(a=2.0, b=3.0)
    """
    # Double precision: a prior of 0.1 stays 0.1, and exact identities can be checked on the result.
    with jax.enable_x64(True):
        return _conjugate(model, args, kwargs)


def _conjugate(model: Callable[..., Any], args: Any, kwargs: Any) -> Predictor:
    remedy = (
        "; for other programs take particles(program), or train a set encoder or a prior-fitted network on draws of it"
    )
    first = _samples(model, args, kwargs, {}, 0)
    if len(first) == 3:
        return _unknown_variance(model, args, kwargs, first, remedy)
    if len(first) != 2:
        raise ValueError(
            f"a conjugate program has two sample sites, theta and symbols, got {[name for name, _ in first]}{remedy}"
        )
    (latent, prior_site), (observed, _) = first
    prior = _bare(prior_site["fn"])
    if prior_site["value"].size != int(np.prod(prior.event_shape, dtype=int)):
        raise ValueError(
            f"site {latent!r} has shape {prior_site['value'].shape}, expected one theta for one sequence; "
            "trace the program for a single sequence (size=1)"
        )
    mixed = mixture_parts(prior) if isinstance(prior, _MIXTURES) else []
    kinds = {type(part) for part in mixed or [prior]}
    for match in _MATCHES:
        likelihood = _bare(first[1][1]["fn"])
        if kinds == {match.prior} and isinstance(likelihood, match.likelihood):
            break
    else:
        known = "; ".join(m.text for m in _MATCHES)
        raise ValueError(
            f"no conjugate rule for a {type(prior).__name__} prior of {latent!r} with a "
            f"{type(_bare(first[1][1]['fn'])).__name__} likelihood of {observed!r}; known: {known}{remedy}"
        )
    seen = []
    for key in (0, 1):
        theta = prior_site["fn"].sample(jax.random.key(key))
        fn = _bare(dict(_samples(model, args, kwargs, {latent: theta}, 2))[observed]["fn"])
        got, want = np.asarray(match.is_theta(fn)), np.asarray(theta).reshape(prior.event_shape)
        if not np.allclose(got, np.broadcast_to(want, got.shape), rtol=1e-5, atol=1e-6):
            raise ValueError(
                f"the likelihood of {observed!r} is a transformation of {latent!r}, expected {match.text} "
                f"(theta itself){remedy}"
            )
        seen.append([_one(c, f"a parameter of {observed!r}") for c in match.constants(fn)])
    if seen[0] != seen[1]:
        raise ValueError(f"the scale of {observed!r} depends on {latent!r}, expected a known constant{remedy}")
    if not mixed:
        return match.make(prior, *seen[0])
    weights = tuple(np.asarray(prior.mixing_distribution.probs, float).tolist())
    return Mixture(tuple(match.make(part, *seen[0]) for part in mixed), weights)


def _unknown_variance(model: Callable[..., Any], args: Any, kwargs: Any, first: list[Any], remedy: str) -> Predictor:
    """``v ~ InverseGamma(shape, rate)``, ``m ~ N(loc, sqrt(v / count))``, symbols ``N(m, sqrt(v))``; by two values."""
    names = [name for name, _ in first]
    text = "v ~ InverseGamma(shape, rate), m ~ Normal(loc, sqrt(v / count)), z ~ Normal(m, sqrt(v))"
    wrong = ValueError(f"a conjugate program of three sample sites is {text}; the sites {names} are not{remedy}")
    prior = _bare(first[0][1]["fn"])
    if type(prior) is not dist.InverseGamma or first[0][1]["value"].size != 1 or first[1][1]["value"].size != 1:
        raise wrong
    seen = []
    for v, m in ((0.7, -0.4), (1.9, 1.3)):
        given = {name: np.full(site["value"].shape, x) for (name, site), x in zip(first[:2], (v, m), strict=True)}
        sites = [_bare(site["fn"]) for _, site in _samples(model, args, kwargs, given, 2)]
        if not all(isinstance(fn, dist.Normal) for fn in sites[1:]):
            raise wrong
        middle, last = sites[1:]
        if not (np.allclose(last.loc, m, atol=1e-6) and np.allclose(last.scale, np.sqrt(v), rtol=1e-5)):
            raise wrong
        seen.append((_one(middle.loc, "loc"), v / _one(middle.scale, "the scale of the mean") ** 2))
    if not np.allclose(seen[0], seen[1], rtol=1e-5, atol=1e-6):
        raise wrong
    (loc, count), _ = seen
    return NormalInverseGamma(loc, round(count, 12), _one(prior.concentration, "shape"), _one(prior.rate, "rate"))
