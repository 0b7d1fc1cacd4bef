"""Properties of whatever text, JSON or array may come: an error for users, or what the input says.

Needs hypothesis, of the group ``dev``; ``benchmarks/fuzz.py`` looks at files and command lines.
"""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings, strategies as st  # noqa: E402 - after the line that skips

from inference.cli.common import UsageError  # noqa: E402
from inference.cli.table_file import overrides  # noqa: E402
from inference.coherence.command import parse_context  # noqa: E402
from inference.fitting.folder import History  # noqa: E402
from inference.fitting.record import FORMAT, run_record  # noqa: E402
from ppl_models.datasets import read_table  # noqa: E402
from ppl_models.in_context import RULES, parse_rule  # noqa: E402
from ppl_models.in_context.language import BERNOULLI, EndpointError  # noqa: E402
from ppl_models.in_context.language.completions import word_probabilities  # noqa: E402
from ppl_models.program import resolve, spec_from_json, spec_to_json  # noqa: E402

few = settings(max_examples=60, deadline=None, database=None, derandomize=True)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3))
words = st.text("abc ", min_size=1, max_size=4).map(str.strip).filter(bool)
numbers = st.floats(-1e6, 1e6).map(lambda v: round(v, 3))


@few
@given(st.text(alphabet="01234,.-+e _naif\u0663\u00b2", max_size=12))
def test_a_context_is_its_numbers(text):
    with contextlib.suppress(ValueError):
        found = parse_context(text)
        assert len(found) and np.isfinite(found).all() and "_" not in text and text.isascii()


@few
@given(st.lists(numbers, min_size=2, max_size=6))
def test_a_context_of_numbers_is_read_as_written(values):
    np.testing.assert_allclose(parse_context(",".join(map(repr, values))), values, rtol=1e-6)


@few
@given(st.sampled_from(sorted(RULES)), st.text(alphabet="0123456789.,-einfa_ ", max_size=10))
def test_a_rule_has_finite_values_or_is_refused(name, rest):
    with contextlib.suppress(ValueError):
        parse_rule(f"{name}:{rest}")
        assert all(math.isfinite(float(part)) for part in rest.split(",") if part.strip())


@few
@given(
    st.dictionaries(st.text("abc ", min_size=1, max_size=4).map(str.strip).filter(bool), st.just("real"), max_size=4)
)
def test_columns_come_back(kinds):
    assert overrides(",".join(f"{name}={kind}" for name, kind in kinds.items())) == kinds


@few
@given(st.text(max_size=30))
def test_columns_of_any_text(text):
    with contextlib.suppress(UsageError):
        assert all(name.strip() and kind.strip() for name, kind in overrides(text).items())


@few
@given(anything)
def test_a_spec_of_anything_is_refused_with_a_message(value):
    for given_ in (
        value,
        {"family": value},
        {"family": "mfcvae", "preset": value},
        {"family": "mfcvae", "spec": value},
    ):
        text = given_ if isinstance(given_, dict) else json.dumps(given_)
        try:
            spec = spec_from_json(text)
        except ValueError as error:
            assert str(error).strip()
        else:
            assert spec_from_json(spec_to_json(spec)) == spec


@few
@given(st.sampled_from(["shape", "facets", "levels", "likelihood", "network", "x"]), anything)
def test_a_field_of_anything_is_kept_or_refused(field, value):
    with contextlib.suppress(ValueError):
        spec = spec_from_json({"family": "mfcvae", "preset": "tiny", "spec": {field: value}})
        assert spec_from_json(spec_to_json(spec)) == spec


@few
@given(st.text(max_size=20))
def test_a_name_is_known_or_refused(name):
    with pytest.raises(ValueError, match="unknown"):
        resolve(name)


@few
@given(anything, st.sampled_from(["format", "arguments", "card", "info", ""]))
def test_a_run_record_is_whole_or_refused(value, part):
    record = {"format": FORMAT, "arguments": {}, "card": {}, "info": {}, **({part: value} if part else {})}
    try:
        found = run_record(json.dumps(record if part else value), Path("run.json"))
    except ValueError as error:
        assert "run.json" in str(error)
    else:
        assert all(isinstance(found[name], dict) for name in ("arguments", "card", "info"))


@few
@given(st.binary(max_size=60))
def test_a_history_of_any_bytes_is_its_numbers(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("history") / "history.csv"
    path.write_bytes(b"step,loss\n1,0.5\n" + raw)
    history = History(path, ["step", "loss"])
    history.restore(10**6)
    assert history.rows[0] == {"step": 1, "loss": 0.5} or raw
    assert all(type(row["step"]) is int and type(row["loss"]) is float for row in history.rows)


@few
@given(st.lists(st.tuples(numbers, st.text("ab", min_size=1, max_size=3)), min_size=2, max_size=6))
def test_a_table_is_read_as_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("x,name\n" + "".join(f"{x!r},{name}\n" for x, name in rows))
    frame = read_table(path)
    assert frame["x"].tolist() == [x for x, _ in rows] and frame["name"].tolist() == [name for _, name in rows]


@few
@given(st.dictionaries(st.sampled_from(["0", "1", " 1", ",", "x"]), st.none() | st.floats(-60, 1), max_size=4))
def test_probabilities_of_words_are_those_listed(listed):
    with contextlib.suppress(EndpointError):
        p, mass = word_probabilities(listed, BERNOULLI)
        weights = {k: 0.0 if v is None else math.exp(v) for k, v in listed.items()}
        ones = weights.get("1", 0.0) + weights.get(" 1", 0.0)
        assert p.sum() == pytest.approx(1) and p[1] * mass == pytest.approx(ones) and 0 < mass < 1.01
