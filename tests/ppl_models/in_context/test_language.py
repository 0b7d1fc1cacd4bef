"""Language models behind an endpoint: what is read is what the model said; every failure is retried or said."""

import dataclasses

import jax
import numpy as np
import pytest

from inference.coherence import InProcess, coherence, drift_test, predictive_paths
from inference.coherence.studies import symptoms
from ppl_models.in_context import BetaBernoulli, DirichletCategorical, NormalNormal, parse_rule
from ppl_models.in_context.language import (
    BERNOULLI,
    GAUSSIAN,
    RECORDS,
    Endpoint,
    EndpointError,
    Format,
    LanguageModel,
    Records,
)
from ppl_models.in_context.language.completions import word_probabilities
from tests.language_server import serving

CONTEXTS = np.array([[1, 0, 0, 1, 0], [1, 1, 0, 1, 1]])
RULE = BetaBernoulli(2.0, 1.0)
SECRET = "sk-not-to-be-seen-anywhere"


def model(url, **options):
    settings = {"timeout": 20.0, "retries": 2, "wait": 0.0} | {
        name: options.pop(name) for name in ("timeout", "retries", "concurrency") if name in options
    }
    return LanguageModel(Endpoint(url, "fake", **settings), **options)


@pytest.mark.parametrize("rule", [RULE, parse_rule("sticky:0.2")], ids=["bayes", "sticky"])
def test_report_is_that_of_the_predictor_in_process(rule):
    options = {"key": jax.random.key(0), "steps": 8, "paths": 30, "depth": 3}
    with serving(rule, BERNOULLI) as (url, requests, _):
        found = coherence(model(url), CONTEXTS, **options)
    expected = coherence(InProcess(rule), CONTEXTS, **options)
    np.testing.assert_allclose(found.contexts, expected.contexts, atol=1e-6)
    assert found.verdict == expected.verdict
    assert [body["n"] for body in requests if isinstance(body["prompt"], str)] == [30, 30]  # whole paths at once
    assert requests[0]["prompt"] == "1,0,0,1,0," and requests[0]["temperature"] == 1.0 and requests[0]["logprobs"] == 5


@pytest.mark.parametrize("fault", ["timeout", 429, 500, "cut", "malformed", 503])
def test_failures_are_tried_again(fault):
    expected = InProcess(RULE).paths(CONTEXTS[0], 4, 6, 11)  # compiled, so that the server answers at once
    with serving(RULE, BERNOULLI, [fault]) as (url, requests, _):
        patient = model(url, timeout=1.5 if fault == "timeout" else 20.0)
        with_it = patient.paths(CONTEXTS[0], 4, 6, 11)
        assert len(requests) == 2 and patient.tally.requests == 1
    np.testing.assert_array_equal(with_it.z, expected.z)
    np.testing.assert_allclose(with_it.p, expected.p, atol=1e-6)
    np.testing.assert_allclose(with_it.log_p, expected.log_p, atol=1e-6)


@pytest.mark.parametrize(
    "fault, says",
    [
        (400, "refuses the request, HTTP 400"),
        (404, "does the address end in /v1"),
        (302, "give the address it redirects to"),
        ("no_logprobs", "use samples_only=True"),
        ("sum", "sum to 1.49"),
        ("absent", "ask for more logprobs, restrict the tokens"),
        ("empty", "is this a completions endpoint"),
    ],
)
def test_what_no_retry_mends_is_said(fault, says):
    with serving(RULE, BERNOULLI, [fault]) as (url, requests, _), pytest.raises(EndpointError, match=says):
        model(url).paths(CONTEXTS[0], 4, 6, 11)
    assert len(requests) == 1


def test_retries_end():
    with serving(RULE, BERNOULLI, [500] * 9) as (url, requests, _):
        with pytest.raises(EndpointError, match="failed 3 times, last HTTP 500"):
            model(url).paths(CONTEXTS[0], 4, 6, 11)
        assert len(requests) == 3
    with pytest.raises(EndpointError, match="failed 1 times, last"):  # nobody listens there any more
        model(url, retries=0).paths(CONTEXTS[0], 4, 6, 11)


@pytest.mark.parametrize("fault", ["short", "illegal"])
def test_a_path_that_breaks_off_is_drawn_again(fault):
    with serving(RULE, BERNOULLI, [fault]) as (url, requests, _):
        patient = model(url)
        found = patient.paths(CONTEXTS[0], 4, 6, 11)
    assert [body["n"] for body in requests] == [6, 1] and patient.tally.redrawn == 1
    expected = InProcess(RULE).paths(CONTEXTS[0], 4, 6, 11).z
    np.testing.assert_array_equal(found.z[:5], expected[1:])  # the finished ones are kept
    with serving(RULE, BERNOULLI, [fault] * 9) as (url, _, _), pytest.raises(EndpointError, match="1 of 1 paths still"):
        model(url).paths(CONTEXTS[0], 4, 1, 11)


def test_tokens_with_spaces_are_the_same_outcomes():
    with serving(RULE, BERNOULLI, ["spaces"]) as (url, _, _):
        found = model(url).paths(CONTEXTS[0], 4, 6, 11)
    np.testing.assert_allclose(found.p, InProcess(RULE).paths(CONTEXTS[0], 4, 6, 11).p, atol=1e-6)
    p, mass = word_probabilities({" 1": np.log(0.2), "1": np.log(0.1), "0": np.log(0.3), "x": np.log(0.4)}, BERNOULLI)
    assert p == pytest.approx([0.5, 0.5]) and mass == pytest.approx(0.6)


def test_finished_answers_are_kept_and_no_key_with_them(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    options = {"cache": tmp_path / "kept", "paths_per_request": 2, "concurrency": 1, "retries": 0}
    with serving(RULE, BERNOULLI, [None, None, 401], echo="your key: ") as (url, requests, headers):
        first = model(url, **options)
        with pytest.raises(EndpointError, match="valid key into the environment variable OPENAI_API_KEY") as error:
            first.paths(CONTEXTS[0], 4, 6, 11)
        assert all(sent["Authorization"] == f"Bearer {SECRET}" for sent in headers)
        assert SECRET not in str(error.value) and "(key)" in str(error.value) and SECRET not in repr(first)
        assert len(list((tmp_path / "kept").iterdir())) == 2
        again = model(url, **options)
        again.paths(CONTEXTS[0], 4, 6, 11)
        assert again.tally.requests == 1 and len(requests) == 4  # only the third was missing
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 3 and all(SECRET not in file.read_text() for file in files)
    out, err = capfd.readouterr()
    assert SECRET not in out + err


def test_the_key_goes_to_no_open_address(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(ValueError, match="is not encrypted") as error:
        model("http://example.invalid/v1").paths(CONTEXTS[0], 4, 6, 11)
    assert SECRET not in str(error.value)


def test_numbers_are_draws_only():
    rule, context = NormalNormal(0.0, 1.0, 1.0), np.array([0.31, -1.2, -0.04])
    assert GAUSSIAN.write(context) == "0.3,-1.2,0.0,"
    with serving(rule, GAUSSIAN) as (url, requests, _):
        paths = predictive_paths(model(url, format=GAUSSIAN), context, steps=6, paths=20, key=jax.random.key(1))
    assert paths.samples_only and paths.names == ("z", "z^2") and "logprobs" not in requests[0]
    np.testing.assert_allclose(paths.z * 10, np.round(paths.z * 10), atol=1e-4)
    assert 0 < drift_test(paths)["p_value"] <= 1
    assert GAUSSIAN.numbers("0.5,1.,x,2.0,") == [0.5, 1.0] and GAUSSIAN.numbers("0.5,1.2") == [0.5]


def test_words_without_probabilities():
    with serving(RULE, BERNOULLI) as (url, requests, _):
        found = model(url, samples_only=True).paths(CONTEXTS[0], 4, 6, 11)
    np.testing.assert_array_equal(found.z, InProcess(RULE).paths(CONTEXTS[0], 4, 6, 11).z)
    assert np.isnan(found.p).all() and "logprobs" not in requests[0]


def test_records_give_the_symptom_given_the_attribute_drawn():
    rule, context = DirichletCategorical((1.0, 2.0, 1.0, 1.0)), np.array([3, 0, 1])
    assert RECORDS.write(context).endswith(".\nyes,yes\nno,no\nno,yes\n")
    with serving(rule, RECORDS) as (url, _, _):
        found = model(url, format=RECORDS).paths(context, 3, 5, 11)
    expected = InProcess(rule).paths(context, 3, 5, 11)
    np.testing.assert_array_equal(found.z, expected.z)
    known = ~np.isnan(found.p)
    assert known.sum(-1).tolist() == [[2] * 4] * 5  # both symptoms of the attribute drawn
    np.testing.assert_allclose(found.p[known], expected.p[known], atol=1e-6)
    np.testing.assert_allclose(found.log_p, expected.log_p, atol=1e-6)


def test_symptoms_are_those_of_the_rule_in_process():
    context, options = np.tile([3, 0, 1, 2], 6), {"steps": 40, "paths": 30, "key": jax.random.key(0)}
    with serving(Records(), RECORDS) as (url, _, _):
        found = predictive_paths(model(url, format=RECORDS), context, **options)
    expected = predictive_paths(InProcess(Records()), context, **options)
    for x in (0, 1):
        one, other = symptoms(found, x), symptoms(expected, x)
        np.testing.assert_array_equal(one.z, other.z)
        np.testing.assert_allclose(one.p, other.p, atol=1e-6)


def test_an_answer_that_cannot_be_read_is_not_kept(tmp_path):
    with serving(RULE, BERNOULLI, ["no_logprobs"]) as (url, requests, _):
        asked = model(url, cache=tmp_path)
        with pytest.raises(EndpointError, match="without logprobs"):
            asked.paths(CONTEXTS[0], 4, 6, 11)
        assert not list(tmp_path.iterdir())
        asked.paths(CONTEXTS[0], 4, 6, 11)
    assert len(requests) == 2 and len(list(tmp_path.iterdir())) == 1


def test_a_probability_of_zero_comes_as_null():
    p, mass = word_probabilities({"0": None, "1": 0.0}, BERNOULLI)
    assert p.tolist() == [0.0, 1.0] and mass == 1.0
    with pytest.raises(EndpointError, match="have no probability"):
        word_probabilities({"0": None, "1": None, "x": 0.0}, BERNOULLI)


def test_restricted_tokens_and_mass():
    with serving(RULE, BERNOULLI) as (url, requests, _):
        asked = model(url, restrict="allowed_token_ids", token_ids=(15, 16, 11))
        asked.paths(CONTEXTS[0], 4, 2, 0)
        model(url, restrict="logit_bias", token_ids=(15, 16, 11)).paths(CONTEXTS[0], 4, 2, 0)
    assert requests[0]["allowed_token_ids"] == [15, 16, 11] and requests[1]["logit_bias"] == {
        "15": 100,
        "16": 100,
        "11": 100,
    }
    assert asked.tally.row()["mass_mean"] == pytest.approx(1.0, abs=1e-6)


def test_bad_settings():
    for url in ("ftp://x/v1", "https://user:pass@x/v1"):
        with pytest.raises(ValueError, match="url must"):
            Endpoint(url, "m")
    with pytest.raises(ValueError, match="timeout must be positive"):
        Endpoint("http://127.0.0.1/v1", "m", timeout=0.0)
    with pytest.raises(ValueError, match="give the ids of the tokens"):
        model("http://127.0.0.1/v1", restrict="logit_bias")
    with pytest.raises(ValueError, match="two or more different"):
        Format(words=("a", "a"))
    assert not any("key" in field.name and field.name != "key_variable" for field in dataclasses.fields(Endpoint))
