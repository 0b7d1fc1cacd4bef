"""``ppl-models assign``: a cluster for every datum, facet by facet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional, arg

from inference.cli import facets, files, refined, runs
from inference.cli.arguments import Common, Run, check_at_least, opt
from inference.cli.common import (
    UsageError,
    data_info,
    table_text,
    usage,
)

_OUT = (
    "(default: assignments.csv in the run folder) (a table: one line a row, index, cluster_FACET, probability_FACET, "
    "entropy_FACET; its data are all rows of the file, or FILE.csv|.tsv|.parquet)"
)


@dataclass(frozen=True, kw_only=True)
class Assign:
    """Assign data to the clusters of a fitted program, facet by facet.

    Writes assignments.csv, one row a datum and facet: datum, facet, label, probability, entropy [nats]; prints
    how many clusters are used and how sure the assignments are.

    Examples:
      ppl-models assign runs/digits
      ppl-models assign runs/digits --examples 10
      ppl-models assign runs/digits mine.npy --facet digit --out mine.csv
    """

    folder: Run
    """Run folder."""
    data: Annotated[Positional[str | None], opt("NAME|FILE.npy", "the held-out data of the run")] = None
    """What to assign: the held-out data of a data set by name, or stored data (n, *shape) in a file."""
    facet: Annotated[str | None, opt("NAME", "all")] = None
    """Only this facet."""
    rule: Literal["average", "at_mean", "optimal"] = "average"
    """p(c | z) averaged over q(z | x); at the mean of z, as published; or its geometric average."""
    draws: Annotated[int, opt("S")] = 16
    """Draws of z a datum [draws]."""
    examples: Annotated[int | None, opt("N", "none")] = None
    """Also write figures/examples_FACET.png: the N most certain data of each cluster, one row a cluster."""
    out: Annotated[Path | None, arg(metavar="FILE.csv", help_behavior_hint=_OUT)] = None
    """Table to write."""
    refine: Literal["none", "all"] = "none"
    """all: optimise the posterior of each datum by itself before it is assigned."""
    seed: Annotated[int, opt("N")] = 0
    """Seed of the draws."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the table and print a summary."""
        assign(self)


def assign(command: Assign) -> None:
    """Write the table of assignments and print a summary, one line a facet."""
    check_at_least(1, draws=command.draws, **({} if command.examples is None else {"examples": command.examples}))
    check_at_least(0, seed=command.seed)
    fitted, card = runs.open_run(command.folder, command.common.plugin)
    run, table = facets.use_of(fitted, "assign"), facets.use_of(fitted, "assignment_table")
    import jax

    from ppl_models.program import rows as row_count

    rows = None
    if (kind := files.of_card(card)) is not None:
        if command.examples is not None and kind.COLUMNS:
            raise UsageError("--examples pictures images; the report shows the most typical rows of a table")
        x, rows = kind.rows_for(command.data, card, files.columns_of(fitted.program))
    else:
        x = data_of(command.data, fitted, card)
    posteriors = refined.with_posteriors(fitted, x, command.refine)
    with usage():
        key = jax.random.key(command.seed)
        found = run(posteriors, x, facet=command.facet, draws=command.draws, key=key, rule=command.rule)
    path = fitted.folder / "assignments.csv" if command.out is None else command.out
    if rows is None:
        runs.write_table(table(found), path)
    else:
        runs.write_table(by_row(found, rows), path)
    lines = []
    for name, result in found.items():
        K, p = result.probabilities.shape[1], result.probability
        used = f"{len(np.unique(result.labels))} of {K}"
        lines.append([name, used, float(p.mean()), float((p < 0.5).mean()), float(result.entropy.mean())])
    print(table_text(lines, ["facet", "clusters used", "mean probability", "share below 0.5", "mean entropy [nats]"]))
    print(f"{path}: {row_count(x):,} data, rule {command.rule}")
    if command.examples is not None:
        images = np.asarray(fitted.prepare(x, key))
        for name, result in found.items():
            print(
                examples(
                    fitted, name, facets.use_of(fitted, "top_examples")(result.probabilities, command.examples), images
                )
            )


def by_row(found: Mapping[str, Any], frame: Any) -> Any:
    """One line a row of the table, under its index: of each facet the cluster, its probability, the entropy [nats]."""
    import pandas as pd

    cells = {}
    for name, result in found.items():
        cells[f"cluster_{name}"] = result.labels
        cells[f"probability_{name}"] = result.probability
        cells[f"entropy_{name}"] = result.entropy
    table = pd.DataFrame(cells)
    table.insert(0, frame.index.name or "index", frame.index.to_numpy())
    return table


def examples(fitted: Any, facet: str, members: dict[int, Any], images: np.ndarray) -> Path:
    """Write a picture: one row a cluster, its most certain data first; a cluster with fewer leaves places empty."""
    most = max(len(index) for index in members.values())
    rows = np.zeros((len(members), most, *images.shape[1:]), images.dtype)
    titles = []
    for r, (cluster, index) in enumerate(members.items()):
        rows[r, : len(index)] = images[index]
        titles += [f"cluster {cluster}" if i < len(index) else "" for i in range(most)]
    return facets.save_grid(fitted, f"examples_{facet}", rows, titles)


def data_of(data: str | None, fitted: Any, card: Any) -> np.ndarray:
    """Return the data that ``assign`` names: the run's held-out data, those of a data set, or a file of an array."""
    from ppl_models import datasets

    if data is None:
        return runs.test_of(fitted.program, card)[0]
    if not data.endswith(".npy"):
        info = data_info(data)
        return datasets.load(data, info.held_out)[0]
    if not Path(data).is_file():
        raise UsageError(f"no file {data!r}; give stored data (n, *shape) in a .npy file, or the name of a data set")
    try:
        return np.load(data, allow_pickle=False)
    except ValueError as error:
        raise UsageError(f"{data!r} holds no plain array: {error}") from error
