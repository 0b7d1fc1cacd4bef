"""The command line on a small mixed table: fit, assign, impute, report, resume, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from inference.cli.app import main

N = 90
FIT = ("--index", "patient", "--labels", "diagnosis", "--columns", "visits=count,note=drop", "--clusters", "3")
SMALL = ("--steps", "60", "--particles", "16", "--draws", "6", "--quiet")


def patients() -> pd.DataFrame:
    """Three groups of patients with missing entries, an id, a date, a label and a constant."""
    r = np.random.default_rng(0)
    g = np.arange(N) % 3
    frame = pd.DataFrame(
        {
            "patient": [f"P{i:03d}" for i in range(N)],
            "diagnosis": np.array(["a", "b", "c"])[g],
            "age": np.round(r.normal(np.array([40, 55, 70])[g], 4), 1),
            "crp": np.round(np.exp(r.normal(np.array([0, 2, 4])[g], 0.4)), 2),
            "visits": r.poisson(np.array([1, 4, 9])[g]),
            "smoker": np.where(r.random(N) < np.array([0.1, 0.5, 0.9])[g], "yes", "no"),
            "stage": np.array(["I", "II", "III"])[np.where(r.random(N) < 0.8, g, r.integers(0, 3, N))],
            "seen": [f"2024-{month:02d}-{day:02d}" for month, day in r.integers(1, (13, 29), (N, 2))],
            "note": r.integers(0, 4, N),
            "country": "BE",
        }
    )  # fmt: skip
    for column in ("age", "crp", "visits", "smoker", "stage"):
        frame.loc[r.random(N) < 0.12, column] = None
    return frame


def run(*words: Any) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module", autouse=True)
def untuned():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the table and a run fitted to it."""
    folder = tmp_path_factory.mktemp("tables")
    patients().to_csv(folder / "patients.csv", index=False)
    assert run("fit", "mfcvae:table", "--data", folder / "patients.csv", "--out", folder / "p", *FIT, *SMALL) == 0
    return folder


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The same run, to be changed."""
    return Path(shutil.copytree(place / "p", tmp_path / "p"))


def card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["card"]


def test_the_run_remembers_the_file_and_its_columns(place):
    found = card(place / "p")
    words = [found[name] for name in ("name", "kind", "labels", "index")]
    assert words == ["patients.csv", "table", "diagnosis", "patient"]
    assert found["columns"] == {"visits": "count", "note": "drop"} and len(found["sha256"]) == 64
    assert (found["rows"], found["test_n"], found["validation"]) == (90, 18, 10)
    columns = json.loads((place / "p" / "spec.json").read_text())["spec"]["likelihood"]["columns"]
    assert [(c["name"], c["kind"]) for c in columns] == [
        ("age", "real"), ("crp", "positive"), ("visits", "count"), ("smoker", "binary"), ("stage", "categorical"),
    ]  # fmt: skip
    shown = pd.read_csv(place / "p" / "columns.csv").set_index("column")
    assert shown.loc[["diagnosis", "seen", "note", "country"], "kind"].tolist() == ["label", *["left out"] * 3]
    record = json.loads((place / "p" / "run.json").read_text())
    assert record["arguments"]["batch_size"] == 62 and record["arguments"]["validation"]


def test_rows_are_dealt_once_and_each_to_one_use(place):
    from inference.cli import table_file

    found = table_file.load(card(place / "p"))
    parts = [found.train, found.validation, found.test]
    assert [len(part["x"]) for part in parts] == [62, 10, 18]
    table, frame = table_file.opened(card(place / "p"))
    rows = {row.tobytes() for part in parts for row in np.concatenate([part["x"], part["there"]], 1)}
    assert rows == {row.tobytes() for row in np.concatenate([table.x["x"], table.x["there"]], 1)}
    held_out = frame.index.get_indexer(found.names)
    np.testing.assert_array_equal(found.test["x"], table.x["x"][held_out])
    np.testing.assert_array_equal(found.factors["diagnosis"], held_out % 3)
    few = table_file.load(card(place / "p"), test_n=5)
    np.testing.assert_array_equal(few.test["x"], found.test["x"][:5])


def test_assign_has_one_line_a_row_of_the_file_under_its_own_index(place, capsys):
    assert run("assign", place / "p") == 0
    said = capsys.readouterr()
    assert "all 90 rows" in said.err and "of 3" in said.out
    found = pd.read_csv(place / "p" / "assignments.csv")
    assert list(found) == ["patient", "cluster_cluster", "probability_cluster", "entropy_cluster"]
    assert found["patient"].tolist() == patients()["patient"].tolist()
    p = found["probability_cluster"]
    assert ((p >= 1 / 3) & (p <= 1 + 1e-6)).all() and (found["entropy_cluster"] <= np.log(3) + 1e-6).all()
    # Rows of a file of their own get the clusters that they have in the table.
    patients().drop(columns=["diagnosis", "note"]).iloc[:7].to_csv(place / "new.csv", index=False)
    assert run("assign", place / "p", place / "new.csv", "--out", place / "some.csv") == 0
    pd.testing.assert_frame_equal(pd.read_csv(place / "some.csv"), found.iloc[:7])


def test_impute_fills_what_is_missing_and_nothing_else(place, capsys):
    assert run("impute", place / "p", "--draws", 20, "--interval", 0.8) == 0
    assert "80% interval" in capsys.readouterr().out
    frame = patients()
    entries = pd.read_csv(place / "p" / "imputed.csv")
    assert list(entries) == ["patient", "column", "value", "lower", "upper", "probability"]
    modelled = ["age", "crp", "visits", "smoker", "stage"]
    assert len(entries) == frame[modelled].isna().sum().sum()
    numbers = entries[entries["column"].isin(["age", "crp", "visits"])]
    value, lower, upper = (numbers[name].astype(float) for name in ("value", "lower", "upper"))
    assert ((lower <= value) & (value <= upper)).all() and numbers["probability"].isna().all()
    classes = entries[entries["column"] == "stage"]
    assert classes["value"].isin(["I", "II", "III"]).all() and classes["probability"].between(1 / 3, 1).all()
    filled = pd.read_csv(place / "p" / "imputed_table.csv")
    assert list(filled) == list(frame) and not filled[modelled].isna().any().any()
    assert filled["visits"].dtype.kind == "i"
    for name in frame:
        known = frame[name].notna()
        assert (filled.loc[known, name] == frame.loc[known, name]).all(), name
    first = entries.iloc[0]
    row = filled.set_index("patient").loc[first["patient"]]
    assert str(row[first["column"]]).removesuffix(".0") == str(first["value"]).removesuffix(".0")


def test_the_page_shows_columns_clusters_and_rows(place):
    page = (place / "p" / "report.html").read_text()
    assert "could not be drawn" not in page
    for said in (
        "training improved on its start by", "what sets each cluster apart", "most typical rows", "stage = III",
        "Rows that the model finds least likely", "95 % interval",
    ):  # fmt: skip
        assert said in page, said
    drawn = {file.stem for file in (place / "p" / "figures").glob("*.png")}
    assert {"predicted_columns", "prior_samples", "explained_columns", "profiles_of_cluster"} <= drawn
    assert not drawn & {"reconstructions", "lowest_evidence"}
    checks = pd.read_csv(place / "p" / "diagnosis.csv")["check"].tolist()
    assert sum(check.startswith("predictive check: ") and "(worst: " in check for check in checks) == 3


def test_the_other_verbs_take_the_run(place, copied, capsys):
    assert run("diagnose", copied) == 0
    assert "18 data" in capsys.readouterr().out
    assert run("resume", copied, "--no-evaluate", "--quiet") == 0
    assert run("report", copied) == 0
    assert run("clusters", copied) == 0
    assert "diagnosis" in capsys.readouterr().out
    assert run("sample", copied, "--n", 5) == 0
    assert run("compare", copied, "--baselines", "--out", copied.parent / "compared") == 0


def test_the_file_of_a_run_may_change_or_go(place, copied, capsys, tmp_path):
    moved = tmp_path / "patients.csv"
    patients().iloc[::-1].to_csv(moved, index=False)
    record = json.loads((copied / "run.json").read_text())
    record["card"] |= {"path": str(moved), "absolute": str(moved)}
    (copied / "run.json").write_text(json.dumps(record))
    assert run("assign", copied, "--draws", 2) == 0
    assert "has changed since the run was fitted" in capsys.readouterr().err
    moved.unlink()
    assert run("assign", copied) == 2
    assert "which is gone; put it back there" in capsys.readouterr().err
    assert run("diagnose", copied) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--columns", "visit=count"), "--columns names column 'visit' (did you mean 'visits'?)"),
        (("--columns", "visits=counts"), "must be one of real, positive, count, binary, categorical, drop"),
        (("--columns", "visits"), "--columns takes NAME=KIND"),
        (("--columns", "visits=count,visits=real"), "names 'visits' twice"),
        (("--columns", "stage=real"), "column 'stage', row 0: must be a number"),
        (("--labels", "diagnose"), "--labels names column 'diagnose' (did you mean 'diagnosis'?)"),
        (("--index", "name"), "--index names column 'name'"),
        (("--clusters", "3,4"), "2 numbers for 1 facets (cluster)"),
        (("--clusters", "three"), "--clusters takes whole numbers"),
        (("--clusters", "0"), "clusters must be an integer >= 1"),
        (("--validation", "80"), "leaves nothing to fit of 72 rows"),
        (("--n", "80"), "more than the 72 rows that are not held out"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_before_any_work(place, words, said, capsys):
    assert run("fit", "mfcvae:table", "--data", place / "patients.csv", "--out", place / "wrong", *words) == 2
    assert said in capsys.readouterr().err
    assert not (place / "wrong").exists()


def test_a_table_needs_a_model_of_tables_and_a_file(place, capsys):
    out = ("--out", place / "wrong")
    assert run("fit", "mfcvae:digits", "--data", place / "patients.csv", *out) == 2
    assert "mfcvae:table" in capsys.readouterr().err
    assert run("fit", "mfcvae:table", "--data", "digits", *out) == 2
    assert "scores the columns of a table" in capsys.readouterr().err
    assert run("fit", "mfcvae:table", "--data", place / "none.csv", *out) == 2
    assert "no file" in capsys.readouterr().err
    assert run("fit", "mfcvae:digits", "--data", "digits", "--labels", "digit", *out) == 2
    assert "--labels is for a table" in capsys.readouterr().err
    assert run("fit", "hvae", "--data", "digits", "--clusters", "3", *out) == 2
    assert "--clusters is for models with facets" in capsys.readouterr().err
    (place / "words.csv").write_text("a,a\n1,2\n")
    assert run("fit", "mfcvae:table", "--data", place / "words.csv", *out) == 2
    assert "more than once" in capsys.readouterr().err


def test_use_refuses_other_tables_and_other_runs(place, capsys):
    assert run("assign", place / "p", "digits") == 2
    assert "is no table" in capsys.readouterr().err
    assert run("assign", place / "p", "--examples", 3) == 2
    assert "--examples pictures images" in capsys.readouterr().err
    patients().drop(columns="age").to_csv(place / "less.csv", index=False)
    assert run("impute", place / "p", place / "less.csv") == 2
    assert "columns ['age'] are not in the frame" in capsys.readouterr().err
    patients().dropna().to_csv(place / "whole.csv", index=False)
    assert run("impute", place / "p", place / "whole.csv") == 2
    assert "nothing is missing" in capsys.readouterr().err
    assert run("impute", place / "p", "--interval", 90) == 2
    assert "between 0 and 1" in capsys.readouterr().err


def test_dates_and_true_or_false_are_filled_as_they_are_written():
    from inference.checking.imputation import Imputation
    from inference.cli.impute import by_day, fill, summary
    from ppl_models.program import Column

    columns = (
        Column("seen", "real", loc=19_000.0, scale=10.0, date=True), Column("ok", "binary", values=(False, True)),
        Column("n", "count"), Column("grade", "categorical", values=(1, 2, 3)),
    )  # fmt: skip
    frame = pd.DataFrame({"seen": ["2022-01-09", None], "ok": [True, None], "n": [7.0, None], "grade": [3.0, None]})
    there = np.array([[True] * 4, [False] * 4])
    draws = np.array([[1.0, 1, 4, 0], [2.0, 1, 5, 0], [3.0, 0, 6, 2]], "float32")
    at = np.array([1, 1, 1, 1]), np.arange(4)
    x = np.zeros((2, 4), "float32")
    found = Imputation(columns, x, there, *at, draws, np.array([np.nan, 3.0]), frame.index)
    filled = fill(frame, found)
    assert filled.iloc[1].tolist() == ["2022-01-28", True, 5, 1]
    assert filled.iloc[0].tolist() == ["2022-01-09", True, 7, 3]
    assert filled["n"].dtype.kind == "i" and filled["grade"].dtype.kind == "i"
    entries = by_day(found.frame(0.5), columns)
    assert entries.loc[0, ["value", "lower", "upper"]].tolist() == ["2022-01-28", "2022-01-18", "2022-02-07"]
    assert entries["probability"].tolist()[1] == pytest.approx(2 / 3)
    lines = [summary(column, entries, 2) for column in columns]
    assert lines[0][3:] == ["2022-01-28 to 2022-01-28", "20 days on average"] and lines[3][3] == "1 100%"
