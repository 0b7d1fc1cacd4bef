"""Bayesian linear regression as a sequence of numbers: the inputs of a row, its output, the next row.

    theta ~ N(0, scale^2 I),   x_i ~ N(0, I),   y_i | theta, x_i ~ N(theta . x_i, noise^2)
    z = (x_11, ..., x_1D, y_1, x_21, ..., x_2D, y_2, ...)

A predictor of symbols then reads regression too: the next symbol is an input, N(0, 1), or the output of the row begun,
whose exact predictive is N(m . x, noise^2 + x' V x) with the posterior N(m, V) of theta (Bishop, Pattern Recognition
and Machine Learning, 2006, eqs. 3.50 and 3.58).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, Key, Shaped

from ppl_models.in_context._rule import check_positive, positive, rule


class LineState(NamedTuple):
    """Precision and precision-weighted mean of theta, the inputs of the row begun, and how many there are."""

    precision: Float[Array, "D D"]
    weighted: Float[Array, " D"]
    row: Float[Array, " D"]
    phase: Int[Array, ""]


@rule("scale", "noise")
class LinearRegression:
    """Exact Bayes for rows (x, y): ``theta ~ N(0, scale^2 I)``, ``x ~ N(0, I)``, ``y ~ N(theta . x, noise^2)``.

    After each row ``P <- P + x x' / noise^2`` and ``b <- b + x y / noise^2``, m = P^-1 b and V = P^-1.  Rows are
    exchangeable; single numbers, inputs and outputs in turn, are not, so the tests of coherence are not for it.
    """

    inputs: int = 1
    scale: Any = 1.0
    noise: Any = 0.5

    def __post_init__(self) -> None:
        check_positive(self, "scale", "noise")

    @property
    def period(self) -> int:
        """Numbers of one row."""
        return self.inputs + 1

    def init(self, context: Shaped[Array, " n"]) -> LineState:
        dtype = jnp.result_type(float)
        zero = jnp.zeros(self.inputs, dtype)
        start = LineState(jnp.eye(self.inputs, dtype=dtype) / self.scale**2, zero, zero, jnp.zeros((), jnp.int32))
        if context.shape[0] == 0:
            return start
        return jax.lax.scan(lambda s, z: (self.update(s, z), None), start, context.astype(dtype))[0]

    def predict(self, state: LineState) -> dist.Distribution:
        output = state.phase == self.inputs
        # One solve gives both: m . x = b . P^-1 x and x' V x = x . P^-1 x.
        solved = jnp.linalg.solve(state.precision, state.row)
        mean, square = state.weighted @ solved, self.noise**2 + state.row @ solved
        return dist.Normal(jnp.where(output, mean, 0.0), jnp.where(output, jnp.sqrt(square), 1.0))

    def update(self, state: LineState, z: Shaped[Array, ""]) -> LineState:
        precision, weighted, row, phase = state
        output, z = phase == self.inputs, jnp.asarray(z, row.dtype)
        weight = jnp.where(output, 1 / jnp.asarray(self.noise, row.dtype) ** 2, 0.0)
        read = jnp.where((jnp.arange(self.inputs) == phase) & ~output, z, row)
        return LineState(
            precision + weight * jnp.outer(row, row),
            weighted + weight * row * z,
            jnp.where(output, 0.0, read),
            jnp.where(output, 0, phase + 1).astype(jnp.int32),
        )


@dataclass(frozen=True)
class Regression:
    """Rows of ``inputs`` numbers ``x ~ N(0, I)`` and an output ``y ~ N(theta . x, noise^2)``.

    ``theta ~ N(0, scale^2 I)``.  For prior-fitted networks; a sequence holds whole rows.
    """

    inputs: int = 1
    scale: float = 1.0
    noise: float = 0.5
    kind: Literal["regression"] = "regression"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_positive(self, "scale", "noise")
        if not isinstance(self.inputs, int) or self.inputs < 1:
            raise ValueError(f"Regression: inputs must be an integer >= 1, got {self.inputs!r}")

    symbols: ClassVar[int | None] = None
    predictive_width: ClassVar[int] = 2
    text: ClassVar[tuple[str, str]] = (
        "N(θ; 0, {scale:g}² I)",
        "rows of {inputs} inputs N(0, 1) and an output N(y; θ·x, {noise:g}²)",
    )

    @property
    def dimension(self) -> int:
        """Numbers of theta."""
        return self.inputs

    @property
    def period(self) -> int:
        """Numbers of one row."""
        return self.inputs + 1

    @property
    def spread(self) -> tuple[float, float]:
        """Mean of a symbol, and a standard deviation wide enough for inputs and outputs."""
        return 0.0, max(1.0, (self.inputs * self.scale**2 + self.noise**2) ** 0.5)

    def exact(self) -> LinearRegression:
        """The exact Bayes rule."""
        return LinearRegression(self.inputs, self.scale, self.noise)

    def draw(self, key: Key[Array, ""], n: int, length: int) -> Float[Array, "n length"]:
        """Sequences drawn from the task."""
        theta_key, x_key, noise_key = jax.random.split(key, 3)
        rows = length // self.period
        theta = self.scale * jax.random.normal(theta_key, (n, self.inputs))
        x = jax.random.normal(x_key, (n, rows, self.inputs))
        y = jnp.einsum("nd,nrd->nr", theta, x) + self.noise * jax.random.normal(noise_key, (n, rows))
        return jnp.concatenate([x, y[..., None]], -1).reshape(n, length)

    def predictive(self, raw: Float[Array, "*batch 2"]) -> dist.Distribution:
        """``N(raw_0, exp(raw_1)^2)``."""
        return dist.Normal(raw[..., 0], positive(raw[..., 1]))
