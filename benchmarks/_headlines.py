"""The numbers of the README: each from its record, beside the classical model, the exact answer or the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.harness import Record


class Headline(NamedTuple):
    """A record and what stands beside it; ``{benchmark/name:path.into.it}`` is filled in from the records."""

    record: str
    what: str
    beside: str


HEADLINES = (
    Headline("mfcvae_mnist/accuracy", "MFCVAE, MNIST without labels: accuracy of the better of two clusterings",
             "the paper's code 92.02 ± 3.02 (10 seeds); k-means, K = 25: "
             "{mfcvae_mnist/accuracy:detail.baselines.0.accuracy} of 1"),
    Headline("mfcvae_digits/one_ari", "MFCVAE, digits, one clustering with K = 10: adjusted Rand index",
             "k-means {mfcvae_digits/one_ari:detail.k_means_10.ari}"),
    Headline("mfcvae_facets/whole", "MFCVAE: seeds of 10 that find both partitions of the same images",
             "k-means, K = 25: accuracy of shape {mfcvae_facets/whole:detail.baselines.4.accuracy}, "
             "of floor {mfcvae_facets/whole:detail.baselines.5.accuracy}"),
    Headline("mfcvae_swap/samples", "MFCVAE: samples of a cluster recognised as that cluster",
             "at temperature .3: {mfcvae_swap/samples_cool:value}"),
    Headline("tables/breast_cancer_gaussian", "MFCVAE, breast cancer (30 columns): held-out log p of a row ahead of "
             "one Gaussian, less two paired s.e.", "best mixture of Gaussians "
             "{tables/breast_cancer_gaussian:detail.log_p.gaussian-mixture} nats a row, ours "
             "{tables/breast_cancer_gaussian:detail.log_p.mfcvae}"),
    Headline("tables_mixed/partitions", "MFCVAE: seeds of 10 that find both partitions hidden in a mixed table, 15 % "
             "missing", "k-means and mixtures find one clustering; imputed numbers: 90 % intervals hold "
             "{tables_mixed/impute_coverage:value}"),
    Headline("hvae_digits/over_mixture", "HVAE, binary digits: held-out log p(x) of a digit, ahead of the best mixture",
             "mixture of {hvae_digits/over_mixture:detail.components} Bernoullis "
             "{hvae_digits/over_mixture:detail.mixture} nats"),
    Headline("hvae_mnist/evidence", "HVAE, binary MNIST: -log p(x) of a test image after half an hour on one core",
             "a mixture of Bernoulli images costs {hvae_mnist/over_mixture:value} nats more"),
    Headline("leaderboard/grey_mfcvae", "MFCVAE, grey digits as probability mass: held-out code length",
             "mixture of categoricals {leaderboard/grey_categorical_mixture:value}, "
             "HVAE {leaderboard/grey_hvae:value}"),
    Headline("leaderboard/dequantised_diffusion", "Diffusion, dequantised digits: held-out code length",
             "Gaussian {leaderboard/dequantised_gaussian:value}, mixture of categoricals "
             "{leaderboard/dequantised_categorical_mixture:value}; VAEs with one noise for all pixels lose to the "
             "mixture ({leaderboard/dequantised_mfcvae:value}, {leaderboard/dequantised_hvae:value})"),
    Headline("diffusion_logprob/rms_d64", "Diffusion prior in 64 dimensions: rms error of log p(x)",
             "the exact mixture; the usual N(0, I) base errs by {diffusion_logprob/unfitted_base:value} (d = 16)"),
    Headline("diffusion_posterior/nuts_error", "NUTS through a diffusion prior: largest error of a mean or sd",
             "the exact posterior"),
    Headline("diffusion_verdict/dps_flagged", "Verdict on samplers of an inverse problem: seeds of 20 in which DPS is "
             "flagged", "exact methods: TDS {diffusion_verdict/tds_flagged:value}, MCGdiff "
             "{diffusion_verdict/mcgdiff_flagged:value}"),
    Headline("evidence_exact/linear_gaussian_coverage", "Evidence: 95 % intervals of log p(x) that hold the truth",
             "nominal 0.95"),
    Headline("refine/quickstart_khat", "Posteriors optimised datum by datum, held-out digits: share with k-hat > .7",
             "{refine/quickstart_khat:reference}; log p(x) - ELBO {refine/quickstart_gap:value} nats, "
             "{refine/quickstart_gap:reference}"),
    Headline("posteriordb/right", "k-hat's verdict on autoguides of posteriordb, against its reference draws",
             "of 8; none that was trusted is unreliable: {posteriordb/gap:value} misleading"),
    Headline("sbc_power/power_8_wide", "Calibration notices a guide 1.3 times too wide, 8 latents",
             "exact guides: {sbc_power/level_8:value} at 5 %; stock SVI refits take "
             "{sbc_power/refit_ratio:value} times as long"),
    Headline("pde_unets/darcy_bars", "U-Net surrogate of Darcy flow: relative L2 over that of the best bar",
             "Fourier operator of the same size; 90 % intervals hold {pde_unets/darcy_coverage_least:value}"),
    Headline("coherence_level/drift_beta_1_1", "Coherence test of an exact Bayesian: share rejected at 5 %",
             "nominal 0.05; of a rule tempered by 1.2: {coherence_power/tempered_1_2:value}"),
    Headline("coherence_stream/sticky_martingale", "Symbols until a rule that repeats itself in 10 % is caught",
             "from draws alone {coherence_stream/sticky_draws:value}; false alarms of exact rules at 5 %: "
             "{coherence_stream/false_alarms_martingale:value}"),
    Headline("martingale_posterior/ks_hybrid", "Martingale posterior of a coin's rule, paths of 50 steps: largest KS "
             "distance to the exact Beta", "{martingale_posterior/ks_hybrid:reference}"),
    Headline("pfn/coin_kl", "Prior-fitted transformer on coins: KL from the exact predictive", "exact Bayes: 0"),
    Headline("paths_speed/ratio", "Predictive paths a CPU-second, over a loop that re-reads the context", "1"),
    Headline("svi_overhead/step_mfcvae", "A step of `fit`, over the same step written by hand in JAX and Optax", "1"),
)  # fmt: skip


def render(records: Sequence[Record], headlines: Sequence[Headline] = HEADLINES) -> str:
    """Return the table; a headline whose record is not there is left out."""
    found = {f"{record.benchmark}/{record.name}": record for record in records}
    lines = ["| what | measured | beside it | target |", "|---|---|---|---|"]
    for record, what, beside in headlines:
        if record in found:
            one = found[record]
            target = "-" if not one.target else f"{one.target}" + ("" if one.holds else ", **missed**")
            lines.append(f"| {what} | {f'{one.value:.4g} {one.unit}'.strip()} | {_filled(beside, found)} | {target} |")
    return "\n".join(lines) + "\n"


def _filled(text: str, found: Mapping[str, Record]) -> str:
    """Put the records' figures into the braces of a text."""
    before, brace, rest = text.partition("{")
    if not brace:
        return text
    inside, _, after = rest.partition("}")
    name, _, path = inside.partition(":")
    value: Any = dataclasses.asdict(found[name])
    for part in path.split("."):
        value = value[int(part) if isinstance(value, list | tuple) else part]
    return before + (f"{value:.4g}" if isinstance(value, float) else str(value)) + _filled(after, found)
