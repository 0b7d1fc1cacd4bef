"""A language model in this process as an in-context predictor: no server, no network, paths drawn together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Num

from ppl_models.in_context.language.completions import host_paths
from ppl_models.in_context.language.drawing import (
    draw_numbers,
    draw_slots,
    read_prompt,
    score_ends,
    some_logits,
    word_probabilities,
)
from ppl_models.in_context.language.formats import BERNOULLI, Format
from ppl_models.in_context.language.gemma import Gemma, Prompt
from ppl_models.in_context.language.grammar import Grammar, grammar
from ppl_models.in_context.language.tally import Tally
from ppl_models.in_context.language.tokens import Vocabulary
from ppl_models.program import HostPaths

ROUND = 64
"""Prompts are padded to a multiple of so many tokens, so that lengths share a compilation."""
ROOM = 2**30
"""Bytes of keys and values of paths drawn at once, at most."""
TOGETHER = 128
"""Paths drawn, or texts scored, at once, at most."""


@dataclass(frozen=True)
class LocalModel:
    """A :class:`ppl_models.program.HostPredictor` of a network in memory; :func:`gemma_270m` makes one.

    ``net``, ``vocabulary``  the model and its tokens.
    ``format``               how symbols are written; each word and separator must be one token.

    A context is read once for all its paths, whose keys and values are kept.  Each draw is among the words of the
    format (numbers: among the tokens that may follow, see ``grammar.py``), so that no path is drawn again; ``tally``
    keeps the mass that the model gives these, at the end of the context and of every path: where it is small, the rule
    tested is not what the model would write.  The same seed gives the same paths, however many are drawn at once.

    Raises ``ValueError`` where a word or separator is several tokens, and where context and path are longer than the
    model was made for.
    """

    net: Gemma
    vocabulary: Vocabulary
    format: Format = BERNOULLI
    tally: Tally = field(default_factory=Tally, compare=False)

    def __post_init__(self) -> None:
        if len(self.vocabulary) != self.net.shape.vocabulary:
            raise ValueError(
                f"the vocabulary has {len(self.vocabulary)} tokens, the network {self.net.shape.vocabulary}: these are "
                "of different models"
            )
        _ = (self._words, self._after) if self.format.words else self._grammar  # what is not one token is said at once

    @property
    def names(self) -> tuple[str, ...]:
        """The features of the predictive distribution."""
        return self.format.names

    def written(self, form: Format) -> LocalModel:
        """The same model with symbols written in another format."""
        return replace(self, format=form)

    # ------------------------------------------------------------------------------------------------ paths
    def paths(self, context: Num[np.ndarray, " n"], steps: int, paths: int, seed: int) -> HostPaths:
        """Draw paths; probabilities are those of the words renormalised, NaN where symbols are numbers."""
        if self.format.words:
            return self._worded(context, steps, paths, seed)
        return self._numbered(context, steps, paths, seed)

    def _worded(self, context: Num[np.ndarray, " n"], steps: int, paths: int, seed: int) -> HostPaths:
        form = self.format
        slots = steps * form.slots + form.slots - 1  # the first slots of one symbol more show what comes after the last
        h, prompt = self._prompt(self.tokens(context), 2 * slots)
        u = jax.random.uniform(jax.random.key(seed), (slots, paths))
        after = jnp.asarray([self._after[i % form.slots] for i in range(slots)], jnp.int32)
        drawn = [
            draw_slots(*self._split, prompt, h, u[:, part], after, self._words)
            for part in self._parts(paths, 2 * slots)
        ]
        words = np.concatenate([np.asarray(d.word) for d in drawn])
        p = np.concatenate([np.asarray(d.p, float) for d in drawn])
        self._tell(paths, h[None], *(d.end for d in drawn))
        z = (words[:, : steps * form.slots].reshape(paths, steps, form.slots) @ self._place).astype(np.int32)
        each = (p / p.sum(-1, keepdims=True)).reshape(paths, steps + 1, form.slots, len(form.words))
        return host_paths(z, each, words[:, :: form.slots], form)

    def _numbered(self, context: Num[np.ndarray, " n"], steps: int, paths: int, seed: int) -> HostPaths:
        form, rules = self.format, self._grammar
        room = form.tokens * steps
        h, prompt = self._prompt(self.tokens(context), room)
        u = jax.random.uniform(jax.random.key(seed), (room, paths))
        first = rules.between if len(context) else rules.begin
        given = (
            jnp.asarray(rules.tokens, jnp.int32), jnp.asarray(rules.after, jnp.int32),
            jnp.asarray([first, rules.between], jnp.int32), jnp.asarray(steps, jnp.int32),
        )  # fmt: skip
        drawn = [draw_numbers(*self._split, prompt, h, u[:, part], *given) for part in self._parts(paths, room)]
        texts = [self._text(row) for d in drawn for row in np.asarray(d.token)]
        z = np.asarray([form.numbers(text)[:steps] for text in texts], np.float32)
        states = np.concatenate([[first], *(np.asarray(d.state) for d in drawn)])
        self._tell(paths, h[None], *(d.end for d in drawn), may=rules.after[states] >= 0)
        blank = np.full((paths, steps + 1, len(self.names)), np.nan)
        return HostPaths(z, blank, np.full(z.shape, np.nan))

    def _text(self, row: np.ndarray) -> str:
        """The text of a path that may begin with the separator of the context, closed by one."""
        written = self.vocabulary.decode(self._grammar.tokens[row[row >= 0]].tolist())
        return written.removeprefix(self.format.separator) + self.format.separator

    # ------------------------------------------------------------------------------------------------ scores
    def score(self, sequences: Sequence[Num[np.ndarray, " _"]]) -> Float[np.ndarray, "sequence feature"]:
        """Probabilities of the next symbol after each sequence; the tokens that all begin with are read once."""
        if not self.format.words or self.format.slots > 1:
            raise ValueError("only symbols of one token can be scored; draw paths instead")
        if not len(sequences):
            raise ValueError("sequences is empty, expected at least one")
        texts = [self.tokens(z) for z in sequences]
        least, most = min(map(len, texts)), max(map(len, texts))
        shared = next((i for i in range(least - 1) if len({text[i] for text in texts}) > 1), least - 1)
        prompt = self._prompt(texts[0][:shared], most - shared)[1] if shared else self.net.nothing()
        width = -(-(most - shared) // 4) * 4
        rows = []
        for part in self._parts(len(texts), width):
            ends = [text[shared:] for text in texts[part]]
            padded = np.zeros((1 << (len(ends) - 1).bit_length(), width), np.int32)
            for row, end in zip(padded, ends, strict=False):
                row[: len(end)] = end
            last = np.zeros(len(padded), np.int32)
            last[: len(ends)] = [len(end) - 1 for end in ends]
            h = score_ends(*self._split, prompt, jnp.asarray(padded), jnp.asarray(last))
            rows.append(np.asarray(word_probabilities(*self._split, h, self._words), float)[: len(ends)])
        p = np.concatenate(rows)
        mass = p.sum(-1)
        self.tally.requests += 1
        self.tally.masses += mass.tolist()
        p = p / mass[:, None]
        return p[:, 1:] if len(self.names) == 1 else p

    def logits(self, tokens: Sequence[int], ids: Int[np.ndarray, " id"]) -> Float[np.ndarray, " id"]:
        """Logits of the tokens ``ids`` after a text of tokens, to compare with another implementation."""
        h, _ = self._prompt(list(tokens), 0)
        return np.asarray(some_logits(*self._split, h, jnp.asarray(ids, jnp.int32)))

    # ------------------------------------------------------------------------------------------------ prompts
    def tokens(self, context: Num[np.ndarray, " n"]) -> list[int]:
        """The tokens of a context.  Numbers end without a separator: it may be one token with the next sign."""
        form, vocabulary = self.format, self.vocabulary
        if not form.words:
            return [vocabulary.begin, *vocabulary.encode(form.write(context).removesuffix(form.separator))]
        words = np.asarray(self._words).tolist()
        found = [vocabulary.begin, *vocabulary.encode(form.preface)]
        for value in np.asarray(context).tolist():
            digits = np.unravel_index(int(value), (len(words),) * form.slots)
            for digit, after in zip(digits, self._after, strict=True):
                found += [words[int(digit)], after]
        return found

    def _prompt(self, tokens: list[int], more: int) -> tuple[Any, Prompt]:
        longest = self.net.shape.longest
        if len(tokens) + more > longest:
            raise ValueError(
                f"a context of {len(tokens)} tokens and {more} more exceed the {longest} this model was made for; give "
                "a shorter context or fewer steps"
            )
        padded = np.zeros(-(-len(tokens) // ROUND) * ROUND, np.int32)
        padded[: len(tokens)] = tokens
        return read_prompt(*self._split, jnp.asarray(padded), jnp.asarray(len(tokens), jnp.int32))

    def _parts(self, count: int, tokens: int) -> list[slice]:
        """Even parts of ``count`` texts that fit into the room for keys and values."""
        each = max(1, tokens) * 2 * self.net.shape.layers * self.net.shape.head * 4
        width = -(-count // -(-count // max(1, min(TOGETHER, ROOM // each))))
        return [slice(at, min(count, at + width)) for at in range(0, count, width)]

    def _tell(self, paths: int, *ends: Any, may: np.ndarray | None = None) -> None:
        """Keep the mass of what was drawn among, at the end of the context and of every path."""
        among = self._words if may is None else jnp.asarray(self._grammar.tokens, jnp.int32)
        p = np.concatenate([np.asarray(word_probabilities(*self._split, h, among), float) for h in ends])
        self.tally.masses += (p if may is None else p * may).sum(-1).tolist()
        self.tally.requests += 1
        self.tally.drawn += paths

    @cached_property
    def _split(self) -> tuple[Any, Any]:
        return nnx.split(self.net)

    @cached_property
    def _words(self) -> Any:
        return jnp.asarray([self.vocabulary.one(word) for word in self.format.words], jnp.int32)

    @cached_property
    def _after(self) -> tuple[int, ...]:
        """The token after each slot of a symbol."""
        form = self.format
        return tuple(self.vocabulary.one(t) for t in (form.inner,) * (form.slots - 1) + (form.separator,))

    @cached_property
    def _place(self) -> np.ndarray:
        return len(self.format.words) ** np.arange(self.format.slots - 1, -1, -1)

    @cached_property
    def _grammar(self) -> Grammar:
        return grammar(self.format, self.vocabulary)
