"""Tasks: what the unknown of a sequence is, how symbols follow from it, and which distributions a network speaks in.

    task      theta                          z_t | theta            q(theta | z) of the encoder
    Coin      Beta(a, b)                     Bernoulli(theta)       Beta
    Dice      Dirichlet(alpha)               Categorical(theta)     Dirichlet
    Gaussian  Normal(loc, scale)             Normal(theta, noise)   Normal

(:class:`Regression`, for prior-fitted networks only, is in ``regression.py``.)
The encoder's families contain the exact posteriors, so what a check finds is the amortisation, not the family; others
are in :mod:`ppl_models.in_context.guides`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Shaped
from numpyro.distributions import transforms
from pydantic import Field

from ppl_models.distributions import ConditionalFlow
from ppl_models.in_context._rule import check_positive, positive
from ppl_models.in_context.guides import average
from ppl_models.in_context.regression import Regression as Regression


class Symbols(dist.CategoricalProbs):
    """Categorical distribution of labels, which have no mean."""

    @property
    def mean(self) -> Array:
        raise NotImplementedError("symbols are labels, they have no mean")


def _mean(q: Any) -> Array:
    """``E_q theta``, of a flow over nodes of a quadrature."""
    if not isinstance(q, ConditionalFlow):
        return q.mean
    weight, theta = average(q)
    return jnp.tensordot(weight, theta, axes=1)


@dataclass(frozen=True)
class Coin:
    """``theta ~ Beta(a, b)``, ``z_t ~ Bernoulli(theta)``."""

    a: float = 1.0
    b: float = 1.0
    kind: Literal["coin"] = "coin"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_positive(self, "a", "b")

    symbols: ClassVar[int | None] = 2
    dimension: ClassVar[int] = 1
    posterior_width: ClassVar[int] = 2
    predictive_width: ClassVar[int] = 1
    text: ClassVar[tuple[str, str]] = ("Beta(θ; {a:g}, {b:g})", "Bernoulli(zₜ; θ)")

    def prior(self) -> dist.Distribution:
        """``p(theta)``."""
        return dist.Beta(self.a, self.b)

    def likelihood(self, theta: Float[Array, "*batch"], length: int) -> dist.Distribution:
        """``p(z_t | theta)`` for each t, batch shape (*batch, length)."""
        return dist.Bernoulli(probs=jnp.broadcast_to(theta[..., None], (*theta.shape, length)))

    def posterior(self, raw: Float[Array, "*batch 2"]) -> dist.Distribution:
        """``Beta(exp raw_0, exp raw_1)``."""
        return dist.Beta(positive(raw[..., 0]), positive(raw[..., 1]))

    def steps(self) -> list[transforms.Transform]:
        """From a vector of one number to (0, 1)."""
        return [transforms.ReshapeTransform((), (1,)), transforms.SigmoidTransform()]

    def marginal(self, q: Any) -> dist.Distribution:
        """``E_q p(z | theta)``."""
        return dist.Bernoulli(probs=_mean(q))

    def predictive(self, raw: Float[Array, "*batch 1"]) -> dist.Distribution:
        """``p(z_{t+1} | z_{1:t})`` with logit ``raw_0``."""
        return dist.Bernoulli(logits=raw[..., 0])


@dataclass(frozen=True)
class Dice:
    """``theta ~ Dirichlet(alpha)``, ``z_t ~ Categorical(theta)``, symbols 0..K-1."""

    alpha: tuple[float, ...] = (1.0, 1.0, 1.0)
    kind: Literal["dice"] = "dice"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", tuple(self.alpha))
        if not 2 <= len(self.alpha) <= 255:
            raise ValueError(f"Dice: alpha needs one number a symbol, 2 to 255 of them, got {len(self.alpha)}")
        check_positive(self, "alpha")

    text: ClassVar[tuple[str, str]] = ("Dirichlet(θ; {alpha})", "Categorical(zₜ; θ)")

    @property
    def symbols(self) -> int:
        """Number K of symbols."""
        return len(self.alpha)

    @property
    def dimension(self) -> int:
        """Free numbers of theta."""
        return len(self.alpha) - 1

    @property
    def posterior_width(self) -> int:
        """One concentration a symbol."""
        return len(self.alpha)

    @property
    def predictive_width(self) -> int:
        """One logit a symbol."""
        return len(self.alpha)

    def prior(self) -> dist.Distribution:
        """``p(theta)``."""
        return dist.Dirichlet(jnp.asarray(self.alpha))

    def likelihood(self, theta: Float[Array, "*batch K"], length: int) -> dist.Distribution:
        """``p(z_t | theta)`` for each t, batch shape (*batch, length)."""
        return Symbols(jnp.broadcast_to(theta[..., None, :], (*theta.shape[:-1], length, theta.shape[-1])))

    def posterior(self, raw: Float[Array, "*batch K"]) -> dist.Distribution:
        """``Dirichlet(exp raw)``."""
        return dist.Dirichlet(positive(raw))

    def steps(self) -> list[transforms.Transform]:
        """From K - 1 numbers to the simplex."""
        return [transforms.StickBreakingTransform()]

    def marginal(self, q: Any) -> dist.Distribution:
        """``E_q p(z | theta)``."""
        return dist.Categorical(probs=_mean(q))

    def predictive(self, raw: Float[Array, "*batch K"]) -> dist.Distribution:
        """``p(z_{t+1} | z_{1:t})`` with logits ``raw``."""
        return dist.Categorical(logits=raw)


@dataclass(frozen=True)
class Gaussian:
    """``theta ~ N(loc, scale^2)``, ``z_t ~ N(theta, noise^2)``, ``noise`` known."""

    loc: float = 0.0
    scale: float = 1.0
    noise: float = 1.0
    kind: Literal["gaussian"] = "gaussian"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_positive(self, "scale", "noise")

    symbols: ClassVar[int | None] = None
    dimension: ClassVar[int] = 1
    posterior_width: ClassVar[int] = 2
    predictive_width: ClassVar[int] = 2
    text: ClassVar[tuple[str, str]] = ("N(θ; {loc:g}, {scale:g}²)", "N(zₜ; θ, {noise:g}²)")

    def prior(self) -> dist.Distribution:
        """``p(theta)``."""
        return dist.Normal(self.loc, self.scale)

    def likelihood(self, theta: Float[Array, "*batch"], length: int) -> dist.Distribution:
        """``p(z_t | theta)`` for each t, batch shape (*batch, length)."""
        return dist.Normal(jnp.broadcast_to(theta[..., None], (*theta.shape, length)), self.noise)

    def posterior(self, raw: Float[Array, "*batch 2"]) -> dist.Distribution:
        """``N(raw_0, exp(raw_1)^2)``."""
        return dist.Normal(raw[..., 0], positive(raw[..., 1]))

    def steps(self) -> list[transforms.Transform]:
        """From a vector of one number to the number."""
        return [transforms.ReshapeTransform((), (1,))]

    def marginal(self, q: Any) -> dist.Distribution:
        """``E_q p(z | theta)``; of a flow a mixture of Normals at nodes of a quadrature."""
        if isinstance(q, ConditionalFlow):
            weight, theta = average(q)
            parts = dist.Normal(jnp.moveaxis(theta, 0, -1), self.noise)
            mixing = dist.Categorical(probs=jnp.broadcast_to(weight, parts.batch_shape))
            return dist.MixtureSameFamily(mixing, parts)
        return dist.Normal(q.loc, jnp.sqrt(q.scale**2 + self.noise**2))

    @property
    def spread(self) -> tuple[float, float]:
        """Mean and standard deviation of the prior predictive."""
        return self.loc, (self.scale**2 + self.noise**2) ** 0.5

    def predictive(self, raw: Float[Array, "*batch 2"]) -> dist.Distribution:
        """``p(z_{t+1} | z_{1:t})``: ``N(raw_0, exp(raw_1)^2)``."""
        return dist.Normal(raw[..., 0], positive(raw[..., 1]))


Task = Annotated[Coin | Dice | Gaussian | Regression, Field(discriminator="kind")]


def check_symbols(task: Coin | Dice | Gaussian | Regression, x: Shaped[np.ndarray, "n T"]) -> None:
    """Raise ``ValueError`` for stored sequences that the task cannot have made."""
    if task.symbols is None:
        return
    wrong = (x != np.floor(x)) | (x < 0) | (x >= task.symbols)
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(1))[0])
        got = float(x[row][wrong[row]][0])
        raise ValueError(
            f"sequences of this task hold the symbols 0..{task.symbols - 1}, got {got:g} in row {row}; "
            "recode the data, or choose a task with more symbols"
        )
