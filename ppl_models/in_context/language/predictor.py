"""A language model as an in-context predictor: whole paths in one request, their probabilities beside them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Num

from ppl_models.in_context.language.completions import Read, first, host_paths, read
from ppl_models.in_context.language.endpoint import Endpoint, EndpointError
from ppl_models.in_context.language.formats import BERNOULLI, Format
from ppl_models.in_context.language.tally import Tally
from ppl_models.program import HostPaths

PROMPTS = 64
"""Prompts in one request for scores."""
SEEDS = 2**31


@dataclass(frozen=True)
class LanguageModel:
    """A :class:`ppl_models.program.HostPredictor` behind a completions endpoint.

    ``format``             how symbols are written.
    ``logprobs``           tokens listed at each place; servers cap it (5 to 20).
    ``samples_only``       read the text alone; set for numbers, which are several tokens.
    ``restrict``           let the server draw among ``token_ids`` only, those of outcomes and separators:
                           ``"allowed_token_ids"`` (vLLM) or ``"logit_bias"``.
    ``paths_per_request``  all at once by default; request i of several has the seed s + i.
    ``cache``              folder of finished answers: what was drawn before an interruption is not drawn again.

    The probabilities are those of the outcomes renormalised; ``tally`` keeps their mass.  A path that ends early or
    leaves the outcomes is drawn again with another seed and counted; ``EndpointError`` where some are left after as
    many rounds as the endpoint has retries.

    >>> model = LanguageModel(Endpoint("http://127.0.0.1:8000/v1", "gemma-3-270m"))
    >>> coherence(model, contexts, key=jax.random.key(0)).verdict  # doctest: +SKIP
    """

    endpoint: Endpoint
    format: Format = BERNOULLI
    logprobs: int = 5
    samples_only: bool = False
    restrict: Literal["none", "allowed_token_ids", "logit_bias"] = "none"
    token_ids: tuple[int, ...] = ()
    paths_per_request: int | None = None
    cache: Path | None = None
    tally: Tally = field(default_factory=Tally, compare=False)

    def __post_init__(self) -> None:
        if (self.restrict == "none") == bool(self.token_ids):
            raise ValueError(
                f"restrict={self.restrict!r} and token_ids={self.token_ids}: give the ids of the tokens of outcomes "
                "and separators with restrict='allowed_token_ids' or 'logit_bias', or neither"
            )
        if self.paths_per_request is not None and self.paths_per_request < 1:
            raise ValueError(f"paths_per_request must be at least 1, got {self.paths_per_request}")
        if self.logprobs < 1:
            raise ValueError(f"logprobs must be at least 1, got {self.logprobs}; for none use samples_only=True")
        if not self.format.words:
            object.__setattr__(self, "samples_only", True)

    @property
    def names(self) -> tuple[str, ...]:
        """The features of the predictive distribution."""
        return self.format.names

    def written(self, form: Format) -> LanguageModel:
        """The same model with symbols written in another format."""
        return replace(self, format=form, samples_only=self.samples_only and bool(self.format.words))

    # ------------------------------------------------------------------------------------------------ paths
    def paths(self, context: Num[np.ndarray, " n"], steps: int, paths: int, seed: int) -> HostPaths:
        """Draw paths; one symbol more is asked for, whose probabilities are those after the last."""
        prompt = self.format.write(context)
        width = self.paths_per_request or paths
        finished: list[Read] = []
        turn = 0
        while len(finished) < paths:
            missing = paths - len(finished)
            if turn > max(1, self.endpoint.retries):
                raise EndpointError(
                    f"{missing} of {paths} paths still end early or leave the outcomes "
                    f"{self.format.words or '(numbers)'} after {turn} rounds; restrict the tokens, or write the "
                    "symbols in another format"
                )
            parts = [min(width, missing - at) for at in range(0, missing, width)]
            bodies = [
                {
                    "prompt": prompt, "n": n, "seed": (seed + turn * 7919 + i) % SEEDS, "temperature": 1.0,
                    "top_p": 1.0, "max_tokens": self.format.tokens * (steps + 1), **self._options(),
                }
                for i, n in enumerate(parts)
            ]  # fmt: skip
            for answer in self._ask(bodies, self._read):
                for found in answer:
                    self.tally.drawn += 1
                    if len(found.z) >= steps + (not self.samples_only):
                        finished.append(found)
                    else:
                        self.tally.redrawn += 1
            turn += 1
        return self._assembled(finished[:paths], steps)

    def _assembled(self, finished: Sequence[Read], steps: int) -> HostPaths:
        z = np.stack([found.z[:steps] for found in finished])
        F = len(self.names)
        if self.samples_only:
            blank = np.full((len(z), steps + 1, F), np.nan)
            return HostPaths(z, blank, np.full(z.shape, np.nan))
        slots, words = self.format.slots, len(self.format.words)
        each = np.stack([found.p[: (steps + 1) * slots] for found in finished])
        each = each.reshape(len(z), steps + 1, slots, words)
        self.tally.masses += [float(m) for found in finished for m in found.mass[: (steps + 1) * slots]]
        longer = np.stack([found.z[: steps + 1] for found in finished]) if slots > 1 else z
        return host_paths(z, each, longer // words, self.format)

    # ------------------------------------------------------------------------------------------------ scores
    def score(self, sequences: Sequence[Num[np.ndarray, " _"]]) -> Float[np.ndarray, "sequence feature"]:
        """Probabilities of the next symbol after each sequence, many prompts a request."""
        if self.samples_only or self.format.slots > 1:
            raise ValueError("only single tokens with log-probabilities can be scored; draw paths instead")
        prompts = [self.format.write(z) for z in sequences]
        bodies = [
            {"prompt": prompts[at : at + PROMPTS], "n": 1, "seed": 0, "temperature": 1.0, "top_p": 1.0, "max_tokens": 1,
             **self._options()}
            for at in range(0, len(prompts), PROMPTS)
        ]  # fmt: skip
        rows = []
        for body, answer in zip(bodies, self._ask(bodies, self._first), strict=True):
            if len(answer) != len(body["prompt"]):
                raise EndpointError(f"{len(body['prompt'])} prompts were sent, {len(answer)} completions came back")
            for p, mass in answer:
                self.tally.masses.append(mass)
                rows.append(p)
        p = np.asarray(rows)
        return p[:, 1:] if len(self.names) == 1 else p

    # ---------------------------------------------------------------------------------------------- requests
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.samples_only else {"logprobs": self.logprobs}
        if self.restrict == "allowed_token_ids":
            options["allowed_token_ids"] = list(self.token_ids)
        elif self.restrict == "logit_bias":
            options["logit_bias"] = {str(i): 100 for i in self.token_ids}
        return options

    def _read(self, answer: Mapping[str, Any]) -> list[Any]:
        return [read(choice, self.format, samples_only=self.samples_only) for choice in _choices(answer)]

    def _first(self, answer: Mapping[str, Any]) -> list[Any]:
        choices = _choices(answer)
        order = [choice.get("index", i) for i, choice in enumerate(choices)]
        if any(type(i) is not int for i in order) or sorted(order) != list(range(len(order))):
            raise EndpointError(
                f"{len(order)} completions with the indexes {str(order)[:60]}: not one for each prompt, so that it is "
                "not known whose they are"
            )
        return [first(choices[at], self.format) for at in np.argsort(order)]

    def _ask(
        self, bodies: Sequence[Mapping[str, Any]], parse: Callable[[Mapping[str, Any]], list[Any]]
    ) -> list[list[Any]]:
        """Parsed answers in order; those that came before a failure are in the cache."""
        with ThreadPoolExecutor(max_workers=self.endpoint.concurrency) as pool:
            waiting = [pool.submit(self._one, body, parse) for body in bodies]
            return [future.result() for future in waiting]

    def _one(self, body: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], list[Any]]) -> list[Any]:
        path = None
        if self.cache is not None:
            asked = json.dumps({"url": self.endpoint.url, "model": self.endpoint.model, **body}, sort_keys=True)
            path = self.cache / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
            if path.is_file():
                with contextlib.suppress(EndpointError, ValueError):  # torn: asked for again
                    return parse(_kept(path))
        answer = self.endpoint.complete(body)
        self.tally.requests += 1
        found = parse(answer)  # before it is kept: an answer that cannot be read is asked for again
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}.part")
            fresh.write_text(json.dumps({"choices": answer["choices"]}), encoding="utf-8")
            os.replace(fresh, path)
        return found


def _kept(path: Path) -> dict[str, Any]:
    """A finished answer of the cache; ``ValueError`` where it is torn."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no answer")
    return found


def _choices(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise EndpointError(
            f"an answer without choices, got the fields {sorted(answer)}; is this a completions endpoint?"
        )
    return choices
