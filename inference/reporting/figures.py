"""Figures of a fit, its evidence and its latents; each returns a matplotlib ``Figure`` and touches no global state.

Pictures of data are in :mod:`inference.reporting.pictures`, the model's graph in :mod:`inference.reporting.graph`.
Numbers come in ready (a history, an evidence table, rates); nothing is estimated here.  Save one with
``figure.savefig("x.png")``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.checking.log_evidence import bits_per_dim
from inference.checking.psis import KHAT_BAD
from inference.reporting.style import BLUE, CYCLE, GREEN, INK, MUTED, ORANGE, RED, SKY, canvas, note, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from inference.checking.criticism import Predictive

KHAT_GOOD = 0.5


def _cut_start(axis: Any, curves: Sequence[np.ndarray]) -> None:
    """Scale the y axis to what follows the first tenth: the first steps would flatten all the rest."""
    values = np.concatenate([np.asarray(curve, float)[len(curve) // 10 :] for curve in curves] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if len(values) > 1 and np.ptp(values) > 0:
        margin = 0.06 * np.ptp(values)
        axis.set_ylim(values.min() - margin, values.max() + margin)


@styled
def training(history: pd.DataFrame, best_step: int | None = None) -> Figure:
    """Loss, validation loss and the loss terms against the step; skipped updates marked. Nats per datum."""
    figure, axes = canvas(9.6, 3.3, 1, 2)
    left, right = axes[0]
    step = history["step"].to_numpy(float)
    # Schedules weigh the loss: the ELBO is what validation and later steps compare with.
    if "elbo" in history:
        left.plot(step, -history["elbo"], color=BLUE, label="training, -ELBO", lw=1.2)
    elif "loss" in history:
        left.plot(step, history["loss"], color=BLUE, label="training, loss", lw=1.2)
    if "validation_elbo" in history and history["validation_elbo"].notna().any():
        rows = history[["step", "validation_elbo"]].dropna()
        left.plot(rows["step"], -rows["validation_elbo"], color=RED, marker="o", ms=3, label="validation, -ELBO")
    _cut_start(left, [line.get_ydata() for line in left.get_lines()])
    if "skipped" in history:
        new = np.diff(history["skipped"].to_numpy(float), prepend=0.0) > 0
        if new.any():
            left.plot(step[new], np.full(new.sum(), 0.02), "x", color=INK, ms=5, label="updates skipped",
                      transform=left.get_xaxis_transform())  # fmt: skip
    if best_step is not None:
        left.axvline(best_step, color=GREEN, ls="--", lw=1.2, label=f"step kept: {best_step}")
    left.set(title="Loss", xlabel="step", ylabel="nats per datum (lower is better)")
    if left.get_legend_handles_labels()[0]:
        left.legend()
    terms = [c for c in history if str(c).startswith(("log_lik/", "kl/"))]
    for color, term in zip(CYCLE * 9, terms, strict=False):
        kind, _, site = str(term).partition("/")
        label = f"-log p({site} | ...)" if kind == "log_lik" else f"KL of {site}"
        sign = -1 if kind == "log_lik" else 1
        right.plot(step, sign * history[term], label=label, color=color, lw=1.2)
    if terms:
        _cut_start(right, [line.get_ydata() for line in right.get_lines()])
        right.set(title="Its terms", xlabel="step", ylabel="nats per datum")
        right.legend(ncols=1 + (len(terms) > 6), fontsize=7.5 if len(terms) > 6 else 8.5)
    else:
        note(right, "The history has no loss terms.")
    return figure


@styled
def evidence_distribution(table: pd.DataFrame) -> Figure:
    """Histogram of log p(x) and of the ELBO over data, in nats, with the mean in nats and bits per dimension."""
    figure, axes = canvas(4.8, 3.3)
    axis = axes[0, 0]
    log_px = table["log_px"].to_numpy(float)
    log_px = log_px[np.isfinite(log_px)]
    elbo = table["elbo"].to_numpy(float)
    elbo = elbo[np.isfinite(elbo)]
    both = np.concatenate([log_px, elbo])
    bins = np.histogram_bin_edges(both, bins="auto")
    bins = bins if len(bins) <= 60 else np.linspace(bins[0], bins[-1], 61)
    axis.hist(log_px, bins=bins, color=BLUE, alpha=0.75, label="log p(x)")
    if len(elbo):
        axis.hist(elbo, bins=bins, histtype="step", color=ORANGE, lw=1.6, label="ELBO")
    code = bits_per_dim(table)
    bits = "" if math.isnan(code) else f" = {code:.3f} bits/dim"
    axis.axvline(log_px.mean(), color=INK, lw=1.2, ls="--", label="mean log p(x)")
    axis.set(title=f"Mean {log_px.mean():.2f} nats{bits}", xlabel="nats per datum (higher is better)", ylabel="data")
    axis.legend()
    return figure


@styled
def khat(table: pd.DataFrame) -> Figure:
    """Pareto k-hat of the importance weights of each datum, with the lines 0.5 (good) and 0.7 (not reliable)."""
    figure, axes = canvas(4.8, 3.3)
    axis = axes[0, 0]
    k, log_px = table["khat"].to_numpy(float), table["log_px"].to_numpy(float)
    colors = np.where(k > KHAT_BAD, RED, np.where(k > KHAT_GOOD, ORANGE, BLUE))
    axis.scatter(log_px, k, c=colors, s=11, alpha=0.75, lw=0)
    for level, color, text in ((KHAT_GOOD, ORANGE, "0.5: good below"), (KHAT_BAD, RED, "0.7: unreliable above")):
        axis.axhline(level, color=color, lw=1.2, ls="--")
        axis.annotate(text, (1.0, level), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=8,
                      color=INK, bbox={"fc": "white", "ec": "none", "pad": 1.5, "alpha": 0.85})  # fmt: skip
    share = float(np.mean(~(k <= KHAT_BAD)))
    axis.set(title=f"{share:.1%} of data above 0.7", xlabel="log p(x) (nats)", ylabel="Pareto k-hat")
    return figure


@styled
def bound(table: pd.DataFrame) -> Figure:
    """ELBO against log p(x) of each datum, in nats; the distance from the diagonal is the posterior's error."""
    figure, axes = canvas(4.8, 3.3)
    axis = axes[0, 0]
    log_px, elbo = table["log_px"].to_numpy(float), table["elbo"].to_numpy(float)
    keep = np.isfinite(log_px) & np.isfinite(elbo)
    log_px, elbo = log_px[keep], elbo[keep]
    low, high = min(elbo.min(), log_px.min()), max(elbo.max(), log_px.max())
    axis.plot([low, high], [low, high], color=MUTED, lw=1, ls="--", label="ELBO = log p(x)")
    axis.scatter(log_px, elbo, s=11, color=BLUE, alpha=0.6, lw=0, label="one datum")
    axis.set(title=f"Mean gap {np.mean(log_px - elbo):.2f} nats", xlabel="log p(x) (nats)", ylabel="ELBO (nats)")
    axis.legend(loc="upper left")
    return figure


@styled
def rates(
    by_site: Mapping[str, np.ndarray], active: Mapping[str, tuple[int, int]] | None = None, silent: float = 0.01
) -> Figure:
    """Mean rate E KL(q || p) of each latent site in nats, its spread over data, and its active units."""
    names, active = list(by_site), active or {}
    figure, axes = canvas(7.2, max(1.5, 0.9 + 0.34 * len(names)))
    axis = axes[0, 0]
    means = np.array([np.mean(by_site[n]) for n in names])
    spread = np.array([np.percentile(by_site[n], [10, 90]) for n in names]).reshape(-1, 2)
    where = np.arange(len(names))
    axis.barh(where, means, color=[RED if m < silent else BLUE for m in means], height=0.62, alpha=0.85)
    axis.hlines(where, spread[:, 0], spread[:, 1], color=INK, lw=1.3)
    edge = max(float(spread.max(initial=0.0)), float(means.max(initial=0.0)), silent)
    for i, name in enumerate(names):
        units = f"{active[name][0]}/{active[name][1]} units active" if name in active else ""
        text = f"{means[i]:.3g} nats" + (f", {units}" if units else "")
        axis.text(max(spread[i, 1], means[i]) + 0.02 * edge, i, text, va="center", fontsize=8.5, color=MUTED)
    axis.set_yticks(where, names)
    axis.invert_yaxis()
    axis.set_xlim(min(0.0, float(spread.min(initial=0.0))), 1.45 * edge)
    axis.grid(axis="y", visible=False)
    axis.set(title=f"Total {means.sum():.2f} nats per datum", xlabel="rate (nats; line: 10 % to 90 % of data)")
    return figure


def _components(values: np.ndarray) -> tuple[np.ndarray, float]:
    """First two principal components and the share of variance they hold."""
    centred = values - values.mean(0)
    _, s, right = np.linalg.svd(centred, full_matrices=False)
    power = float((s**2).sum())
    return centred @ right[:2].T, float((s[:2] ** 2).sum()) / power if power > 0 else 0.0


@styled
def latents(
    means: Mapping[str, np.ndarray], factor: np.ndarray | None = None, factor_name: str = "", max_sites: int = 6
) -> Figure:
    """Posterior means (N, ...) of each site in two dimensions: as they are, or their first two principal components.

    ``factor`` (N,) colours the data: integers of at most ten values as classes, anything else on a scale.
    """
    names = list(means)[:max_sites]
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure, axes = canvas(3.4 * columns + (1.0 if factor is not None else 0.2), 3.2 * rows, rows, columns)
    kinds = np.empty(0) if factor is None else np.unique(factor)
    classes = 0 < len(kinds) <= len(CYCLE) and np.all(np.mod(kinds, 1) == 0)
    drawn: Any = None
    for axis, name in zip(axes.flat, names, strict=False):
        values = np.asarray(means[name], float).reshape(len(means[name]), -1)
        labels, title = ("dimension 1", "dimension 2"), name
        if values.shape[1] == 1:
            values, labels = np.column_stack([values[:, 0], np.random.default_rng(0).random(len(values))]), (name, "")
        elif values.shape[1] > 2:
            values, share = _components(values)
            labels, title = ("component 1", "component 2"), f"{name} ({share:.0%} of variance shown)"
        if factor is None:
            axis.scatter(*values[:, :2].T, s=8, color=BLUE, alpha=0.6, lw=0)
        elif classes:
            for color, kind in zip(CYCLE, kinds, strict=False):
                mine = factor == kind
                axis.scatter(*values[mine, :2].T, s=9, color=color, alpha=0.75, lw=0, label=f"{kind:g}")
        else:
            drawn = axis.scatter(*values[:, :2].T, s=9, c=factor, cmap="viridis", alpha=0.8, lw=0)
        axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
        if not labels[1]:
            axis.set_yticks([])
    for axis in list(axes.flat)[len(names) :]:
        axis.set_axis_off()
    if classes:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), title=factor_name or None, loc="outside right upper",
                      markerscale=1.8)  # fmt: skip
    elif drawn is not None:
        figure.colorbar(drawn, ax=axes, label=factor_name, shrink=0.8)
    return figure


@styled
def predictive_checks(checks: Sequence[Predictive]) -> Figure:
    """Histogram of each statistic over replicated data sets, and where the real data fall."""
    figure, axes = canvas(3.2 * len(checks) + 0.2, 2.9, 1, len(checks))
    for axis, check in zip(axes.flat, checks, strict=True):
        bins = min(30, max(5, len(check.replicated) // 5))
        axis.hist(check.replicated, bins=bins, color=SKY, label="simulated by the model")
        axis.axvline(check.observed, color=RED, lw=2, label="real data")
        axis.set(title=f"{check.statistic}: tail {check.tail:.2g}", xlabel="mean over the data", ylabel="replicates")
        axis.tick_params(axis="x", labelrotation=20)
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


@styled
def comparison(frame: pd.DataFrame) -> Figure:
    """Difference of held-out log p(x), summed over data, to the best model, with one and two paired standard errors.

    ``frame`` is the result of ``inference.compare``: one row a model, columns ``elpd_diff`` and ``dse`` (nats).
    """
    names = [str(name) for name in frame.index]
    difference, se = frame["elpd_diff"].to_numpy(float), np.nan_to_num(frame["dse"].to_numpy(float))
    figure, axes = canvas(7.2, 1.2 + 0.42 * len(names))
    axis = axes[0, 0]
    where = np.arange(len(names))
    axis.hlines(where, difference - 2 * se, difference + 2 * se, color=BLUE, lw=1.4)
    axis.hlines(where, difference - se, difference + se, color=BLUE, lw=4)
    # A model without a finite evidence has no place on the axis; its row stays empty.
    best = difference == 0
    axis.plot(difference[~best], where[~best], "o", color=BLUE, ms=6, mec="white")
    axis.plot(difference[best], where[best], "D", color=GREEN, ms=7, label="best")
    axis.axvline(0, color=MUTED, lw=1, ls="--")
    axis.set_yticks(where, names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set(
        title="Held-out log p(x) summed over the data, difference to the best model",
        xlabel="difference (nats; thick: 1 s.e., thin: 2 s.e. of the paired difference)",
    )
    axis.legend(loc="upper left")  # left of the best model there is nothing
    return figure


@styled
def choice(runs: pd.DataFrame) -> Figure:
    """Held-out evidence of every run (nats a datum, one standard error) against its agreement with the other seeds.

    ``runs`` is the table of runs of ``inference.choose``; the chosen one is ringed, a configuration has one colour.  A
    run without agreement, the only one of its configuration, stands at the left edge.
    """
    figure, axes = canvas(6.6, 4.2)
    axis = axes[0, 0]
    known = runs["stability"].to_numpy(float)
    edge = float(np.nanmin(known)) - 0.05 if np.isfinite(known).any() else 0.0
    where, evidence = np.nan_to_num(known, nan=edge), runs["evidence"].to_numpy(float)
    for color, name in zip(CYCLE * 99, runs["configuration"].unique(), strict=False):
        mine = (runs["configuration"] == name).to_numpy()
        axis.errorbar(where[mine], evidence[mine], runs["se"].to_numpy(float)[mine], fmt="o", color=color, ms=6, lw=1,
                      mec="white", label=str(name))  # fmt: skip
    ringed = runs["chosen"].to_numpy(bool)
    axis.plot(where[ringed], evidence[ringed], "o", ms=14, mfc="none", mec=INK, mew=1.6, label="chosen")
    axis.set(
        title="Chosen without labels",
        xlabel="stability: mean ARI with the other seeds (higher is better)",
        ylabel="log p(x), nats a datum (higher is better;\nbar: 1 s.e. over data, which the runs share)",
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure
