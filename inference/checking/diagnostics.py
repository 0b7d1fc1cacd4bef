"""``diagnose``: one table that says whether a fit can be trusted, why, and what to try.

Every line has a value, a threshold with its source, a verdict and plain words.  Thresholds marked "ours" are rules of
this package, not results of the literature; change the constants to move them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Key

from inference.checking import criticism, remedies
from inference.checking.classical_check import classical_check
from inference.checking.column_checks import column_lines
from inference.checking.criticism import EFFECT as EFFECT, TAIL as TAIL
from inference.checking.generalisation import Generalisation, generalisation, held_out_checks
from inference.checking.sampling_checks import is_tree, sampler_verdict
from inference.checking.training_lines import (
    SKIPPED as SKIPPED,
    chosen_by_validation,
    held_out_check,
    training_checks,
    verdict_of,
)
from inference.fitting.sources import stored
from ppl_models.program import Check, numbers, rows

if TYPE_CHECKING:
    import jax
    import pandas as pd

KHAT = 0.7
"""Pareto k-hat above which importance sampling is unreliable (Vehtari et al. 2024, JMLR 25(72), section 3)."""
KHAT_SHARE = (0.05, 0.25)
"""Share of data above :data:`KHAT` from which the line warns, fails (ours)."""
ESS = (10.0, 2.0)
"""Median effective sample size below which the line warns, fails (ours; below 2 one particle carries the sum)."""
GAP = (0.1, 0.5)
"""Evidence - ELBO as a share of the total rate from which the line warns, fails (ours)."""
MONTE_CARLO = (0.25, 1.0)
"""Monte Carlo error of mean log p(x) as a share of its sampling error over data: warns, fails (ours)."""
SILENT = 0.01
"""Rate in nats per datum below which a latent site is silent (ours)."""

COLUMNS = tuple(field.name for field in dataclasses.fields(Check))


def diagnose(
    fit: Any,
    x: Any = None,
    *,
    key: Key[jax.Array, ""] | None = None,
    table: pd.DataFrame | None = None,
    tree: Any = None,
    particles: int = 512,
    draws: int = 100,
    train: Any = None,
    baselines: Mapping[str, pd.DataFrame] | None = None,
    ranks: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return one row a check: ``check, value, threshold, verdict (ok | warn | fail), meaning, remedy``.

    ``x``      stored held-out data (N, *shape), the data of ``table`` and ``tree``.
    ``table``  ``inference.evidence(fit, x, ...)``; computed with ``particles`` when not given.
    ``tree``   ``inference.posterior(fit, x, ...)``; computed with ``draws`` when not given.
    ``train``  stored training data: the held-out gap is then measured on a hundred of them, and where there is one,
               said to be that of the generative model or of the encoder (:mod:`inference.checking.generalisation`:
               their posteriors are refined, which takes seconds to a minute).  They also add the line that compares
               log p(x) with classical densities fitted to them, by ``inference.baselines(..., quick=True)``: some
               seconds.  Left out where no baseline shares the score.
    ``baselines``  such tables that exist already.

    Remedies are chosen together (:mod:`inference.checking.remedies`): no line advises what another speaks against.
    A fit from :func:`inference.refine` is judged by its refined posteriors.

    A DataTree of ``inference.sampling.condition`` in the place of the fit is judged as a sampler's work, alone or with
    ``ranks`` of simulated problems: :func:`~inference.checking.sampling_checks.sampler_verdict`.

    A program without latents gets the lines that apply to it; the program's own checks come last.  Raises
    ``ValueError`` for data that the program cannot score or a table of another number of data.
    """
    import jax

    if is_tree(fit):
        if x is not None or key is not None or table is not None or tree is not None or train is not None:
            raise ValueError("a DataTree of draws is diagnosed by itself: inference.diagnose(tree, ranks=ranks)")
        return sampler_verdict(fit, ranks=ranks)
    if ranks is not None:
        raise ValueError("ranks belong to a DataTree of inference.sampling.condition; a fit: inference.calibrate")
    if x is None or key is None:
        raise ValueError("a fit is diagnosed on held-out data: inference.diagnose(fit, x, key=key)")
    x = stored(fit.program, x, "x")
    if table is not None and len(table) != rows(x):
        raise ValueError(
            f"table has {len(table)} rows, x has {rows(x)} data; pass the x that the evidence was computed on"
        )
    if table is not None and table.attrs.get("estimator") in ("ais", "smc"):
        raise ValueError(
            "table is of annealed evidence: its elbo and khat judge the path, not the posterior; pass that of "
            "method='importance'"
        )
    table_key, tree_key, rate_key = jax.random.split(key, 3)
    if table is None:
        from inference.checking.log_evidence import evidence

        table = evidence(fit, x, particles=particles, key=table_key)
    if tree is None:
        from inference.checking.posterior_tree import posterior

        some = None if fit.program.views.replicates else replicates(fit, x, draws)
        tree = posterior(fit, x, draws=draws, key=tree_key, predictive_draws=some)
    if baselines is None and train is not None:
        baselines = quick_baselines(fit.program, train, x, key=table_key)
    rates = criticism.site_rates(fit, x, key=rate_key)
    return assemble(
        fit, table, tree, rates, baselines or {}, split(fit, x, train, table, key=jax.random.fold_in(key, 3))
    )


def split(fit: Any, x: Any, train: Any, table: pd.DataFrame, *, key: Key[jax.Array, ""]) -> Generalisation | None:
    """:func:`generalisation` with the draws of a table, where there are training data, and any that are seen twice."""
    if train is None or getattr(fit, "card", {}).get("fresh"):
        return None
    return generalisation(fit, x, train, key=key, particles=max(25, table.attrs.get("particles", 512)))


def quick_baselines(
    program: Any, train: Any, x: Any, *, key: Key[jax.Array, ""], validation: Any = None
) -> dict[str, pd.DataFrame]:
    """``inference.baselines(..., quick=True)`` by name; none where no baseline shares the program's score, or there
    are too few training data to choose settings by."""
    from inference.checking.classical import baselines

    try:
        return baselines(program, train, x, key=key, validation=validation, quick=True, progress=False)
    except ValueError:
        return {}


def replicates(fit: Any, x: Any, draws: int) -> int:
    """Replicated data sets for the predictive checks: one a draw, fewer where they would exceed 10 million numbers."""
    return min(draws, max(10, 10_000_000 // max(1, rows(x) * numbers(fit.program.shape))))


def assemble(
    fit: Any,
    table: pd.DataFrame,
    tree: Any,
    rates: Mapping[str, np.ndarray],
    baselines: Mapping[str, pd.DataFrame] | None = None,
    found: Generalisation | None = None,
) -> pd.DataFrame:
    """Return the table of :func:`diagnose` from its ingredients: nothing is sampled here."""
    import pandas as pd

    # Where every batch was drawn afresh there is nothing to overfit to.
    fresh, best_step = getattr(fit, "card", {}).get("fresh"), fit.info.get("best_step")
    held_out = held_out_check(fit.history, table, best_step) if found is None else held_out_checks(found)
    checks = [
        *finite_checks(fit, table, tree),
        *training_checks(fit.history, fit.info),
        *([] if fresh else held_out),
        *evidence_checks(table, rates),
        *classical_check(table, baselines or {}),
        *site_checks(rates, criticism.group(tree, "posterior")),
        *(column_lines(tree, columns) if (columns := fit.program.observation.columns) else predictive_lines(tree)),
        *fit.program.views.checks(tree),
    ]
    refined = "estimator" in table and bool((table["estimator"] == "refined").all())
    checks = remedies.together(
        checks, refined=refined, validated=best_step is not None, chosen=chosen_by_validation(fit.info)
    )
    return pd.DataFrame([dataclasses.asdict(check) for check in checks], columns=list(COLUMNS))


def _exact(table: pd.DataFrame) -> bool:
    return table.attrs.get("estimator") == "exact"


# --------------------------------------------------------------------------------------------- numbers
def finite_checks(fit: Any, table: pd.DataFrame, tree: Any) -> list[Check]:
    """Count numbers that are not finite in the parameters, the evidence table and the posterior draws."""
    columns = ["log_px"] if _exact(table) else ["log_px", "elbo", "se"]
    places = {
        "parameters": criticism.nonfinite(dict(fit.params)),
        "evidence table": criticism.nonfinite(table[columns].to_numpy(float)),
        "posterior draws": sum(criticism.nonfinite(np.asarray(v)) for v in criticism.group(tree, "posterior").values()),
        "predictive draws": sum(
            criticism.nonfinite(np.asarray(v)) for v in criticism.group(tree, "posterior_predictive").values()
        ),
    }
    bad = {place: count for place, count in places.items() if count}
    where = ", ".join(f"{count} in the {place}" for place, count in bad.items())
    return [
        Check(
            "non-finite values", float(sum(places.values())), "0", "fail" if bad else "ok",
            f"Numbers that are infinite or not a number: {where}; nothing computed from them can be trusted."
            if bad else "All parameters, densities and draws are finite numbers.",
            "Lower the learning rate, clip gradients (clip=), check the data for values outside the support of the "
            "likelihood." if bad else "",
        )
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------- evidence
def evidence_checks(table: pd.DataFrame, rates: Mapping[str, np.ndarray]) -> list[Check]:
    """Can the importance-sampled log p(x) be trusted, and how loose is the ELBO?"""
    if _exact(table):
        return []
    log_px, n = table["log_px"].to_numpy(float), len(table)
    particles = table.attrs.get("particles")
    # A weight distribution too broken for a fit has no k-hat: not trusted either.
    share = float(np.mean(~(table["khat"].to_numpy(float) <= KHAT)))
    heavy = verdict_of(share, *KHAT_SHARE)
    refined = int((table["estimator"] == "refined").sum()) if "estimator" in table else 0
    ess = table["ess"].to_numpy(float)
    middle = float(np.nanmedian(ess)) if np.isfinite(ess).any() else math.nan
    few = verdict_of(-middle, -ESS[0], -ESS[1])
    checks = [
        Check(
            "share of data with Pareto k-hat > 0.7", share, f"<= {KHAT_SHARE[0]:g} (fails above {KHAT_SHARE[1]:g})",
            heavy,
            f"{round(share * n)} of {n} data have importance weights with tails too heavy for a trustworthy log p(x)"
            + ("; the others can be trusted." if heavy == "ok" else
               ": their values are likely too low and the stated errors too small.")
            + (f" The posteriors of {refined} were refined for their datum." if refined else ""),
            "" if heavy == "ok" else
            remedies.joined([
                remedies.REFINE, remedies.PARTICLES, remedies.RICHER, remedies.WIDER, remedies.LONGER,
                "look at these data in the report: they may be outliers",
            ]),
        ),
        Check(
            "effective sample size (median)", middle, f">= {ESS[0]:g} (fails below {ESS[1]:g})", few,
            f"For half of the data the {particles or ''} particles are worth fewer than {middle:.3g} independent ones. "
            + ("Enough for a stable estimate." if few == "ok" else "A few particles carry the estimate."),
            "" if few == "ok" else remedies.joined([remedies.REFINE, remedies.PARTICLES, remedies.RICHER]),
        ),
        _gap_check(log_px, table["elbo"].to_numpy(float), rates),
    ]  # fmt: skip
    if n > 1:
        error = float(np.sqrt(np.sum(np.square(table["se"].to_numpy(float))))) / n
        sampling = float(np.std(log_px, ddof=1)) / math.sqrt(n)
        verdict = verdict_of(error, MONTE_CARLO[0] * sampling, MONTE_CARLO[1] * sampling)
        checks.append(
            Check(
                "Monte Carlo error of mean log p(x)", error,
                f"<= {MONTE_CARLO[0] * sampling:.3g} nats (a quarter of the error from having {n} data)", verdict,
                f"Mean log p(x) is {log_px.mean():.2f} nats per datum; the particles add an error of {error:.2g} to "
                f"the {sampling:.2g} that come from the number of data.",
                "" if verdict == "ok" else remedies.joined([remedies.PARTICLES]),
            )
        )  # fmt: skip
    return checks


def _gap_check(log_px: np.ndarray, elbo: np.ndarray, rates: Mapping[str, np.ndarray]) -> Check:
    difference = log_px - elbo
    gap = float(difference.mean())
    se = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.nan
    rate = sum(float(np.mean(values)) for values in rates.values())
    warn, fail = GAP[0] * max(rate, 1.0), GAP[1] * max(rate, 1.0)
    meaning = (
        f"The ELBO lies {gap:.3g} nats per datum below log p(x): an estimate of KL(q(z|x) || p(z|x)), how far "
        f"the posterior is from the exact one, against {rate:.3g} nats that the latents carry."
    )
    if gap < -3 * se - 1e-3 * max(1.0, abs(float(elbo.mean()))):
        return Check(
            "evidence - ELBO gap", gap, ">= 0", "fail",
            f"log p(x) came out {-gap:.3g} nats BELOW its lower bound, which is impossible: the two were computed on "
            "different data or weights, or the particles are far too few.",
            "Compute table again from this fit and these data, with more particles.",
        )  # fmt: skip
    verdict = verdict_of(gap, warn, fail)
    return Check(
        "evidence - ELBO gap", gap, f"<= {warn:.3g} nats ({100 * GAP[0]:.0f} % of the rate)", verdict, meaning,
        "" if verdict == "ok" else
        remedies.joined([
            remedies.REFINE, remedies.WIDER, remedies.RICHER, "compare models by log p(x), not by ELBO",
        ]),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- latent sites
def site_checks(rates: Mapping[str, np.ndarray], draws: Mapping[str, Any]) -> list[Check]:
    """For each latent site: its rate, and how many of its units vary with the data."""
    checks = []
    for name, values in rates.items():
        rate = float(np.mean(values))
        active, total = None, 0
        if name in draws and np.issubdtype(np.asarray(draws[name]).dtype, np.floating):
            variance = criticism.unit_variance(criticism.draws_first(draws[name]))
            if np.isfinite(variance).any():
                active, total = int((variance > criticism.ACTIVE).sum()), len(variance)
        silent = not rate >= SILENT
        collapsed = silent and not active
        says = f"{active} of {total} units vary with the data" if active is not None else "units were not counted"
        remedy = (
            "Fade the KL in (weights={'kl': schedule}); free bits or a lower weight for this site; another seed; "
            f"{remedies.WEAKER}; or remove the site if the model does without it."
        )
        checks.append(
            Check(
                f"rate of {name}", rate, f">= {SILENT:g} nats", "fail" if collapsed else "warn" if silent else "ok",
                f"q(z|x) equals the prior: this site has collapsed and tells nothing about a datum ({says})."
                if collapsed else
                f"On average a datum tells {rate:.3g} nats ({rate / math.log(2):.3g} bits) through this site"
                + ("; almost nothing." if silent else "."),
                remedy if silent else "",
            )
        )  # fmt: skip
        if active is not None:
            checks.append(
                Check(
                    f"active units of {name}", float(active), f">= 1 of {total}",
                    "ok" if active else "fail" if collapsed else "warn",
                    f"{active} of {total} units have a posterior mean whose variance over data exceeds "
                    f"{criticism.ACTIVE:g}" + ("; the others stay at their prior." if active < total else "."),
                    "" if active else remedy,
                )
            )  # fmt: skip
    return checks


# --------------------------------------------------------------------------------------------- predictive
def predictive_lines(tree: Any) -> list[Check]:
    """Posterior predictive checks: do simple statistics of replicated data look like those of the real data?"""
    checks = []
    found = criticism.predictive_by_site(tree)
    for site, results in found.items():
        for result in results:
            misfit = result.tail < TAIL and abs(result.shift) > EFFECT[0]
            verdict = "ok" if not misfit else "fail" if abs(result.shift) > EFFECT[1] else "warn"
            label = result.statistic if len(found) == 1 else f"{result.statistic} of {site}"
            replicated = float(result.replicated.mean())
            checks.append(
                Check(
                    f"predictive check: {label}", result.tail,
                    f">= {TAIL:g}, or a shift <= {EFFECT[0]:g} sd", verdict,
                    f"Real data: {result.observed:.4g}; data simulated by the fitted model: {replicated:.4g} "
                    f"({result.shift:+.2f} sd over data)."
                    + (" The model does not reproduce this property." if misfit else
                       " The difference is real but small." if result.tail < TAIL else ""),
                    "" if not misfit else
                    f"A learnt or smaller noise scale; {remedies.LARGER}; another likelihood: one that can draw what "
                    "the data cannot be (a Normal on grey levels with many exact zeros, a Bernoulli on grey levels) "
                    "does not pass; binarise the data, or score grey levels as such.",
                )
            )  # fmt: skip
    return checks
