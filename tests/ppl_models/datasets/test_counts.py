"""Matrices of counts: sparse, dense and framed, their files, and what is refused or left out by name."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ppl_models import datasets
from ppl_models.datasets import count_matrices

X = np.array([[2, 0, 1, 0], [0, 0, 0, 0], [5, 300, 0, 0], [1, 1, 1, 0]])


def write_h5ad(path: Path, x: Any, **obs: Any) -> Path:
    """The layout of AnnData 0.8: ``x`` dense, or CSR or CSC."""
    with h5py.File(path, "w") as file:
        if sparse.issparse(x):
            group = file.create_group("X")
            group.attrs["encoding-type"], group.attrs["shape"] = f"{x.format}_matrix", x.shape
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(x, part)
        else:
            file["X"] = x
        for part, size, letter in (("obs", x.shape[0], "c"), ("var", x.shape[1], "g")):
            group = file.create_group(part)
            group.attrs["_index"] = "_index"
            group["_index"] = [f"{letter}{i}" for i in range(size)]
        for name, (codes, categories) in obs.items():
            group = file["obs"].create_group(name)
            group["codes"], group["categories"] = np.asarray(codes, "int8"), categories
    return path


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_array, sparse.coo_array, pd.DataFrame])
def test_every_form_gives_the_same_rows_and_names_what_is_left_out(make: Any) -> None:
    found = datasets.counts(make(X), names=list("abcd"))
    assert found.names == ("a", "b", "c") and found.left_out == {"d": "no count in any row"}
    assert found.empty == (1,) and found.index.tolist() == [0, 2, 3] and len(found) == 3 and found.shape == (3,)
    np.testing.assert_array_equal(found.x["x"], X[[0, 2, 3], :3])
    np.testing.assert_array_equal(found.x["library"], [3, 305, 3])
    assert found.x["x"].dtype == np.uint16 and found.library == 3


def test_names_and_labels_of_a_frame() -> None:
    frame = pd.DataFrame(X, columns=["ball", "goal", "vote", "law"], index=["p", "q", "r", "s"])
    found = datasets.counts(frame, labels={"topic": ["sport", "sport", None, "law"]})
    assert found.names == ("ball", "goal", "vote") and found.empty == ("q",) and found.index.tolist() == ["p", "r", "s"]
    assert found.factors["topic"].tolist() == [1, -1, 0] and found.label_values["topic"] == ("law", "sport")
    sparse_frame = frame.astype(pd.SparseDtype("int64", 0))
    np.testing.assert_array_equal(datasets.counts(sparse_frame).x["x"], found.x["x"])


def test_a_library_of_ones_own_and_columns_of_ones_own() -> None:
    found = datasets.counts(X, library=[10, 10, 400, 20], columns=["column 3", "column 0"])
    assert found.names == ("column 3", "column 0") and found.x["x"].tolist() == [[0, 2], [0, 5], [0, 1]]
    assert found.x["library"].tolist() == [10, 400, 20]


def test_the_most_variable_columns_are_kept_in_their_order() -> None:
    r = np.random.default_rng(0)
    x = r.poisson(20.0, (200, 6))
    x[:100, 4] *= 6
    x[100:, 1] *= 6
    found = datasets.counts(x, top=2)
    assert found.names == ("column 1", "column 4") and len(found.left_out) == 4
    scaled = np.log1p(x * np.median(x.sum(1)) / x.sum(1, keepdims=True))
    np.testing.assert_allclose(count_matrices.variability(sparse.csc_array(x)), scaled.var(0), rtol=1e-9)


@pytest.mark.parametrize(
    ("matrix", "more", "words"),
    [
        (-X, {}, "row 0, column 'column 0'.*got -2; a matrix with negative"),
        (X + 0.5, {}, "fractions are shares"),
        (np.where(X > 4, np.nan, X), {}, "row 2, column 'column 0'.*nan"),
        (np.array([[1, 2**24]]), {}, "2\\^24"),
        (np.zeros((3, 2), int), {}, "0 rows"),
        (np.zeros((0, 2), int), {}, "empty"),
        (X[0], {}, "rows, columns"),
        (X.astype(str), {}, "dtype"),
        (X, {"names": list("aabb")}, "different names"),
        (X, {"names": list("ab")}, "2 entries for a matrix"),
        (X, {"library": [1, 2, 3]}, "one a row"),
        (X, {"labels": {"topic": [1, 2]}}, "2 entries for 4 rows"),
        (X, {"columns": ["column 9"]}, "not in the matrix"),
        (X, {"top": 1}, "at least 2"),
        (pd.DataFrame({"a": ["x", "y"], "b": [1, 2]}), {}, "'a'.*hold no numbers"),
    ],
)
def test_what_is_no_matrix_of_counts_is_refused(matrix: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        datasets.counts(matrix, **more)


def test_a_dense_form_that_is_too_large_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_matrices, "LARGEST", 40)
    with pytest.raises(ValueError, match="top=2000"):
        datasets.counts(np.ones((4, 4), int))
    assert len(datasets.counts(np.ones((4, 4), int), top=2)) == 4


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array, sparse.csc_array])
def test_h5ad_files_give_counts_names_and_labels(tmp_path: Path, make: Any) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(X.astype("float32")), kind=([1, 0, -1, 0], ["B", "T"]))
    found = datasets.read_counts(path, labels="kind")
    assert found.names == ("g0", "g1", "g2") and found.index.tolist() == ["c0", "c2", "c3"] and found.empty == ("c1",)
    assert found.factors["kind"].tolist() == [1, -1, 0] and found.label_values["kind"] == ("B", "T")
    np.testing.assert_array_equal(found.x["x"], X[[0, 2, 3], :3])
    with pytest.raises(ValueError, match="no column 'kinds' of obs .did you mean 'kind'"):
        datasets.read_counts(path, labels="kinds")


def test_scaled_values_in_x_point_to_the_layers(tmp_path: Path) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", np.log1p(X))
    with h5py.File(path, "a") as file:
        file.create_group("layers")["counts"] = X
    with pytest.raises(ValueError, match=r"'a.h5ad'.*fractions.*read_counts\(path, layer='counts'\)"):
        datasets.read_counts(path)
    assert datasets.read_counts(path, layer="counts").names == ("g0", "g1", "g2")


def test_npz_files_of_scipy(tmp_path: Path) -> None:
    sparse.save_npz(tmp_path / "m.npz", sparse.csr_array(X))
    np.testing.assert_array_equal(datasets.read_counts(tmp_path / "m.npz").x["x"], X[[0, 2, 3], :3])
    np.savez(tmp_path / "images.npz", x=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="no sparse matrix"):
        datasets.read_counts(tmp_path / "images.npz")
    np.savez(tmp_path / "pickle.npz", format=np.array({"a": 1}, dtype=object))
    with pytest.raises(ValueError, match="no sparse matrix"):
        datasets.read_counts(tmp_path / "pickle.npz")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.h5ad").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(ValueError, match="no HDF5 file"):
        datasets.read_counts(tmp_path / "torn.h5ad")
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="expected .h5ad or .npz"):
        datasets.read_counts(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no file"):
        datasets.read_counts(tmp_path / "none.h5ad")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["y"] = [1]
    with pytest.raises(ValueError, match="has no 'X', it holds"):
        datasets.read_counts(tmp_path / "other.h5ad")
