"""Downloads, on request only: OpenML (through scikit-learn) or Hugging Face (through ``datasets``) to ``NAME.npz``.

Nothing else in this package uses the network. The file has the layout of :mod:`ppl_models.datasets.npz`, is written
at once or not at all, and gets a checksum beside it (``NAME.npz.sha256``, as ``sha256sum -c`` reads it), which
:func:`ppl_models.datasets.load` compares the first time it uses the file. Sets with pinned checksums (MNIST,
Fashion-MNIST) are compared with those before anything is written.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ppl_models.datasets import idx, npz
from ppl_models.datasets.catalogue import BUILTIN
from ppl_models.datasets.locate import CACHE_VARIABLE, DATA_VARIABLE, cache_dir, data_dirs, is_name, missing
from ppl_models.datasets.packaged import FASHION_SUMS, MNIST_SUMS

Say = Callable[[str], None]
EXTRA = 'pip install "ppl-models[hub]"'


class WrongContentError(ValueError):
    """What was downloaded is not a set of images of bytes, or not the set that was asked for."""


@runtime_checkable
class Source(Protocol):
    """A place on the network: ``arrays(say)`` downloads and returns the arrays of the npz file."""

    @property
    def title(self) -> str: ...

    def arrays(self, say: Say) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class OpenML:
    """A table of openml.org whose rows are images of bytes: ``shape`` of one, and how many first rows are ``train``.

    ``train=None`` writes the layout without a test split (arrays ``x`` and ``y``). Needs scikit-learn.
    """

    data_id: int
    shape: tuple[int, ...]
    train: int | None = None

    @property
    def title(self) -> str:
        """The source in words."""
        return f"OpenML data set {self.data_id}"

    def arrays(self, say: Say) -> dict[str, np.ndarray]:
        """Download the table; ``ValueError`` if its values are not bytes or its rows not of ``shape``."""
        from sklearn.datasets import fetch_openml

        say(f"downloading {self.title}; this may take some minutes and shows no progress of its own")
        bunch = fetch_openml(data_id=self.data_id, as_frame=False, cache=False)
        say("downloaded; converting")
        x = _bytes(np.asarray(bunch.data), self.title)
        if x[0].size != np.prod(self.shape, dtype=int):
            raise WrongContentError(
                f"{self.title} has rows of {x[0].size} values, expected shape {self.shape}; pass its images' shape"
            )
        x = x.reshape(-1, *self.shape)
        arrays = {"x": x}
        if getattr(bunch, "target", None) is not None:
            y, names = _labels(np.asarray(bunch.target))
            arrays.update({"y": y} if names is None else {"y": y, "class_names": names})
        if self.train is None:
            return arrays
        if not 0 < self.train < len(x):
            raise WrongContentError(
                f"{self.title} has {len(x):,} rows, so train must lie in 1..{len(x) - 1:,}, got {self.train:,}"
            )
        parts = {"train": slice(None, self.train), "test": slice(self.train, None)}
        split = {f"{key}_{part}": arrays[key][rows] for part, rows in parts.items() for key in arrays if key in "xy"}
        return split | {key: value for key, value in arrays.items() if key not in "xy"}


@dataclass(frozen=True)
class HuggingFace:
    """An image data set of huggingface.co: its path, the columns, and which of its splits become ours.

    ``revision`` fixes a commit. Images must be lossless and of one size; JPEG is noted in the file, because bits per
    dimension of such images mean nothing. Needs the ``datasets`` package: the extra ``hub``.
    """

    path: str
    image: str = "image"
    label: str | None = "label"
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    config: str | None = None
    revision: str | None = None

    @property
    def title(self) -> str:
        """The source in words."""
        return f"Hugging Face data set {self.path}" + (f" at {self.revision}" if self.revision else "")

    def arrays(self, say: Say) -> dict[str, np.ndarray]:
        """Download every split; ``ValueError`` if the images differ in size or are not bytes."""
        from datasets import load_dataset

        arrays: dict[str, np.ndarray] = {}
        lossy = False
        for ours, theirs in self.splits.items():
            say(f"downloading {self.title}, split {theirs!r}")
            rows = load_dataset(self.path, self.config, split=theirs, revision=self.revision)
            arrays[f"x_{ours}"], jpeg = self._images(rows, say)
            lossy |= jpeg
            if self.label is not None:
                arrays[f"y_{ours}"] = np.asarray(rows[self.label], np.int64)
                names = getattr(getattr(rows, "features", {}).get(self.label), "names", None)
                if names:
                    arrays["class_names"] = np.array(names)
        if lossy:
            say("these images are stored as JPEG: use them for looks, never for bits per dimension")
            arrays["description"] = np.array("images that were stored as JPEG: no bits per dimension, no likelihoods")
        return arrays

    def _images(self, rows: Sequence[Mapping[str, Any]], say: Say) -> tuple[np.ndarray, bool]:
        images: list[np.ndarray] = []
        lossy = False
        for number, row in enumerate(rows, 1):
            picture = row[self.image]
            lossy |= getattr(picture, "format", None) == "JPEG"
            images.append(np.asarray(picture))
            if images[-1].shape != images[0].shape:
                raise WrongContentError(
                    f"{self.title}: image {number} has shape {images[-1].shape}, the first {images[0].shape}; all "
                    "must be of one size: crop or resize them yourself and save an npz file"
                )
            if number % 10_000 == 0:
                say(f"  {number:,} of {len(rows):,} images")
        return _bytes(np.stack(images), self.title), lossy


def _bytes(x: np.ndarray, title: str) -> np.ndarray:
    if x.dtype.kind not in "uif" or x.size == 0:
        raise WrongContentError(f"{title} must hold numbers 0..255, got {x.dtype} of shape {x.shape}")
    if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= 255 and (x == np.floor(x)).all()):
        raise WrongContentError(f"{title} must hold whole numbers 0..255, got values from {x.min()} to {x.max()}")
    return x.astype(np.uint8)


def _labels(target: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return integer labels, and the names where the target was text other than integers."""
    try:
        return target.astype(np.int64), None
    except ValueError:
        names, codes = np.unique(target.astype(str), return_inverse=True)
        return codes.astype(np.int64), names


RECIPES: Mapping[str, Sequence[Source]] = {
    "mnist": (OpenML(554, (28, 28), 60_000), HuggingFace("ylecun/mnist")),
    "fashion_mnist": (OpenML(40996, (28, 28), 60_000), HuggingFace("zalando-datasets/fashion_mnist")),
}
"""Built-in sets that can be downloaded, and from where, tried in order."""

_PINS = {"mnist": MNIST_SUMS, "fashion_mnist": FASHION_SUMS}


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def fetch(
    name: str,
    source: Source | None = None,
    *,
    to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Say | None = _stderr,
) -> Path:
    """Download a set, check it, write ``NAME.npz`` and its checksum, and return the path of the file.

    ``source`` is needed for names that are not in ``RECIPES``; ``to`` is the directory, by default the first of
    ``PPL_MODELS_DATA``, else the user cache. ``progress`` takes lines of text (``None`` for silence). A file that is
    already there is kept unless ``overwrite``.

        from ppl_models.datasets import HuggingFace, fetch, load
        fetch("mnist")
        fetch("cifar10", HuggingFace("uoft-cs/cifar10", image="img"))
        x, factors = load("cifar10", "test")

    Raises ``ValueError`` for a name that cannot be fetched, for data that are not images of bytes, and for a set
    whose checksums are not those pinned; :class:`DataMissingError` if a package or the network is missing. Nothing
    is written in any of these cases. ``OSError`` if the directory cannot be written: this is found out first.
    """
    say = progress or (lambda line: None)
    sources = _sources(name, source)
    folder = Path(to).expanduser() if to is not None else (*data_dirs(), cache_dir() / "data")[0]
    target = folder / f"{name}.npz"
    if target.exists() and not overwrite and _whole(target, say):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error}); pass another directory as to=..., or set {DATA_VARIABLE} or "
            f"{CACHE_VARIABLE} to one that can be written"
        ) from error
    arrays, origin = _download(name, sources, say)
    _check_pins(name, arrays, origin)
    arrays.setdefault("provenance", np.array(f"fetched from {origin}"))
    _write(target, arrays)
    say(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB) and its checksum")
    return target


def _whole(target: Path, say: Say) -> bool:
    try:
        npz.layout(target)
    except ValueError as error:
        say(f"{error}\nfetching it again")
        return False
    say(f"{target} is already there; it is kept")
    return True


def _sources(name: str, source: Source | None) -> Sequence[Source]:
    if not is_name(name):
        raise ValueError(f"a data set's name is a file name without a folder (letters, digits, _ . -), got {name!r}")
    if source is not None and name in BUILTIN and name not in RECIPES:
        raise ValueError(f"{name!r} is the name of a built-in set; choose another name for what you fetch")
    if source is not None:
        return (source,)
    if name in RECIPES:
        return RECIPES[name]
    if name in BUILTIN:
        ways = "; or ".join(BUILTIN[name].info().how_to_get)
        raise ValueError(f"{name!r} has no download: {ways}")
    from ppl_models.program import did_you_mean  # imported late: an error may take the time, an import may not

    raise ValueError(
        f"no download is known for {name!r}{did_you_mean(name, RECIPES)}; known: {', '.join(RECIPES)}. For another set "
        f"pass its source: fetch({name!r}, OpenML(data_id, shape)) or fetch({name!r}, HuggingFace(path))"
    )


def _download(name: str, sources: Sequence[Source], say: Say) -> tuple[dict[str, np.ndarray], str]:
    failures: list[str] = []
    cause: Exception | None = None
    for source in sources:
        try:
            return source.arrays(say), source.title
        except ImportError as error:
            cause, reason = error, f"the package {error.name or error} is not installed: {EXTRA}"
        except WrongContentError:
            raise  # it arrived, but is not what it should be: another source must not hide that
        except Exception as error:  # clients of a network raise many types; each means that nothing arrived
            cause, reason = error, f"nothing arrived ({type(error).__name__}: {error}); is there a network connection?"
        failures.append(f"{source.title}: {reason}")
        say(failures[-1])
    entry = BUILTIN.get(name)
    ways = [way for way in entry.info().how_to_get if "ppl-models data get" not in way] if entry else []
    ways.append(f"install the extra ({EXTRA}) and try again with a network connection")
    raise missing(name, ways, failures, "it could not be downloaded") from cause


def _check_pins(name: str, arrays: Mapping[str, np.ndarray], origin: str) -> None:
    for part, expected in _PINS.get(name, {}).items():
        got = idx.sha256(arrays[part]) if part in arrays else "missing"
        if got != expected:
            raise WrongContentError(
                f"{origin} does not hold {name}: sha256 of {part} is {got}, expected {expected}; nothing was written. "
                "Try another source, or fetch it under another name"
            )


def _write(target: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the file under another name, check that it is one of ours, then rename it and write its checksum."""
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    path, sidecar = Path(temporary), target.with_name(f"{target.name}.sha256")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        npz.layout(path)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        path.chmod(0o644)
        sidecar.unlink(missing_ok=True)  # an interruption here leaves a whole file without a checksum: still usable
        path.replace(target)
        sidecar.write_text(f"{digest}  {target.name}\n")
    finally:
        path.unlink(missing_ok=True)
