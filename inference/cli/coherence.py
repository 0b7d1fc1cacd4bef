"""``ppl-models coherence``: is a fitted sequence model, or a named rule, Bayesian?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.cli import runs
from inference.cli.common import UsageError, check_writable, load_plugins, read_run, reload_plugins, say, start, usage
from inference.cli.fit import check_at_least

if TYPE_CHECKING:
    from inference.cli.commands import Coherence


DEPTH = 8
"""Depth of the exact tree at most where none is asked for."""


def check(command: Coherence) -> None:
    """Print what the check found and write its tables where asked."""
    check_at_least(1, contexts=command.contexts, steps=command.steps, paths=command.paths)
    check_at_least(0, n=command.n, depth=command.depth, seed=command.seed)
    if command.out is not None:
        check_writable(command.out)
    folder = Path(command.target).expanduser()
    if folder.is_dir():
        record = read_run(folder)
        reload_plugins((record.get("card") or {}).get("plugins", ()), command.common.plugin)
        fitted = runs.load_fit(folder)
        if fitted.program.exact.predictor is None:
            raise UsageError(
                f"{command.target} holds a {type(fitted.program.spec).__name__}, whose program has no predictor: it is "
                "no rule for the next symbol of a sequence; coherence is for models of sequences (family in_context)"
            )
    else:
        start()
        load_plugins(command.common.plugin)
        fitted = None
    from inference.coherence.calibrated import check_length
    from inference.coherence.command import coherence_command, default_contexts, parse_context
    from inference.coherence.paths import fitting_context
    from inference.coherence.tree import check_depth

    with usage():
        if command.method != "falck2024":
            check_length(command.steps, command.paths)
        given = None if command.context is None else parse_context(command.context)[None]
        n = command.n if given is None else given.shape[1]
        length = n + max(command.steps, DEPTH if command.depth is None else command.depth)
        predictor = named(command.target) if fitted is None else fitted_rule(fitted, n + command.steps, length)
        if given is None:
            given = default_contexts(predictor, command.contexts, command.n, command.seed)
        K = fitting_context(predictor, given, ndim=2, ahead=command.steps)[1].K
        if command.depth:
            if K is None:
                raise UsageError("--depth is of the exact tree, which real symbols do not have; leave it out")
            check_depth(K, command.depth)
    coherence_command(
        predictor, label=command.target, context=command.context, contexts=command.contexts, n=command.n,
        steps=command.steps, paths=command.paths, depth=command.depth, method=command.method, seed=command.seed,
        out=command.out,
    )  # fmt: skip


def fitted_rule(fitted: Any, drawn: int, length: int) -> Any:
    """Return the rule of a fit, able to hold ``length`` symbols; says so where ``drawn`` exceeds its training."""
    make, trained = fitted.program.exact.predictor, fitted.program.shape[0]
    predictor = make(fitted.params)
    if getattr(predictor, "capacity", length) < length:
        try:
            predictor = make(fitted.params, capacity=length)
        except ValueError as error:
            raise ValueError(f"{error}; or give smaller --n and --steps") from error
    if drawn > trained:
        say(f"note: sequences of {drawn} symbols are checked, {trained} were trained on: --n and --steps set that")
    return predictor


def named(target: str) -> Any:
    """Return the rule that ``target`` names; a usage error that names the nearest rule or run folder."""
    from ppl_models.in_context import RULES, parse_rule
    from ppl_models.program import did_you_mean

    name, path = target.partition(":")[0], Path(target).expanduser()
    if name in RULES:
        return parse_rule(target)
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = did_you_mean(name, RULES) or did_you_mean(path.name, folders)
    raise UsageError(f"no run folder and no rule {target!r}{near}; give the DIR of a run, or one of {', '.join(RULES)}")
