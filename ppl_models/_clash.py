"""Guard against another distribution that owns the import name ``inference``.

This distribution ships two packages, ``ppl_models`` and ``inference``.  The published distribution named
``inference`` ships a top-level package of that name too: whichever was installed last, or comes first on
``sys.path``, is the one that Python imports.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

MARK = '__distribution__ = "ppl-models"'
"""The line of our ``inference/__init__.py`` by which it is known; the file is read, never imported."""


def check_inference() -> None:
    """Raise ``ImportError`` if ``import inference`` would give, or already gave, a package that is not ours.

    Costs one search of ``sys.path`` and one small file, well under a millisecond.  A missing ``inference`` is not
    a clash: importing it says so itself.
    """
    try:
        spec = importlib.util.find_spec("inference")
    except ValueError:  # sys.modules holds an "inference" that was made by hand and has no spec
        return
    if spec is None:
        return
    if spec.origin is not None and spec.origin.endswith(".py"):
        if MARK in Path(spec.origin).read_text(encoding="utf-8", errors="replace"):
            return
    found = spec.origin or ", ".join(spec.submodule_search_locations or ()) or "a package without a file"
    raise ImportError(
        f"'import inference' finds {found}, which does not belong to ppl-models (expected {_ours()}). "
        "The distribution named 'inference' uses the same import name, so the two cannot share an environment. "
        "If it is installed: pip uninstall inference, then pip install --force-reinstall --no-deps ppl-models "
        "(the two overwrite each other's files). If it is a folder or file of your own, rename it or take it off "
        "sys.path.",
        name="inference",
        path=spec.origin,
    )


def _ours() -> Path:
    return Path(__file__).resolve().parent.parent / "inference" / "__init__.py"
