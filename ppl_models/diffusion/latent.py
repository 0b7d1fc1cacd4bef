"""A diffusion as the prior of a latent variable: ``p(z)`` of a trained model, learnt from its posterior draws.

    z ~ diffusion,   x ~ p(x | z)         in the place of z ~ N(0, I)

The best prior for a given decoder and posterior is the law of the posterior draws, ``(1/n) sum_i q(z | x_i)`` (Hoffman
& Johnson 2016, *ELBO surgery*); a diffusion is trained on draws of it, after the model (as in Rombach et al. 2022,
arXiv 2112.10752).  Or all are trained together (Vahdat, Kreis & Kautz 2021, *Score-based Generative Modeling in Latent
Space*, arXiv 2106.05931, eq. 3-6),

    ELBO = E_q[log p(x | z)] + H[q(z | x)] + E_q[log p(z)],   log p(z) >= its denoising bound, one noise level a datum

which draws the posterior towards what the diffusion can be.  In all cases the result is a NumPyro program
like any other: ``log p(z)`` is the density of the ODE, so its ELBO and importance-weighted evidence are bounds on
``log p(x)`` as those of the plain model are, and on the same data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.typing import ArrayLike
from jaxtyping import Array, Key
from numpyro import handlers
from numpyro.distributions import Distribution, constraints
from numpyro.primitives import Messenger

from ppl_models.diffusion.networks import MLP
from ppl_models.diffusion.program import SITE, in_data_units, one_datum, prior, prior_line
from ppl_models.diffusion.spec import Diffusion
from ppl_models.distributions.denoising_bound import DenoisingBound
from ppl_models.distributions.ode import RK4
from ppl_models.networks.pure import pure
from ppl_models.program import Program, bind

MODULE = "latent_prior"
"""Name under which the denoiser of a latent's prior is bound: its parameters are the site ``latent_prior$params``."""


class _InPlaceOf(Messenger):
    """Effect handler: the law of one latent site, whatever the model says; inside it plates have been applied."""

    def __init__(self, fn: Any = None, *, site: str, law: Distribution) -> None:
        self.site, self.law = site, law
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["name"] != self.site:
            return
        if self.law.event_shape != msg["fn"].event_shape:
            raise ValueError(
                f"the diffusion's shape is {self.law.event_shape}, a draw of site {self.site!r} has "
                f"{msg['fn'].event_shape}; give the spec that shape"
            )
        msg["fn"] = self.law.expand(msg["fn"].batch_shape)


def with_latent_prior(program: Program, site: str, diffusion: Program) -> Program:
    """``program`` with ``diffusion``, a program of this family, as the prior of its latent ``site``.

    The posterior, the likelihood and what is scored stay as they are; the denoiser's weights are the further parameter
    ``latent_prior$params``.  Raises ``ValueError`` for a site that is no real-valued latent at the head of the model.
    """
    check_site(program, site)
    _check_free(diffusion.spec)
    module = diffusion.views.modules["denoiser"]

    def model(*args: Any, **kwargs: Any) -> Any:
        live = bind(MODULE, module)
        law = prior(diffusion, {SITE: _weights(live)})
        with _InPlaceOf(site=site, law=law):
            return program.model(*args, **kwargs)

    exact = dataclasses.replace(program.exact, solver=f"log p({site}): {prior_line(diffusion.spec)}")
    return _together(program, site, module, model, diffusion, exact)


def with_joint_latent_prior(program: Program, site: str, diffusion: Program) -> Program:
    """:func:`with_latent_prior` for training: ``log p(z)`` is an estimate of its denoising bound, cheap and unbiased.

    Its ELBO is below that of :func:`with_latent_prior` in expectation, equal where the denoiser is exact, and has
    gradients in decoder, posterior and denoiser alike.  The parameters are those of :func:`with_latent_prior`, under
    which they are to be scored.  Raises ``ValueError`` as that does.
    """
    check_site(program, site)
    _check_free(diffusion.spec)
    module, spec = diffusion.views.modules["denoiser"], diffusion.spec

    def model(*args: Any, **kwargs: Any) -> Any:
        apply, weights = pure(bind(MODULE, module))
        key = numpyro.prng_key()
        law = DenoisingBound(
            apply, one_datum(spec, apply), spec.shape, params=weights, mean=spec.level_mean, spread=spec.level_spread,
            cap=math.inf, solver=spec.solver, schedule=spec.path, key=jax.random.key(0) if key is None else key,
        )  # fmt: skip
        # No cap on the weights: the posterior's gradient is that of the bound itself.
        with _InPlaceOf(site=site, law=in_data_units(spec, law)):
            return program.model(*args, **kwargs)

    return _together(program, site, module, model, diffusion, program.exact)


def _together(program: Program, site: str, module: Any, model: Any, diffusion: Program, exact: Any) -> Program:
    lines = (f"{site} ~ diffusion, in the place of its prior below:", *diffusion.views.density, *program.views.density)
    modules = {**program.views.modules, MODULE: module}
    views = dataclasses.replace(program.views, density=lines, modules=modules)
    return dataclasses.replace(program, spec=None, model=model, views=views, exact=exact)


def _check_free(spec: Any) -> None:
    if spec.classes is not None:
        raise ValueError(f"the prior of a latent is given no class, got classes={spec.classes}; leave classes=None")


def _weights(live: Any) -> Any:
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(live, nnx.Param))


def check_site(program: Program, site: str) -> tuple[int, ...]:
    """The shape of a draw of ``site``; raise ``ValueError`` unless it is the first latent of ``program`` and real."""
    if site not in program.latents:
        raise ValueError(f"no latent site {site!r}; this program has {', '.join(program.latents) or 'none'}")
    if site != program.latents[0]:
        raise ValueError(
            f"the prior of {site!r} depends on {program.latents[0]!r}; only the first latent can have another prior"
        )

    def support() -> Any:
        with handlers.trace() as sites, handlers.seed(rng_seed=0):
            program.model(size=1)
        found["fn"] = sites[site]["fn"]
        return jnp.zeros(())

    found: dict[str, Any] = {}
    jax.eval_shape(support)
    real = found["fn"].support
    while isinstance(real, constraints.independent):
        real = real.base_constraint
    if real not in (constraints.real, constraints.real_vector) or not found["fn"].event_shape:
        raise ValueError(f"site {site!r} is not a vector of real numbers (its support: {found['fn'].support})")
    return tuple(found["fn"].event_shape)


def posterior_draws(fit: Any, x: Any, site: str, *, key: Key[Array, ""], draws: int = 16) -> np.ndarray:
    """``draws`` of ``site`` from q(z | x) for each stored datum of ``x``: (draws * n, *event), float32."""
    program = fit.program

    @jax.jit
    def one(key: Array) -> Array:
        prepare_key, draw_key = jax.random.split(key)
        prepared = program.observation.prepare(jax.tree.map(jnp.asarray, x), prepare_key, False)
        guide = handlers.substitute(program.guide, data=dict(fit.params))
        return handlers.trace(handlers.seed(guide, draw_key)).get_trace(prepared)[site]["value"]

    return np.concatenate([np.asarray(one(key)) for key in jax.random.split(key, draws)])


def fit_latent_prior(
    fit: Callable[..., Any],
    fitted: Any,
    x: ArrayLike | Mapping[str, Any],
    *,
    site: str = "z",
    spec: Diffusion | None = None,
    steps: int = 2000,
    draws: int = 16,
    validation: Any = None,
    key: Key[Array, ""],
    **arguments: Any,
) -> tuple[Any, Any]:
    """Train a diffusion on the posterior draws of a fitted model and put it in the place of the prior.

    ``fit``        ``inference.fit``, which trains the diffusion; ``arguments`` go to it.
    ``fitted``     what it returned for the model, and ``x`` the stored training data.
    ``spec``       of the diffusion over ``site``; default: an MLP of width 64, RK4 of 16 steps, centre and scale from
                   the draws.
    ``draws``      of the posterior for each datum.
    ``validation`` further stored data, whose posterior draws choose the best step.

    Returns the fit with the new prior, for ``evidence``, ``posterior`` and ``report``, and that of the diffusion.
    Raises ``ValueError`` as :func:`with_latent_prior`.

    >>> better, diffusion = fit_latent_prior(inference.fit, fitted, x, steps=2000, key=jax.random.key(1))
    >>> inference.evidence(better, x_test, key=jax.random.key(2))
    """
    check_site(fitted.program, site)
    build_key, draw_key, held_key, fit_key = jax.random.split(key, 4)
    z = posterior_draws(fitted, x, site, key=draw_key, draws=draws)
    if spec is None:
        spec = Diffusion(
            z.shape[1:], network=MLP(width=64), centre=float(z.mean()), scale=float(z.std()), solver=RK4(16, 1.75)
        )
    if validation is not None:
        arguments["validation"] = posterior_draws(fitted, validation, site, key=held_key, draws=draws)
    trained = fit(spec.build(build_key), z, steps=steps, key=fit_key, **arguments)
    program = with_latent_prior(fitted.program, site, trained.program)
    params = {**fitted.params, f"{MODULE}$params": trained.params[SITE]}
    return dataclasses.replace(fitted, program=program, params=params), trained


def fit_joint_latent_prior(
    fit: Callable[..., Any],
    program: Program,
    x: Any,
    *,
    site: str = "z",
    spec: Diffusion | None = None,
    key: Key[Array, ""],
    **arguments: Any,
) -> Any:
    """Train a model and the diffusion that is the prior of its latent ``site`` together, by one ELBO.

    ``fit``      ``inference.fit``; ``arguments`` (``steps``, ``batch_size``, ``validation``, ..) go to it.
    ``program``  of the model, untrained, and ``x`` the stored training data.
    ``spec``     of the diffusion over ``site``; default: an MLP of width 64, RK4 of 16 steps, centre 0 and scale 1, so
                 that it starts as N(0, I).  Its noise levels are those of training.

    Returns the fit with the density of the ODE as log p(z), for ``evidence``, ``posterior`` and ``report``; its history
    is of the bound.  Raises ``ValueError`` as :func:`with_latent_prior`.

    >>> fitted = fit_joint_latent_prior(inference.fit, PRESETS["tiny"].build(key), x, steps=5000, key=key)
    """
    shape = check_site(program, site)
    build_key, fit_key = jax.random.split(key)
    if spec is None:
        spec = Diffusion(shape, network=MLP(width=64), level_mean=-0.3, level_spread=1.6, solver=RK4(16, 1.75))
    diffusion = spec.build(build_key)
    fitted = fit(with_joint_latent_prior(program, site, diffusion), x, key=fit_key, **arguments)
    return dataclasses.replace(fitted, program=with_latent_prior(program, site, diffusion))
