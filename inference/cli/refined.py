"""``--refine``: which posteriors of held-out data are optimised datum by datum, and the fit that holds them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from inference.cli.arguments import opt
from inference.cli.common import say

Which = Literal["none", "flagged", "all"]
AsInRun = Annotated[Which | None, opt("none|flagged|all", "as in evidence.csv, or flagged")]
"""The option of verbs that read what a run folder holds."""
KEY = 5
"""Folded into the key of an evaluation: refinement has noise of its own."""


def with_posteriors(fitted: Any, x: Any, which: Which | None, *, particles: int = 512, progress: bool = True) -> Any:
    """What :func:`inference.refine` makes of a fit for data ``x`` with ``"all"``; the fit as it is otherwise.

    Also where the program has no posterior that can be refined: one line says so.
    """
    if which != "all":
        return fitted
    import jax

    from inference.checking.refinement import plan, refine
    from inference.fitting.sources import stored

    x, program = stored(fitted.program, x), fitted.program
    parts = None if program.exact.log_prob is not None else plan(fitted, x)
    if parts is None or not parts.size:
        say("nothing to refine: log p(x) is exact, or no latent has a posterior that can be optimised")
        return fitted
    key = jax.random.fold_in(jax.random.key(0), KEY)
    return refine(fitted, x, key=key, particles=max(25, particles), progress=progress)
