"""``ppl-models clusters``: clusterings of runs against known factors, their agreement, and a choice without labels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from inference.cli import runs, tables
from inference.cli.arguments import Common, check_at_least, opt
from inference.cli.common import UsageError, check_writable, read_run, say, table_text, to_json
from inference.cli.entries import (
    OWN_N,
    Entry,
    check_same_data,
    check_same_draws,
    evidence_of,
    names,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from inference.clustering import Choice


SCORES = ("factor", "K", "facet", "method", "used", "active", "accuracy", "hungarian", "weighted", "ari", "nmi", "ece")
SCORED = {"hungarian": "one-to-one", "weighted": "by label", "ari": "ARI", "nmi": "NMI", "ece": "calibration error"}
CHOICE = ("runs", "evidence", "se", "behind", "behind_se", "stability", "stability_sd", "used", "silent", "chosen")


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Score the clusterings of a run against known factors; of several runs, say which to take without labels.

    Prints, for every facet and factor, accuracy (majority vote, Hungarian), ARI, NMI and calibration error, and
    writes clustering.csv. Several runs of the same data: also how far they agree (ARI after matching facets,
    stability.csv), and the run chosen by held-out evidence and agreement between seeds (choice.csv, runs.csv,
    choice.png), with how well these rank the runs where factors are known (check.csv). Runs that differ in
    their seed alone are one configuration.

    Examples:
      ppl-models clusters runs/digits --baselines
      ppl-models clusters runs/j1-s0 runs/j1-s1 runs/j2-s0 runs/j2-s1 --out runs/choice
    """

    folders: Annotated[Positional[tuple[Path, ...]], opt("DIR", "one or more")]
    """Run folders."""
    baselines: bool = False
    """Add k-means and Gaussian mixtures with the same numbers of clusters, on pixels and on PCA."""
    out: Annotated[Path | None, opt("DIR", "the run's folder; of several runs, clusters")] = None
    """Folder for the tables and the figure; earlier ones in it are replaced."""
    test_n: Annotated[int | None, opt("N", "the smallest of the runs' own")] = None
    """Use the first N of the held-out data [data]."""
    json: bool = False
    """Print JSON: an object with the tables as lists of rows."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the tables."""
        clusters(self)


def clusters(command: Clusters) -> None:
    """Print scores, stability and choice, and write them as tables."""
    check_at_least(1, test_n=command.test_n)
    folders, several = command.folders, len(command.folders) > 1
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("clusters needs one or more different run folders: ppl-models clusters DIR [DIR ...]")
    out = command.out or (Path("clusters") if several else folders[0])
    if several or command.out:
        check_writable(out)
    plugins = command.common.plugin
    entries = [opened(name, folder, plugins) for name, folder in zip(names(folders), folders, strict=True)]
    x, factors = data_of(entries, command.test_n)
    found, assignments = read(entries, x, factors)
    if command.baselines:
        found["clustering"] = with_baselines(found["clustering"], entries[0], x, factors)
    chosen = chosen_of(entries, x, factors, assignments) if several else None
    if chosen is not None:
        found |= {"stability": chosen.stability.pairs, "choice": chosen.configurations.reset_index()}
        found |= {"runs": chosen.runs.reset_index()} | ({} if chosen.check is None else {"check": chosen.check})
    out.mkdir(parents=True, exist_ok=True)
    # A run's folder holds the parts of a run only.
    for name in found if out != folders[0] else ("clustering",):
        runs.write_table(found[name], out / f"{name}.csv")
    if chosen is not None:
        from inference.reporting import figures

        figures.choice(chosen.runs).savefig(out / "choice.png", dpi=120)
    if command.json:
        print(to_json({name: frame.to_dict(orient="records") for name, frame in found.items()}))
        return
    print("\n\n".join([scores_text(found), *([] if chosen is None else choice_text(chosen))]))
    print(f"look at: {out / ('clustering.csv' if chosen is None else 'choice.png')}")


def opened(name: str, folder: Path, plugins: Sequence[Path]) -> Entry:
    """Open a run whose program clusters; a usage error where it does not."""
    fitted, card = runs.open_run(folder, plugins)
    if not clusters_data(fitted.program):
        raise UsageError(
            f"{str(folder)!r} holds no clustering: the program of {type(fitted.program.spec).__name__} has no site "
            "resp_<facet>; `ppl-models diagnose` and `report` read every run"
        )
    return Entry(name, folder, fitted.program.observation.line, fitted, card)


def clusters_data(program: Any) -> bool:
    """Whether the program has responsibilities; its model is traced abstractly, nothing is computed."""
    import jax
    from numpyro.handlers import seed, trace

    from inference.clustering import PREFIX
    from ppl_models.program import zeros

    sites: list[str] = []

    def model(x: Any) -> None:
        with trace() as found, seed(rng_seed=0):
            program.model(program.observation.prepare(x, jax.random.key(0), False))
        sites.extend(found)

    jax.eval_shape(model, zeros(program.shape))
    return any(site.startswith(PREFIX) for site in sites)


def data_of(entries: Sequence[Entry], test_n: int | None) -> tuple[Any, Mapping[str, np.ndarray]]:
    """Load the held-out data that all runs share; a usage error where they do not, or score different things."""
    check_same_data(entries)
    first = entries[0]
    for other in entries[1:]:
        if other.observation != first.observation:
            raise UsageError(
                f"{first.folder} scores {first.observation!r}, {other.folder} scores {other.observation!r}; densities "
                "of different things cannot be compared: choose among runs with the same likelihood"
            )
    n = test_n or min(entry.card["test_n"] for entry in entries if entry.card is not None)
    x, factors = runs.test_of(first.fit.program, first.card or {}, test_n=n)
    check_same_draws(entries, x)
    return x, factors


def read(
    entries: Sequence[Entry], x: Any, factors: Mapping[str, np.ndarray]
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[str, np.ndarray]]]:
    """Tables of scores and of shared information, and the labels of every facet, of every run."""
    import pandas as pd

    from inference.clustering import cross_facets, responsibilities, scores

    scored, pairs, assignments = [], [], {}
    for entry in entries:
        tree = tables.tree_of(entry.fit, x, factors)
        scored.append(scores(tree, factors))
        pairs.append(cross_facets(tree))
        for frame in (scored[-1], pairs[-1]):
            frame.insert(0, "run", entry.name)
        assignments[entry.name] = {facet: p.argmax(1) for facet, p in responsibilities(tree).items()}
    found = {"clustering": pd.concat(scored, ignore_index=True)}
    if any(len(frame) for frame in pairs):
        found["cross_facets"] = pd.concat([frame for frame in pairs if len(frame)], ignore_index=True)
    return found, assignments


def with_baselines(table: pd.DataFrame, entry: Entry, x: Any, factors: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Add the rows of k-means and mixtures of the same K, fitted to the training data of a run."""
    import jax
    import pandas as pd

    from inference.clustering import clustering_baselines, plain_numbers
    from ppl_models.program import rows as row_count

    assert entry.card is not None
    data = runs.data_of(entry.fit.program, entry.card)
    train = runs.own_draws(data.train, entry.card, "baselines", OWN_N) if callable(data.train) else data.train
    ks = sorted({int(k) for k in table["K"] if k > 1})
    n = row_count(train)
    say(f"baselines: {', '.join(map(str, ks))} clusters, fitted to the {n:,} training data of {entry.folder}")
    key = jax.random.fold_in(runs.keys()["report"], 3)  # as in the report
    try:
        train, x = (plain_numbers(entry.fit.program, data) for data in (train, x))
        what = "columns" if entry.fit.program.observation.features is not None else "pixels"
        rows = clustering_baselines(train, x, ks, factors, key=key, what=what)
    except ValueError as error:
        say(f"no baselines: {error}")
        return table
    rows.insert(0, "run", "-")
    return pd.concat([table, rows], ignore_index=True)


def chosen_of(
    entries: Sequence[Entry],
    x: Any,
    factors: Mapping[str, np.ndarray],
    assignments: Mapping[str, Mapping[str, np.ndarray]],
) -> Choice:
    """Choose among runs; evidence is computed only where a folder holds none of these data."""
    from inference.clustering import Run, choose

    tables, named = evidence_of(entries, x, None), configurations(entries)
    return choose({name: Run(named[name], tables[name], assignments[name]) for name in assignments}, factors or None)


def configurations(entries: Sequence[Entry]) -> dict[str, str]:
    """Name of the configuration of each run: what its runs' names begin with, for those that differ in their seed."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        record = read_run(entry.folder)
        how = {name: value for name, value in record.get("arguments", {}).items() if name not in _NOT_A_SETTING}
        spec = (entry.folder / "spec.json").read_text(encoding="utf-8")
        same = json.dumps([json.loads(spec), how, (entry.card or {}).get("n")], sort_keys=True)
        groups.setdefault(same, []).append(entry.name)
    named = {members[0]: os.path.commonprefix(members).rstrip("-_. /") for members in groups.values()}
    clear = len(set(named.values())) == len(named) and all(named.values())
    return {name: named[members[0]] if clear else members[0] for members in groups.values() for name in members}


_NOT_A_SETTING = ("key", "checkpoint_every", "steps_per_dispatch")


def scores_text(found: Mapping[str, pd.DataFrame]) -> str:
    """Return the scores as plain text, what has the same factor and K together, and the facets' shared information."""
    from inference.clustering import side_by_side

    table = side_by_side(found["clustering"])
    columns = ["run", *SCORES] if table["run"].nunique() > 1 + ("-" in set(table["run"])) else [*SCORES]
    rows = [[_text(row[c]) for c in columns] for row in table.to_dict(orient="records")]
    lines = [f"{int(table['n'].iloc[0]):,} held-out data; accuracy by majority vote grows with K by itself"]
    lines.append(table_text(rows, [SCORED.get(c, c) for c in columns]))
    for row in found["cross_facets"].itertuples() if "cross_facets" in found else ():
        lines.append(f"{row.run}: facets {row.facet} and {row.other} share NMI {row.nmi:.2f} (0 unrelated, 1 copies)")
    return "\n".join(lines)


def choice_text(chosen: Choice) -> list[str]:
    """Return stability, choice and check as plain text."""
    from inference.clustering import RULE

    agreed, by_name = chosen.stability, chosen.configurations.to_dict(orient="index")
    stable = [[r.run, r.facet, f"{r.stability:.3f}"] for r in agreed.facets.itertuples()]
    rows = [[name, *(_text(row[c]) for c in CHOICE)] for name, row in by_name.items()]
    parts = [
        f"agreement of all runs on these data: ARI {agreed.mean:.3f}, sd over pairs of runs {_text(agreed.sd)}\n"
        + table_text(stable, ["run", "facet", "mean ARI with its match in the other runs"]),
        "held-out log p(x) in nats a datum, agreement within a configuration\n"
        + table_text(rows, ["configuration", *(name.replace("_", " ") for name in CHOICE)]),
        f"chosen: run {chosen.run}, configuration {chosen.configuration} (rule: {RULE})",
    ]
    if chosen.check is not None and len(chosen.check):
        check = chosen.check
        rows = [[_text(value) for value in row] for row in check.itertuples(index=False, name=None)]
        parts.append(
            "how well that ranks the runs, by the facet that serves each factor best (uses labels)\n"
            + table_text(rows, [name.replace("_", " ") for name in check.columns])
        )
    return parts


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.0f}" if value.is_integer() else f"{value:.3f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
