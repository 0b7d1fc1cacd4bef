"""Text to tokens and back, as SentencePiece does it from the pieces and scores that a GGUF file holds.

Pieces that the authors defined (line ends, runs of spaces) are cut out first, the longest first; in what is left,
spaces are written ``▁``, and the two neighbours whose joined piece has the highest score are joined, again and again.
A character without a piece is written in those of its bytes, ``<0xE2>``.  Kudo, Richardson, EMNLP 2018 (1808.06226).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ppl_models.in_context.language.gguf_file import GGUF

SPACE = "▁"
PLAIN, CONTROL, DEFINED, BYTE = 1, 3, 4, 6
"""Kinds of piece that matter here."""


class Vocabulary:
    """Pieces, their scores and kinds; ``begin`` is the token that every text starts with.

    Raises ``ValueError`` where the lists differ in length or the first token is none of them.
    """

    def __init__(self, pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], begin: int) -> None:
        if not len(pieces) == len(scores) == len(kinds):
            raise ValueError(
                f"a vocabulary needs as many pieces as scores and kinds, got {len(pieces)}, {len(scores)}, {len(kinds)}"
            )
        if not 0 <= begin < len(pieces):
            raise ValueError(f"the first token {begin} is none of the {len(pieces)} pieces")
        self.begin = begin
        self._pieces = pieces
        self._scores = scores
        self._ids = {piece: i for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind != CONTROL}
        defined = sorted((p for p, kind in zip(pieces, kinds, strict=True) if kind == DEFINED), key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, defined)) + ")") if defined else None
        self._bytes = {i for i, kind in enumerate(kinds) if kind == BYTE}

    @classmethod
    def of(cls, file: GGUF) -> Vocabulary:
        """The vocabulary of a file.  ``ValueError`` where its fields are missing or of another tokeniser."""
        held = {name: file.fields.get(f"tokenizer.ggml.{name}") for name in ("model", "tokens", "scores", "token_type")}
        if held["model"] != "llama" or not isinstance(held["tokens"], list) or any(v is None for v in held.values()):
            raise ValueError(
                f"the file's tokeniser is {held['model']!r} with {sorted(k for k, v in held.items() if v is not None)}"
                ", expected 'llama' (SentencePiece) with tokens, scores and token_type"
            )
        begin = int(file.number("tokenizer.ggml.bos_token_id"))
        return cls(held["tokens"], held["scores"].tolist(), held["token_type"].tolist(), begin)

    def __len__(self) -> int:
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without the first one.

        >>> vocabulary.encode("0,1,")  # doctest: +SKIP
        [236771, 236764, 236770, 236764]
        """
        parts = self._cut.split(text) if self._cut else [text]
        found: list[int] = []
        for i, part in enumerate(parts):  # every second one is a piece that was defined
            found += [self._ids[part]] if i % 2 else self._joined(part.replace(" ", SPACE))
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        raw = b"".join(
            bytes([int(self._pieces[i][1:-1], 16)]) if i in self._bytes else self._pieces[i].encode() for i in tokens
        )
        return raw.decode("utf-8", "replace").replace(SPACE, " ")

    def one(self, text: str) -> int:
        """The token of a text that must be a single one; ``ValueError`` else."""
        tokens = self.encode(text)
        if len(tokens) != 1:
            raise ValueError(
                f"{text!r} is {len(tokens)} tokens of this model, expected one; write symbols in other words"
            )
        return tokens[0]

    def _joined(self, text: str) -> list[int]:
        pieces = list(text)
        while len(pieces) > 1:
            joined = [self._ids.get(a + b) for a, b in zip(pieces[:-1], pieces[1:], strict=True)]
            ranked = [(self._scores[i], -at) for at, i in enumerate(joined) if i is not None]
            if not ranked:
                break
            at = -max(ranked)[1]  # the leftmost of equals
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return [i for piece in pieces for i in self._known(piece)]

    def _known(self, piece: str) -> list[int]:
        if piece in self._ids:
            return [self._ids[piece]]
        try:
            return [self._ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
        except KeyError as error:
            raise ValueError(f"the vocabulary has no token for {piece!r}; write the text without it") from error
