"""The predictor ``gemma`` of the command line: Gemma 3 270M in process, or another file of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.cli.common import UsageError, say, start, usage

NAME = "gemma"


def is_gemma(target: str) -> bool:
    """Whether a target names the model: ``gemma`` or ``gemma:FILE``, and no folder of that name."""
    return target.partition(":")[0] == NAME and not Path(target).expanduser().is_dir()


def format_of(study: str) -> Any:
    """How a language model is shown the symbols of a study."""
    from ppl_models.in_context.language import BERNOULLI, GAUSSIAN, RECORDS

    return {"gaussian": GAUSSIAN, "language": RECORDS}.get(study, BERNOULLI)


def gemma(target: str, study: str, *, quiet: bool) -> Any:
    """Load the model for a study; a usage error where a package or the file is missing or damaged."""
    start()
    from ppl_models.in_context.language import gemma_270m
    from ppl_models.in_context.language.weights import SHA256

    path = target.partition(":")[2] or None
    with usage():
        try:
            return gemma_270m(
                path, form=format_of(study), sha256=SHA256 if path is None else None, say=None if quiet else say
            )
        except (ImportError, FileNotFoundError) as error:
            raise UsageError(str(error)) from error
