"""Which figures a report shows, in which order, with captions that say what good looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.checking import criticism
from inference.checking.gap_decomposition import gap_summary
from inference.reporting import figures, pictures
from inference.reporting.gap_figures import gap_by_datum
from inference.reporting.section import Section as Section
from inference.reporting.table_sections import table_rows
from ppl_models.program import Panel

if TYPE_CHECKING:
    import pandas as pd

FACTORS_SHOWN = 4


def sections(
    fit: Any, x: Any, factors: Mapping[str, np.ndarray], tree: Any, table: pd.DataFrame,
    rates: Mapping[str, np.ndarray], names: Sequence[Any] | None = None, gaps: pd.DataFrame | None = None,
) -> list[Section]:  # fmt: skip
    """The sections after the diagnosis; those of the model's family come last.

    ``names`` of the data, for tables; ``gaps`` of ``inference.inference_gaps``, where it was asked for.
    """
    rows = table_rows(fit, tree, table, names) if fit.program.observation.columns else None
    return [
        Section(
            "evidence", "How well it predicts",
            "log p(x) is the log density that the model gives to a datum it was not fitted to; the ELBO is a lower "
            "bound of it.",
            lambda: evidence_panels(table) + gap_panels(gaps), paired=True,
        ),
        Section(
            "latents", "What the latent variables carry",
            "A latent variable is useful if it says something about a datum: its rate, in nats, is how much.",
            lambda: latent_panels(rates, criticism.group(tree, "posterior"), factors),
        ),
        Section(
            "data", "What the model sees and imagines",
            "Data next to what the fitted model makes of them, and data that it makes up.",
            (lambda: data_panels(tree, table)) if rows is None else rows.data_panels,
            text=None if rows is None else rows.lowest,
        ),
        *([] if rows is None else rows.cluster_sections()),
        Section(
            "family", "What this family of models shows",
            "Figures that only make sense for this kind of model.",
            lambda: fit.program.views.panels(fit, x, factors, tree),
        ),
    ]  # fmt: skip


def evidence_panels(table: pd.DataFrame) -> list[Panel]:
    """Figures of the evidence table; an exact one has no importance weights to show."""
    panels = [
        Panel(
            "evidence",
            "Evidence. Distribution of log p(x) over the data. Good: one hump without a long tail to the left; data in "
            "such a tail are shown further down.",
            lambda: figures.evidence_distribution(table),
        )
    ]
    if table.attrs.get("estimator") == "exact":
        return panels
    return [
        *panels,
        Panel(
            "evidence and ELBO",
            "Evidence against ELBO. Each dot is a datum. Good: dots just below the dashed line; the distance is what "
            "the approximate posterior loses.",
            lambda: figures.bound(table),
        ),
        Panel(
            "k-hat",
            "Pareto k-hat. Can log p(x) of a datum be trusted? Good: nearly all dots below 0.7, most below 0.5; above "
            "0.7 the estimate rests on a few lucky draws.",
            lambda: figures.khat(table),
        ),
    ]


def gap_panels(gaps: pd.DataFrame | None) -> list[Panel]:
    """What of the distance between ELBO and log p(x) is the family's, and what the encoder's; nothing without."""
    if gaps is None:
        return []
    row = gap_summary({"": gaps}).iloc[0]
    return [
        Panel(
            "inference gap",
            f"Why the ELBO lies below log p(x): {row['approximation']:.2f} nats per datum are lost by the family of "
            f"the posterior (to the right: a richer one helps), {row['amortisation']:.2f} by the encoder (upwards: a "
            "wider one, longer training, or posteriors refined for each datum help).",
            lambda: gap_by_datum(gaps),
        )
    ]


def latent_panels(
    rates: Mapping[str, np.ndarray], posterior: Mapping[str, Any], factors: Mapping[str, np.ndarray]
) -> list[Panel]:
    """Rates, and posterior means coloured by up to four known factors."""
    if not rates:
        return []
    draws = {n: criticism.draws_first(posterior[n]) for n in rates if n in posterior}
    draws = {n: d for n, d in draws.items() if np.issubdtype(d.dtype, np.floating)}
    variance = {n: criticism.unit_variance(d) for n, d in draws.items()}
    active = {n: (int((v > criticism.ACTIVE).sum()), len(v)) for n, v in variance.items() if np.isfinite(v).any()}
    panels = [
        Panel(
            "rates",
            "Rate of each latent variable. E KL(q(z|x) || p(z)), the information a datum sends through it. Good: no "
            "bar near zero; a red bar is a variable that has collapsed onto its prior. A unit is active if its "
            f"posterior mean varies over data by more than {criticism.ACTIVE:g} (variance).",
            lambda: figures.rates(rates, active),
        )
    ]
    means = {n: d.mean(0) for n, d in draws.items()}
    if not means:
        return panels
    numeric = {
        n: f for n, f in factors.items() if f.ndim == 1 and (np.issubdtype(f.dtype, np.number) or f.dtype == bool)
    }
    for name, factor in list(numeric.items())[:FACTORS_SHOWN]:
        panels.append(
            Panel(
                f"latents by {name}",
                f"Posterior means coloured by {name}. Each dot is a datum. Good: where a variable has learnt {name}, "
                "colours form regions; where it has not, they are mixed. The model never saw this label.",
                partial(figures.latents, means, np.asarray(factor, float), name),
            )
        )
    if not numeric:
        panels.append(
            Panel(
                "latents",
                "Posterior means. Each dot is a datum. Good: a spread-out cloud or separate groups; a single point is "
                "a variable that says nothing.",
                lambda: figures.latents(means),
            )
        )
    return panels


def data_panels(tree: Any, table: pd.DataFrame) -> list[Panel]:
    """Reconstructions, prior samples, worst data and posterior predictive checks of each observed site."""
    panels: list[Panel] = []
    real, replicated = criticism.group(tree, "observed_data"), criticism.group(tree, "posterior_predictive")
    prior, expected = criticism.group(tree, "prior_predictive"), criticism.group(tree, "reconstruction")
    shown = [site for site in real if site in replicated or site in prior]  # the others are inputs and masks
    for site in shown:
        observed = np.asarray(real[site])
        label = "" if len(shown) == 1 else f" of {site}"
        span = pictures.limits(observed)
        if site in replicated:
            draws = criticism.draws_first(replicated[site])
            mean = np.asarray(expected[site]) if site in expected else draws.mean(0)
            if draws.shape[1:] == observed.shape:
                panels.append(
                    Panel(
                        f"reconstructions{label}",
                        "Reconstructions. Top row: data; below: the mean of what the model expects after seeing each, "
                        "and single draws, noise included. Good: the mean keeps what makes each datum different; all "
                        "columns alike would mean that the latent variables are ignored.",
                        partial(pictures.reconstructions, observed, mean, draws),
                    )
                )
        if site in prior:
            panels.append(
                Panel(
                    f"prior samples{label}",
                    "Data made up by the model. Drawn from the fitted model without looking at any datum, noise "
                    "included. Good: they could pass for real data and differ from each other.",
                    partial(
                        pictures.prior_samples, criticism.draws_first(prior[site])[0], span=span, observed=observed
                    ),
                )
            )
    panels.append(
        Panel(
            "lowest evidence",
            "Data that the model finds least likely. Number of the datum and log p(x) in nats, worst first; k! marks a "
            "k-hat above 0.7. Good: odd data, the ones a person would also call odd; ordinary data here show what "
            "the model misses.",
            lambda: pictures.lowest_evidence(
                np.asarray(real[shown[0] if shown else next(iter(real))]),
                table["log_px"].to_numpy(),
                table["khat"].to_numpy(),
            ),
        )
    )
    for site, checks in criticism.predictive_by_site(tree).items():
        panels.append(
            Panel(
                f"predictive checks{'' if len(shown) == 1 else f' of {site}'}",
                "Posterior predictive checks. A simple statistic of the real data (line) among those of data sets "
                "simulated by the fitted model (bars). Good: the line falls within the bars; far outside (tail "
                "probability below 0.05), the model does not reproduce this property of the data.",
                partial(figures.predictive_checks, checks),
            )
        )
    return panels
