"""The lines of a diagnosis that compare with classical models, and those of a table's columns."""

from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from inference.checking.classical_check import classical_check
from inference.checking.column_checks import column_lines, holm
from inference.checking.diagnostics import diagnose
from inference.cli.classical import classical
from ppl_models.program import Column
from tests.inference.checking.test_criticism import fitted
from tests.toy import toy_data

rng = np.random.default_rng(0)
TRUTH = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, -1.5], [0.5, 0.5]])
COLUMN = Column("length", "real", loc=10.0, scale=2.0), Column("colour", "categorical", values=("red", "green", "blue"))


def evidence_of(log_px, **attrs):
    frame = pd.DataFrame({"datum": np.arange(len(log_px)), "x_crc": np.arange(len(log_px)), "log_px": log_px})
    frame.attrs = {"observation": "x", **attrs}
    return frame


@pytest.mark.parametrize(
    ("against", "verdict", "says"),
    [
        ({"gaussian": -1.0, "gaussian-mixture": -0.5}, "ok", "more"),
        ({"gaussian": -1.0, "gaussian-mixture": 0.0}, "ok", "no clear difference"),
        ({"gaussian": -1.0, "gaussian-mixture": 0.7}, "warn", "the model is 0.7"),
        ({"gaussian": 0.3, "gaussian-mixture": 0.7}, "fail", "loses to one Gaussian by 0.3"),
        ({"independent": 0.5, "bernoulli-mixture": 0.7}, "fail", "loses to independent columns or pixels by 0.5"),
        ({"gaussian": 0.5}, "fail", "loses to one Gaussian: what"),
    ],
)
def test_a_loss_is_named_with_its_size(against, verdict, says):
    ours, noise = rng.normal(size=400), rng.normal(size=400)
    noise -= noise.mean()
    tables = {name: evidence_of(ours + shift + 0.5 * noise) for name, shift in against.items()}
    (line,) = classical_check(evidence_of(ours), tables)
    assert line.verdict == verdict and says in line.meaning, line.meaning
    best = max(against.values())
    assert line.value == pytest.approx(-best, abs=1e-9)
    assert f">= -{2 * 0.5 * noise.std(ddof=1) / 20:.3g} nats" in line.threshold
    assert bool(line.remedy) == (verdict != "ok")


def test_no_baselines_no_line_and_others_data_are_refused():
    ours = evidence_of(np.zeros(5))
    assert classical_check(ours, {}) == []
    with pytest.raises(ValueError, match="or other data"):
        classical_check(ours, {"gaussian": evidence_of(np.zeros(5), observation="y")})
    with pytest.raises(ValueError, match="or other data"):
        classical_check(ours, {"gaussian": evidence_of(np.zeros(6))})
    assert classical_check(ours, {"gaussian": evidence_of(np.zeros(3))})[0].verdict == "ok"  # the first rows are enough


def test_a_model_that_loses_to_a_gaussian_fails_and_the_true_one_does_not():
    x, fresh = toy_data(1200)[:1000], toy_data(1200)[1000:]
    wrong, right = fitted(0.3 * TRUTH), fitted(TRUTH)
    lines = {}
    for name, fit in {"wrong": wrong, "right": right}.items():
        found = diagnose(fit, fresh, key=jax.random.key(1), particles=16, draws=10, train=x).set_index("check")
        lines[name] = found.loc["log p(x) against classical models"]
    assert lines["wrong"]["verdict"] == "fail" and "loses to" in lines["wrong"]["meaning"]
    assert lines["right"]["verdict"] == "ok" and abs(lines["right"]["value"]) < 0.1
    without = diagnose(right, fresh, key=jax.random.key(1), particles=16, draws=10)
    assert "log p(x) against classical models" not in set(without["check"])


def test_a_run_folder_keeps_its_baselines(tmp_path):
    x, fresh, key = toy_data(1200)[:1000], toy_data(1200)[1000:], jax.random.key(1)
    fit = SimpleNamespace(program=fitted(TRUTH).program, folder=tmp_path, card={})

    def of(test, own=lambda *args: x):
        return classical(
            fit, SimpleNamespace(train=own, validation=None, test=test), own=lambda draw, *a: draw(), key=key
        )

    first = of(fresh)
    again = of(fresh[:50], own=lambda: 1 / 0)  # fits nothing
    assert list(first) == list(again) == ["gaussian", "ppca", "gaussian-mixture"]
    np.testing.assert_array_equal(again["ppca"]["log_px"], first["ppca"]["log_px"][:50])
    assert again["ppca"].attrs["baseline"] == dict(first["ppca"].attrs["baseline"])
    with pytest.raises(ZeroDivisionError):
        of(x[:50], own=lambda: 1 / 0)


def column_tree(shift=0.0, spread=1.0, red=0.5, n=400, draws=20):
    def rows(size, moved, wide, share):
        length = moved + wide * rng.normal(size=(*size, 1))
        colour = np.where(rng.random((*size, 1)) < share, 0, rng.integers(1, 3, (*size, 1)))
        return np.concatenate([length, colour], -1)

    x, there = rows((n,), 0.0, 1.0, 0.5), rng.random((n, 2)) > 0.2
    x[~there] = 0.0  # as the program prepares them
    groups = {
        "/observed_data": {"x": (("datum", "d"), x), "there": (("datum", "d"), there)},
        "/posterior_predictive": {"x": (("chain", "draw", "datum", "d"), rows((1, draws, n), shift, spread, red))},
    }
    return xr.DataTree.from_dict({name: xr.Dataset(group) for name, group in groups.items()})


@pytest.mark.parametrize("draws", [10, 60])
def test_columns_that_are_reproduced_pass_and_the_worst_one_is_named(draws):
    good = column_lines(column_tree(draws=draws), COLUMN)
    assert [line.check.split(" (")[0] for line in good] == [
        "predictive check: mean of a column", "predictive check: spread of a column",
        "predictive check: share of a class",
    ]  # fmt: skip
    assert {line.verdict for line in good} == {"ok"}
    mean, spread, share = column_lines(column_tree(shift=1.0, spread=1.5, red=0.8, draws=draws), COLUMN)
    assert (mean.verdict, spread.verdict, share.verdict) == ("fail", "warn", "warn")
    assert "(worst: length)" in mean.check and "Real entries: 9.9" in mean.meaning or "Real entries: 10" in mean.meaning
    assert "12" in mean.meaning.split("model:")[1] or "11.9" in mean.meaning  # 10 + 2 * 1 in the file's unit
    assert "worst: colour = red" in share.check


def test_holm_is_bonferroni_for_the_smallest_and_never_falls():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])
