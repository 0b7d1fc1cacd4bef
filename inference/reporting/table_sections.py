"""What a report shows of a program whose data are the rows of a table, in place of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from inference.checking import criticism
from inference.clustering import PREFIX, responsibilities
from inference.reporting import figures, table_figures, table_profiles
from inference.reporting.section import Section
from ppl_models.program import Column, Panel

if TYPE_CHECKING:
    import pandas as pd

HEAT = 16
"""Features of the overview of clusters, those in which some cluster differs most."""


@dataclass(frozen=True)
class TableRows:
    """Rows that a report is about: stored numbers ``x`` and ``there`` (n, D), their evidence, names and draws."""

    columns: tuple[Column, ...]
    x: Float[np.ndarray, "n D"]
    there: Bool[np.ndarray, "n D"]
    site: str
    tree: Any
    table: pd.DataFrame
    names: Sequence[Any]

    def data_panels(self) -> list[Panel]:
        """Predictions against data, rows that the model makes up beside real ones, predictive checks by column."""
        replicated = criticism.group(self.tree, "posterior_predictive").get(self.site)
        prior = criticism.group(self.tree, "prior_predictive").get(self.site)
        rest = table_figures.left_out(self.columns)
        panels = []
        if replicated is not None:
            draws = criticism.draws_first(replicated)
            panels.append(
                Panel(
                    "predicted columns",
                    "Each column predicted from the latent variables of its row. Numbers: a dot a row, the entry "
                    "against the median of its predictive draws. Classes: how often a draw has the class of the entry, "
                    "and how often it would by chance. Good: dots near the line, bars well above their mark; a flat "
                    f"cloud is a column that the latent variables do not carry.{rest}",
                    partial(table_figures.predicted, self.columns, self.x, self.there, draws),
                )
            )
        if prior is not None:
            made = criticism.draws_first(prior)
            made = made.reshape(-1, made.shape[-1])
            panels.append(
                Panel(
                    "prior samples",
                    "Rows made up by the model. Each column of rows drawn from the fitted model without looking at any "
                    "datum, beside the data; what lies outside the range shown is counted at its ends. Good: both "
                    f"alike.{rest}",
                    partial(table_figures.beside, self.columns, self.x, self.there, made),
                )
            )
        checks = criticism.predictive_by_site(self.tree, self.columns).get(self.site, [])
        return panels + [
            Panel(
                f"predictive checks {k + 1}" if len(checks) > 4 else "predictive checks",
                "Posterior predictive checks. The mean of a column over the real rows (line) among those of tables "
                "simulated by the fitted model (bars), entries that are missing left out of both. Good: the line falls "
                "within the bars.",
                partial(figures.predictive_checks, checks[4 * k : 4 * k + 4]),
            )
            for k in range((len(checks) + 3) // 4)
        ]

    def lowest(self) -> str:
        """HTML of the rows of lowest evidence."""
        return table_profiles.lowest_table(self.columns, self.x, self.there, self.table, self.names)

    def cluster_sections(self) -> list[Section]:
        """One section on the clusters, where the program has some."""
        if not any(name.startswith(PREFIX) for name in criticism.group(self.tree, "posterior")):
            return []
        return [
            Section(
                "clusters", "What the clusters are",
                "Each facet deals the rows into clusters; here is what sets them apart, in the units of the table.",
                self._heat, text=self._clusters,
            )
        ]  # fmt: skip

    def _facets(self) -> Mapping[str, np.ndarray]:
        return {name: p for name, p in responsibilities(self.tree).items() if len(np.unique(p.argmax(1))) > 1}

    def _heat(self) -> list[Panel]:
        found = table_profiles.features(self.columns, self.x, self.there)
        panels = []
        for facet, p in self._facets().items():
            label = p.argmax(1)
            clusters = table_profiles.used(label)
            apart = table_profiles.differences(found, label, clusters)
            kept = np.sort(np.argsort(-np.abs(apart).max(0, initial=0.0), kind="stable")[:HEAT])
            names = [f"cluster {c}: {np.mean(label == c):.0%}" for c in clusters]
            panels.append(
                Panel(
                    f"profiles of {facet}",
                    f"Clusters of facet {facet} at a glance. Mean in the cluster less mean in the rest, in standard "
                    f"deviations of the column (of a positive column, of its log); the {len(kept)} of {len(found)} "
                    "columns and classes that differ most. Good: each row has strong colours, and no two rows are "
                    "alike.",
                    partial(table_figures.profiles, names, [found[j].name for j in kept], apart[:, kept]),
                )
            )
        return panels

    def _clusters(self) -> str:
        found, log_px = table_profiles.features(self.columns, self.x, self.there), self.table["log_px"].to_numpy(float)
        parts = []
        for facet, p in self._facets().items():
            clusters = table_profiles.used(p.argmax(1))
            parts += [
                table_profiles.profile_table(facet, found, p.argmax(1), clusters),
                table_profiles.typical_table(
                    facet, self.columns, self.x, self.there, p, log_px, clusters, self.names
                ),
            ]  # fmt: skip
        return "\n".join(parts) or "<p>All rows fall in one cluster.</p>"


def table_rows(fit: Any, tree: Any, table: pd.DataFrame, names: Sequence[Any] | None) -> TableRows:
    """The rows whose posterior ``tree`` holds; ``names`` of them, by default their numbers."""
    site = fit.program.observed[0]
    seen = criticism.group(tree, "observed_data")
    x = np.asarray(seen[site], "float32")
    there = np.asarray(seen["there"], bool) if "there" in seen else np.ones(x.shape, bool)
    named = [f"#{i}" for i in range(len(x))] if names is None else list(names)
    return TableRows(fit.program.observation.columns, x, there, site, tree, table, named)
