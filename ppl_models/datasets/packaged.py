"""The named sets that are stored somewhere: in scikit-learn, in a Debian package, or in a file with known checksums."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from ppl_models.datasets import idx, npz
from ppl_models.datasets.describe import Info, check_split, subset
from ppl_models.datasets.locate import DATA_VARIABLE, find_npz, missing, places, roots, verify_once

Root = str | os.PathLike[str] | None
Loaded = tuple[Any, dict[str, Integer[np.ndarray, " n"]]]

TEN = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MNIST_SUMS = {
    "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_SUMS = {
    "x_train": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "y_train": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "x_test": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "y_test": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CIFAR_SUMS = {
    "x": "8749e8b23b287642ee60e3f67d508127f56251a735fd19ab7d7e75e8c8d87a73",
    "y": "bfb8f418c922fd6059f0f2b14713e7884fefdd79e5a28ae5365eab1d04086b73",
}
"""sha256 of the (uncompressed) idx file of each array: independent of the container."""


def _take(x: np.ndarray, factors: Mapping[str, np.ndarray], rows: slice | np.ndarray) -> Loaded:
    # Own, contiguous, writable arrays: a caller who edits them changes nobody else's data.
    copy = {key: np.array(value[rows], dtype=np.int64) for key, value in factors.items()}
    return np.array(x[rows], order="C"), copy


# ------------------------------------------------------------------------------------------------------ digits
@dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits that ship with scikit-learn, in a fixed shuffled order."""

    name: str = "digits"

    def info(self, root: Root = None) -> Info:
        """What the catalogue says of the digits."""
        return Info(
            name=self.name,
            shape=(8, 8),
            levels=17,
            sizes={"train": 1500, "test": 297},
            factors={"digit": TEN},
            description="handwritten digits, 8x8, grey 0..16; the unit-test and quickstart set",
            licence="BSD-3-Clause with scikit-learn; data from the UCI repository",
            provenance="sklearn.datasets.load_digits, rows in the order numpy.random.default_rng(0).permutation(1797)",
            how_to_get=("install scikit-learn: pip install scikit-learn",),
            where=lambda: "scikit-learn" if importlib.util.find_spec("sklearn") else None,
        )

    def read(self, split: str, n: int | None, seed: int, root: Root = None) -> Loaded:
        """Load one split: the first 1,500 of the shuffled rows, or the last 297."""
        info = self.info()
        check_split(info, split)
        rows = subset(info.sizes[split], n, seed, f"split {split!r} of {self.name!r}")
        if not info.available():
            raise missing(self.name, info.how_to_get, ["the package scikit-learn"])
        from sklearn.datasets import load_digits

        images, target = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        order = order[:1500] if split == "train" else order[1500:]
        return _take(images.reshape(-1, 8, 8).astype(np.uint8)[order], {"digit": target[order]}, rows)


# ------------------------------------------------------------------------------------------- npz with known sums
@dataclass(frozen=True)
class Stored:
    """A named set in ``NAME.npz``: its size and checksums are known, wherever the file came from."""

    known: Info
    pins: Mapping[str, str]
    label: str
    held_out: int | None = None

    @property
    def name(self) -> str:
        """Name of the set, and stem of its file."""
        return self.known.name

    def info(self, root: Root = None) -> Info:
        """What the catalogue says of the set."""
        path = find_npz(self.name, root)
        return _located(self.known, None if path is None else str(path))

    def read(self, split: str, n: int | None, seed: int, root: Root = None) -> Loaded:
        """Load one split, after the checksums have been compared once."""
        check_split(self.known, split)
        rows = subset(self.known.sizes[split], n, seed, f"split {split!r} of {self.name!r}")
        path = find_npz(self.name, root)
        if path is None:
            raise missing(self.name, self.known.how_to_get, places(self.name, root))
        x, factors = self.read_file(path, split)
        return _take(x, factors, rows)

    def read_file(self, path: Path, split: str) -> Loaded:
        """Read one split of a given file, whole."""
        remedy = f"other images need another file name; to get the real {self.name}: {self.known.how_to_get[0]}"
        plan = npz.layout(path, self.label, self.held_out)
        return npz.read_split(path, split, plan, self.held_out, self.pins, remedy)


def _located(info: Info, place: str | None) -> Info:
    import dataclasses

    return dataclasses.replace(info, where=lambda: place)


def _file_line(name: str, arrays: str) -> str:
    return f"put {name}.npz ({arrays}) into a directory and set {DATA_VARIABLE} to that directory"


def _download_line(name: str, megabytes: int) -> str:
    return (
        f"download it: ppl-models data get {name} (about {megabytes} MB, from OpenML, or from Hugging Face "
        'if the extra is installed: pip install "ppl-models[hub]")'
    )


MNIST = Stored(
    Info(
        name="mnist",
        shape=(28, 28),
        levels=256,
        sizes={"train": 60_000, "test": 10_000},
        factors={"digit": TEN},
        description="handwritten digits, 28x28, grey 0..255, in the original order",
        licence="none stated by its source; do not republish the images",
        provenance="the original idx files (sha256 of each pinned)",
        how_to_get=(
            _file_line("mnist", "uint8 x_train, y_train, x_test, y_test"),
            _download_line("mnist", 15),
        ),
    ),
    MNIST_SUMS,
    label="digit",
)

CIFAR10_PNG4K = Stored(
    Info(
        name="cifar10_png4k",
        shape=(32, 32, 3),
        levels=256,
        sizes={"train": 3_500, "heldout": 500},
        factors={"class": CIFAR},
        description=(
            "4,000 lossless CIFAR-10 training images; the last 500 are held out by us and are not CIFAR-10's test set: "
            "bits per dimension from so few images are not comparable with published numbers"
        ),
        licence="images: none formal (A. Krizhevsky, 2009); the PNG source: MIT",
        provenance="demo/cifar10/cifar10_batch_0..3.png of karpathy/convnetjs; labels by matching (sha256 pinned)",
        how_to_get=(_file_line("cifar10_png4k", "uint8 x (4000, 32, 32, 3), y (4000,)"),),
    ),
    CIFAR_SUMS,
    label="class",
    held_out=500,
)


# ----------------------------------------------------------------------------------------------- Fashion-MNIST
@dataclass(frozen=True)
class FashionMNIST:
    """Fashion-MNIST as Debian packages it (gzipped idx files), or as ``fashion_mnist.npz``."""

    sums: Mapping[str, str] = field(default_factory=lambda: FASHION_SUMS)
    package: Path = Path("/usr/share/datasets/fashion-mnist")
    name: str = "fashion_mnist"

    def info(self, root: Root = None) -> Info:
        """What the catalogue says of Fashion-MNIST."""
        place = self.folder(root) or find_npz(self.name, root)
        return _located(self._stored().known, None if place is None else str(place))

    def folder(self, root: Root = None) -> Path | None:
        """Return the first directory that holds the four idx files: ``root``, the data directories, the package's."""
        under = [path for base in roots(root) for path in (base / "fashion-mnist", base / "fashion_mnist")]
        for folder in (*([] if root is None else [Path(root).expanduser()]), *under, self.package):
            if all(_idx_file(folder, part) for part in FASHION_SUMS):
                return folder
        return None

    def read(self, split: str, n: int | None, seed: int, root: Root = None) -> Loaded:
        """Load one split from the idx files, or from the npz file where only that exists."""
        stored, folder = self._stored(), self.folder(root)
        if folder is None and find_npz(self.name, root) is None:
            check_split(stored.known, split)
            looked = [f"train-images-idx3-ubyte.gz and the other three in {self.package}", *places(self.name, root)]
            raise missing(self.name, stored.known.how_to_get, looked)
        if folder is None:
            return stored.read(split, n, seed, root)
        check_split(stored.known, split)
        rows = subset(stored.known.sizes[split], n, seed, f"split {split!r} of {self.name!r}")
        x, y = (self._part(folder, f"{part}_{split}") for part in "xy")
        return _take(x, {"class": y}, rows)

    def _part(self, folder: Path, part: str) -> np.ndarray:
        path = _idx_file(folder, part)
        assert path is not None  # folder() has looked
        array = idx.read(path)
        remedy = f"to get the real {self.name}: {self._stored().known.how_to_get[0]}"
        verify_once(path, {part: self.sums[part]}, lambda: {part: idx.sha256(array)}, remedy)
        return array

    def _stored(self) -> Stored:
        return Stored(
            Info(
                name=self.name,
                shape=(28, 28),
                levels=256,
                sizes={"train": 60_000, "test": 10_000},
                factors={"class": GARMENTS},
                description="photographs of garments, 28x28, grey 0..255; the default image benchmark",
                licence="MIT (Zalando SE, 2017)",
                provenance="Debian's dataset-fashion-mnist; sha256 of the idx contents pinned",
                how_to_get=(
                    f"on Debian or Ubuntu: apt-get install dataset-fashion-mnist (into {self.package})",
                    f"put the four idx files into DIRECTORY/fashion-mnist and set {DATA_VARIABLE} to DIRECTORY",
                    _file_line(self.name, "uint8 x_train, y_train, x_test, y_test"),
                    _download_line(self.name, 30),
                ),
            ),
            self.sums,
            label="class",
        )


def _idx_file(folder: Path, part: str) -> Path | None:
    kind = "images-idx3" if part.startswith("x") else "labels-idx1"
    stem = f"{'train' if part.endswith('train') else 't10k'}-{kind}-ubyte"
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)
