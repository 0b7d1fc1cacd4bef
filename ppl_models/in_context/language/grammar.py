"""Which tokens may follow while a number is written, one token at a time: ``-0.3,1.2,``.

A number is a sign or none, an integer without leading zeros, a point and ``decimals`` digits, then the separator.
Where the vocabulary has the separator and the sign as one token (``,-``), a text that was cut into tokens has no sign
after a separator by itself, so neither has a path.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ppl_models.in_context.language.formats import Format
from ppl_models.in_context.language.tokens import Vocabulary

State = tuple[str, int]


class Grammar(NamedTuple):
    """Token ids, (token,); the state after each in each state, (state, token), -1 where it may not follow.

    ``begin``: before any number; ``between``: after a number, its separator still to come.
    """

    tokens: Int[np.ndarray, " token"]
    after: Int[np.ndarray, "state token"]
    begin: int
    between: int


def grammar(form: Format, vocabulary: Vocabulary) -> Grammar:
    """The grammar of a format of numbers.

    Raises ``ValueError`` where a digit, sign or point is not one token of the vocabulary, or without decimals.
    """
    if form.decimals < 1:
        raise ValueError(f"numbers are written with one decimal or more, got a format of {form.decimals}")
    figures = max(1, form.tokens - form.decimals - 3)  # beside them: sign, point and separator
    joined = vocabulary.encode(form.separator + "-")
    tokens = {text: vocabulary.one(text) for text in ("0123456789-.")} | {"sep": vocabulary.one(form.separator)}
    if len(joined) == 1:
        tokens["sep-"] = joined[0]
    states: list[State] = [("begin", 0), ("next", 0), ("sign", 0), ("zero", 0)]
    states += [("figure", k) for k in range(1, figures + 1)] + [("decimal", k) for k in range(form.decimals)]
    states += [("full", 0)]
    after = np.full((len(states), len(tokens)), -1)
    for row, state in enumerate(states):
        for column, name in enumerate(tokens):
            follows = _follows(state, name, figures, form.decimals, len(joined) == 1)
            if follows is not None:
                after[row, column] = states.index(follows)
    return Grammar(np.array(list(tokens.values())), after, states.index(("begin", 0)), states.index(("full", 0)))


def _follows(state: State, token: str, figures: int, decimals: int, joined: bool) -> State | None:
    place, k = state
    digit = token.isdigit()
    if place == "full":
        return {"sep": ("next", 0), "sep-": ("sign", 0)}.get(token)
    if place == "decimal":
        return None if not digit else ("decimal", k + 1) if k + 1 < decimals else ("full", 0)
    if place in ("zero", "figure"):
        more = ("figure", k + 1) if digit and place == "figure" and k < figures else None
        return ("decimal", 0) if token == "." else more
    if token == "-" and (place == "begin" or (place == "next" and not joined)):
        return ("sign", 0)
    return None if not digit else ("zero", 0) if token == "0" else ("figure", 1)
