"""Conditional normalising flows: couplings that bend noise given a context, exact in both directions.

    u = f_L( ... f_1(eps; c) ...; c),     log |du / deps| = sum_l log |f_l'|

A coupling leaves one part a of the numbers as it is and moves each of the others b by a monotone map of its own, whose
parameters come from a network that reads a and the context c (Dinh, Sohl-Dickstein & Bengio 2017, eq. 7-8):

    b -> spline(exp(s) b + t),     (s, t, knots) = net(a, c)

with a monotone rational quadratic spline on [-B, B], the identity outside (Durkan, Bekasov, Murray & Papamakarios 2019,
eq. 4-8).  Both directions cost the same and are differentiable; the last layer of every network starts at zero, where
each map is the identity.  A review: Papamakarios et al. 2021; as posteriors of an encoder: Rezende & Mohamed 2015.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

LAYERS, HIDDEN, BINS, CONTEXT = 4, 64, 8, 32
"""Couplings, hidden units of each network, bins of each spline; numbers of the context that an encoder gives."""
BOX = 5.0
"""Splines act on [-BOX, BOX]: standard normal noise leaves it once in two million."""
LOG_SCALE, LOG_BIN, LOG_SLOPE = 1.0, 1.0, 1.5
"""Bounds of s, of the logs of (unnormalised) bin sizes, and of slopes: inverses stay exact in single precision."""


class Knots(NamedTuple):
    """Corners of a monotone spline and its slopes there, K + 1 of each, those at the ends 1."""

    x: Float[Array, "*n knots"]
    y: Float[Array, "*n knots"]
    slope: Float[Array, "*n knots"]


def _bounded(raw: Float[Array, "*n"], bound: float) -> Float[Array, "*n"]:
    return bound * jnp.tanh(raw / bound)


def knots(raw: Float[Array, "*n numbers"]) -> Knots:
    """A spline of K bins from 3 K - 1 free numbers; zeros give the identity."""
    bins = (raw.shape[-1] + 1) // 3

    def corners(free: Array) -> Array:
        sizes = 2 * BOX * jax.nn.softmax(_bounded(free, LOG_BIN), axis=-1)
        inner = jnp.cumsum(sizes[..., :-1], axis=-1) - BOX
        end = jnp.full((*free.shape[:-1], 1), BOX, free.dtype)
        return jnp.concatenate([-end, inner, end], axis=-1)

    one = jnp.ones((*raw.shape[:-1], 1), raw.dtype)
    slope = jnp.concatenate([one, jnp.exp(_bounded(raw[..., 2 * bins :], LOG_SLOPE)), one], axis=-1)
    return Knots(corners(raw[..., :bins]), corners(raw[..., bins : 2 * bins]), slope)


def _bin(at: Float[Array, "*n"], corners: Float[Array, "... knots"], k: Knots) -> tuple[Array, ...]:
    """Left corner, size, height and both slopes of the bin that each number of ``at`` falls into."""
    inside = at[..., None] >= corners[..., 1:-1]
    # One of K by comparison: a gather, and the scatter of its gradient, cost more on a CPU.
    full = jnp.ones((*at.shape, 1), bool)
    left, right = jnp.concatenate([full, inside], -1), jnp.concatenate([inside, ~full], -1)
    mine = (left & ~right).astype(at.dtype)

    def pick(values: Array) -> Array:
        return (mine * values).sum(-1)

    return (
        pick(k.x[..., :-1]), pick(k.y[..., :-1]), pick(jnp.diff(k.x, axis=-1)), pick(jnp.diff(k.y, axis=-1)),
        pick(k.slope[..., :-1]), pick(k.slope[..., 1:]),
    )  # fmt: skip


def _log_slope(xi: Array, s: Array, d0: Array, d1: Array) -> Array:
    """log of Durkan et al.'s eq. 5 at the share ``xi`` of a bin of mean slope ``s``."""
    top = d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2
    bottom = s + (d0 + d1 - 2 * s) * xi * (1 - xi)
    return 2 * jnp.log(s) + jnp.log(top) - 2 * jnp.log(bottom)


def spline(x: Float[Array, "*n"], k: Knots) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """``(y, log dy/dx)``, eq. 4-5."""
    within = jnp.abs(x) < BOX
    at = jnp.where(within, x, jnp.zeros((), x.dtype))
    x0, y0, width, height, d0, d1 = _bin(at, k.x, k)
    s, xi = height / width, jnp.clip((at - x0) / width, 0, 1)
    y = y0 + height * (s * xi**2 + d0 * xi * (1 - xi)) / (s + (d0 + d1 - 2 * s) * xi * (1 - xi))
    return jnp.where(within, y, x), jnp.where(within, _log_slope(xi, s, d0, d1), jnp.zeros((), x.dtype))


def inverse_spline(y: Float[Array, "*n"], k: Knots) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """``(x, log dy/dx at x)``, the root of a quadratic, eq. 6-8."""
    within = jnp.abs(y) < BOX
    at = jnp.where(within, y, jnp.zeros((), y.dtype))
    x0, y0, width, height, d0, d1 = _bin(at, k.y, k)
    s, rise = height / width, at - y0
    common = rise * (d0 + d1 - 2 * s)
    a, b, c = height * (s - d0) + common, height * d0 - common, -s * rise
    # The form of the root that does not cancel; the discriminant is positive, but for rounding.
    xi = jnp.clip(-2 * c / (b + jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 1e-12))), 0, 1)
    return jnp.where(within, x0 + xi * width, y), jnp.where(within, _log_slope(xi, s, d0, d1), jnp.zeros((), y.dtype))


class Coupling(nnx.Module):
    """One layer: the numbers ``moved`` are moved given the others and the context."""

    def __init__(
        self, dim: int, moved: tuple[int, ...], context: int, hidden: int, bins: int, *, rngs: nnx.Rngs
    ) -> None:
        self.moved, self.bins = moved, bins
        self.kept = tuple(i for i in range(dim) if i not in moved)
        order = (*self.kept, *self.moved)
        self.back = tuple(order.index(i) for i in range(dim))
        self.hidden = nnx.Linear(len(self.kept) + context, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, len(moved) * (3 * bins + 1), kernel_init=nnx.initializers.zeros, rngs=rngs)

    def _parts(self, x: Array, context: Array) -> tuple[Array, Array, Array, Array, Knots]:
        kept, moved = x[..., np.asarray(self.kept, int)], x[..., np.asarray(self.moved, int)]
        context = jnp.broadcast_to(context, (*x.shape[:-1], context.shape[-1]))
        # A draw of the prior may lie far out, where a network knows nothing: it reads squashed numbers.
        h = jax.nn.silu(self.hidden(jnp.concatenate([_bounded(kept, BOX), context], axis=-1)))
        raw = self.out(h).reshape(*moved.shape, 3 * self.bins + 1)
        return kept, moved, _bounded(raw[..., 0], LOG_SCALE), raw[..., 1], knots(raw[..., 2:])

    def _joined(self, kept: Array, moved: Array) -> Array:
        return jnp.concatenate([kept, moved], axis=-1)[..., np.asarray(self.back, int)]

    def forward(self, x: Float[Array, "*n d"], context: Float[Array, "*#n c"]) -> tuple[Array, Array]:
        """``(f(x), log |det f'|)``."""
        kept, moved, s, t, k = self._parts(x, context)
        moved, log_slope = spline(jnp.exp(s) * moved + t, k)
        return self._joined(kept, moved), (s + log_slope).sum(-1)

    def inverse(self, y: Float[Array, "*n d"], context: Float[Array, "*#n c"]) -> tuple[Array, Array]:
        """``(x, log |det f'| at x)`` with ``f(x) = y``."""
        kept, moved, s, t, k = self._parts(y, context)
        moved, log_slope = inverse_spline(moved, k)
        return self._joined(kept, (moved - t) * jnp.exp(-s)), (s + log_slope).sum(-1)


class CouplingFlow(nnx.Module):
    """``layers`` couplings of vectors of length ``dim`` given a context; at first the identity.

    Layers move the second half, the first, the odd places, the even ones, and so on; of one number alone there is one
    layer, a spline that the context bends.
    """

    def __init__(
        self,
        dim: int,
        context: int,
        *,
        layers: int = LAYERS,
        hidden: int = HIDDEN,
        bins: int = BINS,
        rngs: nnx.Rngs,
    ) -> None:
        places = range(dim)
        ways = (places[dim // 2 :], places[: dim // 2], places[1::2], places[::2]) if dim > 1 else (places,)
        self.layers = nnx.List(
            [
                Coupling(dim, tuple(ways[number % len(ways)]), context, hidden, bins, rngs=rngs)
                for number in range(layers if dim > 1 else 1)
            ]
        )

    def forward(
        self, eps: Float[Array, "*n d"], context: Float[Array, "*#n c"]
    ) -> tuple[Float[Array, "*n d"], Float[Array, "*n"]]:
        """``(u, log |du / deps|)`` in nats."""
        total = jnp.zeros(eps.shape[:-1], eps.dtype)
        for layer in self.layers:
            eps, log_det = layer.forward(eps, context)
            total = total + log_det
        return eps, total

    def inverse(
        self, u: Float[Array, "*n d"], context: Float[Array, "*#n c"]
    ) -> tuple[Float[Array, "*n d"], Float[Array, "*n"]]:
        """``(eps, log |du / deps| at eps)``: the inverse of :meth:`forward`."""
        total = jnp.zeros(u.shape[:-1], u.dtype)
        for layer in reversed(self.layers):
            u, log_det = layer.inverse(u, context)
            total = total + log_det
        return u, total
