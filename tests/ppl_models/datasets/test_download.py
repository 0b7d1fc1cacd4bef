"""Downloads against stand-ins for the two clients: layout, checksums, atomic writing, and clear failures."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from ppl_models.datasets import DataMissingError, HuggingFace, OpenML, download, fetch, idx, info, load, names

RNG = np.random.default_rng(3)
X = RNG.integers(0, 256, (12, 3, 3), dtype=np.uint8)
Y = np.arange(12) % 3


@pytest.fixture
def openml(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """scikit-learn's client, replaced: rows of floats and text targets, as OpenML sends them."""
    import sklearn.datasets

    calls: list[dict[str, object]] = []

    def fetch_openml(**kwargs: object) -> object:
        calls.append(kwargs)
        return types.SimpleNamespace(data=X.reshape(12, 9).astype(float), target=Y.astype(str).astype(object))

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch_openml)
    return calls


class Rows(list):
    """A split as the Hugging Face client gives it: rows to iterate, columns by name, features."""

    features = {"label": types.SimpleNamespace(names=["a", "b", "c"])}

    def __getitem__(self, key: object) -> object:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)  # type: ignore[index]


@pytest.fixture
def huggingface(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def load_dataset(path: str, config: str | None, *, split: str, revision: str | None) -> Rows:
        calls.append((path, config, split, revision))
        part = slice(None, 8) if split == "train" else slice(8, None)
        images = zip(X[part], Y[part], strict=True)
        return Rows({"image": Image.fromarray(image), "label": int(label)} for image, label in images)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return calls


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the twelve images be MNIST, with eight for training."""
    sums = {"x_train": X[:8], "y_train": Y[:8], "x_test": X[8:], "y_test": Y[8:]}
    monkeypatch.setattr(download, "_PINS", {"mnist": {key: idx.sha256(value) for key, value in sums.items()}})
    monkeypatch.setattr(download, "RECIPES", {"mnist": (OpenML(554, (3, 3), 8), HuggingFace("ylecun/mnist"))})


def test_the_real_recipes_are_the_documented_ones() -> None:
    assert set(download.RECIPES) == {"mnist", "fashion_mnist"} == set(download._PINS)
    assert download.RECIPES["mnist"][0] == OpenML(554, (28, 28), 60_000)
    assert download._PINS["mnist"]["x_train"].startswith("ba891046e6505d7a")


def test_openml_lands_as_npz_with_a_checksum(openml: list[dict[str, object]], pins: None, files: Path) -> None:
    lines: list[str] = []
    path = fetch("mnist", progress=lines.append)
    assert path == files / "mnist.npz" and openml[0]["data_id"] == 554 and openml[0]["as_frame"] is False
    with np.load(path, allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["x_train"], X[:8])
        np.testing.assert_array_equal(stored["y_test"], Y[8:])
        assert stored["x_test"].dtype == np.uint8 and "OpenML data set 554" in str(stored["provenance"])
    digest, name = (files / "mnist.npz.sha256").read_text().split()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() and name == "mnist.npz"
    assert sorted(file.name for file in files.iterdir()) == ["mnist.npz", "mnist.npz.sha256"]
    assert any("downloading OpenML" in line for line in lines) and "wrote" in lines[-1]
    assert fetch("mnist", progress=lines.append) == path and "kept" in lines[-1] and len(openml) == 1
    fetch("mnist", overwrite=True, progress=None)
    assert len(openml) == 2


def test_a_fetched_set_of_any_name_loads(huggingface: list[tuple[object, ...]]) -> None:
    fetch("letters", HuggingFace("someone/letters", revision="abc"), progress=None)
    assert huggingface == [("someone/letters", None, "train", "abc"), ("someone/letters", None, "test", "abc")]
    x, factors = load("letters", "test")  # found in the user cache, without PPL_MODELS_DATA
    np.testing.assert_array_equal(x, X[8:])
    np.testing.assert_array_equal(factors["label"], Y[8:])
    assert info("letters").factors["label"] == ("a", "b", "c") and "letters" in names()
    assert info("letters").provenance == "fetched from Hugging Face data set someone/letters at abc"


def test_text_targets_become_named_integers(openml: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    bunch = types.SimpleNamespace(data=X.reshape(12, 9), target=np.array(["cat", "dog", "ant"] * 4, dtype=object))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **kwargs: bunch)
    fetch("pets", OpenML(1, (3, 3)), progress=None)
    assert info("pets").factors["label"] == ("ant", "cat", "dog") and info("pets").held_out == "heldout"
    labels = np.concatenate([load("pets", split)[1]["label"] for split in ("train", "heldout")])
    np.testing.assert_array_equal(labels, np.array([1, 2, 0] * 4)[np.random.default_rng(0).permutation(12)])


def test_jpeg_is_noted(huggingface: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "format", "JPEG")
    lines: list[str] = []
    fetch("looks", HuggingFace("a/b"), progress=lines.append)
    assert any("never for bits per dimension" in line for line in lines)
    assert "JPEG" in info("looks").description


# --------------------------------------------------------------------------------------------------- failures
def test_without_network_and_without_extra(pins: None, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    def offline(**kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", offline)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataMissingError) as caught:
        fetch("mnist", progress=None)
    text = str(caught.value)
    assert "URLError" in text and "is there a network connection?" in text
    assert 'package datasets is not installed: pip install "ppl-models[hub]"' in text
    assert "set PPL_MODELS_DATA" in text and "data get mnist" not in text
    assert not list(files.iterdir())


def test_the_second_source_is_tried(
    pins: None, huggingface: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch, files: Path
) -> None:
    import sklearn.datasets

    def gone(**kwargs: object) -> None:
        raise ValueError("Dataset with data_id 554 not found.")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", gone)
    fetch("mnist", progress=None)
    assert huggingface[0][0] == "ylecun/mnist" and (files / "mnist.npz").exists()


def test_other_images_are_not_written(openml: list[dict[str, object]], pins: None, files: Path) -> None:
    download._PINS["mnist"]["x_test"] = "0" * 64
    with pytest.raises(ValueError, match="does not hold mnist: sha256 of x_test is .*nothing was written"):
        fetch("mnist", progress=None)
    assert not list(files.iterdir())


def test_a_torn_file_is_fetched_again(openml: list[dict[str, object]], pins: None, files: Path) -> None:
    (files / "mnist.npz").write_bytes(b"PK torn")
    assert len(np.load(fetch("mnist", progress=None))["x_train"]) == 8


def test_an_interrupted_write_leaves_nothing(
    openml: list[dict[str, object]], pins: None, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(stream: object, **arrays: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist", progress=None)
    assert not list(files.iterdir())


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("digits", None, "'digits' has no download: install scikit-learn"),
        ("facets_a", None, "'facets_a' has no download: nothing to get"),
        ("cifar10_png4k", OpenML(1, (3, 3)), "is the name of a built-in set; choose another name"),
        ("mnits", None, "no download is known for 'mnits' .did you mean 'mnist'.*pass its source"),
        ("a/b", OpenML(1, (3, 3)), "a file name without a folder"),
        ("ok", OpenML(1, (4, 4)), "rows of 9 values, expected shape"),
        ("ok", OpenML(1, (3, 3), 12), "train must lie in 1..11, got 12"),
    ],
)
def test_bad_requests(
    name: str, source: OpenML | None, message: str, openml: list[dict[str, object]], files: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(name, source, progress=None)
    assert not list(files.iterdir())


@pytest.mark.parametrize("data", [np.full((12, 9), 0.5), np.full((12, 9), 300), np.full((12, 9), np.nan)])
def test_values_that_are_not_bytes(data: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **kwargs: types.SimpleNamespace(data=data, target=Y))
    with pytest.raises(ValueError, match="must hold whole numbers 0..255, got values from"):
        fetch("ok", OpenML(1, (3, 3)), progress=None)


def test_images_of_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows({"image": Image.new("L", (3, 3 + i)), "label": 0} for i in range(2))
    client = types.SimpleNamespace(load_dataset=lambda *args, **kwargs: rows)
    monkeypatch.setitem(sys.modules, "datasets", client)
    with pytest.raises(ValueError, match=r"image 2 has shape \(4, 3\), the first \(3, 3\).*crop or resize"):
        fetch("ok", HuggingFace("a/b"), progress=None)


def test_a_folder_that_cannot_be_written_is_found_first(openml: list[dict[str, object]], tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(OSError, match="cannot write to .*pass another directory as to="):
        fetch("ok", OpenML(1, (3, 3)), to=blocked, progress=None)
    assert not openml
