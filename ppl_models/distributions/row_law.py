"""The law of one row of a table: a product over its columns, in the units of the file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from ppl_models._column import Column
from ppl_models.distributions.counts import negative_binomial_log_prob, negative_binomial_sample

Columns_ = tuple[Column, ...]


@dataclass(frozen=True)
class Groups:
    """Positions of the columns of each kind, so that one operation serves all columns of a kind.

    ``gaussian``  real and positive ones; ``positive``  True for the latter among them.
    ``classes``   number of classes -> positions of the categorical columns that have so many.
    """

    gaussian: np.ndarray
    positive: np.ndarray
    count: np.ndarray
    binary: np.ndarray
    classes: dict[int, np.ndarray]
    loc: np.ndarray
    scale: np.ndarray
    inverse: np.ndarray


@lru_cache(maxsize=64)
def groups(columns: Columns_) -> Groups:
    """The columns by kind; ``inverse`` puts numbers in the order of the groups back into that of the columns."""

    def of(*kinds: str) -> np.ndarray:
        return np.asarray([i for i, column in enumerate(columns) if column.kind in kinds], "int32")

    gaussian, count, binary = of("real", "positive"), of("count"), of("binary")
    sizes = sorted({len(column.values) for column in columns if column.kind == "categorical"})
    classes = {k: np.asarray([i for i in of("categorical") if len(columns[i].values) == k], "int32") for k in sizes}
    order = np.concatenate([gaussian, count, binary, *classes.values()])
    return Groups(
        gaussian,
        np.asarray([columns[i].kind == "positive" for i in gaussian], bool),
        count,
        binary,
        classes,
        np.asarray([columns[i].loc for i in gaussian], "float64"),
        np.asarray([columns[i].scale for i in gaussian], "float64"),
        np.argsort(order),
    )


class RowLaw(dist.Distribution):
    """``p(x) = prod_d p_d(x_d)`` over the entries of a row that are there, as a density **in the units of the file**.

    ``columns``        the D columns of the row; values ``x`` (..., D) are their stored numbers.
    ``loc``            ``scale`` (..., G): of the real and positive columns, in their order, on the stored scale.
    ``df``             (..., G): degrees of freedom of a Student-t in place of the Normal, or ``None``.
    ``mean``           ``concentration`` (..., C): of the counts, negative binomial of variance m + m^2 / r.
    ``logits``         (..., B): log odds of code 1 of the binary columns.
    ``class_logits``   one (..., n, k) for each number k of classes, ascending, of the n categorical columns of so many.
    ``there``          (..., D) True where an entry is known, ``None`` where all are: the others are summed out, which
                       for a product is to leave their factors out.

    ``log_prob`` holds the log Jacobians of the stored numbers (:class:`ppl_models.program.Column`): the density of a
    real cell is ``N(stored; loc, scale) / column.scale``; counts and classes have probability masses.  Nats.
    """

    arg_constraints: dict[str, Any] = {}
    support = dist.constraints.real_vector
    reparametrized_params: list[str] = []
    pytree_data_fields: tuple[str, ...] = (
        "loc",
        "scale",
        "df",
        "mean_count",
        "concentration",
        "logits",
        "class_logits",
        "there",
    )
    pytree_aux_fields: tuple[str, ...] = ("columns",)

    def __init__(
        self,
        columns: Columns_,
        *,
        loc: Float[Array, "*#batch G"],
        scale: Float[Array, "*#batch G"],
        mean: Float[Array, "*#batch C"],
        concentration: Float[Array, "*#batch C"],
        logits: Float[Array, "*#batch B"],
        class_logits: tuple[Float[Array, "..."], ...] = (),
        df: Float[Array, "*#batch G"] | None = None,
        there: Bool[Array, "*#batch D"] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.columns = columns
        given = [value for value in (loc, scale, mean, concentration, logits, df, there) if value is not None]
        batch = jnp.broadcast_shapes(
            *(value.shape[:-1] for value in given), *(value.shape[:-2] for value in class_logits)
        )

        def spread(value: Any, event: int = 1) -> Any:
            return None if value is None else jnp.broadcast_to(value, (*batch, *value.shape[value.ndim - event :]))

        # All leaves share the leading axes, so that the law can be mapped over them.
        self.loc, self.scale, self.df = spread(loc), spread(scale), spread(df)
        self.mean_count, self.concentration, self.logits = spread(mean), spread(concentration), spread(logits)
        self.class_logits = tuple(spread(value, 2) for value in class_logits)
        self.there = spread(there)
        super().__init__(batch, (len(columns),), validate_args=validate_args)

    def column_log_prob(self, value: Float[Array, "*batch D"]) -> Float[Array, "*out D"]:
        """``log p_d(x_d)`` of every column (..., D), nats, in the units of the file; missing entries not left out."""
        at = groups(self.columns)
        parts = []
        if at.gaussian.size:
            x = value[..., at.gaussian]
            noise = (
                dist.Normal(self.loc, self.scale, validate_args=False)
                if self.df is None
                else dist.StudentT(self.df, self.loc, self.scale, validate_args=False)
            )
            log_v = jnp.asarray(at.loc, "float32") + jnp.asarray(at.scale, "float32") * x
            jacobian = -jnp.asarray(np.log(at.scale), "float32") - jnp.where(at.positive, log_v, 0.0)
            parts.append(noise.log_prob(x) + jacobian)
        if at.count.size:
            parts.append(negative_binomial_log_prob(value[..., at.count], self.mean_count, self.concentration))
        if at.binary.size:
            sign = 2 * value[..., at.binary] - 1
            parts.append(jax.nn.log_sigmoid(sign * self.logits))
        for position, logits in zip(at.classes.values(), self.class_logits, strict=True):
            chosen = jax.nn.one_hot(value[..., position].astype("int32"), logits.shape[-1])
            parts.append((chosen * jax.nn.log_softmax(logits)).sum(-1))
        shape = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
        joined = jnp.concatenate([jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts], -1)
        return joined[..., at.inverse]

    def log_prob(self, value: Float[Array, "*batch D"], intermediates: Any = None) -> Float[Array, "*out"]:
        """``log p`` of the entries that are there, nats, in the units of the file."""
        del intermediates
        each = self.column_log_prob(value)
        return (each if self.there is None else jnp.where(self.there, each, 0.0)).sum(-1)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*out D"]:
        """Draw stored numbers of every entry, also of those that are missing."""
        assert key is not None
        at, keys = groups(self.columns), jax.random.split(key, 4 + len(self.class_logits))
        parts = []
        if at.gaussian.size:
            shape = sample_shape + self.loc.shape
            noise = jax.random.normal(keys[0], shape) if self.df is None else jax.random.t(keys[0], self.df, shape)
            parts.append(self.loc + self.scale * noise)
        if at.count.size:
            shape = sample_shape + self.mean_count.shape
            m, r = jnp.broadcast_to(self.mean_count, shape), jnp.broadcast_to(self.concentration, shape)
            parts.append(negative_binomial_sample(keys[1], m, r))
        if at.binary.size:
            shape = sample_shape + self.logits.shape
            parts.append((jax.random.logistic(keys[2], shape) < self.logits).astype("float32"))
        for k, logits in zip(keys[4:], self.class_logits, strict=True):
            parts.append(jax.random.categorical(k, logits, shape=sample_shape + logits.shape[:-1]).astype("float32"))
        return jnp.concatenate(parts, -1)[..., at.inverse]

    def sample_missing(self, key: Array, value: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """``value`` with the entries that are missing drawn from their law given the others."""
        return value if self.there is None else jnp.where(self.there, value, self.sample(key))

    def mean_of(self) -> dict[str, Array]:
        """Expectation of each column by its name, for reports: (...) the location of the stored number of a real or
        positive column (of a positive one, the log of its median), the mean of a count, the probability of code 1 of a
        binary; (..., k) the probabilities of the classes of a categorical."""
        at = groups(self.columns)
        found = {int(i): self.loc[..., j] for j, i in enumerate(at.gaussian)}
        found |= {int(i): self.mean_count[..., j] for j, i in enumerate(at.count)}
        found |= {int(i): jax.nn.sigmoid(self.logits[..., j]) for j, i in enumerate(at.binary)}
        for position, logits in zip(at.classes.values(), self.class_logits, strict=True):
            found |= {int(i): jax.nn.softmax(logits[..., j, :]) for j, i in enumerate(position)}
        return {column.name: found[i] for i, column in enumerate(self.columns)}
