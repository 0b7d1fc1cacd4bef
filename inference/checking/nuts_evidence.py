"""log p(x) of a few data by NUTS and bridge sampling: a reference that owes nothing to importance weights of a guide.

The posterior of one datum is sampled over the noise eps of the guide's maps, where it is a density on R^D (the guide
may be wrong: it sets the coordinates, not the law).  Half of the draws make a Gaussian, which bridges to the other half
(:mod:`inference.checking.bridge`; Meng & Wong 1996): overlap is enough, a Gaussian with the tails of the posterior is
not needed, and a second estimate from the halves exchanged shows what the Gaussian's own error does.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.handlers import block
from numpyro.infer import MCMC, NUTS, init_to_value
from scipy.stats import multivariate_normal

from inference.checking.bridge import bridge
from inference.checking.gaussians import Gaussian
from inference.checking.log_evidence import exact_table
from inference.checking.per_datum import check_count, check_key, prepare_key
from inference.checking.refinement import Refined, plan
from inference.checking.semi_amortised import log_weight
from inference.fitting.progress import Progress
from inference.fitting.sources import stored
from ppl_models.program import rows, take

if TYPE_CHECKING:
    import pandas as pd

RHAT = 1.02
"""Largest split R-hat of a noise coordinate up to which a datum's chains count as one (Vehtari et al. 2021: 1.01, of
longer chains)."""
_SHARED = 205


def nuts_evidence(
    fit: Any, x: Any, *, key: jax.Array, draws: int = 1000, warmup: int = 500, chains: int = 4, progress: bool = True
) -> pd.DataFrame:
    """Evidence table of stored ``x`` from ``chains`` chains of NUTS a datum, each of ``draws``; seconds a datum.

    ``log_px``  by bridge sampling, its ``se`` with the effective number of draws and with half the difference of the
                two halves; nan where a chain did not mix (split R-hat above 1.02), one ``RuntimeWarning`` says so.
    ``ess``     the least bulk effective sample size over coordinates.  ``elbo`` and ``khat`` are nan.
    ``rhat``, ``divergences``   of the chains.

    Hamiltonian chains see one mode if modes lie far apart: chains start at draws of the guide, so that two they find
    show in R-hat.  Raises ``ValueError`` for a program with a latent whose posterior has no map from noise.

    >>> table = nuts_evidence(fit, x_test[:4], key=jax.random.key(0))
    >>> inference_gaps(fit, x_test[:4], key=jax.random.key(0), reference=table)
    """
    check_key(key)
    for name, value, least in (("draws", draws, 100), ("warmup", warmup, 100), ("chains", chains, 2)):
        check_count(name, value, least)
    fit = fit.fit if isinstance(fit, Refined) else fit
    x = stored(fit.program, x)
    parts = plan(fit, x)
    if parts is None or not parts.size or parts.kept:
        raise ValueError("NUTS needs latents that all have a map from noise: no discrete site, no mixture as posterior")
    zero = jnp.zeros(parts.size)
    base, program = Gaussian(zero, zero), fit.program

    def log_gamma(eps: Any, params: Any, mutable: Any, key: Any, x: Any) -> Any:
        x = program.observation.prepare(take(x, None), key, False)
        shared = jax.random.fold_in(key, _SHARED)
        weight = log_weight(program, params, shared, x, base, eps, mutable=mutable)
        return weight + dist.Normal(0, 1).log_prob(eps).sum()

    def target(params: Any, mutable: Any, key: Any, x: Any) -> None:
        eps = numpyro.sample("eps", dist.ImproperUniform(constraints.real_vector, (), (parts.size,)))
        with block():  # the program's own sites are no business of the chain
            value = log_gamma(eps, params, mutable, key, x)
        numpyro.factor("gamma", value)

    kernel = NUTS(target, init_strategy=init_to_value(values={"eps": zero}), max_tree_depth=8)
    mcmc = MCMC(kernel, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method="vectorized",
                progress_bar=False, jit_model_args=True)  # fmt: skip
    density = jax.jit(jax.vmap(log_gamma, in_axes=(0, None, None, None, None)))
    found: dict[str, list[float]] = {name: [] for name in ("log_px", "se", "ess", "rhat", "divergences")}
    with Progress(rows(x), "NUTS", unit="data", show=progress, delay=2.0) as bar:
        for i in range(rows(x)):
            given = (fit.params, fit.mutable, prepare_key(key, jnp.uint32(i)), jax.tree.map(jnp.asarray, take(x, i)))
            start_key, own = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _SHARED), i))
            starts = jax.random.normal(start_key, (chains, parts.size))
            mcmc.run(own, *given, init_params={"eps": starts}, extra_fields=("diverging",))
            kept = np.asarray(mcmc.get_samples(group_by_chain=True)["eps"], float)

            def log_density(e: np.ndarray, given: Any = given) -> np.ndarray:
                return np.asarray(density(jnp.asarray(e, "float32"), *given), float)

            for column, number in _bridged(kept, log_density, np.random.default_rng(i)).items():
                found[column].append(number)
            found["divergences"].append(float(np.asarray(mcmc.get_extra_fields()["diverging"]).sum()))
            bar.update(i + 1)
    columns = {name: np.asarray(values) for name, values in found.items()}
    split = ~(columns["rhat"] <= RHAT)
    columns["log_px"][split] = columns["se"][split] = np.nan
    if split.any():
        warnings.warn(
            f"the chains of {split.sum()} of {rows(x)} data did not mix (split R-hat above {RHAT}), so these have no "
            "log p(x); more draws= and warmup=, or several modes that chains do not cross",
            RuntimeWarning,
            stacklevel=2,
        )
    table = exact_table(program, x, columns.pop("log_px")).assign(**columns, estimator="nuts")
    table.attrs.update(particles=chains * draws, estimator="nuts")
    return table


def _bridged(eps: np.ndarray, density: Any, rng: np.random.Generator) -> dict[str, float]:
    """log p(x) from draws (chain, draw, D) of its posterior over noise, and how well they mixed."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    ess, rhat = float(np.min(effective_sample_size(eps))), float(np.max(split_gelman_rubin(eps)))
    halves = [part.reshape(-1, eps.shape[-1]) for part in np.split(eps[:, : 2 * (eps.shape[1] // 2)], 2, axis=1)]
    values, errors = [], []
    for made, rest in (halves, halves[::-1]):
        law = multivariate_normal(made.mean(0), np.cov(made.T) + 1e-9 * np.eye(made.shape[1]))
        drawn = law.rvs(len(rest), random_state=rng).reshape(len(rest), -1)
        value, error = bridge(
            density(rest) - law.logpdf(rest), density(drawn) - law.logpdf(drawn), effective=max(1.0, ess / 2)
        )
        values.append(value)
        errors.append(error)
    se = float(np.hypot(np.mean(errors) / np.sqrt(2), abs(values[0] - values[1]) / 2))
    return {"log_px": float(np.mean(values)), "se": se, "ess": ess, "rhat": rhat}
