"""A diffusion as the prior of a latent variable: ``p(z)`` of a trained model, learnt from its posterior draws.

    z ~ diffusion,   x ~ p(x | z)         in the place of z ~ N(0, I)

The best prior for a given decoder and posterior is the law of the posterior draws, ``(1/n) sum_i q(z | x_i)`` (Hoffman
& Johnson 2016, *ELBO surgery*); a diffusion is trained on draws of it, after the model (as in Rombach et al. 2022,
arXiv 2112.10752).  The result is a NumPyro program like any other: ``log p(z)`` is the density of the ODE, so its ELBO
and importance-weighted evidence are bounds on ``log p(x)`` as those of the plain model are, and on the same data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Key
from numpyro import handlers
from numpyro.distributions import Distribution, constraints
from numpyro.primitives import Messenger

from ppl_models.diffusion.networks import MLP
from ppl_models.diffusion.program import SITE, prior
from ppl_models.diffusion.spec import Diffusion
from ppl_models.distributions.ode import RK4
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
    module = diffusion.views.modules["denoiser"]

    def model(*args: Any, **kwargs: Any) -> Any:
        live = bind(MODULE, module)
        law = prior(diffusion, {SITE: _weights(live)})
        with _InPlaceOf(site=site, law=law):
            return program.model(*args, **kwargs)

    lines = (f"{site} ~ diffusion, in the place of its prior below:", *diffusion.views.density, *program.views.density)
    modules = {**program.views.modules, MODULE: module}
    views = dataclasses.replace(program.views, density=lines, modules=modules)
    return dataclasses.replace(program, spec=None, model=model, views=views)


def _weights(live: Any) -> Any:
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(live, nnx.Param))


def check_site(program: Program, site: str) -> None:
    """Raise ``ValueError`` unless ``site`` is the first latent of ``program`` and real-valued."""
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
