"""Is a set encoder, trained on draws of a coin, a calibrated posterior - and would the check notice if it were not?

The guide q(theta | z_{1:n}) is trained by the ELBO over fresh sequences with a random number of symbols seen, and
checked by simulation-based calibration.  The same guide with standard deviations times 0.7 must fail.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from scipy.stats import kstest

from benchmarks.harness import Claim
from inference import fit, tune_runtime
from inference.checking.calibration import Calibration, calibrate
from ppl_models.program import Posterior, Program, resolve

SEED = 0
NARROW = 0.7


def trained(steps: int, seed: int) -> Any:
    """The guide of 64 symbols, trained through ``fit`` on its own task's draws."""
    build_key, fit_key = jax.random.split(jax.random.key(seed))
    program = resolve("in_context:coin_guide").build(build_key)
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, steps, 1e-5)
    return fit(
        program, program.observation.sampler, steps=steps, batch_size=128, optimizer=optax.adam(rate), key=fit_key,
        clip=1.0, progress=False,
    )  # fmt: skip


def narrower(program: Program, factor: float) -> Program:
    """The program with a Beta posterior of the same mean and ``factor`` times the standard deviation."""
    own = program.posterior
    assert own is not None

    def posterior(x: Any = None, *, size: int | None = None) -> Posterior:
        q = own(x, size=size)

        def narrow(site: str, ctx: Any) -> dist.Distribution:
            beta = q(site, ctx)
            mass = beta.concentration1 + beta.concentration0
            # Var = m (1 - m) / (mass + 1).
            grown = ((mass + 1) / factor**2 - 1) / mass
            return dist.Beta(beta.concentration1 * grown, beta.concentration0 * grown)

        return narrow

    return dataclasses.replace(program, posterior=posterior)


def worst_kl(fitted: Any, n: int) -> float:
    """Mean KL(exact || q) of the posterior over sequences of the full length, nats."""
    program = fitted.program
    z = program.observation.sampler(jax.random.key(10), n).astype(jnp.int32)
    rule, exact = program.exact.predictor(fitted.params), program.spec.exact

    def one(row: Any) -> Any:
        return dist.kl_divergence(exact.posterior(exact.init(row)), rule.posterior(rule.init(row)))

    return float(jax.jit(jax.vmap(one))(z).mean())


def ks_p(found: Calibration, name: str) -> float:
    """p-value of the Kolmogorov-Smirnov test of one quantity's ranks."""
    return float(kstest(found.ranks[name], "uniform").pvalue)


def run(quick: bool) -> Iterator[Claim]:
    """Calibration of the guide, its cost, and the same check on a guide that is too narrow."""
    tune_runtime()
    steps, simulations = (400, 300) if quick else (4000, 1000)
    start = time.perf_counter()
    fitted = trained(steps, SEED)
    training = time.perf_counter() - start
    start = time.perf_counter()
    found = calibrate(fitted, simulations=simulations, draws=200, key=jax.random.key(1))
    seconds = time.perf_counter() - start
    narrow = dataclasses.replace(fitted, program=narrower(fitted.program, NARROW))
    failed = calibrate(narrow, simulations=simulations, draws=200, key=jax.random.key(1))
    detail = {"table": found.table.to_dict(), "training_seconds": training, "steps": steps,
              "kl_to_exact_posterior": worst_kl(fitted, 2000)}  # fmt: skip
    yield Claim(
        "sbc_p", f"set encoder on coins: smallest KS p-value of {simulations} simulations, unadjusted",
        min(ks_p(found, name) for name in ("theta", "log_lik")), "p-value", target="> 0.01", seeds=(SEED,),
        detail=detail,
    )  # fmt: skip
    yield Claim(
        "sbc_seconds", f"simulation-based calibration of {simulations} simulations in one call, compilation included",
        seconds, "s", target="< 30", seeds=(SEED,),
    )  # fmt: skip
    yield Claim(
        "narrow_p", f"the same guide with standard deviations times {NARROW}: KS p-value of theta",
        ks_p(failed, "theta"), "p-value", target="< 0.01", seeds=(SEED,),
        detail={"table": failed.table.to_dict()},
    )  # fmt: skip
