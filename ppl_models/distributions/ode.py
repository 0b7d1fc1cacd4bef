"""The probability-flow ODE as a change of variables: solvers, and estimators of the divergence.

    log p_start(x) = log p_T(x_T) + integral_start^T div f(x_t, t) dt,     dx_t/dt = f(x_t, t),  x_start = x

(Chen et al. 2018, arXiv 1806.07366; Grathwohl et al. 2019, arXiv 1810.01367; Song et al. 2021, arXiv 2011.13456.)
Everything here is for one datum; callers ``vmap``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ppl_models.distributions.schedules import Schedule

Drift = Callable[[Array, Array], Array]
Slope = Callable[[Any, Array], Any]


@runtime_checkable
class Solver(Protocol):
    """Integrates ``dy/dt = slope(y, t)`` between the ends of a schedule; ``y`` is any pytree of arrays."""

    def solve(self, slope: Slope, y: Any, schedule: Schedule, *, backward: bool = False) -> Any: ...


def warped_grid(schedule: Schedule, n: int, warp: float) -> Float[Array, " nodes"]:
    """``t_i = (start^(1/w) + (i/n) (T^(1/w) - start^(1/w)))^w``, i = 0..n: from ``start`` to ``T``, dense near data.

    With ``start = 0`` it is ``T (i/n)^w``; with ``w = 7`` it is the grid of Karras et al. (2022).
    """
    low, high = schedule.start ** (1 / warp), schedule.T ** (1 / warp)
    return jnp.linspace(low, high, n + 1) ** warp


@dataclass(frozen=True)
class RK4:
    """Classical Runge-Kutta, ``n`` steps on :func:`warped_grid`: fixed work and clean gradients, also under NUTS.

    For mixtures with standard deviations of .3 and more, ``n = 40`` is within 1e-5 nats in two dimensions, ``n = 80``
    within 1e-3 nats in 64; sharper data need more steps.  ``warp`` of 1.25 to 1.75 is safe for the variance-preserving
    and trigonometric schedules; 7 suits :class:`~ppl_models.distributions.schedules.EDM`.
    """

    n: int = 80
    warp: float = 1.5
    kind: Literal["rk4"] = "rk4"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"RK4 takes a whole number n >= 1 of steps, got {self.n!r}; 40 in the plane, 80 above")
        if not 0 < self.warp < math.inf:
            raise ValueError(f"warp bends the time grid towards the data, expected > 0, got {self.warp!r}; usual: 1.5")

    def solve(self, slope: Slope, y: Any, schedule: Schedule, *, backward: bool = False) -> Any:
        """Value at ``T`` of the solution that starts from ``y`` at ``start`` (the other way if ``backward``)."""
        return self.solve_by_step(lambda y, t, i: slope(y, t), y, schedule, backward=backward)

    def solve_by_step(
        self, slope: Callable[[Any, Array, Array], Any], y: Any, schedule: Schedule, *, backward: bool = False
    ) -> Any:
        """The same for a slope ``(y, t, step)`` that may jump between steps."""
        grid = warped_grid(schedule, self.n, self.warp)
        grid = grid[::-1] if backward else grid

        def step(y: Any, given: tuple[Array, Array, Array]) -> tuple[Any, None]:
            t, end, i = given
            h = end - t
            k1 = slope(y, t, i)
            k2 = slope(_axpy(y, h / 2, k1), t + h / 2, i)
            k3 = slope(_axpy(y, h / 2, k2), t + h / 2, i)
            k4 = slope(_axpy(y, h, k3), end, i)
            mean = jax.tree.map(lambda a, b, c, d: (a + 2 * (b + c) + d) / 6, k1, k2, k3, k4)
            return _axpy(y, h, mean), None

        return jax.lax.scan(step, y, (grid[:-1], grid[1:], jnp.arange(self.n)))[0]


@dataclass(frozen=True)
class Adaptive:
    """Tsit5 with step-size control by diffrax (``pip install "ppl-models[diffusion]"``).

    Tolerances bound the local error of the state, not of log p: rtol 1e-6 leaves 1e-5 to 3e-4 nats in 2 to 64
    dimensions, rtol 1e-4 leaves .001 to .05.  Prefer :class:`RK4` inside MCMC.
    """

    rtol: float = 1e-6
    atol: float = 1e-6
    max_steps: int = 4096
    kind: Literal["adaptive"] = "adaptive"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0 and self.max_steps > 0):
            raise ValueError(f"tolerances and max_steps must be positive, got {self}")

    def solve(self, slope: Slope, y: Any, schedule: Schedule, *, backward: bool = False) -> Any:
        """Value at ``T`` of the solution that starts from ``y`` at ``start`` (the other way if ``backward``).

        Raises ``ImportError`` naming the extra if diffrax is not installed.
        """
        try:
            import diffrax
        except ImportError as error:
            raise ImportError(
                'Adaptive() needs diffrax: pip install "ppl-models[diffusion]", or use RK4(n=80), which needs nothing'
            ) from error
        ends = (schedule.T, schedule.start) if backward else (schedule.start, schedule.T)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: slope(y, jnp.asarray(t))),
            diffrax.Tsit5(),
            t0=ends[0],
            t1=ends[1],
            dt0=None,
            y0=y,
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            max_steps=self.max_steps,
        )
        return jax.tree.map(lambda leaf: leaf[0], solution.ys)

    def coarser(self) -> Adaptive:
        """Ten times the tolerances: the difference between the two solutions is about the error of the coarser one."""
        return dataclasses.replace(self, rtol=10 * self.rtol, atol=10 * self.atol)


def _axpy(y: Any, h: Array, k: Any) -> Any:
    return jax.tree.map(lambda a, b: a + h * b, y, k)


# --------------------------------------------------------------------------------------------- divergence
@runtime_checkable
class Trace(Protocol):
    """Makes the directions along which the Jacobian of the drift is contracted."""

    def probes(self, shape: tuple[int, ...], key: Key[Array, ""] | None = None) -> tuple[Array, float]: ...


@dataclass(frozen=True)
class Exact:
    """``sum_i e_i . J e_i``: d Jacobian-vector products an evaluation; for up to about a hundred dimensions."""

    kind: Literal["exact"] = "exact"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def probes(self, shape: tuple[int, ...], key: Key[Array, ""] | None = None) -> tuple[Array, float]:
        """All unit vectors, and weight 1."""
        size = math.prod(shape)
        return jnp.eye(size).reshape(size, *shape), 1.0


@dataclass(frozen=True)
class Hutchinson:
    """``mean_k v_k . J v_k`` with random signs ``v_k``: ``n`` Jacobian-vector products an evaluation.

    log_prob must be a function of x, so the signs follow from ``seed``: redrawn at each call they would make the target
    of an MCMC run random.  Kept, they bias it by their own error, of standard deviation
    ``sqrt(2 |off-diagonal of J|^2 / n)`` over probes at each time.  :class:`RK4` takes other signs in each of its steps
    (the same at every x), so that these errors average out along the path; an adaptive solver keeps one set.  Raise
    ``n`` and compare seeds, or read the standard error that ``DiffusionPrior.log_prob_and_se`` makes of two probes or
    more.
    """

    n: int = 1
    seed: int = 0
    kind: Literal["hutchinson"] = "hutchinson"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"Hutchinson's estimator takes n >= 1 probes, got {self.n!r}")

    def probes(self, shape: tuple[int, ...], key: Key[Array, ""] | None = None) -> tuple[Array, float]:
        """``n`` sign vectors from ``key`` (default: ``seed``), and weight 1/n."""
        key = jax.random.key(self.seed) if key is None else key
        return jax.random.rademacher(key, (self.n, *shape), dtype=float), 1.0 / self.n


def transport(drift: Drift, x: Array, schedule: Schedule, solver: Solver, *, backward: bool = False) -> Array:
    """Carry ``x`` along the flow from ``start`` to ``T``, or back from ``T`` to data."""
    return solver.solve(drift, x, schedule, backward=backward)


def transport_with_divergence(
    drift: Drift, x: Array, schedule: Schedule, solver: Solver, directions: tuple[Array, float]
) -> tuple[Array, Float[Array, ""]]:
    """``(x_T, integral of div f)`` of the flow that starts at ``x``; ``directions`` are from a :class:`Trace`."""
    vectors, weight = directions

    def gather(diagonal: Array) -> Array:
        return weight * diagonal.sum()

    slope = _slope(drift, vectors.astype(x.dtype), gather)
    return solver.solve(slope, (x, jnp.zeros((), x.dtype)), schedule)


def transport_with_each(
    drift: Drift, x: Array, schedule: Schedule, solver: Solver, trace: Hutchinson, key: Key[Array, ""] | None = None
) -> tuple[Array, Float[Array, " n"]]:
    """``x_T``, and the integral of ``v . J v`` along the flow for each of the ``n`` probes of ``trace``.

    Given ``x`` the path is fixed, so independent probes make independent values whose mean is the integral of div f:
    their spread says how well it is known.  Where the steps are known beforehand (:class:`RK4`) each probe is drawn
    anew in every step: still unbiased, and the errors of the steps average out instead of adding up.
    """
    key = jax.random.key(trace.seed) if key is None else key
    zero = jnp.zeros(trace.n, x.dtype)
    if isinstance(solver, RK4):

        def slope(y: Any, t: Array, step: Array) -> Any:
            vectors, _ = trace.probes(x.shape, jax.random.fold_in(key, step))
            return _slope(drift, vectors.astype(x.dtype), lambda diagonal: diagonal)(y, t)

        return solver.solve_by_step(slope, (x, zero), schedule)
    vectors, _ = trace.probes(x.shape, key)
    return solver.solve(_slope(drift, vectors.astype(x.dtype), lambda diagonal: diagonal), (x, zero), schedule)


def _slope(drift: Drift, vectors: Array, gather: Callable[[Array], Array]) -> Slope:
    """Slope of the state ``(x, what gather makes of the v . J v)``."""

    def slope(y: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
        def along(v: Array) -> tuple[Array, Array]:
            velocity, change = jax.jvp(lambda x: drift(x, t), (y[0],), (v,))
            return velocity, jnp.vdot(v, change)

        velocity, diagonal = jax.vmap(along, out_axes=(None, 0))(vectors)
        return velocity, gather(diagonal)

    return slope
