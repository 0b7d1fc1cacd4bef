"""What a completion says: the outcomes drawn, and their probabilities from its log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from ppl_models.in_context.language.endpoint import EndpointError
from ppl_models.in_context.language.formats import Format
from ppl_models.program import HostPaths

SLACK = 1e-3
"""Probabilities may sum to so much more than one (rounding of the server), and an outcome left out of its list may have
at most so much."""


class Read(NamedTuple):
    """One completion: symbols; the probability of each word in each slot, (slots in all, word); outcome mass."""

    z: Num[np.ndarray, " n"]
    p: Float[np.ndarray, "slot word"]
    mass: Float[np.ndarray, " slot"]


def word_probabilities(listed: Mapping[str, float | None], form: Format) -> tuple[Float[np.ndarray, " word"], float]:
    """Probabilities of the words among listed tokens, renormalised, and their mass before.

    Raises :class:`EndpointError` where they are no probabilities, or where a word is missing that may have any.
    """
    # JSON has no -inf: a probability of zero comes as null, or as a very negative number.
    chances = {token: 0.0 if value is None else math.exp(min(value, 50.0)) for token, value in listed.items()}
    total = sum(chances.values())
    if not math.isfinite(total) or total > 1 + SLACK or max(chances.values(), default=0.0) > 1 + SLACK:
        raise EndpointError(
            f"the probabilities of the tokens {sorted(listed)} sum to {total:.4g}, expected at most 1: the server does "
            "not give log-probabilities of its own distribution; use samples_only=True"
        )
    p = np.zeros(len(form.words))
    seen = set()
    for token, chance in chances.items():
        word = form.word(token)
        if word is not None:
            p[word] += chance
            seen.add(word)
    missing = [form.words[k] for k in range(len(form.words)) if k not in seen]
    if missing and (1 - total > SLACK or not seen):
        raise EndpointError(
            f"no log-probability of {missing} among the {len(listed)} likeliest tokens {sorted(listed)}, which leave "
            f"{1 - total:.3g} open; ask for more logprobs, restrict the tokens, or use samples_only=True"
        )
    mass = float(p.sum())
    if mass <= 0:
        raise EndpointError(f"the outcomes {form.words} have no probability among the tokens {sorted(listed)}")
    return p / mass, mass


def read(choice: Mapping[str, Any], form: Format, *, samples_only: bool) -> Read:
    """Read one entry of ``choices``, up to the first token that is neither an outcome nor a separator."""
    if not form.words:
        z = np.asarray(form.numbers(str(choice.get("text", ""))), np.float32)
        return Read(z, np.zeros((0, 0)), np.zeros(0))
    if samples_only:
        digits = _words(str(choice.get("text", "")), form)
        return Read(form.symbols(digits), np.zeros((0, len(form.words))), np.zeros(0))
    tokens, values, tops = _logprobs(choice)
    digits, p, mass = [], [], []
    for token, value, top in zip(tokens, values, tops, strict=True):
        if form.bare(token) == "":
            continue
        word = form.word(token)
        if word is None:
            break
        listed = _listed(top)
        if not any(form.word(other) == word for other in listed):
            listed[token] = value
        chances, whole = word_probabilities(listed, form)
        digits.append(word)
        p.append(chances)
        mass.append(whole)
    return Read(form.symbols(digits), np.reshape(p, (len(p), len(form.words))), np.asarray(mass, float))


def first(choice: Mapping[str, Any], form: Format) -> tuple[Float[np.ndarray, " word"], float]:
    """Probabilities of the words at the first token, whichever was drawn."""
    tokens, values, tops = _logprobs(choice)
    if not tokens:
        raise EndpointError("the server drew no token after the prompt; ask for at least one")
    listed = _listed(tops[0])
    listed.setdefault(tokens[0], values[0])
    return word_probabilities(listed, form)


def host_paths(
    z: Num[np.ndarray, "path step"],
    each: Float[np.ndarray, "path step_1 slot word"],
    first: Int[np.ndarray, "path place"],
    form: Format,
) -> HostPaths:
    """Paths of symbols from the probabilities of the words in each slot, before each symbol and after the last.

    With two slots those of the second word are known only after the first one drawn, ``first``, of each symbol and of
    one symbol more; the rest is NaN.
    """
    J, places, slots, words = each.shape
    if slots == 1:
        full = each[:, :, 0]
    else:
        full = np.full((J, places, words, words), np.nan)
        path, place = np.indices((J, places))
        full[path, place, first] = each[path, place, 0, first][..., None] * each[:, :, 1]
        full = full.reshape(J, places, words**2)
    with np.errstate(divide="ignore"):
        log_p = np.log(np.take_along_axis(full[:, :-1], z[..., None].astype(int), -1)[..., 0])
    return HostPaths(z, full[..., 1:] if len(form.names) == 1 else full, log_p)


def _words(text: str, form: Format) -> list[int]:
    """Outcomes written in a text, up to the first piece that is none; a last piece without separator counts."""
    digits = []
    for piece in text.replace(form.inner, form.separator).split(form.separator):
        if not piece.strip():
            continue
        word = form.word(piece)
        if word is None:
            break
        digits.append(word)
    return digits


def _logprobs(choice: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[float | None], Sequence[Any]]:
    held = choice.get("logprobs")
    names = ("tokens", "token_logprobs", "top_logprobs")
    if not isinstance(held, dict) or any(not isinstance(held.get(name), list) for name in names):
        raise EndpointError(
            "a completion without logprobs (tokens, token_logprobs, top_logprobs): the server does not give them; use "
            "samples_only=True"
        )
    tokens, values, tops = (held[name] for name in names)
    if not len(tokens) == len(values) == len(tops):
        raise EndpointError(
            f"logprobs of {len(tokens)} tokens, {len(values)} values and {len(tops)} lists: not the same"
        )
    if not all(isinstance(token, str) for token in tokens) or not all(map(_is_value, values)):
        raise EndpointError("logprobs whose tokens are no texts, or whose values are no numbers; use samples_only=True")
    return tokens, values, tops


def _listed(top: Any) -> dict[str, float | None]:
    """The likeliest tokens at one place and their log-probabilities; none where the server lists none."""
    if top is None:
        return {}
    if not isinstance(top, dict) or not all(map(_is_value, top.values())):
        raise EndpointError("top_logprobs that are no object of token and number; use samples_only=True")
    return dict(top)


def _is_value(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
