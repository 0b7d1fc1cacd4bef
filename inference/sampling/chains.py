"""Markov chains for a datum under a diffusion prior: NUTS on the density of the ODE, or on the noise it starts from.

nuts        x ~ law by its log_prob (the divergence of the ODE is part of every gradient)
noise_hmc   z ~ N(0, I), x = law.from_noise(z): the same posterior with no divergence; modes lie closer together
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from inference.sampling.observed import Observed
from inference.sampling.shown import shown, tick

TRIED = 256
"""Draws of the prior from which the chains' starts are chosen, by the likelihood."""


class Reporting(NUTS):
    """NUTS that says after every transition how many are done."""

    def sample(self, state: Any, model_args: Any, model_kwargs: Any) -> Any:
        """One transition of all chains."""
        tick(jnp.max(state.i))
        return super().sample(state, model_args, model_kwargs)


def chains(
    law: Any,
    core: Any,
    to_data: Any,
    observed: Observed,
    *,
    key: Any,
    noise: bool,
    runs: int,
    draws: int,
    warmup: int,
    progress: bool,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """x in the data's units (run, draw, *shape), unconstrained nuisances (run, draw, p), and statistics (run, draw).

    Chains start at different draws of the prior, chosen by the likelihood, so that each starts in a mode that y allows.
    ``options`` are those of ``numpyro.infer.NUTS``.
    """
    shape = core.event_shape
    start_key, gumbel_key, own = jax.random.split(key, 3)

    @jax.jit
    def tried(key: Any) -> tuple[Any, Any, Any, Any]:
        z_key, u_key = jax.random.split(key)
        z = jax.random.normal(z_key, (TRIED, *shape))
        x = jax.vmap(to_data)(core.from_noise(z))
        u = jax.vmap(lambda k: observed.draw(x[0], k))(jax.random.split(u_key, TRIED))
        return z, x, u, jax.vmap(observed.log_prob)(x, u)

    z, x, u, log_like = tried(start_key)
    best = jnp.argsort(-(log_like + jax.random.gumbel(gumbel_key, log_like.shape)))[:runs]
    starts = {"u": u[best], **({"z": z[best]} if noise else {"x": x[best]})}

    def model() -> None:
        if noise:
            z = numpyro.sample("z", dist.Normal(0, 1).expand(shape).to_event(len(shape)))
            x = numpyro.deterministic("x", to_data(core.from_noise(z)))
        else:
            x = numpyro.sample("x", law)
        u = numpyro.sample("u", dist.ImproperUniform(dist.constraints.real_vector, (), (observed.size,)))
        numpyro.factor("joint", observed.log_prob(x, u) + (observed.log_prior(x, u) if observed.size else 0.0))

    kernel = Reporting if progress else NUTS
    mcmc = MCMC(
        kernel(model, **options), num_warmup=warmup, num_samples=draws, num_chains=runs, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    with shown(warmup + draws, "chains", "transitions", show=progress):
        mcmc.run(own, init_params=starts, extra_fields=("diverging", "num_steps"))
        jax.block_until_ready(mcmc.last_state)
    found = {name: np.asarray(v) for name, v in mcmc.get_samples(group_by_chain=True).items()}
    stats = {name: np.asarray(v) for name, v in mcmc.get_extra_fields(group_by_chain=True).items()}
    return found["x"], found["u"], {"diverging": stats["diverging"], "n_steps": stats["num_steps"]}
