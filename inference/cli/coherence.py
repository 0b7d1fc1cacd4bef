"""``ppl-models coherence``: is a fitted sequence model, or a named rule, Bayesian?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from inference.cli import runs
from inference.cli.arguments import Common, check_at_least, opt
from inference.cli.common import (
    UsageError,
    check_writable,
    load_plugins,
    read_run,
    reload_plugins,
    say,
    start,
    usage,
)
from inference.cli.gemma import gemma, is_gemma

DEPTH = 8
"""Depth of the exact tree at most where none is asked for."""


@dataclass(frozen=True, kw_only=True)
class Coherence:
    """Is this predictor Bayesian? Check a fitted sequence model, or a named rule, on its own predictive paths.

    Prints the verdict, then effect sizes (the exact tree of continuations) and tests (drift, lag) over contexts.

    Rules: bayes:A,B (or beta:A,B), tempered:T, window:W, ewma:R, sticky:E, alternate:E, drift:D, discounted:G,
    plugin, urn, fractional:W.

    Examples:
      ppl-models coherence runs/coin
      ppl-models coherence tempered:1.2 --paths 400
      ppl-models coherence ewma:0.1 --context 0110 --method both --out coherence/ewma
    """

    target: Annotated[Positional[str], opt("DIR|RULE")]
    """What to check: the folder of a fitted sequence model, or a rule such as tempered:1.2."""
    context: Annotated[str | None, opt("SYMBOLS", "draw --contexts of --n symbols")] = None
    """One context: digits, 0110, or numbers between commas, 0.3,-1.2 (a negative first one: --context=-1.2,0.3)."""
    contexts: Annotated[int, opt("N")] = 20
    """Contexts to draw; 20 or more for a claim about the predictor [contexts]."""
    n: Annotated[int, opt("N")] = 20
    """Length of each drawn context [symbols]."""
    steps: Annotated[int, opt("N")] = 40
    """Length of each path, drawn from the predictor after a context [symbols]."""
    paths: Annotated[int, opt("N")] = 100
    """Paths after each context [paths]."""
    depth: Annotated[int | None, opt("N", "8, or as deep as 4,096 sequences allow")] = None
    """Depth of the exact tree, for finite symbols; 0 leaves it out [symbols]."""
    method: Literal["calibrated", "falck2024", "both"] = "calibrated"
    """The calibrated tests, the tests T1-T3 as published (Falck et al. 2024), or both."""
    seed: Annotated[int, opt("N")] = 0
    """Seed of contexts and paths."""
    out: Annotated[Path | None, opt("DIR", "print only")] = None
    """Folder for coherence.csv, contexts.csv and falck2024.csv."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print what was found."""
        check(self)


def check(command: Coherence) -> None:
    """Print what the check found and write its tables where asked."""
    check_at_least(1, contexts=command.contexts, steps=command.steps, paths=command.paths)
    check_at_least(0, n=command.n, depth=command.depth, seed=command.seed)
    if command.out is not None:
        check_writable(command.out)
    folder = Path(command.target).expanduser()
    if folder.is_dir():
        fitted = fitted_sequences(folder, command)
    else:
        start()
        load_plugins(command.common.plugin)
        fitted = None
    from inference.coherence.calibrated import check_length
    from inference.coherence.command import coherence_command, default_contexts, parse_context, symbols_fitting
    from inference.coherence.tree import check_depth

    with usage():
        if command.method != "falck2024":
            check_length(command.steps, command.paths)
        given = None if command.context is None else parse_context(command.context)[None]
        n = command.n if given is None else given.shape[1]
        length = n + max(command.steps, DEPTH if command.depth is None else command.depth)
        if fitted is not None:
            predictor = fitted_rule(fitted, n + command.steps, length)
        else:
            text = is_gemma(command.target)
            predictor = gemma(command.target, "bernoulli", quiet=False) if text else named(command.target)
        if given is None:
            given = default_contexts(predictor, command.contexts, command.n, command.seed)
        K = symbols_fitting(predictor, given, command.steps)
        if command.depth:
            if K is None:
                raise UsageError("--depth is of the exact tree, which real symbols do not have; leave it out")
            check_depth(K, command.depth)
    coherence_command(
        predictor, label=command.target, context=command.context, contexts=command.contexts, n=command.n,
        steps=command.steps, paths=command.paths, depth=command.depth, method=command.method, seed=command.seed,
        out=command.out,
    )  # fmt: skip


def fitted_sequences(folder: Path, command: Any) -> Any:
    """Return the fit in a run folder, which must be a model of sequences; ``command`` names it and its plugins."""
    record = read_run(folder)
    reload_plugins((record.get("card") or {}).get("plugins", ()), command.common.plugin)
    fitted = runs.load_fit(folder)
    if fitted.program.exact.predictor is None:
        raise UsageError(
            f"{command.target} holds a {type(fitted.program.spec).__name__}, whose program has no predictor: it is no "
            "rule for the next symbol of a sequence; coherence is for models of sequences (family in_context)"
        )
    return fitted


def fitted_rule(fitted: Any, drawn: int, length: int, options: str = "--n and --steps") -> Any:
    """Return the rule of a fit, able to hold ``length`` symbols; says so where ``drawn`` exceeds its training.

    ``options`` are those that set the lengths.
    """
    make, trained = fitted.program.exact.predictor, fitted.program.shape[0]
    predictor = make(fitted.params)
    if getattr(predictor, "capacity", length) < length:
        try:
            predictor = make(fitted.params, capacity=length)
        except ValueError as error:
            raise ValueError(f"{error}; or give smaller {options}") from error
    if drawn > trained:
        say(f"note: sequences of {drawn} symbols are checked, {trained} were trained on: {options} set that")
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
