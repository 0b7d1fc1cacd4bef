"""The command line ``ppl-models``: declare, fit, check, compare; the one room that sees families and inference.

Exit codes: 0 done; 1 failed while working (one line on stderr); 2 the command line, or a file it names, is wrong
and nothing was done; 130 interrupted by Ctrl-C, 143 by SIGTERM, with the command that goes on.  Results go to stdout,
progress to stderr.  Whatever needs JAX is imported by the command that needs it, so ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, subcommand

from inference.cli.arguments import Command
from inference.cli.assign import Assign
from inference.cli.clusters import Clusters
from inference.cli.coherence import Coherence
from inference.cli.common import Interrupted, Terminated, UsageError, plain_warnings, say, terminable
from inference.cli.compare import Compare
from inference.cli.data import DATA
from inference.cli.diagnose import Diagnose
from inference.cli.experiment import Experiment
from inference.cli.families import Families
from inference.cli.fit import Fit
from inference.cli.impute import Impute
from inference.cli.quickstart import Quickstart
from inference.cli.report import Report
from inference.cli.resume import Resume
from inference.cli.sample import Sample
from inference.cli.swap import Swap
from inference.cli.sweep import Sweep
from inference.cli.traverse import Traverse

COMMANDS: Mapping[str, type[Command] | Mapping[str, type[Command]]] = {
    "quickstart": Quickstart, "fit": Fit, "resume": Resume, "diagnose": Diagnose, "compare": Compare,
    "clusters": Clusters, "coherence": Coherence, "sample": Sample, "report": Report, "data": DATA,
    "families": Families, "assign": Assign, "impute": Impute, "swap": Swap, "traverse": Traverse,
    "experiment": Experiment, "sweep": Sweep,
}  # fmt: skip  # fmt: skip
"""The commands in the order of ``--help``."""

PROG = "ppl-models"
DESCRIPTION = """Declare a deep generative model, fit it, check its posterior, compare it with another.

Examples:
  ppl-models quickstart
  ppl-models families
  ppl-models fit mfcvae:digits --data digits --out runs/digits --steps 3000
  ppl-models compare runs/digits runs/other

`ppl-models COMMAND --help` says more; `ppl-models --version` prints the version.

Exit codes: 0 done, 1 failed while working, 2 wrong command line, 130 interrupted (the run can be resumed)."""


# ------------------------------------------------------------------------------------------------- parsing
def parse(argv: Sequence[str]) -> Command:
    """Return the command that ``argv`` describes.

    Raises :class:`UsageError` with a suggestion for a misspelt command or option; ``SystemExit`` after tyro has
    printed the help asked for (code 0) or what is wrong with a value (code 2).
    """
    words, prog = _global_options_last(argv), PROG
    commands: Any = COMMANDS
    while isinstance(commands, Mapping):
        if not words or words[0] in ("-h", "--help"):
            members = tuple(_member(name, entry) for name, entry in commands.items())
            description = DESCRIPTION if prog == PROG else _first_line(commands)
            either: Any = Union[members]  # noqa: UP007 - made at run time
            tyro.cli(either, prog=prog, description=description, args=words)
        word = words.pop(0)
        if word not in commands:
            what = "option" if word.startswith("-") else "command"
            raise UsageError(f"unknown {what} {word!r}{_nearest(word, commands)}; {prog} takes: {', '.join(commands)}")
        commands, prog = commands[word], f"{prog} {word}"
    known = _options(commands)
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        if option.startswith("--") and option not in ("--", *known):
            raise UsageError(f"unknown option {option!r}{_nearest(option, known)}; see `{prog} --help`")
    return tyro.cli(
        commands,
        prog=prog,
        description=inspect.getdoc(commands),
        args=words,
        config=(OmitArgPrefixes, FlagCreatePairsOff),
    )


@dataclass(frozen=True)
class _Group:
    """A command with commands of its own."""


def _member(name: str, entry: type[Command] | Mapping[str, Any]) -> Any:
    """Return a command's entry in the list of commands."""
    return Annotated[entry if isinstance(entry, type) else _Group, subcommand(name, description=_first_line(entry))]


def _first_line(entry: type[Command] | Mapping[str, Any]) -> str:
    if isinstance(entry, Mapping):
        return "List the data sets, or make sure that one is at hand."
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def _global_options_last(argv: Sequence[str]) -> list[str]:
    """Move ``--debug`` and ``--plugin FILE`` given before the command behind it: they work in both places."""
    rest = list(argv)
    moved: list[str] = []
    while rest and rest[0].partition("=")[0] in ("--debug", "--plugin"):
        width = 2 if rest[0] == "--plugin" else 1
        moved, rest = moved + rest[:width], rest[width:]
    return rest + moved


def _options(command: type) -> set[str]:
    """Return the option names of a command, those of its nested groups included."""
    names = {"--help"}
    hints, annotated = get_type_hints(command), get_type_hints(command, include_extras=True)
    for entry in dataclasses.fields(command):
        # A word that Python keeps for itself, such as class, is the name of an option only.
        own = [found for note in getattr(annotated[entry.name], "__metadata__", ()) if (found := _own_name(note))]
        nested = dataclasses.is_dataclass(hints[entry.name])
        name = own[0] if own else entry.name.replace("_", "-")
        names |= _options(hints[entry.name]) if nested else {f"--{name}"}
    return names


def _own_name(note: Any) -> str | None:
    """The name that an annotation of tyro gives an option."""
    name = getattr(note, "name", None)
    return name if isinstance(name, str) else None


def _nearest(word: str, known: Any) -> str:
    from ppl_models._registry import did_you_mean

    return did_you_mean(word, known)


def version() -> str:
    """Version of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version as installed

    try:
        return installed("ppl-models")
    except PackageNotFoundError:
        return "(not installed)"


# -------------------------------------------------------------------------------------------------- running
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        if words[:1] == ["--version"]:
            print(f"{PROG} {version()}")
        else:
            command = parse(words or ["--help"])
            with plain_warnings(show_all=debug), terminable():
                command.run()
        sys.stdout.flush()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        # The reader has what it wanted (`| head`).  Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        say(f"\n{stop}" if isinstance(stop, (Interrupted, Terminated)) else "\ninterrupted")
        return 143 if isinstance(stop, Terminated) else 130
    except UsageError as error:
        return _failed(error, 2, debug)
    except Exception as error:
        return _failed(error, 1, debug)


def _failed(error: Exception, code: int, debug: bool) -> int:
    """Say in one line what went wrong; with ``--debug`` where, too."""
    if debug:
        import traceback

        traceback.print_exception(error)
    expected = isinstance(error, (UsageError, ValueError, OSError)) and str(error)
    text = str(error) if expected else f"{type(error).__name__}: {error} (--debug shows where)"
    say(f"{PROG}: error: {' '.join(text.split())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
