"""The command line on Parquet tables that are read row group by row group."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.inference.cli.test_cli import call, untuned  # noqa: F401 - a fixture used by name

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("untuned")
WORDS = ("--steps", "6", "--batch-size", "16", "--test-n", "20", "--quiet", "--no-evaluate")


def frame(seed, n=300):
    noise = np.random.default_rng(seed)
    size = noise.normal(size=n)
    return pd.DataFrame(
        {
            "size": size,
            "dose": np.exp(size + 0.1 * noise.normal(size=n)),
            "site": np.asarray(["east", "west"])[(size > 0).astype(int)],
            "note": [f"text {i}" for i in range(n)],
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """600 rows in two files of three row groups each."""
    place = tmp_path_factory.mktemp("tables")
    for seed in range(2):
        frame(seed).to_parquet(place / f"{seed}.parquet", row_group_size=100)
    return place


def test_a_folder_of_tables_is_fitted_and_evaluated_by_row_groups(folder, tmp_path, capsys):
    out = tmp_path / "run"
    code, _, err = call(capsys, "fit", "mfcvae:table", "--data", folder, "--out", out, *WORDS, "--validation", "40")
    assert code == 0, err
    assert "600 rows in 6 row groups: 300 to fit, 40 to choose the best step by, 200 held out" in err
    card = json.loads((out / "run.json").read_text())["card"]
    assert (card["kind"], card["rows"], card["shape"]) == ("parquet", 600, [3])
    kinds = pd.read_csv(out / "columns.csv").set_index("column")["kind"].to_dict()
    assert kinds == {"size": "real", "dose": "positive", "site": "binary", "note": "left out"}
    from inference.cli import parquet_file

    found = parquet_file.load(card)
    assert found.stream.columns == ["size", "dose", "site"] and len(found.stream) == 300
    rows = parquet_file.opened(str(folder))
    groups = parquet_file.groups_of(card)
    assert sorted(sum(groups, [])) == list(range(6))
    held_out = rows.read(np.asarray(groups[0]))["size"].to_numpy()
    from inference import load

    columns = load(out).program.observation.columns
    back = columns[0].decode(parquet_file.load(card, columns).test["x"][:, 0])
    assert all(np.abs(held_out - value).min() < 1e-4 for value in back)
    x, rows = parquet_file.rows_for(None, card, columns)
    assert len(rows) == len(x["x"]) == 20 and set(rows["site"]) <= {"east", "west"}
    assert "20 rows of" in capsys.readouterr().err


def test_what_needs_the_whole_table_is_refused(folder, tmp_path, capsys):
    def refused(*words, data=folder):
        code, _, err = call(capsys, "fit", "mfcvae:table", "--data", data, "--out", tmp_path / "run", *WORDS, *words)
        assert code == 2 and not (tmp_path / "run").exists(), err
        return err

    assert "--labels site needs the whole table in memory" in refused("--labels", "site")
    assert "--n 100 needs the whole table" in refused("--n", "100")
    few = tmp_path / "few"
    few.mkdir()
    frame(0).to_parquet(few / "0.parquet", row_group_size=200)
    assert "2 row groups, expected at least 3" in refused(data=few)
