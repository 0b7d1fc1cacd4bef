"""A folder of PNG or JPEG files as a data set: ``load("FOLDER/")``, or :func:`folder_dataset` with a size and a mode.

    FOLDER/*.png                        images without labels
    FOLDER/LABEL/*.png                  the subfolder is the factor "folder"
    FOLDER/train/..., FOLDER/test/...   splits of your own (also val, valid, validation), each in either layout

Without splits a tenth is held out by the rule of :func:`ppl_models.datasets.npz.held_out_rows`, and called ``heldout``.
Files come in the order of their paths.  Grey images are (H, W), colour (H, W, 3), all uint8; none is ever resized or
converted unless asked for.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, Shaped

from ppl_models.datasets.describe import Info, check_split, subset, whole
from ppl_models.datasets.npz import held_out_rows
from ppl_models.datasets.packaged import Loaded, Root, _take

LOSSLESS, JPEG = (".png", ".bmp", ".pgm", ".ppm"), (".jpg", ".jpeg")
SPLITS = ("train", "test", "val", "valid", "validation")
MODES = ("L", "RGB")
"""Grey and colour, 8 bits a number; others (palettes, transparency, two colours) are converted on request."""
_SWAPPED = (5, 6, 7, 8)
"""EXIF orientations in which width and height change places."""


class Found(NamedTuple):
    """The files of one split with their labels, in the order of their paths."""

    files: tuple[Path, ...]
    labels: Integer[np.ndarray, " n"]


@dataclass(frozen=True)
class ImageFolder:
    """One folder.  ``size`` (side, or (height, width)): centre crop to that shape, then resize; ``mode``: L or RGB."""

    path: Path
    size: int | tuple[int, int] | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        for side in self.size if isinstance(self.size, tuple) else (self.size,):
            if self.size is not None:
                whole(side, "size", 1)
        if isinstance(self.size, tuple) and len(self.size) != 2:
            raise ValueError(f"size must be one side or (height, width), got {self.size}")
        if self.mode not in (None, *MODES):
            raise ValueError(f"mode must be 'L' (grey) or 'RGB' (colour), got {self.mode!r}")

    @property
    def name(self) -> str:
        """The folder's path: what :func:`ppl_models.datasets.load` takes."""
        return str(self.path)

    def info(self, root: Root = None) -> Info:
        """Describe the folder from the names and headers of its files.

        Raises ``ValueError`` naming the first file that does not fit: unreadable, of another size or mode.
        """
        splits, labels, others = _listed(self.path)
        shape = self._shape([file for found in splits.values() for file in found.files])
        kinds = Counter(
            "JPEG" if file.suffix.lower() in JPEG else file.suffix[1:].upper()
            for found in splits.values()
            for file in found.files
        )
        sizes = {split: len(found.files) for split, found in splits.items()}
        rule = ""
        if len(sizes) == 1:
            train, held = held_out_rows(sizes["train"], None)
            sizes, rule = {"train": len(train), "heldout": len(held)}, "; a tenth is held out at random as 'heldout'"
        made = " and ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        left = f"; {others:,} files of other kinds left out" if others else ""
        changes = ", brought to one size" * (self.size is not None) + f", converted to {self.mode}" * bool(self.mode)
        lossy = (
            "; JPEG is lossy: its decoded pixels are smoother than a camera's, so bits/dim of them are not comparable "
            "with those of lossless images"
        )
        return Info(
            name=self.name,
            shape=shape,
            levels=256,
            sizes=sizes,
            factors={"folder": labels} if labels else {},
            description=f"a folder of your own: {made} files{left}{rule}",
            licence="not stated by the folder",
            provenance=f"the files of {self.path}{changes}" + lossy * ("JPEG" in kinds),
            how_to_get=(f"it is your folder {self.path}",),
            where=lambda: str(self.path) if self.path.is_dir() else None,
        )

    def read(self, split: str, n: int | None, seed: int, root: Root = None) -> Loaded:
        """Read one split; of a subset, only its files are decoded."""
        info = self.info()
        check_split(info, split)
        rows = subset(info.sizes[split], n, seed, f"split {split!r} of {self.name!r}")
        splits, names, _ = _listed(self.path)
        if split in splits and "heldout" not in info.sizes:
            files, labels = splits[split]
        else:
            parts = held_out_rows(len(splits["train"].files), None)
            at = parts[split != "train"]
            files, labels = tuple(splits["train"].files[i] for i in at), splits["train"].labels[at]
        chosen = np.arange(len(files))[rows]
        x = np.stack([self._pixels(files[i]) for i in chosen])
        return _take(x, {"folder": labels[chosen]} if names else {}, slice(None))

    # ------------------------------------------------------------------------------------------------- one file
    def _shape(self, files: list[Path]) -> tuple[int, ...]:
        """Shape of a datum, from the headers; raises for the first file that differs from the most common kind."""
        headers = {file: _header(file) for file in files}
        common = Counter(headers.values()).most_common(1)[0][0]
        for file, (height, width, mode) in headers.items():
            if self.mode is None and mode not in MODES:
                raise ValueError(
                    f"{file} has the mode {mode}, expected L (grey) or RGB; convert it, or pass mode='L' or mode='RGB'"
                )
            if self.mode is None and mode != common[2]:
                raise ValueError(
                    f"{file} has the mode {mode}, most others have {common[2]}; pass mode='L' or mode='RGB'"
                )
            if mode.startswith(("I", "F")):
                raise ValueError(f"{file} has more than 8 bits a number (mode {mode}); save it with 8 bits first")
            if self.size is None and (height, width) != common[:2]:
                raise ValueError(
                    f"{file} is {height}x{width} (height x width), most others are {common[0]}x{common[1]}; pass "
                    "size=(height, width) to crop and resize all, or take it out"
                )
        height, width = common[:2] if self.size is None else _sides(self.size)
        return (height, width) if (self.mode or common[2]) == "L" else (height, width, 3)

    def _pixels(self, file: Path) -> Shaped[np.ndarray, "..."]:
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image)
                if self.mode is not None:
                    upright = upright.convert(self.mode)
                if self.size is not None:
                    height, width = _sides(self.size)
                    upright = ImageOps.fit(upright, (width, height), method=Image.Resampling.LANCZOS)
                return np.asarray(upright)
        except (OSError, SyntaxError) as error:
            raise _unreadable(file, error) from error


def folder_dataset(
    path: str | os.PathLike[str], *, size: int | tuple[int, int] | None = None, mode: str | None = None
) -> ImageFolder:
    """The entry of a folder of images, with ``info()`` and ``read(split, n, seed)`` like any other set.

    ``size``  side, or (height, width): every image is cropped at its centre to that shape and resized.
    ``mode``  "L" (grey) or "RGB": every image is converted.

    Raises ``ValueError`` where ``path`` is not a folder; what is in it is looked at by ``info``.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"expected a folder of images, got {str(path)!r}, which is not a folder on this machine")
    return ImageFolder(folder.resolve(), size, mode)


def images_folder(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int | tuple[int, int] | None = None,
    mode: str | None = None,
    n: int | None = None,
    seed: int = 0,
) -> tuple[Shaped[np.ndarray, "n ..."], dict[str, Integer[np.ndarray, " n"]]]:
    """Images (n, H, W) or (n, H, W, 3), uint8, and the factor "folder" of one split; as ``datasets.load`` gives them.

    x, factors = images_folder("photos/", size=32)
    x_test, _ = images_folder("photos/", "heldout", size=32)
    """
    whole(seed, "seed", 0)
    return folder_dataset(path, size=size, mode=mode).read(split, n, seed)


# -------------------------------------------------------------------------------------------------------- listing
def _listed(path: Path) -> tuple[dict[str, Found], tuple[str, ...], int]:
    """Files and labels by split, the names of the labels, and how many files were left out."""
    entries = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    folders = [entry.name for entry in entries if any(_is_image(file) for file in entry.rglob("*"))]
    # A "train" among labels is a train; beside "test", or alone, it is a split.
    parted = "train" in folders and (len(folders) == 1 or len(set(folders) & set(SPLITS)) > 1)
    if parted and (more := sorted(set(folders) - set(SPLITS))):
        raise ValueError(f"{path} has the splits train and test, and also the folder {more[0]!r}; move it into one")
    places = {split: path / split for split in SPLITS if split in folders} if parted else {"train": path}
    inside, others = {}, 0
    for split, place in places.items():
        files = sorted(file for file in place.rglob("*") if file.is_file() and not _hidden(file.relative_to(place)))
        images = tuple(file for file in files if _is_image(file))
        if len(images) < (1 if parted else 2):
            kinds = ", ".join((*LOSSLESS, *JPEG))
            raise ValueError(f"{place} holds {len(images)} images, expected 2 or more files of {kinds}")
        inside[split], others = images, others + len(files) - len(images)
    if parted and (loose := [file for file in path.iterdir() if _is_image(file)]):
        raise ValueError(f"{path} has the splits {folders}, but {loose[0].name} lies beside them; move it into one")
    parts = {split: [f.relative_to(places[split]).parts for f in files] for split, files in inside.items()}
    labelled = {len(p) > 1 for rows in parts.values() for p in rows}
    if len(labelled) > 1:
        odd = next(f for split, files in inside.items() for f in files if f.parent == places[split])
        raise ValueError(f"{odd} lies beside subfolders with images; move it into one of them, whose names are labels")
    names = tuple(sorted({p[0] for rows in parts.values() for p in rows})) if labelled == {True} else ()
    codes = {name: code for code, name in enumerate(names)}
    found = {
        split: Found(files, np.asarray([codes.get(p[0], 0) for p in parts[split]], np.int64))
        for split, files in inside.items()
    }
    return found, names, others


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in (*LOSSLESS, *JPEG) and not file.name.startswith(".") and file.is_file()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _header(file: Path) -> tuple[int, int, str]:
    """(height, width, mode) of a file as it is to be seen."""
    try:
        from PIL import ExifTags, Image
    except ImportError as error:  # comes with matplotlib
        raise ValueError('reading images needs Pillow: pip install "ppl-models[images]"') from error
    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in _SWAPPED
            return (width, height, image.mode) if turned else (height, width, image.mode)
    except (OSError, SyntaxError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read as an image ({type(error).__name__}); copy it again, or take it out")


def _sides(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)
