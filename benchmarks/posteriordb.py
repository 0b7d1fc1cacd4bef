"""Do k-hat and the gap of an autoguide tell whether to trust it, judged by posteriordb's reference draws?

Eight posteriors, the first in two parametrisations, each fitted by stock ``SVI`` with ``AutoDiagonalNormal`` and
``AutoMultivariateNormal``, and handed to ``inference.evidence`` by ``inference.from_autoguide``.  The models are
checked first: E grad log p(u) = 0 and E u_i d_j log p(u) = -(i = j) under the reference draws (Stein's identity).

What counts as right was written down before a guide was fitted:

verdict    trusted where k-hat <= 0.7 and the effective sample size >= 10, the bounds of ``diagnose``, of 20,000 draws.
truth      of importance-weighted draws: of ten fresh sets of 20,000, nine at least have, for every parameter, the mean
           within 0.1 reference standard deviations, the standard deviation within 10 %, and between 87 and 93 % of the
           reference draws in the weighted central 90 % interval; and log p(y) within 0.1 nats of bridge sampling with
           the reference draws.
right      a posterior whose verdicts are its truths, for every guide and parametrisation.
gap        log p(y) - ELBO of a trusted row is KL(q || p): within 0.05 nats or three standard errors of the bridge's;
           where it is at most 0.05 nats, the guide's own draws have every mean within sqrt(2 * 0.05) standard
           deviations and every standard deviation within the 24 % that 0.05 nats buy a Normal.
refined    where ``evidence`` refines a row that it distrusts, verdict and truth of the refined posterior as above.

Without ``PPL_MODELS_DATA`` there is nothing to judge by: the record says so, and that no posterior was judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.distributions import biject_to
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal
from numpyro.infer.util import potential_energy
from scipy.stats import multivariate_normal

from benchmarks._posteriordb_models import CASES, Case, columns
from benchmarks.harness import Claim
from inference import evidence, from_autoguide, posterior, refine
from inference.checking.bridge import bridge
from inference.checking.diagnostics import ESS, KHAT
from ppl_models.datasets import DataMissingError
from ppl_models.datasets.reference_posteriors import POSTERIORS, ReferencePosterior, reference_posterior

GUIDES = {"diagonal": AutoDiagonalNormal, "full": AutoMultivariateNormal}
STEPS, PARTICLES, DRAWS, SETS = 20_000, 8, 20_000, 10
MEAN, SD, COVERAGE, LOG_P, ENOUGH = 0.1, 0.1, 0.03, 0.1, 0.9
SMALL, WIDEST = 0.05, 0.24


class Truth:
    """Reference draws of a case in both spaces, its log density over u, and log p(y) by bridge sampling."""

    def __init__(self, case: Case, reference: ReferencePosterior, quick: bool) -> None:
        self.case, self.arguments = case, case.arguments(reference.data)
        self.draws = reference.draws.reshape(-1, reference.draws.shape[-1]).astype(float)
        self.mean, self.sd = self.draws.mean(0), self.draws.std(0)
        values = {name: jnp.asarray(v, jnp.float32) for name, v in case.sites(self.draws).items()}
        if quick:
            values = {name: v[::10] for name, v in values.items()}
        held = numpyro.handlers.substitute(case.model, data={name: v[0] for name, v in values.items()})
        sites = numpyro.handlers.trace(numpyro.handlers.seed(held, 0)).get_trace(**self.arguments)
        u = {name: jax.vmap(biject_to(sites[name]["fn"].support).inv)(v) for name, v in values.items()}
        value_and_grad = jax.value_and_grad(lambda u: -potential_energy(case.model, (), self.arguments, u))
        self.shapes = {name: v.shape[1:] for name, v in u.items()}
        self.density = jax.jit(jax.vmap(value_and_grad))
        self.stein, self.log_p = self._checked(u)

    def _checked(self, u: Mapping[str, Any]) -> tuple[float, tuple[float, float]]:
        log_p, slope = self.density(u)
        flat = lambda tree: np.concatenate([np.asarray(tree[n], float).reshape(len(log_p), -1) for n in u], 1)  # noqa: E731
        at, slope = flat(u), flat(slope)
        centred, scaled = (at - at.mean(0)) / at.std(0), slope * at.std(0)
        second = centred[:, :, None] * scaled[:, None] + np.eye(at.shape[1])
        z = [part.mean(0) / (part.std(0) / np.sqrt(len(at))) for part in (scaled, second)]
        # Half of the draws make the proposal, the other half bridges to it.
        first, rest = at[::2], at[1::2]
        law = multivariate_normal(first.mean(0), np.cov(first.T))
        drawn = law.rvs(len(rest), random_state=np.random.default_rng(0)).reshape(len(rest), -1)
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes.values()])[:-1]
        parts = zip(self.shapes.items(), np.split(drawn, ends, axis=1), strict=True)
        there = {name: jnp.asarray(part.reshape(-1, *shape), jnp.float32) for (name, shape), part in parts}
        found = bridge(np.asarray(log_p, float)[1::2] - law.logpdf(rest),
                       np.asarray(self.density(there)[0], float) - law.logpdf(drawn))  # fmt: skip
        return float(max(np.abs(part).max() for part in z)), found

    def errors(self, values: np.ndarray, log_weight: np.ndarray | None = None) -> dict[str, float]:
        """Worst error of mean (reference sd), of sd (share) and of coverage of draws (n, p), weighted or plain."""
        n = len(values)
        w = np.full(n, 1 / n) if log_weight is None else np.exp(log_weight - log_weight.max())
        w = w / w.sum()
        mean = w @ values
        sd = np.sqrt(w @ (values - mean) ** 2)
        covered = []
        for i in range(values.shape[1]):
            order = np.argsort(values[:, i])
            low, high = values[order, i][np.searchsorted(np.cumsum(w[order]), [0.05, 0.95]).clip(max=n - 1)]
            covered.append(float(((self.draws[:, i] >= low) & (self.draws[:, i] <= high)).mean()))
        found = {
            "mean": float(np.abs((mean - self.mean) / self.sd).max()),
            "sd": float(np.abs(sd / self.sd - 1).max()),
            "coverage_low": min(covered),
            "coverage_high": max(covered),
        }
        if log_weight is not None:
            top = log_weight.max()
            found["log_p"] = abs(float(top + np.log(np.exp(log_weight - top).mean())) - self.log_p[0])
        return found


def good(found: Mapping[str, float]) -> bool:
    """Whether one set of weighted draws meets every tolerance (nan does not)."""
    covered = found["coverage_low"] >= 0.9 - COVERAGE and found["coverage_high"] <= 0.9 + COVERAGE
    return bool(found["mean"] <= MEAN and found["sd"] <= SD and covered and found["log_p"] <= LOG_P)


def judged(fit: Any, x: Any, truth: Truth, seed: int, sets: int, draws: int) -> dict[str, Any]:
    """Our verdict on a posterior, and the truth."""
    key, draw_key = jax.random.split(jax.random.key(seed))
    row = evidence(fit, x, particles=draws, key=key, refine="none", progress=False).iloc[0]
    tree = posterior(fit, x, draws=sets * draws, predictive_draws=0, key=draw_key, progress=False)
    values = columns(truth.case, {str(name): np.asarray(v)[0, :, 0] for name, v in tree["posterior"].data_vars.items()})
    log_weight = np.asarray(tree["sample_stats"]["log_weight"], float).reshape(-1)
    each = [truth.errors(values[at : at + draws], log_weight[at : at + draws]) for at in range(0, sets * draws, draws)]
    share = float(np.mean([good(found) for found in each]))
    gap, bridged = float(row["log_px"] - row["elbo"]), float(truth.log_p[0] - log_weight.mean())
    error = float(np.hypot(row["se"], truth.log_p[1]) + log_weight.std() / np.sqrt(draws))
    return {
        "khat": float(row["khat"]), "ess": float(row["ess"]), "estimator": row["estimator"],
        "trusted": bool(row["khat"] <= KHAT and row["ess"] >= ESS[0]), "reliable": share >= ENOUGH,
        "sets_good": share, "worst_of_sets": {k: float(np.max([f[k] for f in each])) for k in ("mean", "sd", "log_p")},
        "gap": gap, "gap_by_reference": bridged, "gap_right": abs(gap - bridged) <= max(SMALL, 3 * error),
        "own": truth.errors(values),
    }  # fmt: skip


def trained(case: Case, truth: Truth, guide: str, steps: int, seed: int = 0) -> tuple[Any, Any]:
    """Stock SVI: Adam from 0.02 down to 0.0002, eight particles."""
    made = GUIDES[guide](case.model)
    rate = optax.exponential_decay(0.02, steps, 0.01)
    svi = SVI(case.model, made, optax.adam(rate), Trace_ELBO(num_particles=PARTICLES))
    result = svi.run(jax.random.key(seed), steps, progress_bar=False, **truth.arguments)
    return from_autoguide(made, result.params, **truth.arguments)


def run(quick: bool) -> Iterator[Claim]:
    """Yield how many posteriors are judged rightly, the errors of the gap, and what refinement makes of the rest."""
    try:
        references = {name: reference_posterior(name) for name in POSTERIORS}
    except DataMissingError as error:
        yield Claim("missing", f"posteriors judged: none, {str(error).splitlines()[0]}", 0, "posteriors")
        return
    steps, draws, sets = (500, 1000, 2) if quick else (STEPS, DRAWS, SETS)
    found: dict[str, dict[str, Any]] = {}
    stein: dict[str, float] = {}
    for name, case in CASES.items():
        if quick and name != "gp_regr":
            continue
        truth = Truth(case, references[case.of], quick)
        stein[name] = truth.stein
        for guide in GUIDES:
            fit, x = trained(case, truth, guide, steps)
            row = judged(fit, x, truth, 1, sets, draws)
            if not row["trusted"] and not quick:
                refined = refine(fit, x, key=jax.random.key(2), steps=300, progress=False)
                row["refined"] = judged(refined, x, truth, 3, sets, draws)
            found[f"{name}.{guide}"] = {"log_p_bridge": truth.log_p, **row}
            print(f"  {name:26s} {guide:9s} " + line(row), flush=True)
    agree = {key: row["trusted"] == row["reliable"] for key, row in found.items()}
    wrong = {case.of for name, case in CASES.items() if not all(agree.get(f"{name}.{g}", True) for g in GUIDES)}
    seen = {CASES[key.partition(".")[0]].of for key in found}
    trusted = sorted(key for key, row in found.items() if row["trusted"])
    yield Claim(
        "right", "posteriors of posteriordb on which k-hat's verdict on every autoguide agrees with reference draws",
        len(seen - wrong), "posteriors", target=f"== {len(seen)}", seeds=(0,), detail={"fits": found},
        if_missed=", ".join(f"{key}: k-hat {found[key]['khat']:.2f}, {found[key]['sets_good']:.0%} of sets right"
                            for key, ok in agree.items() if not ok),
        reference=f"{len(trusted)} of {len(found)} fits trusted: {', '.join(trusted)}",
    )  # fmt: skip
    rows = [found[key] for key in trusted]
    yield Claim(
        "gap", "trusted fits whose log p(y) - ELBO is off KL(q || p) of the reference draws, or small and misleading",
        sum(not row["gap_right"] or misled(row) for row in rows), "fits", target="== 0", seeds=(0,),
        detail={key: {k: found[key][k] for k in ("gap", "gap_by_reference", "own")} for key in trusted},
    )  # fmt: skip
    mended = {key: row["refined"] for key, row in found.items() if "refined" in row}
    yield Claim(
        "refined", f"verdicts after refinement of the {len(mended)} distrusted fits that reference draws contradict",
        sum(row["trusted"] != row["reliable"] for row in mended.values()), "fits", target="== 0", seeds=(0,),
        reference=f"{sum(row['trusted'] for row in mended.values())} of {len(mended)} trusted once refined",
        if_missed=", ".join(f"{key}: k-hat {row['khat']:.2f}, {row['sets_good']:.0%} of sets right"
                            for key, row in mended.items() if row["trusted"] != row["reliable"]),
        detail={key: {k: row[k] for k in ("khat", "trusted", "reliable", "sets_good")} for key, row in mended.items()},
    )  # fmt: skip
    yield Claim(
        "models", "largest |z| of Stein's identity for our eight models under the reference draws", max(stein.values()),
        "standard errors", target="<= 4.5", detail=stein,
    )  # fmt: skip


def misled(row: Mapping[str, Any]) -> bool:
    """A gap that calls the guide's own draws good when they are not."""
    own = row["own"]
    return row["gap"] <= SMALL and (own["mean"] > np.sqrt(2 * SMALL) or own["sd"] > WIDEST)


def line(row: Mapping[str, Any]) -> str:
    """A row for the person who waits."""
    more = row.get("refined")
    return (
        f"k-hat {row['khat']:5.2f} ESS {row['ess']:7.0f} sets right {row['sets_good']:4.0%} gap {row['gap']:7.3f} "
        f"(reference {row['gap_by_reference']:7.3f})"
        + (f"; refined: k-hat {more['khat']:5.2f} sets right {more['sets_good']:4.0%}" if more else "")
    )
