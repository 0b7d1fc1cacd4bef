"""The command line on a small matrix of counts: fit, assign, sample, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from inference.cli import count_file
from inference.cli.app import main
from tests.ppl_models.datasets.test_counts import write_h5ad

N, D = 60, 6


def run(*words: Any) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A folder with cells of two types, one of them empty, and a run fitted to them."""
    folder = tmp_path_factory.mktemp("counts")
    r, kind = np.random.default_rng(0), np.arange(N) % 2
    x = r.poisson(np.where(kind[:, None] == np.arange(D) % 2, 20.0, 4.0))
    x[7], x[:, 3] = 0, 0
    write_h5ad(folder / "cells.h5ad", sparse.csr_array(x.astype("float32")), cell_type=(kind, ["B", "T"]))
    sparse.save_npz(folder / "more.npz", sparse.csr_array(x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
        words = ("--labels", "cell_type", "--clusters", 2, "--steps", 20, "--no-evaluate", "--quiet")
        assert run("fit", "mfcvae:counts", "--data", folder / "cells.h5ad", "--out", folder / "g", *words) == 0
        yield folder


def test_a_run_keeps_the_names_of_the_columns_and_deals_the_rows_of_the_file(place: Path) -> None:
    card = json.loads((place / "g" / "run.json").read_text())["card"]
    likelihood = json.loads((place / "g" / "spec.json").read_text())["spec"]["likelihood"]
    assert likelihood["names"] == ["g0", "g1", "g2", "g4", "g5"] and card["rows"] == N - 1 and card["shape"] == [5]
    found = count_file.load(card, likelihood["names"])
    parts = [found.train, found.validation, found.test]
    assert [len(part["x"]) for part in parts] == [42, 6, 11] and sorted(found.factors) == ["cell_type"]
    assert "c7" not in found.names and set(np.unique(found.factors["cell_type"])) == {0, 1}
    columns = pd.read_csv(place / "g" / "columns.csv", index_col="column")
    assert columns.loc["g3", "why"] == "no count in any row"


def test_rows_are_assigned_under_their_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("assign", place / "g", "--draws", 4) == 0
    assert "1 rows without a count are left out: c7" in capsys.readouterr().err
    table = pd.read_csv(place / "g" / "assignments.csv", index_col="index")
    assert len(table) == N - 1 and table.index[:2].tolist() == ["c0", "c1"]
    kind = np.array([int(name[1:]) % 2 for name in table.index])
    agree = (table["cluster_cluster"].to_numpy() == kind).mean()
    assert max(agree, 1 - agree) > 0.95


def test_draws_are_of_the_libraries_of_held_out_rows(place: Path) -> None:
    assert run("sample", place / "g", "--n", 4) == 0
    with np.load(place / "g" / "samples.npz") as found:
        assert found["x"].shape == (4, 5) and found["library"].shape == (4,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "mfcvae:digits", "--data", "cells.h5ad"), "matrix of counts, MFCVAE .* mfcvae:counts"),
        (("fit", "mfcvae:counts", "--data", "digits"), "no data for MFCVAE, which scores counts"),
        (("fit", "mfcvae:counts", "--data", "none.h5ad"), "no file"),
        (("fit", "mfcvae:counts", "--data", "more.npz", "--labels", "kind"), "without labels"),
        (("fit", "mfcvae:counts", "--data", "cells.h5ad", "--index", "kind"), "--index is for a table"),
        (("fit", "mfcvae:table", "--data", "t.csv", "--top", "3"), "--top is for counts"),
        (("swap", "g", "--facet", "cluster"), "writes pictures of images"),
        (("impute", "g"), "which is no table"),
        (("assign", "g", "more.npz"), "'g0'.* not in the matrix"),
    ],
)
def test_what_cannot_be_done_is_said(
    place: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    out = ("--out", "other") if words[0] == "fit" else ()
    assert run(*words, *out) == 2
    error = capsys.readouterr().err
    assert re.search(said, error.splitlines()[-1]), error
    assert not (place / "other").exists()
