"""Commands that use the facets of a fitted run: ``assign``, ``swap``, ``traverse``, and ``sample`` of one cluster.

They call functions of those names that a family's package may offer; a family without them cannot be used this way.
``assign(fit, x, facet=, draws=, key=, rule=)`` gives ``{facet: result}`` whose results have ``probabilities`` (n, K),
``labels``, ``probability`` and ``entropy`` (n,), and ``assignment_table`` makes a table of them;
``sample(fit, facet, cluster, n, temperature=, key=)`` gives ``x`` (n, *shape) and ``z`` by facet;
``swap(fit, a, b, facet)`` gives ``a, b, a_swapped, b_swapped``, each with ``x``; ``traverse(fit, x, facet, ...)`` gives
``plain`` (n, *shape), ``x`` (n, stops, *shape) and the ``stops`` in words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.cli import runs
from inference.cli.common import UsageError, data_info, table_text, usage
from inference.cli.fit import check_at_least

if TYPE_CHECKING:
    from inference.cli.commands import Assign, Sample, Swap, Traverse


# ------------------------------------------------------------------------------------------ what a family offers
def offered(family: Any, name: str) -> Callable[..., Any] | None:
    """Return the function ``name`` of a registered family's package (of a plug-in: its module), or ``None``."""
    from ppl_models.program import BUILTIN

    found = getattr(sys.modules.get(BUILTIN.get(family.name, family.module)), name, None)
    return found if callable(found) else None


def use_of(fitted: Any, name: str) -> Callable[..., Any]:
    """Return the function ``name`` of a fit's family; a usage error names the families that have one."""
    from ppl_models.program import families

    known = families().values()
    mine = next((family for family in known if type(fitted.program.spec) is family.spec), None)
    found = offered(mine, name) if mine else None
    if found is None:
        able = ", ".join(family.name for family in known if offered(family, name)) or "none"
        whose = f"family {mine.name!r}" if mine else f"{type(fitted.program.spec).__name__}"
        raise UsageError(
            f"{str(fitted.folder)!r} is of {whose}, which has no {name} of facets; families that do: {able}"
        )
    return found


def opened(command: Any, name: str, n: int) -> tuple[Any, Callable[..., Any], np.ndarray]:
    """Return the fit of a command's run, its family's function ``name``, and the first ``n`` held-out data."""
    fitted, card = runs.open_run(command.folder, command.common.plugin)
    function = use_of(fitted, name)
    x, _ = runs.load_test(card, fitted.program.observation.sampler)
    if len(x) < n:
        raise UsageError(f"--n {command.n} takes {n} held-out data, the run has {len(x)}; give a smaller N")
    return fitted, function, x[:n]


def save_grid(fitted: Any, name: str, rows: Any, columns: list[str]) -> Path:
    """Write data (rows, columns, *shape) as figures/NAME.png; ``columns`` titles each column, or every place."""
    from inference.reporting import pictures

    rows = np.asarray(rows)
    folder = fitted.folder / "figures"
    folder.mkdir(exist_ok=True)
    titles = columns if len(columns) == rows.shape[0] * rows.shape[1] else columns * len(rows)
    figure = pictures.grid(rows.reshape(-1, *rows.shape[2:]), titles, columns=rows.shape[1])
    figure.savefig(folder / f"{name}.png", dpi=120)
    return folder / f"{name}.png"


# ------------------------------------------------------------------------------------------------------ commands
def assign(command: Assign) -> None:
    """Write the table of assignments and print a summary, one line a facet."""
    check_at_least(1, draws=command.draws, **({} if command.examples is None else {"examples": command.examples}))
    check_at_least(0, seed=command.seed)
    fitted, card = runs.open_run(command.folder, command.common.plugin)
    run, table = use_of(fitted, "assign"), use_of(fitted, "assignment_table")
    import jax

    x = data_of(command.data, fitted, card)
    with usage():
        key = jax.random.key(command.seed)
        found = run(fitted, x, facet=command.facet, draws=command.draws, key=key, rule=command.rule)
    path = fitted.folder / "assignments.csv" if command.out is None else command.out
    runs.write_table(table(found), path)
    rows = []
    for name, result in found.items():
        K, p = result.probabilities.shape[1], result.probability
        used = f"{len(np.unique(result.labels))} of {K}"
        rows.append([name, used, float(p.mean()), float((p < 0.5).mean()), float(result.entropy.mean())])
    print(table_text(rows, ["facet", "clusters used", "mean probability", "share below 0.5", "mean entropy [nats]"]))
    print(f"{path}: {len(x):,} data, rule {command.rule}")
    if command.examples is not None:
        images = np.asarray(fitted.prepare(x, key))
        for name, result in found.items():
            print(
                examples(fitted, name, use_of(fitted, "top_examples")(result.probabilities, command.examples), images)
            )


def examples(fitted: Any, facet: str, members: dict[int, Any], images: np.ndarray) -> Path:
    """Write a picture: one row a cluster, its most certain data first; a cluster with fewer leaves places empty."""
    most = max(len(index) for index in members.values())
    rows = np.zeros((len(members), most, *images.shape[1:]), images.dtype)
    titles = []
    for r, (cluster, index) in enumerate(members.items()):
        rows[r, : len(index)] = images[index]
        titles += [f"cluster {cluster}" if i < len(index) else "" for i in range(most)]
    return save_grid(fitted, f"examples_{facet}", rows, titles)


def data_of(data: str | None, fitted: Any, card: Any) -> np.ndarray:
    """Return the data that ``assign`` names: the run's held-out data, those of a data set, or a file of an array."""
    from ppl_models import datasets

    if data is None:
        return runs.load_test(card, fitted.program.observation.sampler)[0]
    if not data.endswith(".npy"):
        info = data_info(data)
        return datasets.load(data, info.held_out)[0]
    if not Path(data).is_file():
        raise UsageError(f"no file {data!r}; give stored data (n, *shape) in a .npy file, or the name of a data set")
    try:
        return np.load(data, allow_pickle=False)
    except ValueError as error:
        raise UsageError(f"{data!r} holds no plain array: {error}") from error


def swap(command: Swap) -> None:
    """Write a picture: one row a pair of data, decoded as they are and with one facet exchanged."""
    check_at_least(1, n=command.n)
    fitted, run, x = opened(command, "swap", 2 * command.n)
    with usage():
        found = run(fitted, x[: command.n], x[command.n :], command.facet)
    parts = (found.a, found.b, found.a_swapped, found.b_swapped)
    titles = ["a", "b", f"a, {command.facet} of b", f"b, {command.facet} of a"]
    print(save_grid(fitted, f"swap_{command.facet}", np.stack([part.x for part in parts], 1), titles))


def traverse(command: Traverse) -> None:
    """Write a picture: one row a datum, decoded as it is and with one facet at each stop."""
    check_at_least(1, n=command.n, steps=command.steps)
    fitted, run, x = opened(command, "traverse", command.n)
    with usage():
        found = run(fitted, x, command.facet, steps=command.steps, order=command.order, between=command.between)
    rows = np.concatenate([found.plain[:, None], found.x], 1)
    print(save_grid(fitted, f"traverse_{command.facet}", rows, ["own", *found.stops]))


def check_cluster(command: Sample) -> None:
    """Raise :class:`UsageError` where ``sample`` has one of --facet and --cluster without the other."""
    if (command.facet is None) != (command.cluster is None):
        given, missing = ("--facet", "--cluster C") if command.cluster is None else ("--cluster", "--facet NAME")
        raise UsageError(f"{given} draws from one cluster of a facet; add {missing}")
    if command.facet is None and command.temperature != 1.0:
        raise UsageError(f"--temperature {command.temperature:g} is for --facet NAME --cluster C; add them")


def cluster_samples(command: Sample, fitted: Any) -> dict[str, np.ndarray]:
    """Draw the data of one cluster: their means ``x`` and the latents, by site."""
    import jax

    run = use_of(fitted, "sample")
    with usage():
        key = jax.random.key(command.seed)
        found = run(fitted, command.facet, command.cluster, command.n, temperature=command.temperature, key=key)
    return {**{f"z_{name}": z for name, z in found.z.items()}, fitted.program.observed[0]: found.x}
