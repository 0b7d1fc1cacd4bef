"""Classical densities beside a run: fitted once to its training data, kept in its folder as ``baselines.csv``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.cli.common import say

if TYPE_CHECKING:
    import pandas as pd

FILE, ABOUT = "baselines.csv", "baselines.json"
OWN_N = 1024
"""Draws of a program's own data that these are fitted to."""


def classical(fitted: Any, data: Any, *, own: Callable[..., Any], key: Any) -> dict[str, pd.DataFrame]:
    """Quick baselines (``inference.baselines(..., quick=True)``) of a run's held-out data by name.

    Those of the folder where they scored these data, else fitted to ``data.train`` and kept: they depend on the data
    and on what is scored, not on the parameters.  Where training data are drawn by the program, ``own(sampler, card,
    "baselines", n)`` makes them.  None where no baseline shares the score of the program.
    """
    from inference.checking.classical import QUICK_TEST
    from inference.checking.diagnostics import quick_baselines
    from inference.fitting.folder import write_text
    from inference.fitting.sources import stored
    from ppl_models.program import rows, take

    program, folder = fitted.program, fitted.folder
    x = stored(program, data.test)
    n = min(rows(x), QUICK_TEST)
    x = take(x, slice(n))
    if (kept := read(folder, program, x)) is not None:
        return kept
    train = own(data.train, fitted.card, "baselines", OWN_N) if callable(data.train) else data.train
    found = quick_baselines(program, train, x, key=key, validation=data.validation)
    if found:
        first = next(iter(found.values()))
        frame = first[["datum", "x_crc"]].assign(**{name: table["log_px"] for name, table in found.items()})
        about = {
            "observation": program.observation.line,
            "settings": {name: table.attrs["baseline"] for name, table in found.items()},
        }
        write_text(folder / ABOUT, json.dumps(about, indent=2) + "\n")
        write_text(folder / FILE, frame.to_csv(index=False))
    return found


def read(folder: Path, program: Any, x: Any) -> dict[str, pd.DataFrame] | None:
    """The tables that a folder keeps of these data; ``None`` where it keeps none, or of other data."""
    import pandas as pd

    from inference.checking.log_evidence import checksums, exact_table
    from ppl_models.program import rows

    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        frame = pd.read_csv(folder / FILE).iloc[: rows(x)]
        crc = frame["x_crc"].tolist()
        if about["observation"] != program.observation.line or crc != checksums(x).tolist():
            return None
        tables = {name: exact_table(program, x, frame[name].to_numpy(float)) for name in about["settings"]}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        say(f"warning: {folder / FILE} cannot be used ({error}); computing it again")
        return None
    for name, table in tables.items():
        table.attrs["baseline"] = about["settings"][name]
    return tables
