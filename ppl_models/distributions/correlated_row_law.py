"""The law of a row whose real and positive columns keep a correlation that the latents do not explain."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ppl_models.distributions.row_law import RowLaw, groups


def unit_lower(lower: Float[Array, " entries"], size: int) -> Float[Array, "G G"]:
    """The lower triangular matrix with ones on its diagonal and ``lower`` below, row by row."""
    rows, columns = np.tril_indices(size, -1)
    return jnp.eye(size).at[rows, columns].set(lower)


class CorrelatedRowLaw(RowLaw):
    """:class:`RowLaw` whose real and positive columns are jointly Gaussian on the stored scale.

        e = (x - loc) / scale ~ N(0, R),   R = A^-1 A^-T,   log N = -1/2 |A e|^2 - sum log scale - G/2 log 2 pi

    ``whitening``  A (G, G), lower triangular with a unit diagonal: log det R = 0, the same for every row.

    Missing entries are integrated out: of a row that lacks some, R is that of the entries that are there.
    """

    pytree_data_fields = (*RowLaw.pytree_data_fields, "whitening")

    def __init__(self, *args: Any, whitening: Float[Array, "G G"], **more: Any) -> None:
        super().__init__(*args, **more)
        if self.df is not None:
            raise ValueError("correlated columns are Gaussian, not Student-t; use robust=False, or correlated=False")
        self.whitening = whitening

    def _mixing(self) -> Float[Array, "G G"]:
        """A^-1."""
        return solve_triangular(self.whitening, jnp.eye(self.whitening.shape[-1]), lower=True, unit_diagonal=True)

    def _correlation(self) -> Float[Array, "G G"]:
        mixing = self._mixing()
        return mixing @ mixing.T

    def log_prob(self, value: Float[Array, "*batch D"], intermediates: Any = None) -> Float[Array, "*out"]:
        """``log p`` of the entries that are there, nats, in the units of the file."""
        del intermediates
        at = groups(self.columns)
        value = jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, (*self.loc.shape[:-1], value.shape[-1])))
        there = jnp.ones(value.shape, bool) if self.there is None else jnp.broadcast_to(self.there, value.shape)
        each = jnp.where(there, super().column_log_prob(value), 0.0)
        known = there[..., at.gaussian]
        e = jnp.where(known, (value[..., at.gaussian] - self.loc) / self.scale, 0.0)
        # The product over columns, with the joint density of these in place of their own.
        own = jnp.where(known, -0.5 * e**2, 0.0).sum(-1)
        if self.there is None:
            return each.sum(-1) - own + self._whole(e)
        joint = jax.lax.cond(known.all(), lambda: self._whole(e), lambda: self._partial(e, known))
        return each.sum(-1) - own + joint

    def _whole(self, e: Array) -> Array:
        """``-1/2 |A e|^2``: what the joint density of all entries has in place of ``-1/2 |e|^2``."""
        return -0.5 * ((e @ self.whitening.T) ** 2).sum(-1)

    def _partial(self, e: Array, known: Array) -> Array:
        """The same for the entries that are there: ``-1/2 e' R_oo^-1 e - 1/2 log det R_oo``."""
        root = jnp.linalg.cholesky(self._seen(known))
        white = solve_triangular(root, e[..., None], lower=True)[..., 0]
        return -0.5 * (white**2).sum(-1) - jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)

    def _seen(self, known: Array) -> Array:
        """R with the rows and columns of missing entries replaced by those of the identity."""
        both = known[..., :, None] & known[..., None, :]
        return jnp.where(both, self._correlation(), jnp.eye(known.shape[-1]))

    def column_log_prob(self, value: Float[Array, "*batch D"]) -> Float[Array, "*out D"]:
        """``log p_d(x_d)`` of every column by itself, (..., D): the marginals of the joint law, nats."""
        marginal = RowLaw(
            self.columns,
            loc=self.loc, scale=self.scale * jnp.sqrt(jnp.diagonal(self._correlation())), mean=self.mean_count,
            concentration=self.concentration, logits=self.logits, class_logits=self.class_logits,
        )  # fmt: skip
        return marginal.column_log_prob(value)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*out D"]:
        """Draw stored numbers of every entry, also of those that are missing."""
        assert key is not None
        x, at = super().sample(key, sample_shape), groups(self.columns)
        # What was drawn independently is mixed: e -> A^-1 e.
        e = (x[..., at.gaussian] - self.loc) / self.scale
        mixed = e @ self._mixing().T
        return x.at[..., at.gaussian].set(self.loc + self.scale * mixed)

    def sample_missing(self, key: Array, value: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """``value`` with the missing entries drawn given those that are there (Matheron's rule)."""
        drawn, at = self.sample(key), groups(self.columns)
        if self.there is None:
            return value
        known = self.there[..., at.gaussian]
        e, free = ((x[..., at.gaussian] - self.loc) / self.scale for x in (value, drawn))
        root = jnp.linalg.cholesky(self._seen(known))
        gap = jnp.where(known, e - free, 0.0)[..., None]
        solved = solve_triangular(root, solve_triangular(root, gap, lower=True), lower=True, trans=1)
        filled = free + solved[..., 0] @ self._correlation()
        drawn = drawn.at[..., at.gaussian].set(self.loc + self.scale * filled)
        return jnp.where(self.there, value, drawn)


def from_covariance(covariance: Float[np.ndarray, "G G"]) -> tuple[np.ndarray, np.ndarray]:
    """``(scale, lower)`` of a covariance: ``scale`` (G,) and the entries of A below its diagonal."""
    root = np.linalg.cholesky(covariance)
    scale = np.diag(root)
    # Sigma = S A^-1 A^-T S, with A^-1 = S^-1 L unit lower triangular.
    whitening = np.linalg.inv(root / scale[:, None])
    return scale, whitening[np.tril_indices(len(covariance), -1)]
