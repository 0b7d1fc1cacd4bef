"""run.json: what a run was made of, checked when it is read; nothing here imports JAX.

The format has a number.  A field that a later version added has a default, so that its runs and earlier ones share a
number (``tests/kept/run_0_1_0`` was written by version 0.1.0); what cannot be read by defaults gets the next number and
an entry in :data:`MIGRATIONS`.  A run of a later number is refused by name: half understood, it would be continued
wrongly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NUMBER = 1
FORMAT = f"ppl-models run {NUMBER}"
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Format number -> the record of that format as one of the next."""
_FORMAT = re.compile(r"ppl-models run (\d{1,6})")
_PARTS = ("arguments", "card", "info")


def json_object(text: str, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object in ``text``; raises ``ValueError`` that starts with ``what`` and ends with ``remedy``."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is torn or not JSON ({str(error) or 'nested too deeply'}); {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what} holds a JSON {type(found).__name__}, expected an object; {remedy}")
    return found


def run_record(text: str, path: Path) -> dict[str, Any]:
    """The record of a run: ``arguments``, ``card``, ``info`` (objects), and what else run.json says.

    Raises ``ValueError`` naming the file for text that is not JSON, of another program or a later version of this one,
    or without one of these parts.
    """
    remedy = "restore it from a copy, or fit the run again"
    found = json_object(text, str(path), remedy)
    written = found.get("format")
    match = _FORMAT.fullmatch(written) if isinstance(written, str) else None
    if match is None:
        raise ValueError(f"{path} was not written by this package: expected format {FORMAT!r}, got {written!r:.80}")
    number = int(match[1])
    if number > NUMBER:
        raise ValueError(
            f"{path} was written by a later version of this package: its format is {written!r}, this version reads up "
            f"to {FORMAT!r}; install a newer ppl-models"
        )
    while number < NUMBER and number in MIGRATIONS:
        found, number = MIGRATIONS[number](found), number + 1
    if number < NUMBER:
        raise ValueError(f"{path} has the format {written!r}, which no version wrote; {remedy}")
    for name in _PARTS:
        if not isinstance(found.get(name), dict):
            raise ValueError(f"{path} has no object {name!r}, got {found.get(name)!r:.60}; {remedy}")
    return found


def key_numbers(record: Mapping[str, Any], path: Path) -> list[int]:
    """The two numbers of the run's random key; raises ``ValueError`` where the record has none."""
    key = record["arguments"].get("key")
    if not (isinstance(key, list) and len(key) == 2 and all(type(k) is int and 0 <= k < 2**32 for k in key)):
        raise ValueError(f"{path} has no random key: two whole numbers are expected, got {key!r:.60}; restore the file")
    return key
