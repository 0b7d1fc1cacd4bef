"""Progressive distillation: a diffusion that draws in a few steps what its teacher draws in many.

T. Salimans, J. Ho, *Progressive Distillation for Fast Sampling of Diffusion Models*, ICLR 2022, arXiv 2202.00512,
algorithm 2.  With a grid ``t_0 > t_1 > .. > t_2n`` from noise to data, the teacher takes two of its steps (DDIM)

    x_mid = step(D_teacher, x; t, mid),   x_u = step(D_teacher, x_mid; mid, u)

and the student learns the denoiser whose ONE step goes to the same place:

    x~ = (x_u - (sigma_u / sigma_t) x) / (alpha_u - alpha_t sigma_u / sigma_t)
    loss = max(alpha_t^2 / sigma_t^2, 1) |D_student(x, t) - x~|^2,   x = alpha_t x_0 + sigma_t eps

The student then is the teacher of the next halving.  It is a sampler: its ODE has no density of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float, Key
from numpyro.distributions import Distribution, constraints

from ppl_models.diffusion.program import SITE, standard_prior
from ppl_models.distributions.ode import warped_grid
from ppl_models.distributions.schedules import Schedule
from ppl_models.networks.pure import pure
from ppl_models.program import Program, bind

DenoiseBatch = Callable[[Array, Array], Array]
"""``(x, t) -> E[x_0 | x]`` of data (n, *shape) at times (n,)."""


# ------------------------------------------------------------------------------------------------ the map
def wide(v: Array, x: Array) -> Array:
    """Numbers (n,) beside data (n, *shape)."""
    return v.reshape(-1, *(1,) * (x.ndim - 1))


def ddim_to(schedule: Schedule, D: Array, x: Array, t: Array, u: Array) -> Array:
    """``alpha_u D + sigma_u (x - alpha_t D) / sigma_t`` of data (n, *shape), each with its own times (n,)."""
    r = wide(schedule.sigma(u) / schedule.sigma(t), x)
    return r * x + (wide(schedule.alpha(u), x) - r * wide(schedule.alpha(t), x)) * D


def two_steps_as_one(
    teacher: DenoiseBatch, schedule: Schedule, x: Array, t: Array, mid: Array, u: Array
) -> Float[Array, " n *shape"]:
    """``x~``: the denoiser at ``t`` whose one step of DDIM to ``u`` is the teacher's two, by way of ``mid``."""
    between = ddim_to(schedule, teacher(x, t), x, t, mid)
    end = ddim_to(schedule, teacher(between, mid), between, mid, u)
    r = schedule.sigma(u) / schedule.sigma(t)
    return (end - wide(r, x) * x) / wide(schedule.alpha(u) - r * schedule.alpha(t), x)


def halving_loss(
    student: DenoiseBatch,
    teacher: DenoiseBatch,
    schedule: Schedule,
    grid: Float[Array, " nodes"],
    x_0: Float[Array, " n *shape"],
    key: Key[Array, ""],
) -> Float[Array, " n"]:
    """The student's loss for each datum at a random even node of the teacher's ``grid`` (2n + 1,), noise to data."""
    step_key, noise_key = jax.random.split(key)
    n = len(x_0)
    # Evenly spread over the batch, in random order of the data.
    at = jax.random.permutation(step_key, jnp.arange(n) % (len(grid) // 2))
    t, mid, u = grid[2 * at], grid[2 * at + 1], grid[2 * at + 2]
    a, s = schedule.alpha(t), schedule.sigma(t)
    x = wide(a, x_0) * x_0 + wide(s, x_0) * jax.random.normal(noise_key, x_0.shape, x_0.dtype)
    wanted = jax.lax.stop_gradient(two_steps_as_one(teacher, schedule, x, t, mid, u))
    missed = ((student(x, t) - wanted) ** 2).reshape(n, -1).sum(1)
    return jnp.maximum((a / s) ** 2, 1.0) * missed


# ---------------------------------------------------------------------------------------------- the product
@dataclass(frozen=True)
class Distilled:
    """A student: ``steps`` steps of DDIM on ``warped_grid(schedule, steps, warp)``, from T to ``schedule.start``.

    ``program`` is the teacher's, ``params`` the student's: ``draw(denoise, schedule, z, method="ddim", steps=steps,
    warp=warp, to_data=False)`` of ``inference.sampling`` with its denoiser draws the same.
    """

    program: Program
    params: Mapping[str, Any]
    steps: int
    warp: float

    def from_noise(self, z: Float[Array, " n *shape"]) -> Float[Array, " n *shape"]:
        """Data, in units of the scored data, of standard normal ``z``."""
        spec, law = self.program.spec, standard_prior(self.program, self.params)
        denoise = of_batch(law.prediction, law.schedule, law.params)
        x = law.push_base(z.reshape(len(z), -1)).reshape(z.shape)
        grid = warped_grid(law.schedule, self.steps, self.warp)[::-1]
        for t, u in zip(grid[:-1], grid[1:], strict=True):
            t, u = jnp.broadcast_to(t, (len(x),)), jnp.broadcast_to(u, (len(x),))
            x = ddim_to(law.schedule, denoise(x, t), x, t, u)
        return spec.centre + spec.scale * x

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, " n *shape"]:
        """``n`` draws."""
        return self.from_noise(jax.random.normal(key, (n, *self.program.spec.shape)))


def of_batch(prediction: Any, schedule: Schedule, params: Any) -> DenoiseBatch:
    """A prediction for one datum as the denoiser of a batch with times of its own."""
    return jax.vmap(lambda x, t: prediction.denoise(schedule, params, x, t))


class _Halving(Distribution):
    """``log_prob`` is minus :func:`halving_loss`: what lets ``fit`` train a student."""

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("student", "teacher", "key")
    pytree_aux_fields = ("prediction", "schedule", "grid")

    def __init__(
        self, prediction: Any, schedule: Schedule, grid: tuple[float, ...], shape: tuple[int, ...], *,
        student: Any, teacher: Any, key: Any,
    ) -> None:  # fmt: skip
        self.prediction, self.schedule, self.grid = prediction, schedule, grid
        self.student, self.teacher, self.key = student, teacher, key
        super().__init__((), shape)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """All real arrays of the datum's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Array) -> Array:
        """Minus the loss of each datum (n, *shape), nats of nothing: a squared error."""
        student, teacher = (of_batch(self.prediction, self.schedule, p) for p in (self.student, self.teacher))
        return -halving_loss(student, teacher, self.schedule, jnp.asarray(self.grid), value, self.key)


def halving(program: Program, teacher: Mapping[str, Any], steps: int, warp: float) -> Program:
    """The program whose fit is the student that takes ``steps`` steps where ``teacher`` takes twice as many.

    Its weights begin as the teacher's, in the parameter of the same name.
    """
    spec = program.spec
    law = standard_prior(program, teacher)
    grid = tuple(float(t) for t in warped_grid(law.schedule, 2 * steps, warp)[::-1])
    module = _with(program.views.modules["denoiser"], teacher[SITE])

    def model(x: Any = None, *, size: int | None = None) -> Array:
        del size  # it is trained, never drawn from
        _, student = pure(bind("denoiser", module))
        key = numpyro.prng_key()
        rule = _Halving(
            law.prediction, law.schedule, grid, spec.shape, student=student, teacher=law.params,
            key=jax.random.key(0) if key is None else key,
        )  # fmt: skip
        with numpyro.plate("data", len(x)):
            return numpyro.sample("x", rule, obs=(x - spec.centre) / spec.scale)

    line = f"squared error of {steps} steps against the teacher's {2 * steps}"
    return dataclasses.replace(
        program,
        model=model,
        observation=dataclasses.replace(program.observation, line=line, bits_offset=None),
        exact=type(program.exact)(),
        views=dataclasses.replace(program.views, density=(line,), modules={"denoiser": module}, panels=_none),
    )


def _none(*given: Any) -> list[Any]:
    return []


def _with(module: Any, weights: Any) -> Any:
    """A copy of a module with other weights, (nested dict) as ``bind`` names them."""
    from flax import nnx

    copy = nnx.clone(module)
    state = nnx.state(copy, nnx.Param)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, weights))
    nnx.update(copy, state)
    return copy


def distil(
    fit: Callable[..., Any],
    fitted: Any,
    x: Any,
    *,
    teacher_steps: int = 32,
    steps: int = 4,
    updates: int = 1000,
    warp: float = 1.5,
    key: Key[Array, ""],
    **arguments: Any,
) -> Distilled:
    """Halve the steps of a fitted diffusion from ``teacher_steps`` to ``steps``, one training for each halving.

    ``fit``      ``inference.fit``, which trains each student for ``updates`` updates; ``arguments`` go to it.
    ``fitted``   what it returned for the diffusion, and ``x`` the stored training data.
    ``warp``     of the grid of times, dense near the data.

    Worth it where a draw has to be cheap: the student is at best as good as ``teacher_steps`` steps of DDIM.  Raises
    ``ValueError`` unless ``teacher_steps`` is ``steps`` times a power of two, and for a diffusion with classes.

    >>> student = distil(inference.fit, fitted, x, steps=4, key=jax.random.key(1))
    >>> student.sample(jax.random.key(2), 64)
    """
    halvings = math.log2(teacher_steps / steps) if steps >= 1 and teacher_steps > steps else -1.0
    if halvings < 0 or halvings != round(halvings):
        raise ValueError(
            f"each training halves the steps: teacher_steps must be steps times 2, 4, 8, .., got {teacher_steps} and "
            f"{steps}; try 32 and 4"
        )
    if fitted.program.spec.classes is not None:
        raise ValueError("the steps of a diffusion with classes are not halved; fit it with classes=None")
    params = dict(fitted.params)
    for key_of_round in jax.random.split(key, round(halvings)):
        teacher_steps //= 2
        student = fit(
            halving(fitted.program, params, teacher_steps, warp), x, steps=updates, key=key_of_round, **arguments
        )
        params = dict(student.params)
    return Distilled(fitted.program, params, steps, warp)
