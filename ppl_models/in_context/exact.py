"""Further exact Bayes predictors: unknown variance, counts, and mixtures of conjugate priors.

    symbols   theta ~ prior                                    z_t | theta        p(z_{n+1} | z_{1:n})
    real      v ~ InverseGamma(a, b), m | v ~ N(loc, v/count)  N(m, v)            Student t with 2 a_n d.f.
    counts    Gamma(a, b)                                      Poisson(theta)     negative binomial
    any       sum_k weight_k prior_k                           as prior_k says    sum_k weight_nk p_k(. | z_{1:n})

The weights of a mixture are those of Bayes, ``weight_nk ~ weight_k p_k(z_{1:n})``.  A predictor reads symbols only, so
regression on inputs given beside them is not among these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Shaped

from ppl_models.in_context._rule import check_positive, numbers, rule
from ppl_models.program import Predictor


class NormalGammaState(NamedTuple):
    """Posterior ``v ~ InverseGamma(shape, rate)``, ``m | v ~ N(loc, v / strength)``."""

    loc: Float[Array, ""]
    strength: Float[Array, ""]
    shape: Float[Array, ""]
    rate: Float[Array, ""]


@rule("loc", "count", "shape", "rate")
class NormalInverseGamma:
    """``v ~ InverseGamma(shape, rate)``, ``m | v ~ N(loc, v / count)``, ``z_t ~ N(m, v)``: mean and variance unknown.

    ``count_n = count + n``, ``loc_n = (count loc + sum z) / count_n``, ``shape_n = shape + n/2``,
    ``rate_n = rate + sum (z - mean)^2 / 2 + count n (mean - loc)^2 / (2 count_n)``, and z_{n+1} is Student's t with
    ``2 shape_n`` degrees of freedom, location ``loc_n`` and scale^2 ``rate_n (count_n + 1) / (shape_n count_n)``
    (Bernardo and Smith, Bayesian Theory, 1994, appendix A.2).

    The predictive has a variance only for ``shape + n/2 > 1``; checks of z^2 need it.

    >>> rule = NormalInverseGamma(0.0, 1.0, 2.0, 2.0)
    >>> fn = rule.predict(rule.init(jnp.array([1.0, 3.0])))
    >>> float(fn.df), float(fn.loc)
    (6.0, 1.33...)
    """

    loc: Any = 0.0
    count: Any = 1.0
    shape: Any = 2.0
    rate: Any = 2.0

    def __post_init__(self) -> None:
        check_positive(self, "count", "shape", "rate")

    def init(self, context: Shaped[Array, " n"]) -> NormalGammaState:
        z, n = jnp.asarray(context, jnp.result_type(float)), context.shape[0]
        mean = z.sum() / max(n, 1)
        count = self.count + n
        between = self.count * n * (mean - self.loc) ** 2 / count
        values = (
            (self.count * self.loc + z.sum()) / count,
            count,
            self.shape + n / 2,
            self.rate + (jnp.sum((z - mean) ** 2) + between) / 2,
        )
        return NormalGammaState(*(jnp.asarray(value, z.dtype) for value in values))

    def predict(self, state: NormalGammaState) -> dist.Distribution:
        square = state.rate * (state.strength + 1) / (state.shape * state.strength)
        return dist.StudentT(2 * state.shape, state.loc, jnp.sqrt(square))

    def update(self, state: NormalGammaState, z: Shaped[Array, ""]) -> NormalGammaState:
        loc, count, shape, rate = state
        return NormalGammaState(
            (count * loc + z) / (count + 1),
            count + 1,
            shape + 0.5,
            rate + count * (z - loc) ** 2 / (2 * (count + 1)),
        )

    def posterior(self, state: NormalGammaState) -> dist.Distribution:
        """The marginal ``p(m | z_{1:n})``, Student's t; the variance is ``InverseGamma(state.shape, state.rate)``."""
        return dist.StudentT(2 * state.shape, state.loc, jnp.sqrt(state.rate / (state.shape * state.strength)))


class GammaState(NamedTuple):
    """Posterior Gamma(a, b) of the rate theta, mean a / b."""

    a: Float[Array, ""]
    b: Float[Array, ""]


@rule("a", "b")
class GammaPoisson:
    """``theta ~ Gamma(a, b)`` (mean a / b), ``z_t ~ Poisson(theta)``: counts.

    The state is ``(a + sum z, b + n)`` and z_{n+1} is negative binomial,
    ``p(z) = Gamma(a_n + z) / (Gamma(a_n) z!) (b_n / (b_n + 1))^a_n (b_n + 1)^-z``.
    """

    a: Any = 1.0
    b: Any = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "a", "b")

    def init(self, context: Shaped[Array, " n"]) -> GammaState:
        total = jnp.sum(jnp.asarray(context, jnp.result_type(float)))
        return GammaState(self.a + total, jnp.asarray(self.b + context.shape[0], total.dtype))

    def predict(self, state: GammaState) -> dist.Distribution:
        return dist.GammaPoisson(state.a, state.b)

    def update(self, state: GammaState, z: Shaped[Array, ""]) -> GammaState:
        return GammaState(state.a + z, state.b + 1)

    def posterior(self, state: GammaState) -> dist.Distribution:
        """``p(theta | z_{1:n})``."""
        return dist.Gamma(state.a, state.b)


class MixtureState(NamedTuple):
    """Log-weights of the parts given the symbols so far, normalised, and the state of each part."""

    log_weights: Float[Array, " K"]
    parts: tuple[Any, ...]


def _finite(fn: dist.Distribution) -> Float[Array, " outcome"] | None:
    if isinstance(fn, dist.BernoulliProbs | dist.BernoulliLogits):
        return jnp.stack([1 - fn.probs, fn.probs])
    return fn.probs if isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits) else None


@rule("parts", "weights")
class Mixture:
    """``k ~ Categorical(weights)``, then symbols from part k: exact Bayes under a mixture of the parts' priors.

    ``p(z | z_{1:n}) = sum_k weight_nk p_k(z | z_{1:n})`` with ``weight_nk`` proportional to ``weights_k p_k(z_{1:n})``,
    the evidence of each part being the product of its own one-step predictions.
    The parts are predictors of the same kind of symbol; ``weights`` need not sum to one.

    >>> rule = Mixture((BetaBernoulli(20.0, 2.0), BetaBernoulli(2.0, 20.0)))
    >>> float(rule.predict(rule.init(jnp.array([1, 1, 1, 1]))).probs)  # most likely the first
    0.9...
    """

    parts: tuple[Predictor, ...]
    weights: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple | list) or not self.parts:
            return  # a placeholder while JAX rebuilds the rule
        value = numbers(self.weights)
        if value is not None and value.shape != (len(self.parts),):
            raise ValueError(
                f"Mixture: weights must hold one number for each of {len(self.parts)} parts, got {self.weights!r}"
            )
        check_positive(self, "weights")

    def init(self, context: Shaped[Array, " n"]) -> MixtureState:
        context = jnp.asarray(context)
        dtype = jnp.result_type(float)
        weights = jnp.ones(len(self.parts)) if self.weights is None else jnp.asarray(self.weights)
        log_weights = jnp.log(weights.astype(dtype) / weights.sum())
        start = MixtureState(log_weights, tuple(part.init(context[:0]) for part in self.parts))
        if context.shape[0] == 0:
            return start
        return jax.lax.scan(lambda state, z: (self.update(state, z), None), start, context)[0]

    def predict(self, state: MixtureState) -> dist.Distribution:
        fns = [part.predict(s) for part, s in zip(self.parts, state.parts, strict=True)]
        weights = jnp.exp(state.log_weights)
        probs = [p for p in map(_finite, fns) if p is not None]
        if len(probs) == len(fns):
            mixed = jnp.einsum("k,ko->o", weights, jnp.stack(probs))
            return dist.Bernoulli(probs=mixed[1]) if mixed.shape[0] == 2 else dist.Categorical(probs=mixed)
        return dist.MixtureGeneral(dist.Categorical(probs=weights), fns)

    def update(self, state: MixtureState, z: Shaped[Array, ""]) -> MixtureState:
        said = [part.predict(s).log_prob(z) for part, s in zip(self.parts, state.parts, strict=True)]
        moved = tuple(part.update(s, z) for part, s in zip(self.parts, state.parts, strict=True))
        return MixtureState(jax.nn.log_softmax(state.log_weights + jnp.stack(said)), moved)

    def posterior(self, state: MixtureState) -> dist.Distribution:
        """``p(theta | z_{1:n})``, the mixture of the parts' posteriors."""
        parts: Any = zip(self.parts, state.parts, strict=True)
        return dist.MixtureGeneral(
            dist.Categorical(probs=jnp.exp(state.log_weights)), [p.posterior(s) for p, s in parts]
        )


def mixture_parts(prior: Any) -> list[Any]:
    """The component priors of a ``MixtureSameFamily`` or ``MixtureGeneral`` over one theta."""
    if isinstance(prior, dist.MixtureGeneral):
        return list(prior.component_distributions)
    component = prior.component_distribution
    values = {name: np.asarray(getattr(component, name)) for name in component.arg_constraints}
    size = component.batch_shape[-1]
    return [type(component)(**{name: value[k] for name, value in values.items()}) for k in range(size)]
