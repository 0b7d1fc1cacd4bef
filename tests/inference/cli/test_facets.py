"""The commands that use a fitted run's facets: what they write, and how they refuse."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from inference.cli.app import main
from inference.cli.common import UsageError
from inference.cli.facets import use_of
from ppl_models.program import resolve


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """Leave the allocator and the compile cache of the test session as they are."""
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the tiny preset after two steps."""
    folder = tmp_path_factory.mktemp("facets") / "run"
    words = ["fit", "mfcvae:tiny", "--data", "digits", "--n", "60", "--batch-size", "20", "--steps", "2", "--test-n"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
        assert main([*words, "12", "--no-evaluate", "--quiet", "--out", str(folder)]) == 0
    return folder


def call(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def test_assign_writes_one_row_a_datum_and_facet(run, capsys, tmp_path):
    code, out, err = call(capsys, "assign", run, "--examples", "3")
    assert code == 0, err
    assert "mean entropy [nats]" in out and "12 data, rule average" in out
    assert all((run / "figures" / f"examples_{name}.png").is_file() for name in ("style", "digit"))
    table = pd.read_csv(run / "assignments.csv")
    assert list(table) == ["datum", "facet", "label", "probability", "entropy"]
    assert table.facet.tolist() == ["style", "digit"] * 12 and table.probability.between(0.25, 1).all()
    np.save(tmp_path / "mine.npy", np.zeros((3, 8, 8), "uint8"))
    words = ["--facet", "digit", "--rule", "at_mean", "--out", tmp_path / "mine.csv"]
    code, out, err = call(capsys, "assign", run, tmp_path / "mine.npy", *words)
    assert code == 0, err
    mine = pd.read_csv(tmp_path / "mine.csv")
    assert mine.facet.tolist() == ["digit"] * 3 and mine.label.nunique() == 1


def test_pictures_and_samples_of_a_cluster(run, capsys):
    for words, name in (
        (["swap", run, "--facet", "style", "--n", "1"], "swap_style.png"),
        (
            ["traverse", run, "--facet", "digit", "--n", "1", "--between", "0", "3", "--steps", "2"],
            "traverse_digit.png",
        ),
    ):
        code, out, err = call(capsys, *words)
        assert code == 0, err
        assert Path(out.strip()) == run / "figures" / name and (run / "figures" / name).stat().st_size > 1000
    words = ["--facet", "digit", "--cluster", "3", "--temperature", "0", "--n", "4"]
    code, out, err = call(capsys, "sample", run, *words)
    assert code == 0, err
    with np.load(run / "samples.npz") as drawn:
        assert drawn["x"].shape == (4, 8, 8)
        np.testing.assert_array_equal(drawn["z_digit"][0], drawn["z_digit"][3])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["assign", "RUN", "--facet", "digt"], "unknown facet 'digt' (did you mean 'digit'?)"),
        (["assign", "RUN", "digts"], "did you mean 'digits'?"),
        (["assign", "RUN", "absent.npy"], "no file 'absent.npy'"),
        (["assign", "RUN", "--draws", "0"], "--draws must be at least 1, got 0"),
        (["swap", "RUN", "--facet", "style", "--n", "7"], "takes 14 held-out data, the run has 12"),
        (["traverse", "RUN", "--facet", "digit", "--between", "0", "4"], "has the clusters 0 to 3, got 4"),
        (["sample", "RUN", "--facet", "digit"], "add --cluster C"),
        (["sample", "RUN", "--cluster", "1"], "add --facet NAME"),
        (["sample", "RUN", "--temperature", "0.5"], "is for --facet NAME --cluster C"),
        (["sample", "RUN", "--facet", "digit", "--cluster", "9"], "has the clusters 0 to 3, got 9"),
        (["swap", "RUN"], "--facet"),
    ],
)
def test_a_wrong_command_line_exits_2(run, capsys, words, says):
    code, out, err = call(capsys, *(run if word == "RUN" else word for word in words))
    assert code == 2 and out == "" and says in err


def test_a_family_without_facets_is_told_which_have_them():
    fitted = SimpleNamespace(program=SimpleNamespace(spec=resolve("hvae:tiny")), folder=Path("runs/h"))
    with pytest.raises(UsageError, match="family 'hvae', which has no swap of facets; families that do: mfcvae"):
        use_of(fitted, "swap")
