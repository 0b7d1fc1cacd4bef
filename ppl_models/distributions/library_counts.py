"""Rows of a matrix of counts as data: documents and their words, cells and their genes, given how much was read.

Stored data are ``{"x": (n, D) whole numbers, "library": (n,)}``.  The library size is an input: given, not scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ppl_models.distributions.counts import MOST
from ppl_models.distributions.library_laws import NEAR, LibraryLaw, MultinomialLibrary, NegativeBinomialLibrary

BLOCK = 2**24
"""Numbers of a matrix that are checked at once."""


@dataclass(frozen=True)
class Counts:
    """``p(x | z, l)`` of a row of counts with library size l and shares ``p = softmax(b + f(z))`` of the columns.

    ``law``      ``"negative_binomial"``: ``prod_d NB(x_d; l p_d, r_d)``, of mean l p_d and variance
                 ``l p_d + (l p_d)^2 / r_d`` with a learnt concentration r_d a column; ``"multinomial"``:
                 ``Multinomial(x; l, p)`` with its exact coefficient, for which l must be the sum of the row.
    ``names``    of the columns; without, they are numbered.
    ``library``  a typical library size (the median, :attr:`ppl_models.datasets.CountMatrix.library`): the encoder sees
                 counts scaled to it, and means of clusters are at it.

    b is learnt and starts, in ``inference.fit``, at the log shares of the training data.  Scores are conditional
    probability masses (nats): both laws score the same, so their tables compare.
    """

    kind: Literal["counts"] = field(default="counts", kw_only=True)
    law: Literal["negative_binomial", "multinomial"] = "negative_binomial"
    names: tuple[str, ...] = ()
    library: float = 10_000.0
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if self.law not in ("negative_binomial", "multinomial"):
            raise ValueError(f"law must be 'negative_binomial' or 'multinomial', got {self.law!r}")
        if not 0 < self.library < math.inf:
            raise ValueError(f"library is a typical sum of a row, expected > 0 and finite, got {self.library}")
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"columns must have different names, got {twice[:5]} more than once; rename them")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless a datum is a vector of at least two counts, as many as there are names."""
        if len(shape) != 1 or shape[0] < 2 or (self.names and shape != (len(self.names),)):
            expected = f"({len(self.names)},), one a name" if self.names else "(D,) with D columns, two or more"
            raise ValueError(f"a row of counts has shape {expected}, got {shape}; datasets.counts(matrix) tells both")

    def column_names(self, D: int) -> tuple[str, ...]:
        """The names of the columns, or their numbers."""
        return self.names or tuple(f"column {d}" for d in range(D))

    def datum_shape(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of one datum: the counts of a row, and its library size."""
        return {"x": shape, "library": ()}

    def features(self, shape: tuple[int, ...]) -> int:
        """Length of what an encoder sees of a row (:meth:`encode`)."""
        return shape[0] + 1

    def parameters(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Learnt arrays: ``log_share`` (D,) b; of the negative binomial ``log_concentration`` (D,), at the start 0."""
        found = {"log_share": jnp.zeros(shape)}
        return found if self.law == "multinomial" else {**found, "log_concentration": jnp.zeros(shape)}

    def prepare(self, x: Mapping[str, Array], key: Key[Array, ""], training: bool) -> dict[str, Array]:
        """Stored numbers as float32; the same in training and evaluation."""
        del key, training
        return {"x": x["x"].astype("float32"), "library": x["library"].astype("float32")}

    def shares(self, x: Mapping[str, Array]) -> Float[Array, "*batch D"]:
        """``log1p`` of prepared counts scaled to the typical library size: what classical methods read."""
        scale = self.library / jnp.maximum(x["library"], 1.0)
        return jnp.log1p(x["x"] * scale[..., None])

    def encode(self, x: Mapping[str, Array]) -> Float[Array, "*batch features"]:
        """What an encoder sees of prepared rows: :meth:`shares`, and the log of the library size over the typical one,
        for the posterior of a row that was read deeper is narrower."""
        depth = jnp.log(jnp.maximum(x["library"], 1.0) / self.library)
        return jnp.concatenate([self.shares(x), depth[..., None]], -1)

    def distribution(
        self,
        decoded: Float[Array, "*#batch D"],
        parameters: Mapping[str, Array],
        library: Float[Array, "*#batch"],
    ) -> LibraryLaw:
        """The law of rows whose decoder returned ``decoded``, given their library sizes."""
        logits = parameters["log_share"] + decoded
        if self.law == "multinomial":
            return MultinomialLibrary(logits, library)
        return NegativeBinomialLibrary(logits, library, jnp.exp(jnp.clip(parameters["log_concentration"], -7.0, 14.0)))

    def start(self, x: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Parameters that fit stored rows whatever z: log shares of the columns (half a count added to each), and the
        concentrations of :func:`concentrations` at them."""
        counts, library = np.asarray(x["x"], np.float64), np.asarray(x["library"], np.float64)
        total = counts.sum(0) + 0.5
        found = {"log_share": np.log(total / total.sum())}
        if self.law == "negative_binomial":
            found["log_concentration"] = np.log(concentrations(counts, library[:, None] * (total / total.sum())))
        return found

    def check(self, x: Any) -> None:
        """Raise ``ValueError`` for data that are not rows of counts with their library sizes; names column and row."""
        if not isinstance(x, Mapping) or not {"x", "library"} <= set(x):
            got = f"a dict of {sorted(x)}" if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(
                f"rows of counts are a dict of 'x' and 'library', got {got}; datasets.counts(matrix).x makes it"
            )
        counts, library = np.asarray(x["x"]), np.asarray(x["library"])
        if counts.ndim != 2 or library.shape != counts.shape[:1]:
            raise ValueError(f"'x' and 'library' must have shapes (N, D) and (N,), got {counts.shape}, {library.shape}")
        if not len(counts):
            raise ValueError(f"data are empty, got shape {counts.shape}; expected at least one row")
        if counts.dtype.kind not in "uifb" or library.dtype.kind not in "uif":
            raise ValueError(f"'x' and 'library' must be numbers, got dtypes {counts.dtype} and {library.dtype}")
        bad = ~(np.isfinite(library) & (library > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"library sizes must be positive and finite, got {library[row]} in row {row}; leave empty rows out"
            )
        rows = max(1, BLOCK // counts.shape[1])
        for first in range(0, len(counts), rows):
            self._check_block(counts[first : first + rows], library[first : first + rows], first)

    def _check_block(self, counts: np.ndarray, library: np.ndarray, first: int) -> None:
        bad = ~((counts >= 0) & (counts < MOST) & (counts == np.floor(counts)))
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            name = self.column_names(counts.shape[1])[column]
            raise ValueError(
                f"column {name!r}, row {first + row}: expected a whole number 0..{int(MOST) - 1}, got "
                f"{counts[row, column]}; counts are scored as they were read, not scaled and not their logarithm"
            )
        if self.law == "multinomial":
            sums = counts.sum(1, dtype=np.float64)
            bad = np.abs(sums - library) > 0.5 + NEAR * library
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"a multinomial row adds up to its library size, row {first + row} adds up to {sums[row]:g} with "
                    f"library size {library[row]:g}; leave library= out, or use law='negative_binomial'"
                )

    @property
    def bits_offset(self) -> float:
        """0: a probability mass, so ``-log2 p(x | l) / D`` is the code length of a count, in bits, for a reader who
        knows the library size."""
        return 0.0

    def observation(self, shape: tuple[int, ...]) -> str:
        """What is scored, in one line: the same for both laws."""
        named = f" ({', '.join(self.names[:3])}{', ...' if len(self.names) > 3 else ''})" if self.names else ""
        return f"counts of {shape[0]} columns{named} given the library size; probability mass, nats"

    def symbols(self) -> str:
        """The likelihood in the paper's symbols."""
        if self.law == "multinomial":
            return "p(x|z,l) = Multinomial(x; l, softmax(b + f(z)))"
        return "p(x|z,l) = ∏_d NB(x_d; l softmax(b + f(z))_d, r_d)"


def concentrations(counts: Float[np.ndarray, "n D"], mean: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " D"]:
    """``sum m^2 / sum ((x - m)^2 - m)`` of each column by the moments of ``m + m^2 / r``, within .01 to 1,000."""
    excess = ((counts - mean) ** 2 - mean).sum(0)
    square = (mean**2).sum(0)
    return np.clip(square / np.maximum(excess, 1e-3 * square + 1e-12), 0.01, 1000.0)
