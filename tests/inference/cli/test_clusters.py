"""``ppl-models clusters`` on run folders whose evaluation is already there: nothing is trained here."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from inference import exact_table, save_evidence, save_posterior
from inference.cli.runs import make_card
from inference.fitting.record import FORMAT
from ppl_models.datasets import load
from ppl_models.program import Observation, resolve, spec_to_json
from tests.inference.cli.test_cli import call, untuned  # noqa: F401 - a fixture that is used by its name

N = 40


@pytest.fixture(scope="module")
def program():
    import jax

    return resolve("mfcvae:tiny").build(jax.random.key(0))


@pytest.fixture
def folders(tmp_path, program, monkeypatch):
    """Three runs of two configurations; their facet `digit` knows the digit, less well from run to run."""
    x, factors = load("digits", "test", n=N, seed=0)
    card = make_card("digits", n=150, validation=0, test_n=N)
    monkeypatch.setattr(
        "inference.cli.runs.open_run",
        lambda folder, plugins: (SimpleNamespace(program=program, folder=folder), card),
    )
    dims = ("chain", "draw", "datum")
    for i, name in enumerate(("long-0", "long-1", "short-0")):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(i)
        digit = np.where(rng.random(N) < 0.2 * i, rng.integers(0, 10, N), factors["digit"])
        tree = {
            "resp_digit": ((*dims, "k"), np.eye(10)[digit][None, None]),
            "resp_style": ((*dims, "l"), np.broadcast_to(np.eye(3)[rng.integers(0, 3, N)], (1, 1, N, 3))),
        }
        groups = {"/posterior": xr.Dataset(tree), "/observed_data": xr.Dataset({"x": (("datum", "a", "b"), x)})}
        save_posterior(xr.DataTree.from_dict(groups), folder)
        save_evidence(exact_table(program, x, rng.normal(-100 - i, 0.1, N)), folder)
        arguments = {"steps": 9 if name.startswith("long") else 5, "key": [0, i]}
        record = {"format": FORMAT, "card": card, "arguments": arguments, "info": {}}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "spec.json").write_text(spec_to_json(program.spec))
    return tmp_path


def test_one_run_beside_baselines_of_the_same_k(folders, capsys):
    code, out, err = call(capsys, "clusters", folders / "long-0", "--baselines")
    assert code == 0 and "baselines: 3, 10 clusters, fitted to the 150 training data" in err, err
    lines = [line.split() for line in out.splitlines()]
    assert lines[2][:4] == ["digit", "3", "style", "model"] and lines[7][:4] == ["digit", "10", "digit", "model"]
    assert "long-0: facets digit and style share NMI" in out
    table = pd.read_csv(folders / "long-0" / "clustering.csv")
    assert len(table) == 2 + 2 * 4 and (table.loc[table["facet"] == "digit", "accuracy"] == 1).all()
    assert {path.name for path in (folders / "long-0").iterdir()} == {
        "clustering.csv", "evidence.csv", "evidence.json", "posterior.nc", "run.json", "spec.json",
    }  # fmt: skip


def test_several_runs_agree_and_one_is_chosen(folders, capsys):
    runs, out = [folders / name for name in ("long-0", "long-1", "short-0")], folders / "out"
    code, text, err = call(capsys, "clusters", *runs, "--out", out)
    assert code == 0 and "chosen: run long-0, configuration long (rule: highest held-out evidence" in text, err
    assert {path.name for path in out.iterdir()} == {
        "clustering.csv", "cross_facets.csv", "stability.csv", "choice.csv", "runs.csv", "check.csv", "choice.png",
    }  # fmt: skip
    assert pd.read_csv(out / "choice.csv")["configuration"].tolist() == ["long", "short-0"]
    assert len(pd.read_csv(out / "stability.csv")) == 3 * 2
    code, text, _ = call(capsys, "clusters", *runs, "--out", out, "--json")
    found = json.loads(text)
    assert code == 0 and [row["chosen"] for row in found["runs"]] == [True, False, False]
    assert found["choice"][1]["stability"] is None and found["check"][0]["factor"] == "digit"


def test_clusters_refuses_what_it_cannot_read(folders, capsys, program, monkeypatch):
    code, _, err = call(capsys, "clusters", "absent", "./absent")
    assert code == 2 and "one or more different run folders" in err
    other = SimpleNamespace(
        observation=Observation("other"), shape=program.shape, model=program.model, spec=program.spec
    )
    other.sampler = None
    card = make_card("digits", n=150, validation=0, test_n=N)
    found = {"long-0": program, "long-1": other}
    monkeypatch.setattr(
        "inference.cli.runs.open_run",
        lambda folder, plugins: (SimpleNamespace(program=found[folder.name], folder=folder), card),
    )
    words = ["clusters", folders / "long-0", folders / "long-1", "--out", folders / "out"]
    code, _, err = call(capsys, *words)
    assert code == 2 and "scores 'other'" in err and "same likelihood" in err
    other.model = lambda x=None, size=None: None
    code, _, err = call(capsys, *words)
    assert code == 2 and "holds no clustering" in err and not (folders / "out").exists()
