"""A diffusion as a NumPyro distribution: sample from it, score under it, put it in any program.

    x_T ~ base,   dx/dt = f(x, t) from T to start            sample
    log p(x) = log base(x_T) + integral div f dt             log_prob

The density is that of the ODE, which equals the SDE's only for an exact score.  With a schedule that leaves a share
alpha of the data at T, the law of ``x_T`` is not N(0, sigma^2 I): the error of log p is about ``(alpha/sigma) |E x_0|``
nats, which is larger than a solver's.  Give ``base=Moments.of(data)`` (error of order ``alpha^3``), or use
``Trigonometric``, ``Cosine`` or ``FlowMatching``, whose base is exact.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key
from numpyro.distributions import Distribution, constraints

from ppl_models.distributions.ode import (
    RK4,
    Exact,
    Hutchinson,
    Solver,
    Trace,
    transport,
    transport_with_divergence,
    transport_with_each,
)
from ppl_models.distributions.predictions import as_prediction
from ppl_models.distributions.schedules import Schedule

BIAS = 1e-3
"""alpha/sigma at T times sqrt(dimension) above which an unfitted base is warned of."""


class Moments(NamedTuple):
    """Mean (d,) and covariance of the data, (d, d) or its diagonal (d,): what fits the base of a diffusion."""

    mean: Array
    cov: Array

    @classmethod
    def of(cls, x: ArrayLike, *, diagonal: bool = False) -> Moments:
        """Moments of data (n, *shape), flattened; ``diagonal`` for data of more than some hundred dimensions."""
        x = np.asarray(x, np.float64)
        x = x.reshape(len(x), -1)
        if len(x) < 2:
            raise ValueError(f"moments need at least two data, got {len(x)}")
        cov = x.var(0, ddof=1) if diagonal else np.atleast_2d(np.cov(x, rowvar=False))
        return cls(jnp.asarray(x.mean(0), float), jnp.asarray(cov, float))


class DiffusionPrior(Distribution):
    """The law of a diffusion model over one datum of ``shape``, by its probability-flow ODE.

    ``score``     what was trained: ``fn(params, x, t)`` of one datum and a scalar time, returning grad log p_t(x); or
                  one wrapped in ``Score``, ``Noise``, ``Denoiser``, ``Velocity``, ``Flow`` or ``Preconditioned``, which
                  say what it predicts.
    ``schedule``  the noise schedule it was trained for.
    ``params``    the first argument of ``fn``, any pytree: a leaf of this distribution, so gradients reach it.
    ``base``      :class:`Moments` of the data: the flow starts from N(alpha m, alpha^2 Cov + sigma^2 I) at T.  Default:
                  N(0, sigma^2 I), exact for ``Trigonometric()``; a warning says so where it is biased.
    ``solver``    :class:`~ppl_models.distributions.ode.RK4` or ``Adaptive``.
    ``trace``     :class:`~ppl_models.distributions.ode.Exact`, or ``Hutchinson`` with fixed probes for large data.

    Works under plates, ``expand``, ``jit`` (also as an argument), ``grad``, ``vmap``, ``Predictive``, NUTS and SVI.

    >>> import jax, jax.numpy as jnp
    >>> from ppl_models.distributions import DiffusionPrior, Trigonometric, Velocity
    >>> prior = DiffusionPrior(Velocity(lambda params, x, t: jnp.zeros_like(x)), Trigonometric(), (2,))  # N(0, I)
    >>> prior.sample(jax.random.key(0), (3,)).shape
    (3, 2)
    >>> round(float(prior.log_prob(jnp.zeros(2))), 4)
    -1.8379
    """

    arg_constraints: dict[str, Any] = {}
    reparametrized_params: list[str] = []
    pytree_data_fields = ("params", "base_loc", "base_scale")
    pytree_aux_fields = ("prediction", "schedule", "solver", "trace")

    def __init__(
        self,
        score: Any,
        schedule: Schedule,
        shape: tuple[int, ...],
        *,
        params: Any = None,
        base: Moments | None = None,
        solver: Solver | None = None,
        trace: Trace | None = None,
        validate_args: bool | None = None,
    ) -> None:
        shape = tuple(shape)
        if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
            raise ValueError(f"shape is that of one datum, positive integers, got {shape!r}; e.g. (2,)")
        self.prediction, self.schedule, self.params = as_prediction(score), schedule, params
        self.solver = RK4() if solver is None else solver
        self.trace = Exact() if trace is None else trace
        with jax.ensure_compile_time_eval():
            self.prediction.check(schedule)
            alpha, sigma = float(schedule.alpha(schedule.T)), float(schedule.sigma(schedule.T))
        _check_output(self.prediction.fn, params, shape)
        self.base_loc, self.base_scale = _base(base, alpha, sigma, math.prod(shape))
        super().__init__((), shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """All real arrays of the datum's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    # ------------------------------------------------------------------------------------------- base
    def sample_base(self, key: Key[Array, ""] | Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw ``x_T``."""
        z = jax.random.normal(key, (*sample_shape, math.prod(self.event_shape)))
        return self.push_base(z).reshape(*sample_shape, *self.event_shape)

    def push_base(self, z: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Turn standard normal ``z`` into ``x_T`` (flattened)."""
        scaled = z * self.base_scale if self.base_scale.ndim < 2 else z @ self.base_scale.T
        return self.base_loc + scaled

    def base_log_prob(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """``log N(x_T; loc, scale scale')`` of one datum, nats."""
        residual = x.reshape(-1) - self.base_loc
        if self.base_scale.ndim < 2:
            z, log_det = residual / self.base_scale, jnp.log(jnp.broadcast_to(self.base_scale, residual.shape)).sum()
        else:
            z = solve_triangular(self.base_scale, residual, lower=True)
            log_det = jnp.log(jnp.diagonal(self.base_scale)).sum()
        return -0.5 * jnp.vdot(z, z) - log_det - 0.5 * residual.size * math.log(2 * math.pi)

    # ------------------------------------------------------------------------------------- distribution
    def drift(self, x: Float[Array, "*shape"], t: Array) -> Float[Array, "*shape"]:
        """``f(x, t)`` of the probability-flow ODE for one datum."""
        return self.prediction.drift(self.schedule, self.params, x, t)

    def from_noise(self, z: Float[Array, "*batch_and_shape"]) -> Float[Array, "*batch_and_shape"]:
        """The sample that the flow makes of standard normal ``z`` of the datum's shape.

        The inverse view of the same law: with ``z ~ N(0, I)`` as the latent of a program and
        ``x = prior.from_noise(z)``, MCMC needs no divergence at all.
        """
        batch = self._flat(z)
        x_T = self.push_base(batch.reshape(len(batch), -1)).reshape(batch.shape)
        x = jax.vmap(lambda x: transport(self.drift, x, self.schedule, self.solver, backward=True))(x_T)
        return x.reshape(jnp.shape(z))

    def sample(self, key: Key[Array, ""] | Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw ``sample_shape`` data: a draw of the base carried back along the flow; differentiable in ``params``."""
        return self.from_noise(jax.random.normal(key, (*sample_shape, *self.event_shape)))

    def log_prob(self, value: ArrayLike, *, keys: Any = None) -> Array:
        """``log p(value)`` in nats, leading axes are a batch.

        ``keys``, one a datum (an array of the batch's shape), redraws Hutchinson's probes for each: averages over
        data then average the probes' error away.  Never inside MCMC, whose target must be a fixed function.
        """
        value = jnp.asarray(value, jnp.result_type(float))
        batch_shape = value.shape[: value.ndim - len(self.event_shape)]
        batch = self._flat(value)

        def one(x: Array, key: Any) -> Array:
            return self._density(x, self.solver, key)[0]

        found = jax.vmap(lambda x: one(x, None))(batch) if keys is None else jax.vmap(one)(batch, keys.reshape(-1))
        return found.reshape(batch_shape)

    def _density(self, x: Array, solver: Solver, key: Any) -> tuple[Array, Array]:
        """``log p(x)`` of one datum, and the standard error of its probes."""
        if not isinstance(self.trace, Hutchinson):
            directions = self.trace.probes(self.event_shape, key)
            x_T, divergence = transport_with_divergence(self.drift, x, self.schedule, solver, directions)
            return self.base_log_prob(x_T) + divergence, jnp.zeros_like(divergence)
        x_T, each = transport_with_each(self.drift, x, self.schedule, solver, self.trace, key)
        n = len(each)
        se = jnp.std(each, ddof=1) / math.sqrt(n) if n > 1 else jnp.full((), jnp.nan, each.dtype)
        return self.base_log_prob(x_T) + each.mean(), se

    def log_prob_and_se(self, value: ArrayLike, *, keys: Any = None) -> tuple[Array, Array]:
        """:meth:`log_prob` and its standard error, both in nats; leading axes are a batch.

        Random probes: ``sd(I_k) / sqrt(n)`` over the integrals ``I_k`` of ``v_k . J v_k`` along the path, which are
        independent and unbiased; nan with one probe, which cannot know its error.  With n probes
        ``log_prob +- t se``, t the quantile of Student's law with n - 1 degrees of freedom, is the interval.  With
        RK4 it holds the exact trace's value as often as it says; the one set of probes of an adaptive solver makes skew
        integrals where the Jacobian has low rank (86 to 90 % instead of 95 % for a mixture in 16 dimensions).  Give
        ``keys``, so that the errors of data are independent.  In d dimensions two sign vectors are the same up to their
        sign with probability ``2^(1-d)``: prefer ``Exact()`` for d up to 8.

        A solver with ``coarser()`` (:class:`~ppl_models.distributions.ode.Adaptive`) solves again with ten times the
        tolerances and the same probes; the difference, about the error of the COARSER solution and so a cautious
        figure, is added in squares.  The step error of a fixed grid is not part of it: compare ``RK4(n)`` and
        ``RK4(2 * n)``.  Nor is the bias of a base that is not the law of ``x_T``.
        """
        value = jnp.asarray(value, jnp.result_type(float))
        batch_shape = value.shape[: value.ndim - len(self.event_shape)]
        batch = self._flat(value)
        coarser = getattr(self.solver, "coarser", None)

        def one(x: Array, key: Any) -> tuple[Array, Array]:
            found, se = self._density(x, self.solver, key)
            if coarser is not None:
                se = jnp.hypot(se, self._density(x, coarser(), key)[0] - found)
            return found, se

        if keys is None:
            found, se = jax.vmap(lambda x: one(x, None))(batch)
        else:
            found, se = jax.vmap(one)(batch, keys.reshape(-1))
        return found.reshape(batch_shape), se.reshape(batch_shape)

    def _flat(self, value: Array) -> Array:
        if value.shape[value.ndim - len(self.event_shape) :] != self.event_shape:
            raise ValueError(f"expected data of shape (..., {str(self.event_shape)[1:]}, got {value.shape}")
        return value.reshape(-1, *self.event_shape)


def _check_output(fn: Any, params: Any, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless ``fn(params, x, t)`` maps one datum to an array like it; nothing is computed."""
    x, t = jax.ShapeDtypeStruct(shape, jnp.result_type(float)), jax.ShapeDtypeStruct((), jnp.result_type(float))
    found = jax.eval_shape(fn, params, x, t)
    if getattr(found, "shape", None) != shape:
        raise ValueError(
            f"the score function returned shape {getattr(found, 'shape', None)} for one datum of shape {shape} and a "
            "scalar time; it must return an array like x, without a batch axis (batches are made by vmap)"
        )


def _base(base: Moments | None, alpha: float, sigma: float, size: int) -> tuple[Array, Array]:
    """Mean and scale (scalar, diagonal or lower triangle) of the Gaussian at T."""
    if base is None:
        left = abs(alpha) / sigma
        if left * math.sqrt(size) > BIAS:
            warnings.warn(
                f"the base N(0, {sigma:.3g}^2 I) is not the law of x_T: a share alpha/sigma = {left:.2g} of the data "
                f"is left at T, so log_prob is off by about {left:.2g} times the length of the data's mean, in nats; "
                "give base=Moments.of(data), centre the data, raise T, or use Trigonometric()",
                UserWarning,
                stacklevel=4,
            )
        return jnp.zeros(size), jnp.asarray(sigma, float)
    mean, cov = jnp.asarray(base.mean).reshape(-1), jnp.asarray(base.cov)
    if mean.shape != (size,) or cov.shape not in ((size,), (size, size)):
        raise ValueError(
            f"base holds moments of shapes {mean.shape}, {cov.shape}; a datum has {size} values, expected ({size},) "
            f"and ({size}, {size}) or ({size},)"
        )
    if cov.ndim == 1:
        return alpha * mean, jnp.sqrt(alpha**2 * cov + sigma**2)
    return alpha * mean, jnp.linalg.cholesky(alpha**2 * cov + sigma**2 * jnp.eye(size))
