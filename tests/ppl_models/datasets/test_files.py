"""Files: npz sets of one's own, sets with pinned checksums, Fashion-MNIST's idx files; whole, torn and foreign."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ppl_models.datasets import DataMissingError, catalogue, idx, info, load, names, table
from ppl_models.datasets.describe import Info
from ppl_models.datasets.packaged import FashionMNIST, Stored

REAL_DATA = os.environ.get("PPL_MODELS_DATA", "")
RNG = np.random.default_rng(5)
X = RNG.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
Y = RNG.integers(0, 3, 20)


def save(path: Path, **arrays: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


# ------------------------------------------------------------------------------------------------- own files
def test_splits_labels_and_further_factors(files: Path) -> None:
    save(
        files / "mine.npz", x_train=X, y_train=Y, x_test=X[:5] // 2, y_test=Y[:5], tilt_train=Y + 7,
        class_names=np.array(["a", "b", "c"]), licence="CC0", weights_train=np.ones(20),
    )  # fmt: skip
    entry = info("mine")
    assert names()[-1] == "mine" and entry.available()
    assert entry.shape == (4, 4, 3) and entry.levels == 256 and dict(entry.sizes) == {"train": 20, "test": 5}
    assert dict(entry.factors) == {"label": ("a", "b", "c"), "tilt": ()} and entry.licence == "CC0"
    x, factors = load("mine")
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(factors["label"], Y)
    np.testing.assert_array_equal(factors["tilt"], Y + 7)
    x, factors = load("mine", "test", n=5, seed=1)
    np.testing.assert_array_equal(x, (X[:5] // 2)[np.random.default_rng(1).permutation(5)])
    assert set(factors) == {"label"}


def test_a_file_without_test_split_gets_a_named_hold_out(files: Path) -> None:
    save(files / "own" / "own.npz", x=X, y=np.arange(20))
    assert dict(info("own").sizes) == {"train": 18, "heldout": 2} and info("own").held_out == "heldout"
    train, held = load("own")[1]["label"], load("own", "heldout")[1]["label"]
    np.testing.assert_array_equal(np.concatenate([train, held]), np.random.default_rng(0).permutation(20))
    np.testing.assert_array_equal(load("own", "heldout")[0], X[held])
    with pytest.raises(ValueError, match="came without a test split: evaluate on 'heldout'"):
        load("own", "test")


def test_floats_and_fewer_levels(files: Path) -> None:
    save(files / "real.npz", x=X.astype("f4") / 255)
    x, factors = load("real")
    assert x.dtype == np.float32 and info("real").levels is None and factors == {}
    save(files / "binary.npz", x=X // 128, levels=2)
    assert info("binary").levels == 2
    save(files / "wrong.npz", x=X // 64, levels=2)
    with pytest.raises(ValueError, match="x must lie in 0..1 .levels 2., got 3"):
        load("wrong")


def test_search_order_and_foreign_neighbours(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    save(files / "a.npz", x=X)
    save(other / "a.npz", x=X[:10])
    save(other / "posterior.npz", mu__draws=np.ones((10, 3)))
    monkeypatch.setenv("PPL_MODELS_DATA", f"{files}:{other}")
    assert info("a").sizes["train"] == 18 and info("a", root=other).sizes["train"] == 9
    assert "posterior" not in names()
    with pytest.raises(ValueError, match="must hold x_train .and x_test., or x alone; got arrays .'mu__draws'"):
        load("posterior")


BAD = {
    "empty": ({"x": X[:0]}, "not empty, got shape"),
    "vector": ({"x": np.zeros(5, np.uint8)}, "must be .number, .shape of one datum."),
    "int64": ({"x": X.astype(int)}, "x must be uint8 or float, got int64; save x.astype"),
    "bool": ({"x": X > 3}, "x must be uint8 or float, got bool"),
    "complex": ({"x": X.astype(complex)}, "x must be uint8 or float, got complex128"),
    "one_datum": ({"x": X[:1]}, "at least 2 data to hold one out, got 1"),
    "both": ({"x_test": X}, "must hold x_train"),
    "shapes": ({"x_train": X, "x_test": X[:, :2]}, "must have one dtype and one shape but for the first axis"),
    "dtypes": ({"x_train": X, "x_test": X.astype("f4")}, "must have one dtype and one shape"),
    "one_hot": ({"x": X, "y": np.eye(20, dtype=int)}, "y must be 20 integers, one a datum.*argmax"),
    "short_y": ({"x": X, "y": Y[:19]}, r"y must be 20 integers.*got int64 of shape \(19,\)"),
    "float_y": ({"x_train": X, "y_train": Y / 2}, "y_train must be 20 integers, one a datum, got float64"),
    "levels": ({"x": X, "levels": 1000}, "levels must be one integer from 2 to 256"),
    "nan": ({"x": np.where(np.arange(20) == 7, np.nan, 1)[:, None]}, "NaN or infinity in 1 of 20.*at row 7"),
    "objects": ({"x": np.array([[{}], [{}]], dtype=object)}, "pickled Python objects, which are never loaded"),
    "object_y": ({"x": X, "y": np.array(["a"] * 20, dtype=object)}, "y must be 20 integers.*got object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_contents(case: str, files: Path) -> None:
    arrays, message = BAD[case]
    save(files / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load("bad")


def _torn(path: Path) -> None:
    path.write_bytes(save(path, x=X, y=Y).read_bytes()[:-300])


def _flipped(path: Path) -> None:
    data = bytearray(save(path, x=X, y=Y).read_bytes())
    data[400] ^= 255
    path.write_bytes(data)


def _single(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, X)
    path.write_bytes(buffer.getvalue())


def _zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "not an array")


@pytest.mark.parametrize(
    "write",
    [
        _torn,
        _flipped,
        _single,
        _zip_of_text,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("a web page, not a file"),
        lambda path: path.write_bytes(b"\x80\x04K\x01."),  # a pickle
    ],
)
def test_torn_and_foreign_files(write: object, files: Path) -> None:
    write(files / "bad.npz")  # type: ignore[operator]
    with pytest.raises(ValueError, match="bad.npz cannot be read: it is torn, or not an npz file.*copy it again"):
        load("bad")
    assert "bad" in names()


def test_the_table_shows_a_torn_file_and_goes_on(files: Path) -> None:
    _torn(files / "bad.npz")
    row = table()[-1]
    assert row["name"] == "bad" and not row["available"] and "torn" in row["where"]
    assert len(table()) == len(catalogue.BUILTIN) + 1


# ------------------------------------------------------------------------------------------------- pinned sums
@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Stored:
    known = Info("tiny", (4, 4, 3), 256, {"train": 15, "heldout": 5}, {"class": ("a",)}, "d", "l", "p", ("dig it up",))
    entry = Stored(known, {"x": idx.sha256(X), "y": idx.sha256(Y)}, "class", held_out=5)
    monkeypatch.setitem(catalogue.BUILTIN, "tiny", entry)
    return entry


def test_a_pinned_file_is_checked_once(pinned: Stored, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(files / "tiny.npz", x=X, y=Y.astype(np.uint8))
    x, factors = load("tiny", "heldout")
    np.testing.assert_array_equal(x, X[15:])
    np.testing.assert_array_equal(factors["class"], Y[15:])
    monkeypatch.setattr(idx, "sha256", lambda array: pytest.fail("checked twice"))
    np.testing.assert_array_equal(load("tiny")[0], X[:15])


def test_other_images_under_a_known_name_are_refused(pinned: Stored, files: Path) -> None:
    save(files / "tiny.npz", x=X, y=Y.astype(np.uint8))
    load("tiny")
    save(files / "tiny.npz", x=X[::-1], y=Y.astype(np.uint8))  # a new file is checked again
    with pytest.raises(ValueError, match="does not hold the data it is named after: sha256 of x is .*dig it"):
        load("tiny")


def test_a_cache_that_cannot_be_written_is_no_error(
    pinned: Stored, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("PPL_MODELS_CACHE", str(blocked))
    save(files / "tiny.npz", x=X, y=Y.astype(np.uint8))
    assert len(load("tiny")[0]) == len(load("tiny")[0]) == 15


def test_a_checksum_beside_a_file_is_compared(files: Path) -> None:
    path = save(files / "mine.npz", x=X)
    (files / "mine.npz.sha256").write_text("0" * 64 + "  mine.npz\n")
    with pytest.raises(ValueError, match=r"sha256 of the file is .*, expected 000.*remove mine.npz.sha256"):
        load("mine")
    assert path.exists()


# --------------------------------------------------------------------------------------------- Fashion-MNIST
STEMS = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
GARMENTS = {
    "x_train": RNG.integers(0, 256, (60_000, 2, 2), dtype=np.uint8),
    "y_train": RNG.integers(0, 10, 60_000, dtype=np.uint8),
    "x_test": RNG.integers(0, 256, (10_000, 2, 2), dtype=np.uint8),
    "y_test": RNG.integers(0, 10, 10_000, dtype=np.uint8),
}


@pytest.fixture
def fashion(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Generated idx files with the layout and the sizes of the package's (but 2x2 images), pinned to themselves."""
    folder = isolated / "package"
    folder.mkdir()
    for part, array in GARMENTS.items():
        data = idx.header(array.shape) + array.tobytes()
        (folder / f"{STEMS[part]}.gz").write_bytes(gzip.compress(data, 1))
    sums = {part: idx.sha256(array) for part, array in GARMENTS.items()}
    monkeypatch.setitem(catalogue.BUILTIN, "fashion_mnist", FashionMNIST(sums, folder))
    return folder


def test_fashion_is_read_from_the_package(fashion: Path) -> None:
    assert info("fashion_mnist").where() == str(fashion)
    for split in ("train", "test"):
        x, factors = load("fashion_mnist", split)
        np.testing.assert_array_equal(x, GARMENTS[f"x_{split}"])
        np.testing.assert_array_equal(factors["class"], GARMENTS[f"y_{split}"])
    assert x.flags.writeable


def test_fashion_elsewhere(fashion: Path, files: Path, tmp_path: Path) -> None:
    moved = fashion.rename(tmp_path / "moved")
    with pytest.raises(DataMissingError, match="(?s)apt-get install dataset-fashion-mnist.*PPL_MODELS_DATA.*data get"):
        load("fashion_mnist")
    assert len(load("fashion_mnist", n=7, root=moved)[0]) == 7
    moved.rename(files / "fashion-mnist")
    assert info("fashion_mnist").where() == str(files / "fashion-mnist")


def test_fashion_from_npz(fashion: Path, files: Path) -> None:
    for path in fashion.iterdir():
        path.unlink()
    save(files / "fashion_mnist.npz", **GARMENTS)
    x, factors = load("fashion_mnist", "test", n=3)
    np.testing.assert_array_equal(x, GARMENTS["x_test"][np.random.default_rng(0).permutation(10_000)[:3]])
    assert set(factors) == {"class"}


def _rewrite(path: Path, change: object) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes())), 1))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "is torn or not gzip"),
        (lambda path: path.write_bytes(b"hello"), "is torn or not gzip"),
        (lambda path: _rewrite(path, lambda data: data[:-9]), r"is torn: .* declares shape \(10000, 2, 2\), 40000"),
        (lambda path: _rewrite(path, lambda data: b"P5 2 2" + data), "is not an idx file of bytes: it starts with 50"),
        (lambda path: _rewrite(path, lambda data: data[:6]), "is torn"),
        (lambda path: _rewrite(path, lambda data: data[:-1] + bytes([data[-1] ^ 1])), "sha256 of x_test is .* apt-get"),
    ],
)
def test_torn_and_foreign_idx_files(change: object, message: str, fashion: Path) -> None:
    change(fashion / f"{STEMS['x_test']}.gz")  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        load("fashion_mnist", "test")
    assert len(load("fashion_mnist", "train", n=1)[0]) == 1  # the other split is still good


# ---------------------------------------------------------------------------------------------- the real files
def _real(name: str) -> bool:
    return any((Path(root) / name / f"{name}.npz").is_file() or (Path(root) / f"{name}.npz").is_file()
               for root in REAL_DATA.split(":") if root)  # fmt: skip


@pytest.mark.data
@pytest.mark.skipif(not _real("mnist"), reason="mnist.npz is not in PPL_MODELS_DATA")
def test_real_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPL_MODELS_DATA", REAL_DATA)
    (x, factors), (x_test, factors_test) = load("mnist"), load("mnist", "test")
    assert x.shape == (60_000, 28, 28) and x_test.shape == (10_000, 28, 28)
    counts = np.bincount(factors_test["digit"]).tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert x.mean() / 255 == pytest.approx(0.1307, abs=1e-4) and factors["digit"][:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.data
@pytest.mark.skipif(not _real("cifar10_png4k"), reason="cifar10_png4k.npz is not in PPL_MODELS_DATA")
def test_real_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPL_MODELS_DATA", REAL_DATA)
    (x, factors), (held, held_factors) = load("cifar10_png4k"), load("cifar10_png4k", "heldout")
    assert x.shape == (3500, 32, 32, 3) and held.shape == (500, 32, 32, 3)
    both = np.concatenate([factors["class"], held_factors["class"]])
    assert np.bincount(both).tolist() == [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]
    assert len({image.tobytes() for image in np.concatenate([x, held])}) == 4000


@pytest.mark.skipif(not FashionMNIST().package.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_real_fashion() -> None:
    (x, factors), (x_test, factors_test) = load("fashion_mnist"), load("fashion_mnist", "test")
    assert x.shape == (60_000, 28, 28) and x_test.shape == (10_000, 28, 28)
    assert set(np.bincount(factors["class"])) == {6000} and set(np.bincount(factors_test["class"])) == {1000}
    assert x.mean() / 255 == pytest.approx(0.2860, abs=1e-4) and x.std() / 255 == pytest.approx(0.3530, abs=1e-4)
