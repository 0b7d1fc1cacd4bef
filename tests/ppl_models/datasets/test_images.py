"""Folders of images: pixels as stored, subfolders as labels, splits, and the file that does not fit named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from ppl_models.datasets import catalogue, folder_dataset, images_folder, info, load

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (20, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def put(folder: Path, images: np.ndarray, suffix: str = "png", **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.{suffix}", **more)
    return folder


def test_lossless_pixels_come_as_stored_with_a_named_hold_out(tmp_path: Path) -> None:
    folder = put(tmp_path / "grey", GREY)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".DS_Store").write_bytes(b"")
    entry = info(str(folder))
    assert entry.shape == (6, 5) and entry.levels == 256 and dict(entry.sizes) == {"train": 18, "heldout": 2}
    assert not entry.factors and entry.available() and entry.held_out == "heldout"
    assert "20 PNG files; 1 files of other kinds left out" in entry.description
    order = np.random.default_rng(0).permutation(20)
    x, factors = load(str(folder))
    np.testing.assert_array_equal(x, GREY[order[:18]])
    assert factors == {} and x.dtype == np.uint8 and x.flags.writeable
    np.testing.assert_array_equal(load(str(folder), "heldout")[0], GREY[order[18:]])
    some = load(str(folder), n=4, seed=1)[0]
    np.testing.assert_array_equal(some, x[np.random.default_rng(1).permutation(18)[:4]])
    assert isinstance(catalogue.find(str(folder)), catalogue.DataSet)
    with pytest.raises(ValueError, match="came without a test split: evaluate on 'heldout'"):
        load(str(folder), "test")


def test_subfolders_are_labels_and_their_images_may_lie_deeper(tmp_path: Path) -> None:
    put(tmp_path / "b", COLOUR[:2])
    put(tmp_path / "a" / "deep", COLOUR[2:])
    entry = info(f"{tmp_path}/")
    assert entry.shape == (6, 5, 3) and dict(entry.factors) == {"folder": ("a", "b")}
    x, factors = images_folder(tmp_path)
    order = np.random.default_rng(0).permutation(4)[:3]
    np.testing.assert_array_equal(x, COLOUR[[2, 3, 0, 1]][order])
    np.testing.assert_array_equal(factors["folder"], np.array([0, 0, 1, 1])[order])


def test_own_splits_are_kept_and_share_their_labels(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat", GREY[:3])
    put(tmp_path / "train" / "dog", GREY[3:5])
    put(tmp_path / "test" / "dog", GREY[5:6])
    assert dict(info(str(tmp_path)).sizes) == {"train": 5, "test": 1}
    x, factors = load(str(tmp_path), "test")
    np.testing.assert_array_equal(x, GREY[5:6])
    assert factors["folder"].tolist() == [1] and load(str(tmp_path))[1]["folder"].tolist() == [0, 0, 0, 1, 1]
    put(tmp_path / "more", GREY[:1])
    with pytest.raises(ValueError, match="has the splits train and test, and also the folder 'more'"):
        info(str(tmp_path))
    shutil.rmtree(tmp_path / "more")
    put(tmp_path, GREY[:1])
    with pytest.raises(ValueError, match=r"000.png lies beside them; move it into one"):
        info(str(tmp_path))


def test_a_label_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path / "train", GREY[:2])
    put(tmp_path / "bus", GREY[2:4])
    assert dict(info(str(tmp_path)).factors) == {"folder": ("bus", "train")}


def test_jpeg_is_read_and_called_lossy(tmp_path: Path) -> None:
    flat = np.full((2, 8, 8, 3), 90, np.uint8)
    put(tmp_path, flat, "JPG", format="JPEG")
    assert "lossy" in info(str(tmp_path)).provenance and "not comparable" in info(str(tmp_path)).provenance
    np.testing.assert_allclose(load(str(tmp_path))[0].astype(int), flat[:1], atol=2)


def test_the_odd_file_is_named_and_size_and_mode_mend_it(tmp_path: Path) -> None:
    put(tmp_path, GREY[:3])
    Image.fromarray(np.full((12, 12), 7, np.uint8)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"odd.png is 12x12 \(height x width\), most others are 6x5; pass size="):
        info(str(tmp_path))
    x, _ = images_folder(tmp_path, size=(4, 3))
    assert x.shape == (3, 4, 3) and "brought to one size" in folder_dataset(tmp_path, size=4).info().provenance
    (tmp_path / "odd.png").unlink()
    Image.fromarray(COLOUR[0]).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match="odd.png has the mode RGB, most others have L; pass mode="):
        info(str(tmp_path))
    assert images_folder(tmp_path, mode="RGB")[0].shape == (3, 6, 5, 3)
    Image.fromarray(COLOUR[0]).convert("RGBA").save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match="odd.png has the mode RGBA, expected L .grey. or RGB"):
        info(str(tmp_path))
    Image.fromarray(GREY[0].astype(np.uint16)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match="odd.png has more than 8 bits a number"):
        folder_dataset(tmp_path, mode="L").info()
    (tmp_path / "odd.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(ValueError, match="odd.png cannot be read as an image"):
        info(str(tmp_path))


def test_a_turned_photograph_stands_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # a quarter turn to the right
    put(tmp_path, np.rot90(GREY[:2], axes=(1, 2)).copy(), exif=turned)
    assert info(str(tmp_path)).shape == (6, 5)
    np.testing.assert_array_equal(load(str(tmp_path))[0][0], GREY[np.random.default_rng(0).permutation(2)[0]])


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 images, expected 2 or more files of .png"):
        info(str(tmp_path))
    with pytest.raises(ValueError, match="which is not a folder on this machine"):
        folder_dataset(tmp_path / "none")
    put(tmp_path / "a", GREY[:2])
    put(tmp_path, GREY[:1])
    with pytest.raises(ValueError, match="lies beside subfolders with images"):
        info(str(tmp_path))
    with pytest.raises(ValueError, match="mode must be 'L' .grey. or 'RGB'"):
        folder_dataset(tmp_path, mode="CMYK")
    with pytest.raises(ValueError, match="size must be a whole number of at least 1, got 0"):
        folder_dataset(tmp_path, size=(4, 0))
