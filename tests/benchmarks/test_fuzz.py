"""The fuzzer finds nothing in a few inputs of each kind, and would find what is wrong."""

import json

import numpy as np
import pytest

from benchmarks import fuzz
from benchmarks._fuzz_mutate import mutate, mutate_json
from benchmarks._fuzz_text import Wrong, alike, finite, require, within

KINDS = [name for name in fuzz.COUNTS if name not in (*fuzz.HDF5, "words")]


@pytest.mark.parametrize("name", KINDS)
def test_a_few_inputs_of_each_kind(name, tmp_path):
    found = fuzz.fuzz([name], 12 / fuzz.COUNTS[name], tmp_path, seed=1)
    assert found["inputs"][name] == 12
    assert (found["hangs"], found["tracebacks"], found["wrong"]) == ([], [], [])


def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    def bad(folder):
        def once(rng):
            require(rng.random() < 0.5, "taken for another")
            raise TypeError("no message for users")

        return once

    def hangs(folder):
        def once(rng):
            while True:
                pass

        return once

    monkeypatch.setattr(fuzz, "targets", lambda: {"names": bad, "rules": hangs})
    monkeypatch.setattr(fuzz, "COUNTS", {"names": 40, "rules": 1})
    monkeypatch.setattr(fuzz, "CPU_LIMIT", 0.2)
    found = fuzz.fuzz(["names", "rules"], 1.0, tmp_path)
    assert len(found["wrong"]) + len(found["tracebacks"]) == 40 and found["wrong"] and found["tracebacks"]
    assert len(found["hangs"]) == 1 and found["hangs"][0].startswith("rules 0")


def test_mutations_change_little_and_the_same_seed_makes_the_same():
    raw, base = b"x" * 200, {"a": [1, {"b": None}], "c": "d"}
    rngs = [np.random.default_rng(3) for _ in range(2)]
    some = [[mutate(raw, rng) for _ in range(50)] for rng in rngs]
    assert some[0] == some[1] and sum(one != raw for one in some[0]) > 40
    assert len({json.dumps(mutate_json(base, rngs[0])) for _ in range(50)}) > 20
    assert base == {"a": [1, {"b": None}], "c": "d"}


def test_comparisons_of_the_fuzzer():
    assert alike({"a": [1, 2.0]}, {"a": [1.0, 2]}) and alike(float("nan"), float("nan"))
    assert not alike(True, 1) and not alike([1], [1, 2]) and not alike({"a": 1}, {"b": 1}) and not alike("1", 1)
    assert within({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}, "d": 3}) and not within({"a": 2}, {"a": 1})
    assert finite([1, {"a": 2.5}]) and not finite([1, {"a": float("inf")}])
    with pytest.raises(Wrong, match="so"):
        require(False, "so")
