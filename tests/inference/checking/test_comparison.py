"""Comparison: known answers, the paired formula, stacking against brute force, and tables that cannot be compared."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from inference.checking.comparison import compare, stacking_weights

RNG = np.random.default_rng(0)


def table(log_px, *, observation="binary pixels", estimator="importance", se=0.1, khat=0.2, crc=None, particles=512):
    log_px = np.asarray(log_px, float)
    n = len(log_px)
    result = pd.DataFrame(
        {"datum": np.arange(n), "x_crc": np.arange(n) if crc is None else crc, "log_px": log_px, "se": se,
         "elbo": log_px - 1, "ess": 100.0, "khat": khat}
    )  # fmt: skip
    result.attrs = {
        "observation": observation,
        "particles": particles,
        "dims": 4,
        "bits_offset": 0.0,
        "estimator": estimator,
    }
    return result


def test_known_answer():
    a, b = np.array([-1.0, -2.0, -3.0, -4.0]), np.array([-2.0, -2.0, -4.0, -5.0])
    result = compare({"worse": table(b, khat=[0.1, 0.9, np.nan, 0.2]), "better": table(a, estimator="exact", se=0.0)})
    assert list(result.index) == ["better", "worse"] and result.index.name == "name"
    assert list(result["rank"]) == [0, 1] and list(result["n"]) == [4, 4]
    assert list(result["elpd"]) == [-10, -13] and list(result["elpd_mean"]) == [-2.5, -3.25]
    assert list(result["elpd_diff"]) == [0, -3]
    np.testing.assert_allclose(result["se"], [2 * a.std(ddof=1), 2 * b.std(ddof=1)])
    np.testing.assert_allclose(result["dse"], [0, 2 * np.std([1, 0, 1, 1], ddof=1)])  # sqrt(4) sd of the differences
    np.testing.assert_allclose(result["mc_se"], [0, 0.2])
    np.testing.assert_allclose(result["bits_per_dim"], [2.5 / (4 * math.log(2)), 3.25 / (4 * math.log(2))])
    np.testing.assert_allclose(result["weight"], [1, 0], atol=1e-5)  # never worse, often better: all the weight
    assert math.isnan(result["khat_bad"].iloc[0]) and result["khat_bad"].iloc[1] == 0.5  # no verdict counts as bad
    assert result.attrs["observation"] == "binary pixels"


def test_pairing_removes_the_spread_of_the_data():
    shared = RNG.normal(-100, 20, size=500)
    noise = RNG.normal(0, 0.5, size=500)
    result = compare({"a": table(shared), "b": table(shared - 1 + noise)})
    assert result["dse"].iloc[1] < result["se"].iloc[1] / 20
    assert result["dse"].iloc[1] == pytest.approx(math.sqrt(500) * noise.std(ddof=1))


def test_rows_are_matched_by_datum_not_by_position():
    a, b = RNG.normal(size=50), RNG.normal(size=50)
    straight = compare({"a": table(a), "b": table(b)})
    shuffled = table(b).sample(frac=1, random_state=0)
    shuffled.attrs = table(b).attrs
    pd.testing.assert_frame_equal(compare({"a": table(a), "b": shuffled}), straight)


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_a_model_with_nonfinite_evidence_is_reported_and_ranked_last(bad):
    good, better = RNG.normal(-5, 1, size=20), RNG.normal(-4, 1, size=20)
    broken = better + 100
    broken[3] = bad
    with pytest.warns(RuntimeWarning, match=r"'broken' \(1 of 20\)"):
        result = compare({"broken": table(broken), "good": table(good), "better": table(better)})
    assert list(result.index) == ["better", "good", "broken"]
    assert result.loc["broken", "weight"] == 0 and result.loc["broken", "nonfinite"] == 1
    np.testing.assert_equal(result.loc["broken", "elpd_diff"], bad)
    assert result["weight"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"a": table([0.0, 1.0])}, "at least two tables by name, got 1"),
        ([table([0.0, 1.0])] * 2, "at least two tables|Mapping"),
        ({"a": table([0.0]), "b": table([0.0])}, "at least 2"),
        ({"a": table([0.0, 1.0]), "b": table([0.0, 1.0], observation="grey pixels")}, "'binary pixels' against 'grey"),
        ({"a": table([0.0, 1.0]), "b": table([0.0, 1.0, 2.0])}, "2 and 3 data"),
        ({"a": table([0.0, 1.0]), "b": table([0.0, 1.0], crc=[0, 9])}, "1 of 2 rows differ, first datum 1"),
        ({"a": table([0.0, 1.0]), "b": table([0.0, 1.0]).assign(datum=[1, 1])}, "lists datum 1 more than once"),
        ({"a": table([0.0, 1.0]), "b": pd.DataFrame({"datum": [0, 1]})}, "x_crc, log_px.* missing"),
        ({"a": table([0.0, 1.0]), "b": pd.DataFrame(table([0.0, 1.0]).to_dict())}, "lost its description"),
    ],
    ids=["one", "list", "one datum", "observation", "length", "other bytes", "duplicate", "columns", "attrs"],
)  # fmt: skip
def test_tables_that_cannot_be_compared_are_refused(tables, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compare(tables)


def mean_log_score(log_px, w):
    top = log_px.max(1, keepdims=True)
    return (np.log(np.exp(log_px - top) @ w) + top[:, 0]).mean()


@pytest.mark.parametrize("seed", range(3))
def test_stacking_beats_every_point_of_a_grid_on_the_simplex(seed):
    log_px = np.random.default_rng(seed).normal(-50, 1.5, size=(80, 3)) + [0, 0.2, -0.3]
    w = stacking_weights(log_px)
    assert (w >= 0).all() and w.sum() == pytest.approx(1)
    steps = np.arange(0, 101) / 100
    grid = [(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b <= 1]
    scores = [mean_log_score(log_px, np.clip(point, 0, 1)) for point in grid]
    assert mean_log_score(log_px, w) >= max(scores) - 1e-6
    np.testing.assert_allclose(w, grid[int(np.argmax(scores))], atol=0.03)


def test_stacking_recovers_a_known_mixture():
    """Data from 0.7 N(-2, 1) + 0.3 N(2, 1), models its components: the best weights are the true ones."""
    rng = np.random.default_rng(3)
    x = np.where(rng.random(20_000) < 0.7, -2, 2) + rng.normal(size=20_000)
    log_px = np.stack([-0.5 * (x + 2) ** 2, -0.5 * (x - 2) ** 2], axis=1)
    np.testing.assert_allclose(stacking_weights(log_px), [0.7, 0.3], atol=0.015)


def test_stacking_edge_cases():
    assert stacking_weights(np.zeros((5, 1))) == pytest.approx([1.0])
    same = np.repeat(RNG.normal(size=(50, 1)), 2, axis=1)
    assert stacking_weights(same) == pytest.approx([0.5, 0.5])  # equal models share
    far = np.stack([np.zeros(20), np.full(20, -5000.0)], axis=1)
    assert stacking_weights(far) == pytest.approx([1.0, 0.0], abs=1e-5)
    split = np.where(np.arange(20)[:, None] < 5, [0.0, -5000.0], [-5000.0, 0.0])  # each model owns a part of the data
    assert stacking_weights(split) == pytest.approx([0.25, 0.75], abs=1e-4)
    many = np.random.default_rng(1).normal(-100, 30, size=(300, 12))
    w = stacking_weights(many)
    ratio = np.exp(many - many.max(1, keepdims=True))
    assert (ratio / (ratio @ w)[:, None]).mean(0).max() - 1 <= 1e-6  # the documented bound on what is left to gain
    with pytest.raises(ValueError, match="NaN or infinite"):
        stacking_weights(np.array([[0.0, np.nan]]))
