"""Callbacks of a fit: exactly the rows of the history, a stop in good order, failures that end nothing, notebooks."""

import os
import signal
import sys
import types
import warnings

import jax
import numpy as np
import pytest

from inference.fitting import FitInterrupted, MLflow, TensorBoard, Watcher, WeightsAndBiases, fit, resume
from tests.toy import PPCA, register_toy, toy_data

KEY = jax.random.key(3)
OPTIONS = {"steps": 20, "batch_size": 32, "progress": False, "key": KEY, "steps_per_dispatch": 1}


@pytest.fixture(scope="module")
def program():
    register_toy()
    return PPCA().build(jax.random.key(0))


@pytest.fixture(scope="module")
def x():
    return toy_data()


@pytest.fixture(scope="module")
def whole(program, x):
    """A fit that told a watcher and a function, and what they were told."""
    told, watcher = [], Noting()
    found = fit(
        program, x, validation=x[:50], validate_every=5, card={"name": "toy"}, **OPTIONS,
        callbacks=[lambda step, figures: told.append((step, figures)), watcher],
    )  # fmt: skip
    return found, told, watcher


class Noting(Watcher):
    """Keeps what it is told, and asks for a stop after ``last``."""

    def __init__(self, last=10**9):
        self.last, self.facts, self.steps, self.info = last, None, [], None

    def begin(self, facts):
        self.facts = facts

    def report(self, step, figures):
        self.steps.append(step)
        return step >= self.last

    def end(self, info):
        self.info = info


def test_they_get_the_rows_of_the_history(whole):
    found, told, watcher = whole
    rows = [{k: v for k, v in row.items() if v == v} for row in found.history.to_dict("records")]
    assert [{"step": step, **figures} for step, figures in told] == rows
    assert watcher.steps == found.history["step"].tolist() == list(range(1, 21))
    assert watcher.info == found.info and found.info["stopped"] == "steps"
    assert watcher.facts["spec"]["family"] == "test_ppca" and watcher.facts["card"] == {"name": "toy"}
    assert watcher.facts["batch_size"] == 32 and watcher.facts["step"] == 0 and "key" not in watcher.facts


def test_one_may_end_the_fit_which_goes_on_later_to_the_same_bits(program, x, whole, tmp_path):
    first, second = Noting(last=8), Noting()
    cut = fit(program, x, validation=x[:50], validate_every=5, out=tmp_path / "r", **OPTIONS, callbacks=[first])
    assert cut.info["stopped"] == first.info["stopped"] == "callback" and cut.info["steps"] == 8
    found = resume(tmp_path / "r", x, validation=x[:50], progress=False, callbacks=[second])
    assert first.steps + second.steps == list(range(1, 21)) and second.facts["step"] == 8
    jax.tree.map(np.testing.assert_array_equal, found.params, whole[0].params)


def test_one_that_fails_is_warned_about_once_and_changes_nothing(program, x, whole):
    class Broken(Noting):
        def report(self, step, figures):
            super().report(step, figures)
            raise ConnectionError("no route to the tracker")

    broken = Broken()
    with pytest.warns(UserWarning, match="Broken failed .ConnectionError: no route") as warned:
        found = fit(program, x, validation=x[:50], validate_every=5, **OPTIONS, callbacks=[broken])
    assert len(warned) == 1 and len(broken.steps) == 20 and broken.info == found.info
    jax.tree.map(np.testing.assert_array_equal, found.params, whole[0].params)
    with pytest.raises(ValueError, match=r"a callback is a function \(step, figures\) or a Watcher, got <class"):
        fit(program, x, **OPTIONS, callbacks=[Noting])


def test_the_end_is_told_after_an_error_too(program):
    watcher = Noting()
    with pytest.raises(FloatingPointError):
        fit(program, np.full((64, 4), 3e38, "float32"), **OPTIONS, callbacks=[watcher])
    assert watcher.info["stopped"].startswith("FloatingPointError: ")


def test_an_interrupted_cell_of_a_notebook_keeps_the_fit(program, x, tmp_path, monkeypatch, capsys):
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def interrupting(step, figures):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    def run():
        fit(program, x, out=tmp_path / "r", **OPTIONS, callbacks=[interrupting])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}), user_ns={"run": run})
        done = shell.run_cell("run()")
        assert isinstance(done.error_in_exec or sys.last_value, KeyboardInterrupt)
        after = shell.run_cell("import sys; found = sys.last_value.fit")
    assert after.success and isinstance(sys.last_value, FitInterrupted)
    found = shell.user_ns["found"]
    assert found.info["stopped"] == "interrupted" and found.info["steps"] in (7, 8)
    assert np.isfinite(found.params["W"]).all() and len(found.history) == found.info["steps"]
    assert resume(tmp_path / "r", x, progress=False).info["steps"] == 20
    capsys.readouterr()


def test_a_live_plot_shows_every_row_and_is_drawn_anew(whole, monkeypatch):
    from inference.reporting import LivePlot

    shown = []

    class Handle:
        def update(self, figure):
            shown.append(figure)

    def display(figure, display_id):
        assert display_id is True
        shown.append(figure)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    plot = LivePlot(every=0.0)
    plot.begin({})
    for step, figures in whole[1]:
        plot.report(step, figures)
    plot.end({})
    assert len(shown) == 21
    np.testing.assert_allclose(-shown[-1].axes[0].lines[0].get_ydata(), whole[0].history["elbo"])
    with pytest.raises(ValueError, match="at least 0"):
        LivePlot(every=-1.0)


class Calls(types.ModuleType):
    """A module whose functions, and the objects that they return, note how they were called."""

    def __init__(self, name, calls):
        super().__init__(name)
        self.__dict__["calls"] = calls

    def __getattr__(self, name):
        def called(*args, **kwargs):
            self.calls.append((f"{self.__name__}.{name}", args, kwargs))
            return Calls(f"{self.__name__}.{name}", self.calls)

        return Calls(f"{self.__name__}.summary", self.calls) if name == "summary" else called


@pytest.mark.parametrize("tracker", ["tensorboardX", "mlflow", "wandb"])
def test_trackers_pass_on_what_they_are_told(tracker, whole, monkeypatch):
    found, told, watcher = whole
    calls = []
    monkeypatch.setitem(sys.modules, tracker, Calls(tracker, calls))
    makers = {
        "tensorboardX": lambda: TensorBoard("some/folder"),
        "mlflow": lambda: MLflow(run_name="toy"),
        "wandb": lambda: WeightsAndBiases(project="toy", mode="offline"),
    }
    one = makers[tracker]()
    one.begin(watcher.facts)
    for step, figures in told:
        one.report(step, figures)
    one.end(found.info)
    losses = found.history["loss"].tolist()
    named = {name: (args, kwargs) for name, args, kwargs in calls}
    if tracker == "tensorboardX":
        assert named["tensorboardX.SummaryWriter"][0] == ("some/folder",)
        scalars = [args for name, args, _ in calls if name.endswith("add_scalar")]
        assert [value for name, value, _ in scalars if name == "loss"] == losses
        assert calls[-1][0].endswith("close")
    elif tracker == "mlflow":
        assert named["mlflow.start_run"][1] == {"run_name": "toy"}
        assert named["mlflow.log_params"][0][0]["spec.family"] == "test_ppca"
        assert [args[0]["loss"] for name, args, _ in calls if name == "mlflow.log_metrics"] == losses
        assert named["mlflow.end_run"][0] == ("FINISHED",)
    else:
        assert named["wandb.init"][1] == {"config": watcher.facts, "project": "toy", "mode": "offline"}
        assert [args[0]["loss"] for name, args, _ in calls if name == "wandb.init.log"] == losses
        assert calls[-1][0] == "wandb.init.finish"
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(ImportError, match=r"pip install 'ppl-models\["):
        makers[tracker]()


def test_files_of_tensorboard(program, x, tmp_path):
    pytest.importorskip("tensorboardX")
    fit(program, x, **OPTIONS, callbacks=[TensorBoard(tmp_path)])
    (written,) = tmp_path.glob("events.out.tfevents.*")
    content = written.read_bytes()
    assert content.count(b"grad_norm") >= 20 and b"test_ppca" in content
