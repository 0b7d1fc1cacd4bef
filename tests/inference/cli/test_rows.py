"""The command line on arrays in .npy files, read from disk, and on trackers."""

import json
import sys
import types

import numpy as np
import pandas as pd
import pytest

from ppl_models import datasets
from tests.inference.cli.test_cli import call, untuned  # noqa: F401 - a fixture used by name

WORDS = (
    "--steps", "6", "--batch-size", "16", "--test-n", "20", "--quiet", "--validation", "30", "--no-evaluate",
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("untuned")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """200 digits in two shards."""
    folder = tmp_path_factory.mktemp("shards")
    x, _ = datasets.load("digits", "train", n=200)
    for i, part in enumerate(np.split(x, [120])):
        np.save(folder / f"digits{i}.npy", part)
    return folder, x


def test_a_folder_of_shards_is_fitted_resumed_and_evaluated(shards, tmp_path, capsys, monkeypatch):
    folder, x = shards
    told = types.ModuleType("tensorboardX")
    told.scalars = []

    class Writer:
        def __init__(self, place):
            told.place = place

        def add_text(self, name, text): ...
        def flush(self): ...
        def close(self): ...
        def add_scalar(self, name, value, step):
            told.scalars.append((name, step))

    told.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", told)
    out = tmp_path / "run"
    code, _, err = call(capsys, "fit", "mfcvae:tiny", "--data", folder, "--out", out, *WORDS, "--track", "tensorboard")
    assert code == 0, err
    assert "200 rows of 8x8 uint8, read from disk batch by batch" in err and "levels 17 -> 256" in err
    assert told.place == str(out / "tensorboard") and ("loss", 6) in told.scalars
    card = json.loads((out / "run.json").read_text())["card"]
    assert (card["kind"], card["rows"], card["validation"], card["shape"]) == ("rows", 200, 30, [8, 8])
    assert pd.read_csv(out / "history.csv")["step"].max() == 6
    from inference.cli import runs

    data = runs.load_data(card, None)
    assert len(data.stream) == data.size == 130 and len(data.test) == 20 and len(data.validation) == 30
    seen = np.concatenate([data.stream.read(np.arange(130)), data.validation, data.test])
    parts = {row.tobytes() for row in seen}
    assert len(parts) == 180 and parts <= {row.tobytes() for row in x}
    held_out = {row.tobytes() for row in runs.load_data(card, None, test_n=40).test}
    assert not held_out & {row.tobytes() for row in data.stream.read(np.arange(130))}
    code, _, err = call(capsys, "resume", out, "--quiet", "--no-evaluate")
    assert code == 0 and "is fitted already" in err
    np.save(folder / "more.npy", x[:1])
    code, _, err = call(capsys, "resume", out, "--quiet")
    assert code == 2 and "has 201 rows, the run was fitted to 200" in err
    (folder / "more.npy").unlink()


def test_wrong_files_and_options_are_usage_errors(shards, tmp_path, capsys, monkeypatch):
    folder, _ = shards
    out = tmp_path / "run"

    def refused(*words):
        code, _, err = call(capsys, "fit", *words, "--out", out, *WORDS)
        assert code == 2 and not out.exists(), err
        return err

    assert "which have none" in refused("mfcvae:tiny", "--data", folder, "--labels", "digit")
    (tmp_path / "empty").mkdir()
    assert "holds no .npy" in refused("mfcvae:tiny", "--data", tmp_path / "empty")
    assert "does not exist" in refused("mfcvae:tiny", "--data", tmp_path / "none.npy")
    assert "no data for MFCVAE" in refused("mfcvae:table", "--data", folder)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert "ppl-models[mlflow]" in refused("mfcvae:tiny", "--data", folder, "--track", "mlflow")
