"""Sweeps: members are the fits that their seeds and settings name, go on where they stopped, and their spread."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from inference import Sweep, fit, load, sweep
from inference.fitting import sweeps
from inference.fitting.checkpoint import checkpoints
from inference.reporting.sweep_page import conclusion, deciding, sweep_report
from tests.toy import PPCA, register_toy, toy_data

OPTIONS = {"steps": 20, "batch_size": 32, "average": 0.9, "validate_every": 10, "clip": 1.0, "checkpoint_every": 10}
RATES = (0.01, 0.03)


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register_toy()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return toy_data(128)


@pytest.fixture(scope="module")
def found(x: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two seeds and two rates, as one program."""
    out = tmp_path_factory.mktemp("sweep") / "it"
    return sweep(
        PPCA(), x, seeds=2, grid={"learning_rate": RATES}, out=out, validation=x[:64], progress=False, **OPTIONS
    )


def test_members_are_the_fits_of_their_seeds_and_rates(found: Sweep, x: np.ndarray) -> None:
    assert list(found.table["run"]) == [f"learning_rate={rate},seed={seed}" for rate in RATES for seed in (0, 1)]
    for rate, seed in ((RATES[0], 1), (RATES[1], 0)):
        key = jax.random.key(seed)
        own = fit(PPCA().build(key), x, key=key, learning_rate=rate, validation=x[:64], progress=False, **OPTIONS)
        member = found.load(f"learning_rate={rate},seed={seed}")
        for name in ("step", "loss", "elbo", "grad_norm", "validation_elbo"):
            np.testing.assert_allclose(member.history[name], own.history[name], rtol=1e-5, err_msg=name)
        for name, value in own.params.items():
            np.testing.assert_allclose(member.params[name], value, rtol=1e-5, atol=1e-6)
        assert member.info["best_step"] == own.info["best_step"] and member.info["stopped"] == "steps"


def test_a_member_is_an_ordinary_run_that_resumes_alone(found: Sweep, x: np.ndarray, tmp_path: Path) -> None:
    from inference import resume

    run = found.folder / "learning_rate=0.01,seed=0"
    assert len(checkpoints(run / "checkpoint")) == 2
    whole = load(run)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in run.rglob("*"):
        target = copy / file.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.name != "step_00000020.npz":
            target.write_bytes(file.read_bytes())
    went_on = resume(copy, x, validation=x[:64], progress=False)
    np.testing.assert_allclose(went_on.params["W"], whole.params["W"], rtol=1e-5, atol=1e-6)


def test_a_sweep_goes_on_where_it_was_stopped(
    found: Sweep, x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"seeds": 2, "grid": {"learning_rate": RATES}, "validation": x[:64], "progress": False, **OPTIONS}
    save, asked = sweeps.Loop.after, []

    def after(self: object, state: object, at: int, *rest: object) -> object:
        if at == 12 and not asked:
            asked.append(at)
            os.kill(os.getpid(), signal.SIGINT)
        return save(self, state, at, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(sweeps.Loop, "after", after)
        with pytest.raises(KeyboardInterrupt, match="stopped at step 1[2-4] of 20"):
            sweep(PPCA(), x, out=tmp_path / "cut", **arguments)
    at = {int(checkpoints(run / "checkpoint")[-1].stem[5:]) for run in (tmp_path / "cut").glob("learn*")}
    assert len(at) == 1 and 12 <= at.pop() <= 14
    again = sweep(PPCA(), x, out=tmp_path / "cut", **arguments)
    pd.testing.assert_frame_equal(again.table.drop(columns="seconds"), found.table.drop(columns="seconds"), rtol=1e-5)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut").rglob("*.npz")}
    sweep(PPCA(), x, out=tmp_path / "cut", **arguments)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "cut").rglob("*.npz")}
    with pytest.raises(ValueError, match="holds a sweep with another grid"):
        sweep(PPCA(), x, out=tmp_path / "cut", **{**arguments, "grid": {"learning_rate": (0.01,)}})


def test_spread_is_over_seeds_and_leaves_out_failed_ones() -> None:
    table = pd.DataFrame({
        "batch_size": [8, 8, 8, 16], "seed": [0, 1, 2, 0], "stopped": ["steps", "steps", "failed", "steps"],
        "loss": [1.0, 3.0, np.nan, 5.0], "elbo": [-1.0, -3.0, np.nan, -5.0], "validation": [np.nan] * 4,
    })  # fmt: skip
    spread = sweeps.spread(table, ("batch_size",))
    assert list(spread["seeds"]) == [2, 1] and list(spread["failed"]) == [1, 0]
    assert spread["loss_mean"][0] == 2.0 and spread["loss_sd"][0] == pytest.approx(np.sqrt(2))
    assert np.isnan(spread["loss_sd"][1]) and "validation_mean" not in spread
    assert deciding(table) == "elbo"
    assert "one seed a setting says nothing" in conclusion(spread, ["8", "16"], "elbo")
    told = conclusion(spread.assign(elbo_sd=[0.1, 0.2], seeds=4), ["8", "16"], "elbo")
    # The standard error of the difference is sqrt((0.1^2 + 0.2^2) / 4).
    assert "‘8’ is first" in told and "3 ahead" in told and "0.11)" in told and "more than seeds make" in told
    assert "not told apart" in conclusion(spread.assign(elbo_sd=[4.0, 4.0], seeds=4), ["8", "16"], "elbo")


def test_the_page_shows_every_run(found: Sweep) -> None:
    page = sweep_report(found).read_text()
    assert "could not be drawn" not in page
    assert all(run in page for run in found.table["run"])
    assert (found.folder / "spread.png").exists() and (found.folder / "curves.png").exists()


def test_a_member_whose_numbers_end_stops_no_other(x: np.ndarray, tmp_path: Path) -> None:
    grid = {"learning_rate": (0.01, 1e30)}
    options = {"steps": 60, "batch_size": 32, "checkpoint_every": 60, "progress": False}
    found = sweep(PPCA(), x, seeds=1, grid=grid, out=tmp_path / "it", **options)
    assert list(found.table["stopped"]) == ["steps", "failed"] and list(found.spread()["failed"]) == [0, 1]
    assert np.isfinite(found.table["loss"].iloc[0])
    record = json.loads((tmp_path / "it" / "learning_rate=1e+30,seed=0" / "run.json").read_text())
    assert "were not finite" in record["info"]["error"]
    assert "is first" not in conclusion(found.spread(), ["a", "b"], "elbo")  # nothing to compare with


@pytest.mark.slow
def test_other_shapes_are_other_programs_in_processes(x: np.ndarray, tmp_path: Path) -> None:
    options = {"steps": 4, "batch_size": 32, "seeds": 1, "grid": {"latent": (1, 2)}, "progress": False}
    one = sweep(PPCA(), x, out=tmp_path / "one", **options)
    two = sweep(PPCA(), x, out=tmp_path / "two", processes=2, initializer=register_toy, **options)
    assert [two.load(run).params["W"].shape for run in two.table["run"]] == [(4, 1), (4, 2)]
    pd.testing.assert_frame_equal(one.table.drop(columns="seconds"), two.table.drop(columns="seconds"))


def test_processes_that_cannot_be_are_refused(x: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a sampler cannot be sent"):
        sweep(PPCA(), lambda key, n: jnp.zeros((n, 4)), steps=1, seeds=1, out=tmp_path / "x", processes=2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sweep(PPCA(), x, steps=1, seeds=1, out=tmp_path / "x", processes=0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"seeds": 0}, "different whole numbers"),
        ({"seeds": (1, 1)}, "different whole numbers"),
        ({"grid": {"learning_rat": (1.0,)}}, "did you mean 'learning_rate'"),
        ({"grid": {"learning_rate": ()}}, "different values"),
        ({"grid": {"learning_rate": (0.1, 0.1)}}, "different values"),
        ({"grid": {"learning_rate": (lambda step: 0.1,)}}, "names of folders"),
        ({"grid": {"latent": ("two",)}}, "latent"),
        ({"batch": 3}, "a fit takes no 'batch'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    x: np.ndarray, tmp_path: Path, arguments: dict, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        sweep(PPCA(), x, **{"steps": 1, "seeds": 1, "out": tmp_path / "x", **arguments})
    assert not (tmp_path / "x").exists()
