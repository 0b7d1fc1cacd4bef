"""What a prior-fitted network says about the next real symbol: the task's own law, bars, or a mixture of Normals.

    head      p(z_{t+1} | z_{1:t}) from the network's outputs
    task      what the task says: Bernoulli, Categorical, Normal
    bar       piecewise constant on K bars of equal width, half-Normal beyond the first and the last
    mixture   sum_c softmax(raw)_c N(z; loc_c, scale_c^2)

The bars are the Riemann distribution of Mueller et al. (ICLR 2022, arXiv 2112.10510, section 4): the network answers a
question of classes, so any shape of a predictive can be learnt.  Two things make it learn faster than with one free
output a bar: its outputs are the coefficients of 12 Legendre polynomials of the bar's place, so that neighbours are
alike, and they are added to the log-masses of the prior predictive, so that a network that says nothing predicts as the
prior does.  (With free outputs, 1,200 steps on Normal sequences left 4e-3 nats.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key
from numpyro.distributions import constraints
from scipy.special import ndtr

REACH = 4.0
"""Standard deviations of the prior predictive that the bars span, on either side of its mean."""
TAIL = 0.3
"""Scale of the half-Normals beyond, in the same units: a Normal falls about so fast there."""
DEGREE, UNIT = 12, 8.0
"""Largest degree of the polynomials of a bar head, and the size of one unit of output in log-odds."""
_LEAST, _MOST = -6.0, 6.0


class Bars(dist.Distribution):
    """``p_k / width`` in bar k of K; beyond the first and the last half-Normals of scale ``tail``.

    ``logits`` (*batch, K); ``low`` and ``high`` the ends of all bars.  An outer bar shares its p_k with the tail next
    to it so that the density has no step between them: ``tail / (tail + sqrt(2 / pi) width)`` of it is the tail's.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.real
    reparametrized_params: list[str] = []
    pytree_data_fields = ("logits", "low", "high", "tail")

    def __init__(
        self, logits: Float[Array, "*batch K"], low: Any, high: Any, tail: Any, *, validate_args: Any = None
    ) -> None:
        self.logits, self.low, self.high, self.tail = jnp.asarray(logits), low, high, tail
        super().__init__(batch_shape=self.logits.shape[:-1], event_shape=(), validate_args=validate_args)

    @property
    def bars(self) -> int:
        """Number K of bars."""
        return int(self.logits.shape[-1])

    @property
    def width(self) -> Any:
        """Width of one bar."""
        return (self.high - self.low) / self.bars

    @property
    def log_masses(self) -> Float[Array, "*batch K_2"]:
        """Log-mass of the lower tail, each bar, the upper tail."""
        p = jax.nn.log_softmax(self.logits, -1)
        outside = self.tail / (self.tail + float(np.sqrt(2 / np.pi)) * self.width)
        beyond, left = jnp.log(jnp.asarray(outside, p.dtype)), jnp.log1p(-jnp.asarray(outside, p.dtype))
        inside = p.at[..., 0].add(left).at[..., -1].add(left)
        return jnp.concatenate([p[..., :1] + beyond, inside, p[..., -1:] + beyond], -1)

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        """Nats."""
        del intermediates
        value = jnp.asarray(value, self.logits.dtype)
        place = (value - self.low) / self.width
        k = jnp.clip(jnp.floor(place), -1, self.bars).astype(jnp.int32) + 1
        masses = self.log_masses
        shape = jnp.broadcast_shapes(k.shape, masses.shape[:-1])
        masses = jnp.broadcast_to(masses, (*shape, self.bars + 2))
        mass = jnp.take_along_axis(masses, jnp.broadcast_to(k, shape)[..., None], -1)[..., 0]
        beyond = jnp.maximum(jnp.maximum(self.low - value, value - self.high), 0.0)
        inside = -jnp.log(self.width)
        outside = np.log(2) + dist.Normal(0.0, self.tail).log_prob(beyond)
        return mass + jnp.where((k == 0) | (k == self.bars + 1), outside, inside)

    def sample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        which, where, tail = jax.random.split(key, 3)
        shape = (*sample_shape, *self.batch_shape)
        k = jax.random.categorical(which, self.log_masses, shape=shape)
        u = jax.random.uniform(where, shape, self.logits.dtype)
        far = jnp.abs(jax.random.normal(tail, shape, self.logits.dtype)) * self.tail
        inside = self.low + (k - 1 + u) * self.width
        return jnp.where(k == 0, self.low - far, jnp.where(k == self.bars + 1, self.high + far, inside))

    def cdf(self, value: Any) -> Float[Array, "..."]:
        """P(Z <= value)."""
        value = jnp.asarray(value, self.logits.dtype)
        masses = jnp.exp(self.log_masses)
        share = jnp.clip((value[..., None] - self.low) / self.width - jnp.arange(self.bars), 0.0, 1.0)
        phi = jax.scipy.special.ndtr
        below = 2 * phi(jnp.minimum(value - self.low, 0.0) / self.tail)
        above = 2 * phi(jnp.maximum(value - self.high, 0.0) / self.tail) - 1
        return masses[..., 0] * below + (masses[..., 1:-1] * share).sum(-1) + masses[..., -1] * above

    @property
    def mean(self) -> Float[Array, "*batch"]:
        first, _ = self._moments
        return first

    @property
    def variance(self) -> Float[Array, "*batch"]:
        first, second = self._moments
        return second - first**2

    @property
    def _moments(self) -> tuple[Array, Array]:
        masses = jnp.exp(self.log_masses)
        centre = self.low + (jnp.arange(self.bars) + 0.5) * self.width
        # A half-Normal of scale t has mean t sqrt(2 / pi) and second moment t^2.
        step, square = float(np.sqrt(2 / np.pi)) * self.tail, self.tail**2
        ends = jnp.stack([self.low - step, self.high + step])
        ends2 = jnp.stack([self.low**2 - 2 * self.low * step + square, self.high**2 + 2 * self.high * step + square])
        first = jnp.concatenate([ends[:1], centre, ends[1:]])
        second = jnp.concatenate([ends2[:1], centre**2 + self.width**2 / 12, ends2[1:]])
        return masses @ first, masses @ second


@dataclass(frozen=True)
class Spoken:
    """A task whose network speaks in a given head; what a transformer needs to know of its task."""

    task: Any
    head: Literal["task", "bar", "mixture"] = "task"
    parts: int = 0

    @property
    def symbols(self) -> int | None:
        """Number K of symbols, or ``None``."""
        return self.task.symbols

    @property
    def period(self) -> int:
        """Numbers in one row of the sequence: 1, or inputs and an output."""
        return getattr(self.task, "period", 1)

    @property
    def predictive_width(self) -> int:
        """Outputs of the network."""
        if self.head == "task":
            return self.task.predictive_width
        return DEGREE if self.head == "bar" else 3 * self.parts

    def predictive(self, raw: Float[Array, "*batch out"]) -> dist.Distribution:
        """``p(z_{t+1} | z_{1:t})``."""
        if self.head == "task":
            return self.task.predictive(raw)
        centre, spread = self.task.spread
        if self.head == "bar":
            edges = np.linspace(-REACH, REACH, self.parts + 1)
            mass = np.log(np.diff(ndtr([-np.inf, *edges[1:-1], np.inf])))
            low, high = centre - REACH * spread, centre + REACH * spread
            place = (edges[1:] + edges[:-1]) / (2 * REACH)
            shape = UNIT * np.polynomial.legendre.legvander(place, DEGREE)[:, 1:]
            return Bars(raw @ jnp.asarray(shape.T, raw.dtype) + jnp.asarray(mass, raw.dtype), low, high, TAIL * spread)
        logits, loc, log_scale = jnp.split(raw, 3, -1)
        start = np.linspace(-1.0, 1.0, self.parts) if self.parts > 1 else np.zeros(1)
        parts = dist.Normal(
            centre + spread * (loc + jnp.asarray(start, raw.dtype)),
            spread * jnp.exp(jnp.clip(log_scale, _LEAST, _MOST)),
        )
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
