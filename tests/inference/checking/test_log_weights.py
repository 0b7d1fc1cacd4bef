"""Summaries of importance weights block by block: the numbers of all at once, with few of them held."""

import jax
import numpy as np
import pytest

from inference.checking import log_weights
from inference.checking.log_weights import Weigher, summarise
from inference.checking.per_datum import by_rows, sweep


def test_a_summary_by_blocks_is_that_of_all_weights(monkeypatch):
    weights = np.random.default_rng(0).gumbel(size=(50, 40)).astype("float32")
    weights[7, 3], weights[20] = np.nan, -np.inf
    held = []

    class Known(Weigher):
        def __init__(self):
            pass

        def _blocks(self, *given):
            return ((slice(i, min(i + 7, 50)), weights[i : i + 7]) for i in range(0, 50, 7))

    whole = summarise(weights)
    monkeypatch.setattr(log_weights, "_AT_ONCE", 600)
    monkeypatch.setattr(log_weights, "summarise", lambda part: held.append(part.size) or summarise(part))
    found = Known().summary(np.zeros((50, 1)), 40, jax.random.key(0))
    assert max(held) <= 600 + 280 and len(held) == 3
    for name, column in whole.items():
        np.testing.assert_array_equal(found[name], column)


@pytest.mark.parametrize(("draws", "pairs"), [(12, 5), (12, 30), (3, 100)])
def test_a_sweep_by_rows_starts_where_it_is_told(draws, pairs):
    calls = []

    def kernel(datum, index):
        calls.append(datum)
        return datum[:, None] * 100 + index

    def swept(start):
        blocks = sweep(kernel, 11, draws, pairs, what="test", progress=False, start=start)
        return {(rows.start, rows.stop): found for rows, found in by_rows(blocks, draws)}

    whole = swept(0)
    np.testing.assert_array_equal(np.concatenate(list(whole.values())), np.arange(11)[:, None] * 100 + np.arange(draws))
    starts = [start for start, _ in whole]
    for start in (0, starts[-1], 11):
        calls.clear()
        late = swept(start)
        assert list(late) == [span for span in whole if span[0] >= start]
        assert bool(calls) == (start < 11)
        jax.tree.map(np.testing.assert_array_equal, late, {span: whole[span] for span in late})
