"""Predictive rules with a known fault, or at the edge of coherence: what a test of coherence must tell apart.

Each wraps or replaces the Laplace rule ``p(k) = (alpha_k + n_k) / (sum alpha + n)``, alpha = 1 unless said.

    rule         predictive                                          martingale  exchangeable
    Tempered     p_k^t / sum p^t                                     no          no
    Window       Laplace rule of the last w symbols                  no          no
    EWMA         m <- (1 - rate) m + rate e_z                        yes         no
    Discounted   counts <- g counts + e_z, prior counts included     yes         no
    Discounted   the same, prior counts fixed                        no          no
    Sticky       (1 - e) p + e [z_last]                              no          no
    Alternate    (1 - e) p + e [not z_last]                          no          no
    Drift        v p + (1 - v) / K, v = exp(-rate k), k drawn        no          no
    PlugIn       n_k / n, frozen                                     yes         yes, with no epistemic spread
    Urn          n_k / n, updated: a Polya urn                       yes         yes
    Fractional   counts of the context times weight, then ordinary   yes         yes, from the context on
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, Shaped

from ppl_models.in_context._rule import check, check_positive, rule
from ppl_models.in_context.predictors import BetaBernoulli
from ppl_models.program import Predictor, did_you_mean


def probabilities(fn: dist.Distribution) -> Float[Array, " K"]:
    """Probabilities of the outcomes 0..K-1 of a Bernoulli or Categorical distribution."""
    if isinstance(fn, dist.BernoulliProbs | dist.BernoulliLogits):
        return jnp.stack([1 - fn.probs, fn.probs], -1)
    if isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits):
        return fn.probs
    raise ValueError(
        f"expected a Bernoulli or Categorical predictive distribution, got {type(fn).__name__}; the faulty rules are "
        "defined for finite sets of symbols"
    )


def over(probs: Float[Array, " K"]) -> dist.Distribution:
    """Bernoulli for two outcomes, Categorical for more."""
    return dist.Bernoulli(probs=probs[..., 1]) if probs.shape[-1] == 2 else dist.Categorical(probs=probs)


def _hot(z: Shaped[Array, "..."], K: int) -> Float[Array, "... K"]:
    return jax.nn.one_hot(z, K, dtype=jnp.result_type(float))


def _share(self: Any, *names: str) -> None:
    check(self, lambda v: bool((v >= 0) & (v <= 1)), "between 0 and 1", *names)


# ------------------------------------------------------------------------------------------ wrappers of a rule
@rule("base", "power")
class Tempered:
    """``p_k^power / sum_j p_j^power``: too sure above 1, too timid below."""

    power: Any
    base: Any = BetaBernoulli()

    def __post_init__(self) -> None:
        check_positive(self, "power")

    def init(self, context: Shaped[Array, " n"]) -> Any:
        return self.base.init(context)

    def predict(self, state: Any) -> dist.Distribution:
        return over(jax.nn.softmax(self.power * jnp.log(probabilities(self.base.predict(state))), -1))

    def update(self, state: Any, z: Shaped[Array, ""]) -> Any:
        return self.base.update(state, z)


class LastState(NamedTuple):
    """State of the base rule and the last symbol, -1 before the first."""

    base: Any
    last: Int[Array, ""]


def _last(context: Shaped[Array, " n"]) -> Int[Array, ""]:
    return context[-1].astype(jnp.int32) if context.shape[0] else jnp.full((), -1, jnp.int32)


@rule("base", "share")
class Sticky:
    """``(1 - share) p + share [z_last]``: repeats itself."""

    share: Any
    base: Any = BetaBernoulli()

    def __post_init__(self) -> None:
        _share(self, "share")

    def init(self, context: Shaped[Array, " n"]) -> LastState:
        return LastState(self.base.init(context), _last(context))

    def predict(self, state: LastState) -> dist.Distribution:
        p = probabilities(self.base.predict(state.base))
        mixed = (1 - self.share) * p + self.share * self._pull(state.last, p.shape[-1])
        return over(jnp.where(state.last < 0, p, mixed))

    def _pull(self, last: Int[Array, ""], K: int) -> Float[Array, " K"]:
        return _hot(last, K)

    def update(self, state: LastState, z: Shaped[Array, ""]) -> LastState:
        return LastState(self.base.update(state.base, z), jnp.asarray(z).astype(jnp.int32))


@rule("base", "share")
class Alternate(Sticky):
    """``(1 - share) p + share [not z_last]``: avoids repeats (the others equally likely)."""

    def _pull(self, last: Int[Array, ""], K: int) -> Float[Array, " K"]:
        return (1 - _hot(last, K)) / (K - 1)


class DriftState(NamedTuple):
    """State of the base rule and the number of symbols since the context."""

    base: Any
    steps: Float[Array, ""]


@rule("base", "rate")
class Drift:
    """``v p + (1 - v) / K`` with ``v = exp(-rate k)`` after k symbols of its own: forgets as it generates."""

    rate: Any
    base: Any = BetaBernoulli()

    def __post_init__(self) -> None:
        check(self, lambda v: bool(v >= 0), ">= 0", "rate")

    def init(self, context: Shaped[Array, " n"]) -> DriftState:
        return DriftState(self.base.init(context), jnp.zeros((), jnp.result_type(float)))

    def predict(self, state: DriftState) -> dist.Distribution:
        p, v = probabilities(self.base.predict(state.base)), jnp.exp(-self.rate * state.steps)
        return over(v * p + (1 - v) / p.shape[-1])

    def update(self, state: DriftState, z: Shaped[Array, ""]) -> DriftState:
        return DriftState(self.base.update(state.base, z), state.steps + 1)


# ------------------------------------------------------------------------------------------ rules of counts
class _Counts:
    """Laplace rule on a state of K counts, prior counts included."""

    symbols: int

    def predict(self, state: Float[Array, " K"]) -> dist.Distribution:
        return over(state / state.sum())

    def update(self, state: Float[Array, " K"], z: Shaped[Array, ""]) -> Float[Array, " K"]:
        return state + _hot(z, self.symbols)


@rule()
class Window:
    """``(1 + n_k(last width)) / (K + width)``: remembers the last ``width`` symbols only."""

    width: int
    symbols: int = 2

    def __post_init__(self) -> None:
        check(self, lambda v: bool(v >= 1), "a whole number >= 1", "width")

    def init(self, context: Shaped[Array, " n"]) -> Int[Array, " width"]:
        kept = context[-self.width :].astype(jnp.int32)
        return jnp.concatenate([jnp.full(self.width - kept.shape[0], -1, jnp.int32), kept])

    def predict(self, state: Int[Array, " width"]) -> dist.Distribution:
        counts = 1 + _hot(state, self.symbols).sum(0)  # an empty place, -1, counts nothing
        return over(counts / counts.sum())

    def update(self, state: Int[Array, " width"], z: Shaped[Array, ""]) -> Int[Array, " width"]:
        return jnp.concatenate([state[1:], jnp.asarray(z).astype(jnp.int32)[None]])


@rule("rate")
class EWMA:
    """``m <- (1 - rate) m + rate e_z`` from the Laplace rule of the context: a martingale, not exchangeable."""

    rate: Any
    symbols: int = 2

    def __post_init__(self) -> None:
        _share(self, "rate")

    def init(self, context: Shaped[Array, " n"]) -> Float[Array, " K"]:
        counts = 1 + _hot(context, self.symbols).sum(0)
        return counts / counts.sum()

    def predict(self, state: Float[Array, " K"]) -> dist.Distribution:
        return over(state)

    def update(self, state: Float[Array, " K"], z: Shaped[Array, ""]) -> Float[Array, " K"]:
        return (1 - self.rate) * state + self.rate * _hot(z, self.symbols)


@rule("keep")
class Discounted:
    """``counts <- keep counts + e_z``; without ``discount_prior`` the prior counts of 1 are added afterwards."""

    keep: Any
    discount_prior: bool = True
    symbols: int = 2

    def __post_init__(self) -> None:
        _share(self, "keep")

    def init(self, context: Shaped[Array, " n"]) -> Float[Array, " K"]:
        n = context.shape[0]
        weights = self.keep ** jnp.arange(n - 1, -1, -1, dtype=jnp.result_type(float))
        counts = (weights[:, None] * _hot(context, self.symbols)).sum(0)
        return counts + self.keep**n if self.discount_prior else counts

    def predict(self, state: Float[Array, " K"]) -> dist.Distribution:
        counts = state if self.discount_prior else state + 1
        return over(counts / counts.sum())

    def update(self, state: Float[Array, " K"], z: Shaped[Array, ""]) -> Float[Array, " K"]:
        return self.keep * state + _hot(z, self.symbols)


@rule()
class PlugIn(_Counts):
    """``n_k / n`` of the context for ever: i.i.d., so coherent, but without epistemic spread."""

    symbols: int = 2

    def init(self, context: Shaped[Array, " n"]) -> Float[Array, " K"]:
        if context.shape[0] == 0:
            raise ValueError(f"{type(self).__name__} divides by the length of the context, got an empty one")
        return _hot(context, self.symbols).sum(0)

    def update(self, state: Float[Array, " K"], z: Shaped[Array, ""]) -> Float[Array, " K"]:
        return state


@rule()
class Urn(PlugIn):
    """``n_k / n`` with every draw added: the Polya urn; its martingale posterior is the Bayesian bootstrap."""

    def update(self, state: Float[Array, " K"], z: Shaped[Array, ""]) -> Float[Array, " K"]:
        return state + _hot(z, self.symbols)


@rule("weight")
class Fractional(_Counts):
    """``1 + weight n_k`` for the context, ordinary counting afterwards: coherent at another level of confidence."""

    weight: Any
    symbols: int = 2

    def __post_init__(self) -> None:
        check_positive(self, "weight")

    def init(self, context: Shaped[Array, " n"]) -> Float[Array, " K"]:
        return 1 + self.weight * _hot(context, self.symbols).sum(0)


# ------------------------------------------------------------------------------------------ by name
RULES: Mapping[str, tuple[Callable[..., Predictor], str]] = MappingProxyType(
    {
        "bayes": (BetaBernoulli, "bayes:A,B  exact Bayes under Beta(A, B); default 1,1"),
        "beta": (BetaBernoulli, "beta:A,B  another name of bayes:A,B"),
        "tempered": (Tempered, "tempered:T  probabilities to the power T"),
        "window": (lambda width: Window(int(width)), "window:W  the last W symbols"),
        "ewma": (EWMA, "ewma:R  moving average of rate R"),
        "sticky": (Sticky, "sticky:E  repeats the last symbol with probability E"),
        "alternate": (Alternate, "alternate:E  avoids the last symbol with probability E"),
        "drift": (Drift, "drift:D  forgets its context at rate D a step"),
        "discounted": (Discounted, "discounted:G  counts and prior counts times G a step"),
        "plugin": (PlugIn, "plugin  the frequency of the context, frozen"),
        "urn": (Urn, "urn  the frequency, updated"),
        "fractional": (Fractional, "fractional:W  weight W on the counts of the context"),
    }
)
"""Name -> (rule, how to write it) of the binary rules that a command line can ask for."""


_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def parse_rule(text: str) -> Predictor:
    """Return the binary rule written ``NAME`` or ``NAME:NUMBER[,NUMBER]``, for example ``"tempered:1.2"``.

    Raises ``ValueError`` that lists the rules for an unknown name, a wrong number of arguments or a bad value.

    >>> parse_rule("bayes:2,3")
    BetaBernoulli(a=2.0, b=3.0)
    """
    name, _, rest = text.partition(":")
    if name not in RULES:
        raise ValueError(f"unknown rule {name!r}{did_you_mean(name, RULES)}; known: {', '.join(RULES)}")
    make, how = RULES[name]
    values = [part.strip() for part in rest.split(",") if part.strip()]
    if not all(_NUMBER.fullmatch(value) for value in values) or not all(abs(float(v)) < 1e30 for v in values):
        raise ValueError(f"rule {text!r}: a value is a finite number; write {how}")
    try:
        return make(*map(float, values))
    except TypeError as error:
        raise ValueError(f"rule {text!r} has the wrong number of values; write {how}") from error
    except ValueError as error:
        raise ValueError(f"rule {text!r}: {error}; write {how}") from error
