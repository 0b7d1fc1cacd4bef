"""Simulation-based calibration of an amortised posterior: one call, no refit.

Draw (z_i, x_i) from the program, L draws from q(z | x_i), and count how many of them lie below z_i.  If q is the
posterior of the program, the rank of every function of (z, x) is uniform (Talts et al. 2018, arXiv 1804.06788).
A guide costs one pass a simulation, where MCMC or a refitted guide costs a run each.

Beside every coordinate of z the log-likelihood log p(x | z) is ranked: a guide that ignores the data and returns the
prior has uniform ranks in every coordinate of z, but not in this one (Modrak et al. 2023, arXiv 2211.02383).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key
from numpyro.handlers import seed, substitute, trace

from inference.fitting.objectives import joint_draw
from ppl_models.program import Program, zeros

LOG_LIK = "log_lik"
INTERVALS = (0.5, 0.9)


@dataclass(frozen=True)
class Calibration:
    """What simulation-based calibration found.

    ``table``  one row a quantity: ``coverage_50`` and ``coverage_90`` of central intervals (should be .5 and .9),
               ``mean`` of the rank fraction (below .5: q sits too high), ``ks`` the largest distance of its
               distribution from uniform, ``p_value`` of that, ``p_holm`` over all quantities.
    ``ranks``  rank fraction in (0, 1) of each quantity, (simulation,): uniform if calibrated.
    """

    table: pd.DataFrame
    ranks: dict[str, Float[np.ndarray, " simulation"]]

    def tree(self) -> Any:
        """DataTree with a group ``prior_sbc`` of rank fractions: ``arviz.plot_ecdf_pit(tree)`` draws its bands."""
        import arviz as az

        return az.from_dict({"prior_sbc": {name: pit[None] for name, pit in self.ranks.items()}})


def calibrate(
    fit: Any, *, key: Key[Array, ""], simulations: int = 1000, draws: int = 100, chunk: int = 100
) -> Calibration:
    """Simulation-based calibration of ``fit.program``'s posterior at ``fit.params``; vectorised over simulations.

    ``fit`` is a ``Fit``, or anything with ``program``, ``params`` and ``mutable``.  Data are the program's own draws
    ``model(size=n)``, with the fitted generative part if it has parameters: this asks whether q inverts p, not
    whether p fits any data.  ``chunk`` simulations are run at once.

    Raises ``ValueError`` for a program without latents, and for a conditional one.

    >>> found = calibrate(fit, simulations=1000, key=jax.random.key(0))
    >>> found.table[["coverage_90", "ks", "p_holm"]]
    """
    program: Program = fit.program
    if program.posterior is None or not program.latents:
        raise ValueError("calibration needs a program with latents and a posterior; this program has none")
    if min(simulations, draws, chunk) < 1 or simulations < 10:
        raise ValueError(
            f"expected at least 10 simulations, 1 draw and a chunk of 1, got {simulations}, {draws} and {chunk}"
        )
    if program.observation.given:
        raise ValueError(f"calibration draws whole data, this program needs inputs: {program.observation.given}")
    blocks = -(-simulations // chunk)
    run = jax.jit(partial(_block, program, chunk, draws))
    mutable = getattr(fit, "mutable", {})
    found = [run(dict(fit.params), dict(mutable), k) for k in jax.random.split(key, blocks)]
    ranks = {
        name: np.concatenate([np.asarray(block[name], np.float64) for block in found])[:simulations]
        for name in found[0]
    }
    ranks = dict(_columns(ranks))
    return Calibration(_table(ranks, draws), ranks)


def _block(
    program: Program, n: int, draws: int, params: Mapping[str, Any], mutable: Mapping[str, Any], key: Key[Array, ""]
) -> dict[str, Array]:
    """Rank fractions of n fresh simulations: {quantity: (n, *event)}."""
    prior_key, draw_key, tie_key = jax.random.split(key, 3)
    data = {**params, **{name: dict(state) for name, state in mutable.items()}}
    with trace() as sites, seed(rng_seed=prior_key), substitute(data=data):
        program.model(size=n)
    truth = {name: sites[name]["value"] for name in program.latents}
    log_lik = sum(sites[name]["fn"].log_prob(sites[name]["value"]).reshape(n, -1).sum(1) for name in program.observed)
    x = _as_prepared(program, program.from_draw({name: sites[name]["value"] for name in program.observed}))

    def one(key: Key[Array, ""]) -> dict[str, Array]:
        draw = joint_draw(program, params, key, x, mutable=mutable)
        return {**draw.latents, LOG_LIK: sum(draw.log_lik.values(), jnp.zeros(n))}

    drawn = jax.lax.map(one, jax.random.split(draw_key, draws), batch_size=10)
    return {
        name: _rank(drawn[name], value, k)
        for (name, value), k in zip(
            {**truth, LOG_LIK: log_lik}.items(), jax.random.split(tie_key, len(truth) + 1), strict=True
        )
    }


def _as_prepared(program: Program, x: Any) -> Any:
    """A program's own draw in the dtypes of prepared data (a Bernoulli draws integers, encoders read floats)."""
    like = jax.eval_shape(lambda x: program.observation.prepare(x, jax.random.key(0), False), zeros(program.shape))
    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), x, like)


def _rank(drawn: Array, truth: Array, key: Key[Array, ""]) -> Array:
    """(draws below + u (ties + 1)) / (draws + 1), u uniform: continuous, and uniform if calibrated, ties or not."""
    below, ties = jnp.sum(drawn < truth, 0), jnp.sum(drawn == truth, 0)
    return (below + jax.random.uniform(key, truth.shape) * (ties + 1)) / (drawn.shape[0] + 1)


def _columns(ranks: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    found = []
    for name, values in ranks.items():
        if values.ndim == 1:
            found.append((name, values))
        else:
            found += [
                (f"{name}[{','.join(map(str, at))}]", values[(slice(None), *at)]) for at in np.ndindex(values.shape[1:])
            ]
    return found


def _table(ranks: Mapping[str, np.ndarray], draws: int) -> pd.DataFrame:
    from scipy.stats import kstest

    rows = []
    for name, pit in ranks.items():
        test = kstest(pit, "uniform")
        coverage = {f"coverage_{100 * c:.0f}": float((np.abs(pit - 0.5) <= c / 2).mean()) for c in INTERVALS}
        rows.append({"quantity": name, **coverage, "mean": pit.mean(), "ks": test.statistic, "p_value": test.pvalue})
    table = pd.DataFrame(rows).set_index("quantity")
    p = table["p_value"].to_numpy()
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    table["p_holm"] = adjusted
    table.attrs.update(simulations=len(next(iter(ranks.values()))), draws=draws)
    return table
