"""Clusterings: tables by hand, known answers, agreement with scikit-learn, and choices whose answer was built in."""

import math

import jax
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import xarray as xr

from inference import choose, clustering, clustering_baselines, exact_table, scores, stability
from inference.clustering import Run, calibration_error, cross_facets, hungarian_accuracy, majority, responsibilities
from inference.reporting import drawn as _drawn
from inference.reporting.clusterings import clusterings
from inference.reporting.figures import choice
from ppl_models.program import Observation, Program

KEY = jax.random.key(0)
PAIR = (clustering.adjusted_rand, clustering.normalised_mutual_information)


def spread(table):
    """Cluster and label vectors with this contingency table."""
    table = np.asarray(table)
    where = np.repeat(np.arange(table.size), table.ravel())
    return where // table.shape[1], where % table.shape[1]


# -------------------------------------------------------------------------------------------------- measures
def test_a_table_by_hand():
    c, y = spread([[4, 1], [0, 3], [2, 2]])
    np.testing.assert_array_equal(clustering.contingency(c, y), [[4, 1], [0, 3], [2, 2]])
    assert majority(c, y) == {0: 0, 1: 1, 2: 0}  # the smallest of equally common labels
    assert clustering.accuracy(c, y) == pytest.approx(9 / 12)
    assert hungarian_accuracy(c, y) == pytest.approx(7 / 12)  # clusters 0 and 1; cluster 2 has no partner
    assert clustering.weighted_accuracy(c, y) == pytest.approx((6 / 6 + 3 / 6) / 2)
    pairs = math.comb(4, 2) + math.comb(3, 2) + 2 * math.comb(2, 2)
    rows, columns = math.comb(5, 2) + math.comb(3, 2) + math.comb(4, 2), 2 * math.comb(6, 2)
    expected = rows * columns / math.comb(12, 2)
    assert clustering.adjusted_rand(c, y) == pytest.approx((pairs - expected) / ((rows + columns) / 2 - expected))
    joint = np.array([[4, 1], [0, 3], [2, 2]]) / 12
    h_c, h_y, h = (-(p[p > 0] * np.log(p[p > 0])).sum() for p in (joint.sum(1), joint.sum(0), joint))
    assert clustering.normalised_mutual_information(c, y) == pytest.approx((h_c + h_y - h) / ((h_c + h_y) / 2))


def test_names_do_not_matter_independence_is_zero_and_one_part_says_nothing():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 4000)
    renamed = np.array(["d", "b", "a", "c"])[y]
    for measure in (*PAIR, hungarian_accuracy, clustering.accuracy, clustering.weighted_accuracy):
        assert measure(renamed, y) == pytest.approx(1)
    other = rng.integers(0, 6, 4000)
    for measure in PAIR:
        assert abs(measure(other, y)) < 0.005
        assert measure(np.zeros(4000, int), y) == measure(y, np.zeros(4000, int)) == 0
        assert measure(np.zeros(4000, int), np.zeros(4000, int)) == 0
    assert clustering.adjusted_rand(other, y) == pytest.approx(sklearn.metrics.adjusted_rand_score(y, other))
    mixed = np.where(rng.random(4000) < 0.3, other, y)
    assert PAIR[1](mixed, y) == pytest.approx(sklearn.metrics.normalized_mutual_info_score(y, mixed))
    names = majority(mixed, y)
    predicted = [names[c] for c in mixed.tolist()]
    assert clustering.accuracy(mixed, y) == pytest.approx(sklearn.metrics.accuracy_score(y, predicted))
    assert clustering.weighted_accuracy(mixed, y) == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(y, predicted)
    )


def test_a_rectangular_matching_counts_the_rest_as_wrong():
    y = np.repeat([0, 1], 50)
    assert hungarian_accuracy(np.arange(100) // 10, y) == pytest.approx(0.2)  # ten clusters of ten, two find a partner
    assert clustering.accuracy(np.arange(100) // 10, y) == 1
    assert hungarian_accuracy(np.zeros(100, int), y) == pytest.approx(0.5)


def test_a_mapping_from_other_data():
    names = majority([0, 0, 1, 1], ["a", "a", "b", "b"])
    assert clustering.accuracy([0, 1, 1, 2], ["a", "a", "b", "a"], mapping=names) == 0.5  # cluster 2 is unknown: wrong
    assert clustering.weighted_accuracy([0, 1, 1, 2], ["a", "a", "b", "a"], mapping=names) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        clustering.accuracy([0, 1, 1], [0, 1])


def test_calibration_error_of_forecasters():
    """Clusters named by training labels: right with probability r, confident c: the error is |r - c|."""
    rng, n = np.random.default_rng(0), 40_000
    y, names = rng.integers(0, 2, n), {0: 0, 1: 1}
    confidence = rng.uniform(0.5, 1, n)
    right = rng.random(n) < confidence
    c = np.where(right, y, 1 - y)
    p = np.where(np.arange(2) == c[:, None], confidence[:, None], 1 - confidence[:, None])
    assert calibration_error(p, y, mapping=names) < 0.02
    sharp = np.where(np.arange(2) == c[:, None], 1.0, 0.0)
    assert calibration_error(sharp, y, mapping=names) == pytest.approx(1 - right.mean())
    by_hand = np.array([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.3, 0.7]])  # bins 13 and 10: 1/2 and 1 right
    assert calibration_error(by_hand, [0, 1, 0, 1], mapping=names) == pytest.approx(0.5 * (0.9 - 0.5) + 0.5 * (1 - 0.7))


def test_effective_clusters():
    assert clustering.effective_clusters(np.eye(5)) == pytest.approx(5)
    assert clustering.effective_clusters(np.tile([1.0, 0.0], (7, 1))) == pytest.approx(1)
    assert clustering.effective_clusters(np.full((3, 4), 0.25)) == pytest.approx(4)


# ---------------------------------------------------------------------------------------------------- scores
N, DRAWS = 90, 20
SHAPE, FLOOR = np.arange(N) % 3, np.arange(N) // 45


def fake_tree():
    """Facet a knows the shape for certain, facet b is silent; unit 0 of z_a follows the shape, unit 1 is noise."""
    rng, dims = np.random.default_rng(0), ("chain", "draw", "datum")
    a = np.broadcast_to(np.eye(4)[SHAPE + 1], (1, DRAWS, N, 4)).copy()
    a[:, ::2] = 0.25  # every other draw knows nothing: the average is .625
    b = np.broadcast_to([0.7, 0.3], (1, DRAWS, N, 2))
    z = rng.normal(size=(1, DRAWS, N, 2))
    z[..., 0] = SHAPE + 0.1 * z[..., 0]
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset(
                {
                    "resp_a": ((*dims, "cluster_a"), a),
                    "resp_b": ((*dims, "cluster_b"), b),
                    "z_a": ((*dims, "unit"), z),
                }
            ),
            "/constant_data": xr.Dataset({"shape": ("datum", SHAPE), "x": ("datum", np.linspace(0, 1, N))}),
        }
    )


def test_scores_of_a_tree():
    tree = fake_tree()
    np.testing.assert_allclose(responsibilities(tree)["a"].max(1), 0.625)
    found = scores(tree, {"shape": SHAPE, "floor": FLOOR, "x": np.linspace(0, 1, N)}).set_index(["facet", "factor"])
    assert list(found.index) == [("a", "shape"), ("a", "floor"), ("b", "shape"), ("b", "floor")]  # x is continuous
    row = found.loc["a", "shape"]
    assert (row["K"], row["used"], row["active"], row["units"], row["n"]) == (4, 3, 1, 2, N)
    assert row["accuracy"] == row["hungarian"] == row["ari"] == row["nmi"] == 1
    assert row["confidence"] == pytest.approx(0.625) and row["ece"] == pytest.approx(0.375)
    assert abs(found.loc[("a", "floor"), "ari"]) < 0.05
    silent = found.loc["b", "floor"]
    assert (silent["used"], silent["ari"], silent["accuracy"]) == (1, 0, 0.5)
    assert math.isnan(silent["active"])
    assert silent["effective"] == pytest.approx(math.exp(-0.7 * math.log(0.7) - 0.3 * math.log(0.3)))
    pd.testing.assert_frame_equal(scores(tree), scores(tree, {"shape": SHAPE}))  # the tree's own factors
    assert list(scores(tree, {})["factor"]) == ["-", "-"] and scores(tree, {})["ari"].isna().all()
    assert cross_facets(tree).iloc[0].tolist() == ["a", "b", 0, 0]


def test_scores_with_names_from_training_data():
    labels, names = {"f": np.array([0, 0, 1, 1, 1, 1])}, ({"f": np.array([0, 0, 0, 1, 1, 1])}, {"g": list("aaabbb")})
    found = scores(labels, {"g": list("aabbba")}, train=names).iloc[0]
    assert found["accuracy"] == pytest.approx(5 / 6) and found["named_by"] == "training" and math.isnan(found["ece"])
    with pytest.raises(ValueError, match="no 'h'"):
        scores(labels, {"h": list("aabbba")}, train=names)
    with pytest.raises(ValueError, match="no facet 'f'"):
        scores(labels, {"g": list("aabbba")}, train=({"e": np.arange(6)}, {"g": list("aaabbb")}))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({}, "no clustering here"),
        ({"a": np.full((3, 2), 0.4)}, "sum to 1"),
        ({"a": np.array([0.5, 0.5])}, "cluster numbers from 0"),
        ({"a": np.zeros(3, int), "b": np.zeros(4, int)}, "different numbers of data"),
    ],
)
def test_what_is_no_clustering_is_refused(source, says):
    with pytest.raises(ValueError, match=says):
        scores(source, {})


# ------------------------------------------------------------------------------------------------- baselines
def blobs(n, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (10 * np.eye(3)[y][:, :, None] + rng.normal(size=(n, 3, 2))).astype("float32"), y


def test_baselines_find_blobs_and_stand_beside_a_model():
    (x, y), (x_test, y_test) = blobs(150, 0), blobs(60, 1)
    found = clustering_baselines(x, x_test, [3, 3, 6], {"y": y_test}, key=KEY, train_factors={"y": y}, restarts=1)
    assert list(found["method"]) == [
        f"{m}, {on}" for on in ("pixels", "PCA") for m in ("k-means", "mixture") for _ in "ab"
    ]
    assert list(found["K"]) == 4 * [3, 6] and (found["named_by"] == "training").all()
    exact = found[found["K"] == 3]
    assert (exact[["accuracy", "hungarian", "ari", "nmi"]] == 1).all(axis=None)
    kmeans = found["method"].str.startswith("k-means")
    assert found["ece"].isna().tolist() == kmeans.tolist() and found["active"].isna().all()
    again = clustering_baselines(x, x_test, [3, 6], {"y": y_test}, key=KEY, train_factors={"y": y}, restarts=1)
    pd.testing.assert_frame_equal(found, again)
    both = pd.concat([scores({"f": y_test}, {"y": y_test}), found], ignore_index=True)
    assert list(both.columns) == list(found.columns) and len(both) == 9
    side = clustering.side_by_side(both)
    assert list(side["K"]) == sorted(side["K"]) and side["method"][0] == "model"
    with pytest.raises(ValueError, match="7 clusters need at least as many training data, got 5"):
        clustering_baselines(x, x_test, [7], key=KEY, most=5)
    with pytest.raises(ValueError, match="of the same data"):
        clustering_baselines(x, x_test[:, :2], [3], key=KEY)


# ------------------------------------------------------------------------------------------------- stability
def noisy(labels, share, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < share, rng.integers(0, labels.max() + 1, len(labels)), labels)


def test_facets_are_matched_whatever_their_names_and_order():
    swapped = {"p": 1 - FLOOR, "q": (SHAPE + 1) % 3}
    found = stability({"one": {"a": SHAPE, "b": FLOOR}, "two": swapped, "three": {"only": noisy(SHAPE, 0.3, 0)}})
    third = clustering.adjusted_rand(SHAPE, noisy(SHAPE, 0.3, 0))
    assert found.pairs.values.tolist() == [
        ["one", "two", "a", "q", 1],
        ["one", "two", "b", "p", 1],
        ["one", "three", "a", "only", pytest.approx(third)],  # one facet to match
        ["two", "three", "q", "only", pytest.approx(third)],
    ]
    assert found.facets.set_index(["run", "facet"])["stability"].to_dict()["two", "q"] == pytest.approx((1 + third) / 2)
    assert found.runs["stability"].tolist() == pytest.approx([(1 + third) / 2] * 2 + [third])
    assert found.mean == pytest.approx((1 + 2 * third) / 3) and found.sd == pytest.approx((1 - third) / math.sqrt(3))
    assert found.within(["one", "two"]).mean == 1
    assert math.isnan(found.within(["three"]).runs.loc["three", "stability"])


def test_silent_facets_are_not_stable():
    silent = {"a": SHAPE, "b": np.zeros(N, int)}
    assert stability({"one": silent, "two": silent}).mean == pytest.approx(0.5)


def test_stability_refuses_other_data():
    with pytest.raises(ValueError, match=r"labels of two, a have shape \(3,\), those of one, a \(90,\)"):
        stability({"one": {"a": SHAPE}, "two": {"a": SHAPE[:3]}})
    with pytest.raises(ValueError, match="run 'two' has no facet"):
        stability({"one": {"a": SHAPE}, "two": {}})


# ---------------------------------------------------------------------------------------------------- choice
def table_of(mean, seed, *, n=N, observation="x"):
    """An evidence table: all runs share what is hard in the data, a tenth of a nat is their own."""
    log_px = mean + np.random.default_rng(99).normal(0, 5, n) + np.random.default_rng(seed).normal(0, 0.1, n)
    program = Program(None, lambda x=None: None, None, (), (1,), observation=Observation(observation))
    return exact_table(program, np.zeros((n, 1), "uint8"), log_px)


def constructed():
    """Configuration `good`: much evidence, g0 agrees most.  `tied` is as likely, its seeds disagree.  `bad` agrees."""
    runs = {f"g{s}": Run("good", table_of(0.0, s), {"a": noisy(SHAPE, 0.2 * s, s)}) for s in range(3)}
    runs |= {f"t{s}": Run("tied", table_of(0.01, 10 + s), {"b": noisy(SHAPE, 0.8, 10 + s)}) for s in range(3)}
    return runs | {f"b{s}": Run("bad", table_of(-2.0, 20 + s), {"c": FLOOR, "d": 0 * FLOOR}) for s in range(2)}


def test_evidence_comes_first_and_agreement_breaks_ties():
    runs = constructed()
    found = choose(runs, {"shape": SHAPE, "x": np.linspace(0, 1, N)})
    table = found.configurations
    assert (found.configuration, found.run) == ("good", "g0")
    assert table["tied"].tolist() == [True, True, False] and table["runs"].tolist() == [3, 3, 2]
    assert table["behind"].min() == 0 and table.loc["bad", "behind"] == pytest.approx(2, abs=0.1)
    # 5 nats of spread over data are shared: the paired error is far smaller than the error of the mean.
    assert table.loc["bad", "se"] == pytest.approx(5 / math.sqrt(N), rel=0.15) and table.loc["bad", "behind_se"] < 0.05
    assert table["used"].tolist() == [3, 3, 1.5] and table["silent"].tolist() == [0, 0, 1]
    assert table.loc["bad", "stability"] == pytest.approx(0.5) and table["stability_sd"].isna().tolist()[2]
    assert found.runs["chosen"].sum() == 1 and found.runs.loc["g0", "chosen"]
    check = found.check.set_index(["factor", "measure", "score"])
    rule = check.loc["shape", "ari", "rule"]
    assert (rule["picked"], rule["value"], rule["best"], rule["regret"]) == ("g0", 1, 1, 0) and math.isnan(
        rule["spearman"]
    )
    by_evidence = check.loc["shape", "ari", "evidence"]
    assert by_evidence["regret"] == pytest.approx(1 - by_evidence["value"])
    ari = [max(clustering.adjusted_rand(c, SHAPE) for c in run.assignments.values()) for run in runs.values()]
    expected = pd.Series(ari).rank().corr(found.runs["evidence"].rank().reset_index(drop=True))
    assert by_evidence["spearman"] == pytest.approx(expected)
    without = choose(runs)
    assert without.check is None and without.run == "g0"  # labels change nothing


def test_evidence_as_mean_and_error():
    pairs = {"a": Run("A", (-1.0, 0.1), {"f": SHAPE}), "b": Run("B", (-1.5, 0.1), {"f": SHAPE})}
    found = choose(pairs)
    assert found.run == "a" and found.configurations["tied"].tolist() == [True, False]
    assert found.configurations.loc["B", "behind_se"] == pytest.approx(0.1 * math.sqrt(2))
    assert math.isnan(found.configurations.loc["A", "stability"])
    infinite = choose({**pairs, "c": Run("C", (-math.inf, math.nan), {"f": SHAPE})})
    assert infinite.run == "a" and infinite.configurations.loc["C", "behind"] == math.inf


def test_choice_refuses_other_data():
    with pytest.raises(ValueError, match="score different things"):
        choose(
            {"a": Run("A", table_of(0, 0), {"f": SHAPE}), "b": Run("A", table_of(0, 1, observation="y"), {"f": SHAPE})}
        )
    with pytest.raises(ValueError, match="evidence of run 'a' is None"):
        choose({"a": Run("A", None, {"f": SHAPE})})


def test_the_figure_rings_the_chosen_run():
    axis = choice(choose(constructed()).runs).axes[0]
    ring = next(line for line in axis.get_lines() if line.get_label() == "chosen")
    np.testing.assert_allclose(ring.get_ydata(), table_of(0.0, 0)["log_px"].mean())
    assert [t.get_text() for t in axis.figure.legends[0].get_texts()] == ["chosen", "good", "tied", "bad"]
    lonely = choose({"a": Run("A", (-1.0, 0.1), {"f": SHAPE})}).runs
    assert isinstance(choice(lonely), matplotlib.figure.Figure)


# ---------------------------------------------------------------------------------------------------- report
def test_the_report_shows_the_table_beside_the_baselines(tmp_path):
    x = np.eye(3, dtype="float32")[SHAPE] + 0.01 * np.random.default_rng(0).normal(size=(N, 3)).astype("float32")
    html = clusterings(fake_tree(), x, {"shape": SHAPE}, None, tmp_path, key=KEY)
    table = pd.read_csv(tmp_path / "clustering.csv")
    assert len(table) == 2 + 2 * 4 and set(table["K"]) == {2, 4} and "k-means, PCA" in html
    assert "fitted to 90 of these data" in html and "a and b 0.00" in html
    html = clusterings(fake_tree(), x, {"shape": SHAPE}, x[:3], tmp_path, key=KEY)
    assert "4 clusters need at least as many training data, got 3" in html
    assert len(pd.read_csv(tmp_path / "clustering.csv")) == 2
    assert clusterings(fake_tree(), x, {}, None, tmp_path, key=KEY) == ""
    assert clusterings(fake_tree()["posterior"], x, {"shape": SHAPE}, None, tmp_path, key=KEY) == ""
    drawn = _drawn.Drawn(tmp_path)
    assert "ZeroDivisionError" in drawn.text("clusterings", lambda: str(1 / 0)) and drawn.failed == ["clusterings"]
