"""Laws of a whole row of counts given its library size: what a document or a cell holds, given how much of it was read.

With shares ``p = softmax(logits)`` over the D columns and the library size l of the row, ``m_d = l p_d``:

    negative binomial   x_d ~ NB(m_d, r_d), independently; of mean m_d and variance m_d + m_d^2 / r_d
    multinomial         x ~ Multinomial(l, p): the counts of a row add up to l

Both are probability masses of whole numbers (nats) for every fixed l.  If l is the row's own sum, the negative binomial
still gives mass to rows of other sums, the multinomial gives none.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ppl_models.distributions.counts import (
    MOST,
    multinomial_log_prob,
    multinomial_sample,
    negative_binomial_log_prob,
    negative_binomial_sample,
)

LEAST_MEAN = 1e-6
"""Means of the negative binomial are kept above it."""
NEAR = 1e-6
"""Relative error up to which the counts of a row may miss their library size, which float32 has rounded."""


class LibraryLaw(dist.Distribution):
    """What both laws share: ``logits`` (*batch, D) of the shares, ``library`` (*batch,), event (D,)."""

    arg_constraints = {"logits": dist.constraints.real_vector, "library": dist.constraints.nonnegative}
    support = dist.constraints.independent(dist.constraints.nonnegative_integer, 1)
    pytree_data_fields: tuple[str, ...] = ("logits", "library")

    def __init__(
        self,
        logits: Float[Array, "*#batch D"],
        library: Float[Array, "*#batch"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        batch = jnp.broadcast_shapes(logits.shape[:-1], library.shape)
        self.logits = jnp.broadcast_to(logits, (*batch, logits.shape[-1]))
        self.library = jnp.broadcast_to(library, batch)
        super().__init__(batch, logits.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Float[Array, "*batch D"]:
        """``l p``."""
        return self.library[..., None] * jax.nn.softmax(self.logits)


class NegativeBinomialLibrary(LibraryLaw):
    """``prod_d NB(x_d; l p_d, r_d)``; ``concentration`` (D,) r."""

    pytree_data_fields = ("concentration",)

    def __init__(
        self,
        logits: Float[Array, "*#batch D"],
        library: Float[Array, "*#batch"],
        concentration: Float[Array, " D"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration = concentration
        super().__init__(logits, library, validate_args=validate_args)

    def _means(self) -> Float[Array, "*batch D"]:
        return jnp.clip(self.mean, LEAST_MEAN, MOST)

    def log_prob(self, value: Float[Array, "*rest D"], intermediates: Any = None) -> Float[Array, "*rest"]:
        """``sum_d log NB(x_d; l p_d, r_d)`` in nats."""
        del intermediates
        return negative_binomial_log_prob(value, self._means(), self.concentration).sum(-1)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*rest D"]:
        """Draw counts."""
        assert key is not None
        shape = sample_shape + self.batch_shape + self.event_shape
        mean, concentration = jnp.broadcast_to(self._means(), shape), jnp.broadcast_to(self.concentration, shape)
        return negative_binomial_sample(key, mean, concentration)

    @property
    def variance(self) -> Float[Array, "*batch D"]:
        """``m + m^2 / r``."""
        return self.mean + self.mean**2 / self.concentration


class MultinomialLibrary(LibraryLaw):
    """``l! prod_d p_d^x_d / x_d!`` for counts that add up to l, 0 for others; a library size is a whole number."""

    def log_prob(self, value: Float[Array, "*rest D"], intermediates: Any = None) -> Float[Array, "*rest"]:
        """``log Multinomial(x; l, p)`` in nats, its coefficient included; -inf where x does not add up to l."""
        del intermediates
        within = jnp.abs(value.sum(-1) - self.library) <= 0.5 + NEAR * self.library
        return jnp.where(within, multinomial_log_prob(value, self.library, self.logits), -math.inf)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*rest D"]:
        """Draw counts that add up to l."""
        assert key is not None
        shape = sample_shape + self.batch_shape
        logits = jnp.broadcast_to(self.logits, (*shape, *self.event_shape))
        return multinomial_sample(key, jnp.broadcast_to(self.library, shape), logits)

    @property
    def variance(self) -> Float[Array, "*batch D"]:
        """``l p (1 - p)``."""
        return self.mean * (1 - jax.nn.softmax(self.logits))
