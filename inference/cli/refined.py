"""``--refine``: which posteriors of held-out data are optimised datum by datum, and the fit that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from tyro.conf import Suppress

from inference.cli.arguments import opt
from inference.cli.common import UsageError, say

Which = Literal["none", "flagged", "all"]
AsInRun = Annotated[Which | None, opt("none|flagged|all", "as in evidence.csv, or flagged")]
"""The option of verbs that read what a run folder holds."""
Unlisted = Annotated[Which | None, Suppress]
"""The same, taken (:func:`unlisted`) and not listed: the usage lines of ``diagnose`` and ``report`` name every option
and are kept as they were.  What the run was evaluated with (``fit``, ``resume --refine``) is their default."""
OPTION = "--refine"
KEY = 5
"""Folded into the key of an evaluation: refinement has noise of its own."""


def unlisted(words: Sequence[str]) -> tuple[list[str], Which | None]:
    """Words of a command line without ``--refine WHICH``, and which; a usage error for another word than the three."""
    rest, which = [], None
    given = iter(words)
    for word in given:
        name, _, value = word.partition("=")
        if name != OPTION:
            rest.append(word)
            continue
        which = value or next(given, "")
        if which not in get_args(Which):
            raise UsageError(f"{OPTION} must be one of {', '.join(get_args(Which))}, got {which!r}")
    return rest, which  # type: ignore[return-value]


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
