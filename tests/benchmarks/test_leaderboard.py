"""The leaderboard: one protocol for all, and claims that say what the tables say."""

import math

import jax
import numpy as np
import pytest

from benchmarks import leaderboard
from inference import compare, exact_table
from inference.checking.classical import evaluated
from ppl_models.program import Observation, Program

X = np.random.default_rng(0).integers(0, 17, (6, 8, 8)).astype("uint8")


@pytest.fixture(scope="module")
def programs():
    key = jax.random.key(0)
    return {
        group: {name: entrant.spec.build(key) for name, entrant in models.items()}
        for group, models in leaderboard.entrants().items()
    }


def test_a_group_scores_the_same_numbers_in_the_same_units(programs):
    for group, members in programs.items():
        first, *others = members.values()
        seen = evaluated(first, X, jax.random.key(3))
        for other in others:
            mine, its = first.observation, other.observation
            assert (its.line, its.bits_offset) == (mine.line, mine.bits_offset), group
            np.testing.assert_array_equal(evaluated(other, X, jax.random.key(3)), seen)
    assert {group: next(iter(members.values())).observation.bits_offset for group, members in programs.items()} == {
        "binarised": 0.0, "grey": 0.0, "dequantised": math.log2(17),
    }  # fmt: skip


def test_claims_say_what_the_tables_say():
    program = Program(None, lambda x=None: None, None, (), (8, 8), observation=Observation("pixels", bits_offset=1.0))
    log_px = np.array([-64.0, -65.0, -66.0, -65.0, -64.0, -66.0]) * math.log(2)
    tables = {"deep": exact_table(program, X, log_px), "flat": exact_table(program, X, log_px - [1, 2, 1, 2, 1, 2])}
    ranked = compare(tables)
    found = leaderboard.claim("grey", "flat", ranked.loc["flat"], tables["flat"], {"steps": 3})
    assert found.name == "grey_flat" and found.unit == "bits/dim" and found.detail["steps"] == 3
    assert found.value == pytest.approx(65 / 64 + 1 + 1.5 / 64 / math.log(2))
    assert found.detail["behind_best_nats"] == pytest.approx(1.5) and found.detail["rank"] == 1
    lead = leaderboard.lead("grey", tables, ["deep"], ["flat"])
    se = np.std([1, 2, 1, 2, 1, 2], ddof=1) / math.sqrt(6)
    assert lead.value == pytest.approx(1.5 - 2 * se, rel=1e-5) and lead.holds
