"""A matrix of counts as data: documents by words, cells by genes; dense rows with the library size of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

LARGEST = 2 * 2**30
"""Bytes that the dense form may take."""
MOST = 2**24
"""Above it whole numbers are not exact in float32."""
REMEDY = "choose columns: top=2000 keeps the 2,000 most variable ones"


@dataclass(frozen=True, eq=False)
class CountMatrix:
    """A matrix of counts as stored data.

    ``x``             stored data ``{"x": (n, D) whole numbers, "library": (n,) float32}``.
    ``names``         of the D columns; ``index``: of the n rows.
    ``factors``       label column -> its codes (n,), -1 where missing; ``label_values``: the values of the codes.
    ``left_out``      column -> why it is not modelled; ``empty``: names of the rows without any count, which are not
                      in ``x``.
    """

    x: dict[str, np.ndarray]
    names: tuple[str, ...]
    index: pd.Index
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    label_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def library(self) -> float:
        """The median library size: what :class:`ppl_models.distributions.Counts` takes for a typical one."""
        return float(np.median(self.x["library"]))

    @property
    def shape(self) -> tuple[int]:
        """Shape of the counts of one row."""
        return (len(self.names),)


def counts(
    matrix: Any,
    *,
    library: Any = None,
    names: Any = None,
    index: Any = None,
    labels: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
    top: int | None = None,
) -> CountMatrix:
    """Return a matrix (n, D) of counts as stored data: a SciPy sparse matrix or array, a NumPy array or a DataFrame.

    ``library``  size (n,) of each row, positive: an input of the model.  By default the sum of the columns kept, the
                 size at which their shares add up to one; a multinomial takes no other.
    ``names``    of the columns, ``index`` of the rows; by default those of the DataFrame, else numbers.
    ``labels``   name -> (n,) values that are known of the rows: factors, kept out of the model.
    ``columns``  the columns to keep, in this order; all of them, whatever they hold.
    ``top``      keep the columns whose ``log1p(x L / l)``, L the median library size, varies most, in their own order.

    All-zero columns and rows without a count are left out by name (``left_out``, ``empty``), unless ``columns`` names
    the columns: then only rows are.  A dense form above 2 GiB is refused before it is made.

        found = counts(scipy.sparse.load_npz("words.npz"), top=2000)
        Counts(names=found.names, library=found.library)      # the likelihood, of ppl_models.mfcvae

    Raises ``ValueError`` for negative numbers, fractions, NaN, counts of 2^24 and more, names that are not different,
    lengths that disagree, and a matrix of which no row or fewer than two columns are left.
    """
    from scipy import sparse

    if isinstance(matrix, pd.DataFrame):
        names = list(matrix.columns) if names is None else names
        index = matrix.index if index is None else index
        matrix = _numbers_of(matrix)
    X = _sparse(matrix)
    n, D = X.shape
    rows = pd.RangeIndex(n) if index is None else index if isinstance(index, pd.Index) else pd.Index(list(index))
    words = tuple(f"column {d}" for d in range(D)) if names is None else tuple(map(str, names))
    for what, got, expected in (("names", len(words), D), ("index", len(rows), n)):
        if got != expected:
            raise ValueError(f"{what} has {got} entries for a matrix of shape {X.shape}; give {expected}")
    if len(set(words)) < D:
        twice = sorted({name for name, many in zip(*np.unique(words, return_counts=True), strict=True) if many > 1})
        raise ValueError(f"columns must have different names, got {twice[:5]} more than once; rename them")
    _check(X, words)
    given = None if library is None else np.asarray(library, np.float64)
    if given is not None and (given.shape != (n,) or not (np.isfinite(given) & (given > 0)).all()):
        raise ValueError(f"library must be {n} positive, finite sizes, one a row, got shape {given.shape} or others")
    keep, left_out = _kept(X, words, columns, top)
    X = X[:, keep].tocsr()
    sums = np.asarray(X.sum(1, dtype=np.float64)).ravel()
    full = sums > 0
    if not full.any() or len(keep) < 2:
        raise ValueError(f"{int(full.sum())} rows with counts in {len(keep)} columns are left; 1 row, 2 columns needed")
    most = int(X.data.max(initial=0))
    dtype = np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.int32
    size = int(full.sum()) * len(keep) * 4  # as float32, as it is scored
    if size > LARGEST:
        raise ValueError(
            f"{int(full.sum()):,} rows of {len(keep):,} columns take {size / 2**30:.1f} GiB as a dense array, at most "
            f"{LARGEST / 2**30:.0f} GiB are made; {REMEDY}"
        )
    X = sparse.csr_array(X[full].astype(dtype))
    factors, values = _labels(labels or {}, n)
    return CountMatrix(
        {"x": X.toarray(), "library": (sums if given is None else given)[full].astype(np.float32)},
        tuple(words[i] for i in keep),
        rows[full],
        {name: codes[full] for name, codes in factors.items()},
        values,
        left_out,
        tuple(rows[~full].tolist()),
    )


def _numbers_of(frame: pd.DataFrame) -> Any:
    """The numbers of a frame, sparse where its columns are; an error that names a column of anything else."""
    wrong = [str(name) for name, dtype in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if wrong:
        raise ValueError(f"columns {wrong[:5]} hold no numbers; give the counts alone, and labels= for what is known")
    if all(isinstance(dtype, pd.SparseDtype) for dtype in frame.dtypes):
        return frame.sparse.to_coo()
    return frame.to_numpy(dtype=np.float64, na_value=np.nan)


def _sparse(matrix: Any) -> Any:
    """A matrix as a canonical CSC array."""
    from scipy import sparse

    if not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
        if matrix.ndim != 2 or matrix.dtype.kind not in "uifb":
            raise ValueError(
                f"a matrix of counts is (rows, columns) of numbers, got shape {matrix.shape}, dtype {matrix.dtype}"
            )
    elif matrix.ndim != 2 or np.dtype(matrix.dtype).kind not in "uifb":
        raise ValueError(f"a matrix of counts is (rows, columns) of numbers, got {matrix.shape}, {matrix.dtype}")
    if 0 in matrix.shape:
        raise ValueError(f"the matrix is empty, got shape {matrix.shape}; expected rows of counts")
    X = sparse.csc_array(matrix)
    if X.dtype.kind == "b":
        X = X.astype(np.uint8)
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    return X


def _check(X: Any, names: Sequence[str]) -> None:
    """Raise ``ValueError`` for entries that are no counts; names the row and the column of the first."""
    data = X.data
    bad = ~((data >= 0) & (data < MOST) & (data == np.floor(data)))
    if not bad.any():
        return
    at = int(np.argmax(bad))
    value, row = data[at], int(X.indices[at])
    column = names[int(np.searchsorted(X.indptr, at, side="right")) - 1]
    if not np.isfinite(value):
        why = "drop the row, or fill it"
    elif value < 0:
        why = "a matrix with negative numbers has been scaled or centred: give the counts as they were read"
    elif value >= MOST:
        why = "counts of 2^24 and more are not exact in float32"
    else:
        why = "fractions are shares or logarithms: give the counts as they were read"
    raise ValueError(f"row {row}, column {column!r}: expected a whole number 0..{MOST - 1}, got {value:g}; {why}")


def _kept(
    X: Any, names: Sequence[str], columns: Sequence[str] | None, top: int | None
) -> tuple[np.ndarray, dict[str, str]]:
    """Places of the columns to keep, and why the others are left out."""
    from ppl_models.program import did_you_mean

    if columns is not None:
        if top is not None:
            raise ValueError("give columns or top, not both")
        place = {name: i for i, name in enumerate(names)}
        lacking = [str(name) for name in columns if str(name) not in place]
        if lacking:
            raise ValueError(
                f"columns {lacking[:5]} are not in the matrix{did_you_mean(lacking[0], names)}, which has {len(names)}"
            )
        return np.asarray([place[str(name)] for name in columns], int), {}
    used = np.asarray(X.sum(0)).ravel() > 0
    left_out = {names[i]: "no count in any row" for i in np.flatnonzero(~used).tolist()}
    keep = np.flatnonzero(used)
    if top is None or top >= len(keep):
        return keep, left_out
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 2:
        raise ValueError(f"top is a number of columns, at least 2, got {top!r}")
    spread = variability(X)[keep]
    chosen = np.sort(keep[np.argsort(-spread, kind="stable")[:top]])
    left_out |= {names[i]: f"not among the {top} most variable" for i in np.setdiff1d(keep, chosen).tolist()}
    return chosen, left_out


def variability(X: Any) -> np.ndarray:
    """Variance (D,) of ``log1p(x L / l)`` over the rows that are not empty, l the sum of the row, L its median."""
    size = np.asarray(X.sum(1, dtype=np.float64)).ravel()
    n, typical = int((size > 0).sum()), float(np.median(size[size > 0]))
    scaled = X.astype(np.float64)
    scaled.data = np.log1p(scaled.data * (typical / size[X.indices]))
    mean = np.asarray(scaled.sum(0)).ravel() / n
    scaled.data **= 2
    return np.asarray(scaled.sum(0)).ravel() / n - mean**2


def _labels(labels: Mapping[str, Any], n: int) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Codes (n,) int32 of each label, -1 where missing, and its sorted values."""
    codes, values = {}, {}
    for name, column in labels.items():
        series = pd.Series(np.asarray(column) if not isinstance(column, pd.Series | pd.Categorical) else column)
        if len(series) != n:
            raise ValueError(f"label {name!r} has {len(series)} entries for {n} rows; give one a row")
        known = series.notna().to_numpy()
        entries = series[known].to_numpy()
        if entries.dtype.kind not in "uifb":
            entries = np.asarray([str(entry) for entry in entries])
        words, inverse = np.unique(entries, return_inverse=True)
        code = np.full(n, -1, np.int32)
        code[known] = inverse
        codes[name], values[name] = code, tuple(map(str, words))
    return codes, values
