"""What the commands on facets share: the functions that a family offers for them, and pictures of data in a grid.

``assign``, ``sample``, ``swap`` and ``traverse`` call functions of those names that a family's package may offer; a
family without them cannot be used this way.
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
from typing import Any

import numpy as np

from inference.cli import runs
from inference.cli.common import UsageError


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


def opened(command: Any, name: str, n: int) -> tuple[Any, Callable[..., Any], Any]:
    """Return the fit of a command's run, its family's function ``name``, and the first ``n`` held-out images."""
    from inference.reporting import pictures
    from ppl_models.program import rows, take

    fitted, card = runs.open_run(command.folder, command.common.plugin)
    function = use_of(fitted, name)
    if not pictures.is_image(fitted.program.scored_shape):
        raise UsageError(
            f"{name} writes pictures of images, {str(command.folder)!r} models data of shape "
            f"{fitted.program.scored_shape}; `ppl-models sample` --facet, or {name}(fit, ...) in Python, give numbers"
        )
    x, _ = runs.test_of(fitted.program, card)
    if rows(x) < n:
        raise UsageError(f"--n {command.n} takes {n} held-out data, the run has {rows(x)}; give a smaller N")
    return fitted, function, take(x, slice(n))


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
