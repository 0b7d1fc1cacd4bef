"""Read a matrix of counts from a file: .npz of ``scipy.sparse.save_npz``, or .h5ad of AnnData.

Of an .h5ad file X (or one layer), the names of rows (obs) and columns (var), and one column of obs as labels are read,
through h5py: nothing else, and AnnData need not be installed.  Nothing in a file is ever unpickled.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ppl_models.datasets.count_matrices import CountMatrix, counts
from ppl_models.datasets.hdf5 import check_hdf5
from ppl_models.program import did_you_mean

BLOCK = 2**24
"""Numbers of a dense X that are read at once."""


def read_counts(
    path: str | os.PathLike[str],
    labels: str | None = None,
    *,
    layer: str | None = None,
    columns: Any = None,
    top: int | None = None,
) -> CountMatrix:
    """Return the counts of a ``.npz`` (``scipy.sparse.save_npz``) or ``.h5ad`` file, as :func:`counts` makes them.

    ``labels``   a column of obs, kept out of the model: a factor.
    ``layer``    of an .h5ad file to read in place of X, which often holds scaled values.
    ``columns``  ``top``: as in :func:`counts`.

    Raises ``ValueError`` for another kind of file, for one that is torn or holds no matrix of counts, for labels that
    it has not; ``FileNotFoundError`` for no file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; expected a matrix of counts, .h5ad or .npz")
    if path.suffix.lower() == ".npz":
        if labels is not None or layer is not None:
            raise ValueError(f"{path.name!r} holds a matrix without labels and layers; save an .h5ad file for them")
        return _named(path, _npz(path), {}, columns=columns, top=top)
    if path.suffix.lower() != ".h5ad":
        raise ValueError(f"{path.name!r} is no matrix of counts that can be read; expected .h5ad or .npz")
    return _h5ad(path, labels, layer, columns, top)


def _named(path: Path, matrix: Any, more: dict[str, Any], **chosen: Any) -> CountMatrix:
    try:
        return counts(matrix, **more, **chosen)
    except ValueError as error:
        raise ValueError(f"{path.name!r}: {error}") from error


def _npz(path: Path) -> Any:
    from scipy import sparse

    try:
        return sparse.load_npz(path)  # refuses pickles
    except (ValueError, OSError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path.name!r} is no sparse matrix ({str(error) or type(error).__name__}); "
            "write it with scipy.sparse.save_npz(path, matrix)"
        ) from error


def _h5ad(path: Path, labels: str | None, layer: str | None, columns: Any, top: int | None) -> CountMatrix:
    import h5py

    check_hdf5(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path.name!r} is no HDF5 file, or torn ({error}); write it with adata.write_h5ad") from error
    with file:
        try:
            matrix, more, layers = _parts(path, file, labels, layer)
        except (KeyError, TypeError, RuntimeError, OSError, MemoryError) as error:  # HDF5 raises each for torn files
            raise ValueError(
                f"{path.name!r} is torn, or has not the layout of AnnData 0.7 or later: {error}; write it again with "
                "adata.write_h5ad"
            ) from error
    hint = f"; its layers are {layers}: read_counts(path, layer={layers[0]!r})" if layer is None and layers else ""
    try:
        return _named(path, matrix, more, columns=columns, top=top)
    except ValueError as error:
        mended = f"{error}{hint}" if "whole number" in str(error) else str(error)
        raise ValueError(mended) from error


def _parts(path: Path, file: Any, labels: str | None, layer: str | None) -> tuple[Any, dict[str, Any], list[str]]:
    """The counts, the names of rows and columns with the labels, and the names of the layers."""
    import h5py

    for part in ("X", "obs", "var"):
        if part not in file:
            raise ValueError(f"{path.name!r} has no {part!r}, it holds {sorted(file)}; expected an AnnData file")
        if part != "X" and not isinstance(file[part], h5py.Group):
            raise ValueError(
                f"{path.name!r} was written by AnnData before 0.7; read it there and write it again by write_h5ad"
            )
    source, layers = file["X"], sorted(file.get("layers", {}))
    if layer is not None:
        if layer not in layers:
            raise ValueError(f"{path.name!r} has no layer {layer!r}{did_you_mean(layer, layers)}, it has {layers}")
        source = file["layers"][layer]
    more: dict[str, Any] = {"names": _index(file["var"])}
    more["index"] = pd.Index(_index(file["obs"]), name=_index_name(file["obs"]))
    if labels is not None:
        more["labels"] = {labels: _column(path, file["obs"], labels)}
    return _matrix(source), more, layers


def _matrix(source: Any) -> Any:
    """A dense dataset, or a CSR or CSC group."""
    import h5py
    from scipy import sparse

    if isinstance(source, h5py.Dataset):
        if source.ndim != 2 or not source.shape[0]:
            return source[()]
        rows = max(1, BLOCK // source.shape[1])
        blocks = [sparse.csr_array(source[i : i + rows]) for i in range(0, source.shape[0], rows)]
        return sparse.vstack(blocks, format="csr")
    kind = _text(source.attrs.get("encoding-type", source.attrs.get("h5sparse_format", "")))
    make = {"csr": sparse.csr_array, "csc": sparse.csc_array}.get(kind.removesuffix("_matrix"))
    if make is None:
        raise KeyError(f"X is of the kind {kind!r}, expected csr_matrix, csc_matrix or a dense array")
    shape = source.attrs.get("shape", source.attrs.get("h5sparse_shape"))
    if shape is None:
        raise KeyError("X has no shape")
    parts = (source["data"][()], source["indices"][()], source["indptr"][()])
    try:
        found = make(parts, shape=tuple(int(size) for size in shape))
        found.check_format(full_check=True)
    except ValueError as error:
        raise KeyError(f"X is torn: {error}") from error
    return found


def _index_name(group: Any) -> str | None:
    name = _text(group.attrs.get("_index", "_index"))
    return None if name in ("_index", "index") else name


def _index(group: Any) -> list[str]:
    return [_text(word) for word in group[_text(group.attrs.get("_index", "_index"))][()]]


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)


def _column(path: Path, obs: Any, name: str) -> pd.Series:
    """A column of obs: an array, or a group of codes and categories, or of values and a mask."""
    import h5py

    known = sorted(set(obs) - {_text(obs.attrs.get("_index", "_index")), "__categories"})
    if name not in known:
        raise ValueError(f"{path.name!r} has no column {name!r} of obs{did_you_mean(name, known)}, it has {known}")
    item = obs[name]
    try:
        if isinstance(item, h5py.Group) and "categories" in item:
            words = np.asarray([_plain(word) for word in item["categories"][()]], object)
            codes = item["codes"][()]
            return pd.Series(np.where(codes >= 0, words[np.maximum(codes, 0)], None), dtype=object)
        if isinstance(item, h5py.Group):
            values = pd.Series([_plain(value) for value in item["values"][()]], dtype=object)
            return values.mask(item["mask"][()].astype(bool))
        values = pd.Series([_plain(value) for value in item[()]])
        if "categories" in item.attrs:  # AnnData 0.7: codes that refer to a list of words
            words = np.asarray([_plain(word) for word in obs.file[item.attrs["categories"]][()]], object)
            codes = values.to_numpy()
            return pd.Series(np.where(codes >= 0, words[np.maximum(codes, 0)], None), dtype=object)
        return values
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path.name!r}: column {name!r} of obs cannot be read: {error}") from error


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
