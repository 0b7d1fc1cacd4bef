"""Does calibration notice a guide whose scale is off by 1.3, does it let an exact one pass, and what does it save?

Factor analysis with 1, 2 and 8 latent numbers, whose exact posterior guide is known; the same guide with standard
deviations times 1.3 and divided by 1.3.  A repetition is one ``inference.calibrate`` of n simulations and 50 draws,
and its verdict is the joint one: Holm over all quantities at 5 %.  The repetitions of a cell are cut from one long run
of independent simulations; smaller n take the first of each repetition.  The expected-coverage test alone (log_q) and
TARP alone stand beside it.  The second part checks x = W z + noise with a correlated posterior, by an exact guide and
by the best mean-field one, against refitting every simulated datum by stock ``SVI`` with NumPyro's
AutoMultivariateNormal and AutoDiagonalNormal.  Ratios are of processor seconds, compilation included: what else runs on
the machine does not count.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from numpyro import plate, sample
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal
from numpyro.optim import Adam

from benchmarks.harness import Claim
from inference import calibrate
from inference.checking.column_checks import holm
from inference.checking.ecdf_bands import p_values
from inference.checking.sbc_ranks import rank_fractions
from ppl_models.program import Observation, Program
from tests.closed_forms import linear_gaussian_program

SCALES = {"exact": 1.0, "wide": 1.3, "narrow": 1 / 1.3}
DIMENSIONS = (1, 2, 8)
DRAWS = 50
LEVEL = 0.05
DIM, NOISE, STEPS = 3, 0.6, 1500


# ---------------------------------------------------------------------------------------------- power
def scaled(latent: int, factor: float) -> Any:
    """Factor analysis with its exact posterior, standard deviations times ``factor``."""
    form = linear_gaussian_program(dim=latent + 2, latent=latent, spoil=0.0)
    exact = form.program.posterior
    assert exact is not None

    def posterior(x: Any) -> Any:
        normal = exact(x)("z", None).base_dist
        return lambda site, ctx: dist.Normal(normal.loc, factor * normal.scale).to_event(1)

    return dataclasses.replace(form.fit, program=dataclasses.replace(form.program, posterior=posterior))


def rejected(fit: Any, repetitions: int, sizes: tuple[int, ...], seed: int) -> dict[str, dict[str, float]]:
    """Share of repetitions that are rejected at 5 %, by number of simulations and by test."""
    most = max(sizes)
    ranks, _ = rank_fractions(fit, key=jax.random.key(seed), simulations=repetitions * most, draws=DRAWS, chunk=5000)
    found: dict[str, dict[str, float]] = {}
    for n in sizes:
        p = {name: p_values(pit.reshape(repetitions, most)[:, :n].T) for name, pit in ranks.items()}
        joint = np.array([holm(row).min() for row in np.stack(list(p.values()), axis=1)])
        single = {"coverage": p["log_q"], "tarp": p["tarp"], "log_weight": p["log_weight"], "z0": p["z[0]"]}
        found[str(n)] = {name: float((value < LEVEL).mean()) for name, value in {"joint": joint, **single}.items()}
    return found


# ---------------------------------------------------------------------------------------------- refits
def correlated(guide: str) -> Any:
    """x = W z + noise in R^3 with z in R^2, and its exact posterior or the mean-field one of least KL(q || p)."""
    W = np.array([[1.0, 0.9], [0.8, 1.0], [0.2, -0.1]], np.float32)
    precision = np.eye(2) + W.T @ W / NOISE**2
    covariance = np.linalg.inv(precision)
    root = np.linalg.cholesky(covariance) if guide == "full" else np.diag(1 / np.sqrt(np.diag(precision)))
    gain, root = (covariance @ W.T / NOISE**2).astype("float32"), root.astype("float32")

    def model(x: Any = None, *, size: int | None = None) -> None:
        with plate("data", size if x is None else len(x)):
            z = sample("z", dist.Normal(0, 1).expand([2]).to_event(1), infer={"ctx": None})
            sample("x", dist.Normal(z @ W.T, NOISE).to_event(1), obs=x)

    def posterior(x: Any) -> Any:
        return lambda site, ctx: dist.MultivariateNormal(x @ gain.T, scale_tril=jnp.asarray(root))

    program = Program(None, model, posterior, ("z",), (DIM,), observation=Observation("x in R^3"))
    single = lambda x: sample(  # noqa: E731 - the same model of one datum, as NumPyro's users write it
        "x", dist.Normal(sample("z", dist.Normal(0, 1).expand([2]).to_event(1)) @ W.T, NOISE).to_event(1), obs=x
    )
    return SimpleNamespace(program=program, params={}, mutable={}, single=single, W=W)


def refits(case: Any, guide: str, n: int, stock: int) -> dict[str, Any]:
    """Ranks of n refits with one compiled ``SVI.run``, and the seconds of ``stock`` refits as a user calls them."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 2)).astype("float32")
    x = (z @ case.W.T + NOISE * rng.normal(size=(n, DIM))).astype("float32")
    auto = (AutoMultivariateNormal if guide == "full" else AutoDiagonalNormal)(case.single)
    svi = SVI(case.single, auto, Adam(optax.cosine_decay_schedule(0.05, STEPS)), Trace_ELBO(num_particles=4))

    def fitted(key: Any, x: Any) -> Any:
        result = svi.run(key, STEPS, x, progress_bar=False)
        draws = auto.sample_posterior(jax.random.fold_in(key, 1), result.params, sample_shape=(DRAWS,))["z"]
        return draws, auto.get_posterior(result.params)

    keys = jax.random.split(jax.random.key(3), n)
    jax.block_until_ready(fitted(keys[0], jnp.asarray(x[0]))[0])  # what is compiled once a process is not counted
    began, cpu = time.perf_counter(), time.process_time()
    for i in range(stock):
        jax.block_until_ready(fitted(keys[i], jnp.asarray(x[i]))[0])
    each, each_cpu = (time.perf_counter() - began) / stock, (time.process_time() - cpu) / stock

    @jax.jit
    def ranked(key: Any, x: Any, z: Any) -> Any:
        draws, q = fitted(key, x)
        like = lambda z: dist.Normal(z @ case.W.T, NOISE).log_prob(x).sum(-1)  # noqa: E731
        below = {
            "z[0]": (draws[:, 0] < z[0]).sum(), "z[1]": (draws[:, 1] < z[1]).sum(),
            "log_lik": (like(draws) < like(z)).sum(), "log_q": (q.log_prob(draws) < q.log_prob(z)).sum(),
        }  # fmt: skip
        return below

    began, cpu = time.perf_counter(), time.process_time()
    found = [jax.device_get(ranked(k, jnp.asarray(a), jnp.asarray(b))) for k, a, b in zip(keys, x, z, strict=True)]
    once, once_cpu = time.perf_counter() - began, time.process_time() - cpu
    pit = {name: (np.array([row[name] for row in found]) + rng.random(n)) / (DRAWS + 1) for name in found[0]}
    p = {name: float(p_values(values)) for name, values in pit.items()}
    return {"p": p, "joint": float(holm(np.array(list(p.values()))).min()), "stock_each_s": each, "stock_each_cpu_s":
            each_cpu, "stock_timed": stock, "compiled_once_s": once, "compiled_once_cpu_s": once_cpu, "refits": n,
            "steps": STEPS}  # fmt: skip


def compared(guide: str, n: int, stock: int) -> dict[str, Any]:
    """Amortised calibration and refits of one guide: joint p-values and seconds, compilation included in both."""
    case = correlated(guide)
    began, cpu = time.perf_counter(), time.process_time()
    found = calibrate(case, key=jax.random.key(0), simulations=n, draws=DRAWS, progress=False)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    refit = refits(case, guide, n, stock)
    return {
        "amortised_joint": found.p_value, "refit_joint": refit["joint"], "amortised_s": seconds, "amortised_cpu_s": cpu,
        "ratio": refit["stock_each_s"] * n / seconds, "ratio_cpu": refit["stock_each_cpu_s"] * n / cpu,
        "ratio_compiled_once": refit["compiled_once_cpu_s"] / cpu, "table": found.table["p_value"].to_dict(),
        "refit": refit,
    }  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Level and power by cell, then the comparison with refits."""
    dimensions, repetitions = ((2,), 50) if quick else (DIMENSIONS, 1000)
    sizes = {name: (100, 250, 500) if name == "exact" and not quick else (50, 100, 250) for name in SCALES}
    cells = {
        (latent, name): rejected(scaled(latent, factor), repetitions, sizes[name], seed=100 * latent + i)
        for latent in dimensions
        for i, (name, factor) in enumerate(SCALES.items())
    }
    shares = {f"{latent} latent, {name}": cell for (latent, name), cell in cells.items()}
    detail = {"repetitions": repetitions, "draws": DRAWS, "share_rejected": shares}
    n = max(sizes["exact"])
    for latent in dimensions:
        yield Claim(
            f"level_{latent}", f"exact guide, {latent} latent: share of checks of {n} simulations rejected at 5 %",
            cells[latent, "exact"][str(n)]["joint"], "share", target="0.036 to 0.064", seeds=(100 * latent,),
            if_missed="Holm's bound is conservative where quantities depend on each other", detail=detail,
        )  # fmt: skip
    n = max(sizes["wide"])
    for latent in dimensions:
        for i, (name, words) in enumerate((("wide", "times 1.3"), ("narrow", "divided by 1.3")), start=1):
            yield Claim(
                f"power_{latent}_{name}",
                f"standard deviations {words}, {latent} latent: share of checks of {n} simulations rejected at 5 %",
                cells[latent, name][str(n)]["joint"], "share", target=">= 0.95", seeds=(100 * latent + i,),
                detail=detail,
            )  # fmt: skip
    if quick:
        return
    found = {guide: compared(guide, 1000, 10) for guide in ("full", "mean-field")}
    same = sum((f["amortised_joint"] < LEVEL) == (f["refit_joint"] < LEVEL) for f in found.values())
    extrapolated = (
        "10 refits as a user calls svi.run were timed and extrapolated to 1,000; one compiled run did all 1,000"
    )
    yield Claim(
        "refit_ratio", "1,000 simulations: seconds of stock SVI refits over seconds of amortised calibration",
        min(f["ratio_cpu"] for f in found.values()), "times", target=">= 50", seeds=(0, 3),
        detail={**found, "timing": extrapolated},
    )  # fmt: skip
    yield Claim(
        "refit_ratio_compiled_once", "the same against refits that are compiled once for all data",
        min(f["ratio_compiled_once"] for f in found.values()), "times", seeds=(0, 3),
    )  # fmt: skip
    yield Claim(
        "refit_verdict", "exact guide passes, mean-field guide is flagged: verdicts that agree with 1,000 refits, of 2",
        same, "verdicts", target="== 2", seeds=(0, 3), detail=found,
    )  # fmt: skip
