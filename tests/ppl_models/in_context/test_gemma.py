"""Gemma 3 in process: the network against its equations, its cache against reading anew, paths against scores."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from inference.cli.app import main
from inference.coherence import coherence
from ppl_models.in_context.language import (
    BERNOULLI,
    GAUSSIAN,
    RECORDS,
    Format,
    Gemma,
    GemmaShape,
    LocalModel,
    gemma_270m,
)
from ppl_models.program import HostPredictor
from tests import tiny_gemma
from tests.tiny_gemma import SHAPE

TEXT = tiny_gemma.vocabulary().encode("1,0,0,1,1,0,1,-0.3,yes,no\n0,1,")


@pytest.fixture(scope="module")
def model():
    return LocalModel(tiny_gemma.net(), tiny_gemma.vocabulary(), Format(preface="a ab\n"))


def by_hand(tokens, w, s=SHAPE):
    """Logits after every token, written from the equations: one token, one head at a time, nothing kept."""
    w = {name: value.astype(float) for name, value in w.items()}

    def norm(x, name):
        return x / np.sqrt((x**2).mean() + s.eps) * w[name]

    def turn(x, at, base):
        half = s.head // 2
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * at * base ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    xs = [w["token_embd.weight"][t] * np.sqrt(s.width) for t in tokens]
    for i in range(s.layers):
        b, every = f"blk.{i}.", (i + 1) % s.period == 0
        base, window = (s.base_global, len(xs)) if every else (s.base_local, s.window)
        inner = [norm(x, b + "attn_norm.weight") for x in xs]
        keys = [turn(norm(w[b + "attn_k.weight"] @ x, b + "attn_k_norm.weight"), t, base) for t, x in enumerate(inner)]
        values = [w[b + "attn_v.weight"] @ x for x in inner]
        for t, x in enumerate(inner):
            seen = range(max(0, t - window + 1), t + 1)
            heads = []
            for q in np.split(w[b + "attn_q.weight"] @ x, s.heads):
                q = turn(norm(q, b + "attn_q_norm.weight"), t, base)
                p = np.exp(log_softmax([q @ keys[u] / np.sqrt(s.head) for u in seen]))
                heads.append(sum(p_u * values[u] for p_u, u in zip(p, seen, strict=True)))
            heard = w[b + "attn_output.weight"] @ np.concatenate(heads)
            xs[t] = xs[t] + norm(heard, b + "post_attention_norm.weight")
            y = norm(xs[t], b + "ffn_norm.weight")
            g = w[b + "ffn_gate.weight"] @ y
            g = g / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
            fed = w[b + "ffn_down.weight"] @ (g * (w[b + "ffn_up.weight"] @ y))
            xs[t] = xs[t] + norm(fed, b + "post_ffw_norm.weight")
    return np.stack([w["token_embd.weight"] @ norm(x, "output_norm.weight") for x in xs])


def test_logits_are_those_of_the_equations(model):
    """Longer than the window of the local layers, cut anywhere: the padding of a prompt changes nothing."""
    tokens = [1, *TEXT]
    assert len(tokens) > 2 * SHAPE.window
    expected = by_hand(tokens, tiny_gemma.weights())
    for length in (1, 4, len(tokens)):
        found = model.logits(tokens[:length], np.arange(len(model.vocabulary)))
        np.testing.assert_allclose(found, expected[length - 1], rtol=2e-4, atol=2e-4)


def test_the_mass_is_over_the_whole_vocabulary(model, monkeypatch):
    monkeypatch.setattr("ppl_models.in_context.language.gemma.ROWS", 16)  # not a divisor of the vocabulary
    h = np.random.default_rng(0).normal(size=(3, SHAPE.width)).astype(np.float32)
    expected = logsumexp(h @ np.asarray(model.net.embedding[...]).T, axis=1)
    np.testing.assert_allclose(model.net.log_total(jnp.asarray(h)), expected, rtol=1e-5)


def test_weights_come_back_and_are_checked():
    given = tiny_gemma.weights()
    found = Gemma(SHAPE, given).tensors()
    assert found.keys() == given.keys()
    for name, weight in given.items():
        np.testing.assert_array_equal(found[name], weight)
    with pytest.raises(ValueError, match="no weight 'output_norm.weight'"):
        Gemma(SHAPE, {name: w for name, w in given.items() if name != "output_norm.weight"})
    with pytest.raises(ValueError, match="must have the shape"):
        Gemma(dataclasses.replace(SHAPE, hidden=17), given)
    with pytest.raises(ValueError, match="at least 1 and head even"):
        GemmaShape(head=7)


def anew(model, z):
    """Probabilities of the words after a text, from the equations."""
    tokens = [1, *model.vocabulary.encode(model.format.write(np.asarray(z)))]
    logits = by_hand(tokens, tiny_gemma.weights())[-1]
    words = [model.vocabulary.one(word) for word in model.format.words]
    p = np.exp(log_softmax(logits)[words])
    return p / p.sum(), p.sum()


def test_paths_say_what_reading_anew_says(model, monkeypatch):
    assert isinstance(model, HostPredictor) and model.names == ("z=1",)
    context = np.array([1, 0, 0, 1])
    drawn = model.paths(context, 6, 5, 3)
    assert drawn.z.shape == (5, 6) and drawn.p.shape == (5, 7, 1)
    for path, p in zip(drawn.z[:2], drawn.p[:2], strict=True):
        for k in (0, 3, 6):
            assert p[k, 0] == pytest.approx(anew(model, [*context, *path[:k]])[0][1], abs=2e-5)
    np.testing.assert_allclose(
        drawn.log_p, np.log(np.where(drawn.z == 1, drawn.p[:, :-1, 0], 1 - drawn.p[:, :-1, 0])), atol=1e-9
    )
    u = np.asarray(jax.random.uniform(jax.random.key(3), (6, 5))).T  # symbol 1 where the uniform is past p(0)
    np.testing.assert_array_equal(drawn.z, u >= 1 - drawn.p[:, :-1, 0])
    mass = [anew(model, context)[1], *(anew(model, [*context, *path])[1] for path in drawn.z[:1])]
    np.testing.assert_allclose(model.tally.masses[:2], mass, rtol=1e-3)
    monkeypatch.setattr("ppl_models.in_context.language.local.TOGETHER", 2)  # in three parts of two, two and one
    np.testing.assert_array_equal(model.paths(context, 6, 5, 3).z, drawn.z)


def test_scores_are_of_each_whole_sequence(model):
    sequences = [np.array(z) for z in ([1, 0, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1], [1, 0, 0, 1, 0, 0, 1])]
    expected = [anew(model, z)[0][1] for z in sequences]
    np.testing.assert_allclose(model.score(sequences)[:, 0], expected, atol=2e-5)
    np.testing.assert_allclose(model.score(sequences[2:3])[:, 0], expected[2:3], atol=2e-5)
    with pytest.raises(ValueError, match="sequences is empty"):
        model.score([])


def test_records_have_the_probability_of_the_symptom_given_the_attribute(model):
    form = dataclasses.replace(RECORDS, preface="a ab\n")
    records, context = model.written(form), np.array([3, 0, 2])
    drawn = records.paths(context, 2, 3, 0)
    assert drawn.z.shape == (3, 2) and drawn.p.shape == (3, 3, 4) and set(drawn.z.ravel()) <= {0, 1, 2, 3}
    with pytest.raises(ValueError, match="draw paths instead"):
        records.score([context])
    tokens, one = [1, *records.vocabulary.encode(form.write(context))], records.vocabulary.one
    ids, w = [one("no"), one("yes")], tiny_gemma.weights()
    x = by_hand(tokens, w)[-1][ids]
    first = drawn.z[0, 0] // 2
    y = by_hand([*tokens, ids[first], one(",")], w)[-1][ids]
    joint = np.exp(log_softmax(x)[first] + log_softmax(y))
    np.testing.assert_allclose(drawn.p[0, 0, 2 * first : 2 * first + 2], joint, atol=2e-5)
    assert np.isnan(drawn.p[0, 0, 2 * (1 - first) : 2 * (1 - first) + 2]).all()
    assert drawn.log_p[0, 0] == pytest.approx(np.log(joint[drawn.z[0, 0] % 2]), abs=1e-4)


def test_numbers_are_drawn_by_the_grammar(model):
    numbers = model.written(GAUSSIAN)
    for context in (np.array([-0.3, 1.2]), np.array([])):
        drawn = numbers.paths(context, 4, 6, 1)
        assert drawn.z.shape == (6, 4) and np.isnan(drawn.p).all() and drawn.p.shape == (6, 5, 2)
        np.testing.assert_allclose(drawn.z * 10, np.round(drawn.z * 10), atol=1e-4)
        np.testing.assert_array_equal(numbers.paths(context, 4, 6, 1).z, drawn.z)
    assert len(set(drawn.z.ravel().tolist())) > 6
    assert 0 < min(numbers.tally.masses) and max(numbers.tally.masses) <= 1 + 1e-5


def test_wrong_words_and_lengths_are_said(model):
    with pytest.raises(ValueError, match="'aa' is 2 tokens"):
        model.written(Format(words=("aa", "0")))
    with pytest.raises(ValueError, match="exceed the 400"):
        model.paths(np.zeros(190, int), 30, 2, 0)
    with pytest.raises(ValueError, match="of different models"):
        LocalModel(Gemma(dataclasses.replace(SHAPE, vocabulary=4), {
            **tiny_gemma.weights(), "token_embd.weight": tiny_gemma.weights()["token_embd.weight"][:4]
        }), tiny_gemma.vocabulary())  # fmt: skip


def test_the_report_and_the_studies_run_on_it(model, tmp_path, capsys, monkeypatch):
    found = coherence(model, np.array([[1, 0, 0, 1], [1, 1, 0, 1]]), key=jax.random.key(0), steps=6, paths=12, depth=2)
    assert found.contexts.shape[0] == 2 and found.contexts["node_rms"].min() > 1e-4  # random weights are not Bayes
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gemma.gguf())
    common = ["experiment", "bernoulli", f"gemma:{path}", "--contexts", "1", "--paths", "12", "--sizes", "12"]
    assert main([*common, "--quiet", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "model: requests" in told and "mass_mean" in told
    assert json.loads((tmp_path / "out" / "experiment.json").read_text())["endpoint"]["paths"] > 0
    assert main(["coherence", f"gemma:{path}", "--context", "0110", "--paths", "12", "--steps", "6"]) == 0
    assert "martingale property" in capsys.readouterr().out
    assert main(["coherence", f"gemma:{tmp_path / 'none.gguf'}"]) == 2
    assert "give a .gguf file" in capsys.readouterr().err


@pytest.mark.llm
def test_logits_of_the_real_model_are_those_of_another_implementation():
    kept = json.loads((Path(__file__).parent / "gemma_logits.json").read_text(encoding="utf-8"))["prompts"]
    model = gemma_270m(say=None)
    for item in kept:
        assert [model.vocabulary.begin, *model.vocabulary.encode(item["prompt"])] == item["tokens"]
        assert np.abs(model.logits(item["tokens"], np.array(item["ids"])) - item["logits"]).max() < 0.01
    ids = [model.vocabulary.one(text) for text in ("0", "1", ",", "\n", "H", "T", "yes", "no", ",-")]
    assert ids == [236771, 236770, 236764, 107, 236814, 236774, 4443, 1904, 10442] and model.vocabulary.begin == 2
    bernoulli = dataclasses.replace(model, format=BERNOULLI)
    p = bernoulli.score([np.array([1, 0] * 10)])
    assert 0.2 < p[0, 0] < 0.8 and bernoulli.tally.masses[-1] > 0.5
