"""The arithmetic of a diagnosis, held against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from inference.checking import criticism
from inference.fitting import Fit
from ppl_models.program import Column
from tests.toy import PPCA, toy_data

rng = np.random.default_rng


def fitted(W: np.ndarray) -> Fit:
    program = PPCA().build(jax.random.key(0))
    params = {"W": jnp.asarray(W, jnp.float32), "b": jnp.ones(4), "s": jnp.asarray(0.5)}
    return Fit(program, params, {}, pd.DataFrame(), {"steps": 1, "skipped": 0})


def test_rate_is_the_closed_form_kl_and_zero_where_q_is_the_prior() -> None:
    W, x = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, -1.5], [0.5, 0.5]]), toy_data(40)
    rate = criticism.site_rates(fitted(W), x, key=jax.random.key(1), draws=64, chunk=16)["z"]
    precision = np.eye(2) + W.T @ W / 0.25
    mean = np.linalg.solve(precision, W.T @ (x - 1.0).T / 0.25).T
    kl = 0.5 * (np.trace(np.linalg.inv(precision)) + (mean**2).sum(1) - 2 + np.log(np.linalg.det(precision)))
    assert rate.shape == (40,)
    assert rate.mean() == pytest.approx(kl.mean(), abs=0.1)
    assert np.corrcoef(rate, kl)[0, 1] > 0.99
    silent = criticism.site_rates(fitted(np.zeros((4, 2))), x, key=jax.random.key(1), draws=2)["z"]
    assert np.abs(silent).max() < 1e-4


def test_unit_variance_is_not_fooled_by_few_draws() -> None:
    noise = rng(0).normal(size=(20, 400, 3))
    plain = noise.mean(0).var(0)
    assert (plain > criticism.ACTIVE).all()  # 1 / 20 draws: silent units would look active
    assert (np.abs(criticism.unit_variance(noise)) < criticism.ACTIVE).all()
    signal = 0.7 * rng(1).normal(size=(400, 3))
    assert criticism.unit_variance(noise + signal) == pytest.approx(0.49, rel=0.2)
    assert criticism.unit_variance(np.zeros((5, 8, 2, 3))).shape == (6,)


def test_trend_of_a_line_and_of_noise() -> None:
    step = np.arange(100.0, 200.0, 5.0)
    line = criticism.trend(step, 7.0 - 0.02 * step)
    assert line is not None
    assert line.gain == pytest.approx(0.02 * 95.0)
    assert line.se == pytest.approx(0.0, abs=1e-9)
    covered = 0
    for seed in range(200):
        flat = criticism.trend(step, rng(seed).normal(size=20))
        covered += abs(flat.gain) < 2 * flat.se
    assert covered >= 180
    assert criticism.trend(step[:4], step[:4]) is None
    assert criticism.trend(step, np.full(20, np.nan)) is None


def test_last_fifth_reads_only_rows_with_a_value() -> None:
    history = pd.DataFrame({"step": np.arange(10, 110, 10), "loss": np.arange(10.0), "validation_elbo": np.nan})
    step, values = criticism.last_fifth(history, "loss")
    assert step.tolist() == [90, 100]
    assert values.tolist() == [8, 9]
    assert len(criticism.last_fifth(history, "validation_elbo")[0]) == 0


def test_tail_probability_by_rank_and_by_t() -> None:
    replicated = np.arange(99.0)
    assert criticism.two_sided(-1.0, replicated) == pytest.approx(2 * 1 / 100)
    assert criticism.two_sided(49.0, replicated) == 1.0
    assert criticism.two_sided(9.5, replicated) == pytest.approx(2 * 11 / 100)
    few = np.array([-1.0, 1.0] * 5)
    assert criticism.two_sided(0.0, few) == pytest.approx(1.0)
    assert criticism.two_sided(50.0, few) < 1e-6
    same = [criticism.two_sided(v[0], v[1:]) for v in rng(2).normal(size=(2000, 11))]
    assert np.mean(np.array(same) < 0.05) == pytest.approx(0.05, abs=0.015)


def test_statistics_of_known_pictures() -> None:
    board = np.indices((4, 4)).sum(0) % 2.0
    found = {name: f(board[None]) for name, f in criticism.statistics(np.stack([board, board])).items()}
    assert found["mean"] == pytest.approx(0.5)
    assert found["contrast"] == pytest.approx(1.0)
    assert found["share of low values"] == pytest.approx(0.5)
    colour = np.repeat(board[..., None], 3, -1)
    assert criticism.statistics(colour[None])["contrast"](colour[None]) == pytest.approx(1.0)
    vector = criticism.statistics(np.array([[0.0, 2.0], [1.0, 1.0]]))
    assert vector["spread"](np.array([[0.0, 2.0]])) == pytest.approx(1.0)
    assert "contrast" not in vector
    assert set(criticism.statistics(np.arange(3.0))) == {"mean", "share of low values"}


def test_predictive_checks_accept_the_truth_and_find_noise() -> None:
    real, draws = rng(0).uniform(size=(60, 8, 8)), rng(1).uniform(size=(60, 60, 8, 8))
    truth = {c.statistic: c for c in criticism.predictive_checks(real, draws)}
    assert all(c.tail > 0.01 and abs(c.shift) < 0.2 for c in truth.values())
    smooth = {c.statistic: c for c in criticism.predictive_checks(real, 0.5 + 0.2 * (draws - 0.5))}
    assert smooth["contrast"].tail == pytest.approx(2 / 61)
    assert smooth["contrast"].shift < -1
    assert smooth["mean"].observed == pytest.approx(real.mean())
    with pytest.raises(ValueError, match="expected"):
        criticism.predictive_checks(real, draws[:, :3])


def test_nonfinite_counts_numbers_wherever_they_are() -> None:
    nested = {"a": np.array([1.0, np.nan]), "b": {"c": np.array([np.inf]), "d": np.array([1, 2])}}
    assert criticism.nonfinite(nested) == 2


COLUMNS = (
    Column("a", "real", loc=10.0, scale=2.0), Column("b", "positive", loc=1.0, scale=0.5), Column("n", "count"),
    Column("site", "categorical", values=("east", "north", "west")),
)  # fmt: skip


def test_columns_are_checked_in_their_units_where_entries_are_there() -> None:
    x = np.array([[0.0, 1.0, 3, 2], [1.0, -1.0, 5, 2], [9.0, 0.0, 0, 0], [2.0, 0.0, 4, 1]])
    there = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]], bool)
    drawn = np.stack([x, x + [0.5, 0, 1, 0]])
    a, b, n, site = criticism.column_checks(COLUMNS, x, drawn, there)
    assert [check.statistic for check in (a, b, n, site)] == ["mean a", "mean log b", "mean n", "share of site = west"]
    assert a.observed == pytest.approx(10 + 2 * np.mean([0, 1, 2]))  # without the entry that is missing
    np.testing.assert_allclose(a.replicated, [a.observed, a.observed + 1.0])
    assert a.shift == pytest.approx(0.5 / np.std([10, 12, 14], ddof=1))
    assert b.observed == pytest.approx(1.0) and n.replicated.tolist() == [3.0, 4.0] and site.observed == 0.5
    many = [Column(f"c{d}", "real") for d in range(20)]
    y = np.random.default_rng(0).normal(size=(30, 20))
    kept = criticism.column_checks(many, y, np.stack([y + np.arange(20.0)] * 2), np.ones(y.shape, bool))
    assert len(kept) == criticism.COLUMNS_CHECKED and kept[-1].statistic == "mean c19"


def test_a_tree_of_rows_is_checked_by_column_only_where_columns_are_given() -> None:
    x = np.zeros((5, 4), "float32")
    x[:, 3] = [0, 1, 1, 2, 1]
    tree = xr.DataTree.from_dict(
        {
            "observed_data": xr.Dataset({"x": (("datum", "d"), x), "there": (("datum", "d"), np.ones((5, 4), bool))}),
            "posterior_predictive": xr.Dataset({"x": (("chain", "draw", "datum", "d"), np.stack([[x, x]]))}),
        }
    )
    assert [c.statistic for c in criticism.predictive_by_site(tree)["x"]] == ["mean", "share of low values", "spread"]
    assert len(criticism.predictive_by_site(tree, COLUMNS)["x"]) == 4
