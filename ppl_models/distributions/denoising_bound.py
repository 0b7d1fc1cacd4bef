"""The denoising bound of a diffusion as a distribution: what it is trained on, one noise level a datum.

For a variance-preserving diffusion with noise-to-signal ratio ``exp(l) = sigma/alpha = tan(phi)``, and with
``v = cos(phi) eps - sin(phi) x_0``, ``D`` the denoiser, ``v^ = (cos(phi) x - D) / sin(phi)``,

    log p(x_0) >= log N(x_0; 0, I) + integral dl cos(phi)^2 E_eps[ 2 v . v^ - |v^|^2 ]          (nats)

which is the continuous-time bound of Kingma et al. (2021, arXiv 2107.00630), written relative to N(0, I): the constant
divergent parts cancel, and a denoiser that knows nothing (``v^ = 0``) gives the standard normal exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, constraints

from ppl_models.distributions.diffusion_prior import DiffusionPrior, Moments
from ppl_models.distributions.ode import Solver
from ppl_models.distributions.predictions import Denoiser
from ppl_models.distributions.schedules import Schedule, Trigonometric

BatchDenoiser = Callable[[Any, Array, Array], Array]


def bound_terms(
    denoise: BatchDenoiser, params: Any, x: Float[Array, " n *shape"], level: Float[Array, " n"], noise: Array
) -> Float[Array, " n"]:
    """``cos(phi)^2 (2 v . v^ - |v^|^2)`` of each datum at its ``level`` ``l = log tan(phi)``: the bound's integrand."""
    phi = jnp.arctan(jnp.exp(level))
    wide = (-1, *(1,) * (x.ndim - 1))
    cos, sin = jnp.cos(phi).reshape(wide), jnp.sin(phi).reshape(wide)
    noisy = cos * x + sin * noise
    v = cos * noise - sin * x
    guess = (cos * noisy - denoise(params, noisy, phi)) / sin
    gain = (2 * v - guess) * guess
    return jnp.cos(phi) ** 2 * gain.reshape(len(x), -1).sum(1)


def unit_base(schedule: Schedule, shape: tuple[int, ...]) -> Moments | None:
    """The base for standardised data: N(0, (alpha^2 + sigma^2) I) at T; ``None`` where that is N(0, I) anyway."""
    if isinstance(schedule, Trigonometric):
        return None
    size = math.prod(shape)
    return Moments(jnp.zeros(size), jnp.ones(size))


class DenoisingBound(Distribution):
    """``log_prob`` is a one-draw estimate of the denoising bound, ``sample`` the probability-flow ODE.

    ``denoise``  ``(params, x, phi) -> E[x_0 | x]`` for a batch (n, *shape) with one angle each, (n,).
    ``fn``       the same for one datum and a scalar angle, for sampling; a scalar time where there is a ``schedule``.
    ``schedule`` of the ODE that samples; by default the trigonometric one.
    ``batch_shape``  of data that are not alike, whose ``params`` say what each of them is given.
    ``key``      the noise of the estimate: a fixed key makes log_prob a fixed function.
    ``mean``     of the levels ``l ~ N(mean, spread^2)`` drawn, one a datum, spread evenly over the batch.
    ``cap``      largest importance weight in the GRADIENT.  The value always has the weights of the bound, while its
                 gradient belongs to a loss in which very small and very large noise, which teach little and scatter
                 much, weigh less; ``math.inf`` gives the gradient of the bound itself.
    """

    arg_constraints: dict[str, Any] = {}
    reparametrized_params: list[str] = []
    pytree_data_fields = ("params", "key")
    pytree_aux_fields = ("denoise", "fn", "level_mean", "level_spread", "cap", "solver", "schedule")

    def __init__(
        self,
        denoise: BatchDenoiser,
        fn: Callable[..., Any],
        shape: tuple[int, ...],
        *,
        params: Any,
        key: Any,
        mean: float = -0.8,
        spread: float = 1.2,
        cap: float = 8.0,
        solver: Solver | None = None,
        schedule: Schedule | None = None,
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.denoise, self.fn, self.params, self.key = denoise, fn, params, key
        self.level_mean, self.level_spread, self.cap, self.solver = mean, spread, cap, solver
        self.schedule = Trigonometric() if schedule is None else schedule
        super().__init__(batch_shape, tuple(shape), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """All real arrays of the datum's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def prior(self, params: Any = None) -> DiffusionPrior:
        """The law of the samples: the same denoiser in its probability-flow ODE, with other ``params`` if given."""
        return DiffusionPrior(
            Denoiser(self.fn),
            self.schedule,
            self.event_shape,
            params=self.params if params is None else params,
            base=unit_base(self.schedule, self.event_shape),
            solver=self.solver,
        )

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw ``sample_shape`` data by the ODE."""
        return self.prior().sample(key, sample_shape)

    def log_prob(self, value: ArrayLike) -> Array:
        """Estimate of the bound in nats; leading axes are a batch, each datum has its own level and noise."""
        value = jnp.asarray(value, jnp.result_type(float))
        x = value.reshape(-1, *self.event_shape)
        level_key, noise_key = jax.random.split(self.key)
        # One uniform number shifts n evenly spaced ones: each is uniform, together they cover the levels.
        u = (jax.random.uniform(level_key) + jnp.arange(len(x)) / len(x)) % 1.0
        standard = ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))
        gain = bound_terms(
            self.denoise,
            self.params,
            x,
            self.level_mean + self.level_spread * standard,
            jax.random.normal(noise_key, x.shape),
        )
        weight = self.level_spread / jnp.exp(norm.logpdf(standard))
        fixed = jax.lax.stop_gradient
        # Its value is weight * gain, its gradient that of min(weight, cap) * gain (cos^2 of the level included).
        scaled = self._capped(weight, standard)
        gain = fixed(weight * gain) + scaled * (gain - fixed(gain))
        log_normal = -0.5 * (x.reshape(len(x), -1) ** 2).sum(1) - 0.5 * math.prod(self.event_shape) * math.log(
            2 * math.pi
        )
        return (log_normal + gain).reshape(value.shape[: value.ndim - len(self.event_shape)])

    def _capped(self, weight: Array, standard: Array) -> Array:
        """``min(weight cos^2, cap) / cos^2``: the cap is on the weight of ``|v - v^|^2`` as a whole."""
        cos2 = jax.nn.sigmoid(-2 * (self.level_mean + self.level_spread * standard))
        return jnp.minimum(weight, self.cap / cos2)
