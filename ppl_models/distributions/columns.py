"""Rows of a table as data: which number of the decoder belongs to which column, and the likelihood of a row.

Stored data are ``{"x": (n, D) float32, "there": (n, D) bool}``: the stored numbers of
:class:`ppl_models.program.Column`, 0 where an entry is missing, and where it is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ppl_models._column import MOST, Column
from ppl_models.distributions.correlated_row_law import CorrelatedRowLaw, unit_lower
from ppl_models.distributions.row_law import RowLaw, groups

_SMALLEST = 1e-6
_SLOPE = 0.2


@dataclass(frozen=True)
class Columns:
    """``p(x | z) = prod_d p_d(x_d | f(z))`` over the entries that are there, a density in the units of the file.

    real         ``N(x_d; f_d, s_d^2)`` on the stored scale; with ``robust`` a Student-t of ``nu_d > 2``.
    positive     the same of ``log x_d``: log-Normal.
    count        negative binomial of mean ``exp(a_d + b_d f_d)`` and concentration ``r_d``; with ``loc`` and ``scale``
                 of the column ``a = log(e^loc - 1)``, ``b = scale / (1 - e^-loc)``: f_d is ``log1p`` of the mean,
                 standardised, to first order.
    binary       Bernoulli of log odds ``f_d``.
    categorical  softmax of ``f_d``, one number a class.

    ``columns``  as :func:`ppl_models.datasets.table` finds them.
    ``robust``   Student-t in place of Normal, degrees of freedom learnt a column.
    ``scales``   ``"column"``: one learnt s_d a column; ``"decoded"``: times a function of z, one more number of the
                 decoder for each real and positive column.
    ``correlated``  the noise of the real and positive columns is jointly Gaussian, with a learnt correlation, the same
                 for all rows: a Gaussian is then the model whose decoder ignores z.
    ``floor``    least s_d, in standardised units; a column with a ``resolution`` has its own where that is higher.

    The decoder returns ``outputs`` numbers a row (:meth:`slices`): first one for each column that is not categorical,
    in the order of the columns; then the logits of each categorical column; then, with ``scales="decoded"``, the log
    factor of the scale of each real and positive column.
    """

    kind: Literal["columns"] = field(default="columns", kw_only=True)
    columns: tuple[Column, ...]
    robust: bool = False
    scales: Literal["column", "decoded"] = "column"
    correlated: bool = False
    floor: float = 1e-3
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        names = [column.name for column in self.columns]
        if not names:
            raise ValueError("a table has at least one column, got none; datasets.table(frame).columns lists them")
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"columns must have different names, got {twice} more than once; rename them in the file")
        if self.scales not in ("column", "decoded"):
            raise ValueError(f"scales must be 'column' or 'decoded', got {self.scales!r}")
        if self.robust and self.correlated:
            raise ValueError("correlated columns are Gaussian, robust ones Student-t; choose one of the two")
        if not 0 < self.floor < 0.5:
            raise ValueError(f"floor is a standard deviation in standardised units, expected 0 to .5, got {self.floor}")

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """Of one datum: the stored numbers of a row, and where they are there."""
        return {"x": (len(self.columns),), "there": (len(self.columns),)}

    @property
    def _single(self) -> np.ndarray:
        return np.asarray([i for i, column in enumerate(self.columns) if column.kind != "categorical"], "int32")

    @property
    def _classes(self) -> dict[int, int]:
        return {i: len(column.values) for i, column in enumerate(self.columns) if column.kind == "categorical"}

    @property
    def features(self) -> int:
        """Length of what an encoder sees of a row (:meth:`encode`)."""
        return len(self._single) + sum(self._classes.values()) + len(self.columns)

    @property
    def outputs(self) -> int:
        """Numbers that the decoder returns a row."""
        decoded = len(groups(self.columns).gaussian) if self.scales == "decoded" else 0
        return len(self._single) + sum(self._classes.values()) + decoded

    def slices(self) -> dict[str, slice]:
        """Which of the decoder's numbers say where each column lies: one, or the logits of its classes.

        With ``scales="decoded"`` the last ones are log factors of the scales of the real and positive columns, in
        their order.  The same slices find a column in what :meth:`encode` returns.
        """
        found = {int(i): slice(j, j + 1) for j, i in enumerate(self._single)}
        at = len(self._single)
        for i, k in self._classes.items():
            found[i] = slice(at, at + k)
            at += k
        return {column.name: found[i] for i, column in enumerate(self.columns)}

    def floors(self) -> np.ndarray:
        """Least scale (G,) of the real and positive columns, standardised."""
        own = [self.columns[i].least_scale(self.floor) for i in groups(self.columns).gaussian]
        return np.asarray(own, "float64")

    def parameters(self) -> dict[str, Array]:
        """Learnt arrays, where the likelihood has such columns: ``log_scale`` (G,), s = floor + exp(log_scale), at the
        start 1; ``whitening``, the entries of :class:`CorrelatedRowLaw`'s A below its diagonal; ``log_df`` (G,),
        nu = 2 + exp(log_df), at the start 10; ``log_concentration`` (C,), r."""
        at, found = groups(self.columns), {}
        if at.gaussian.size:
            found["log_scale"] = jnp.asarray(np.log(1 - self.floors()), "float32")
            if self.correlated and at.gaussian.size > 1:
                found["whitening"] = jnp.zeros(at.gaussian.size * (at.gaussian.size - 1) // 2)
            if self.robust:
                found["log_df"] = jnp.full(at.gaussian.shape, math.log(8.0), "float32")
        if at.count.size:
            # The variance of log1p of a count is about 1 / mean + 1 / r.
            loc, scale = (np.asarray([getattr(self.columns[i], name) for i in at.count]) for name in ("loc", "scale"))
            rest = scale**2 - np.exp(-np.maximum(loc, 0.0))
            found["log_concentration"] = jnp.asarray(-np.log(np.clip(rest, 0.01, 100.0)), "float32")
        return found

    def prepare(self, x: Mapping[str, Array], key: Key[Array, ""], training: bool) -> dict[str, Array]:
        """Stored numbers as float32, 0 where missing, and ``there`` as bool; the same in training and evaluation."""
        del key, training
        there = x["there"].astype(bool)
        return {"x": jnp.where(there, x["x"].astype("float32"), 0.0), "there": there}

    def encode(self, x: Mapping[str, Array]) -> Float[Array, "*batch features"]:
        """What an encoder sees of prepared rows, 0 where an entry is missing: standardised numbers (of counts, of their
        log1p), -1 and 1 for the codes of a binary column; then one-hot classes; then ``there``, always."""
        value, there = x["x"], x["there"]
        single = self._single
        number = value[..., single]
        kinds = [self.columns[i].kind for i in single]
        count, binary = (np.asarray([kind == name for kind in kinds], bool) for name in ("count", "binary"))
        loc = np.asarray([self.columns[i].loc for i in single], "float32")
        scale = np.asarray([self.columns[i].scale for i in single], "float32")
        number = jnp.where(count, (jnp.log1p(jnp.maximum(number, 0.0)) - loc) / scale, number)
        number = jnp.where(binary, 2 * number - 1, number)
        parts = [jnp.where(there[..., single], number, 0.0)]
        for i, k in self._classes.items():
            parts.append(jnp.where(there[..., i, None], jax.nn.one_hot(value[..., i].astype("int32"), k), 0.0))
        return jnp.concatenate([*parts, there.astype("float32")], -1)

    def numbers(self, x: Mapping[str, Array]) -> Float[Array, "*batch P"]:
        """Prepared rows as plain numbers for classical methods: :meth:`encode` without the mask, classes centred and
        scaled so that two different ones are as far apart as the codes of a binary column; where an entry is missing
        0, which is the mean of a number and equally far from all classes."""
        found = self.encode(x)[..., : -len(self.columns)]
        there, slices = x["there"], self.slices()
        for i, k in self._classes.items():
            at = slices[self.columns[i].name]
            centred = jnp.where(there[..., i, None], found[..., at] - 1 / k, 0.0)
            found = found.at[..., at].set(math.sqrt(2.0) * centred)
        return found

    def distribution(
        self,
        decoded: Float[Array, "*#batch outputs"],
        parameters: Mapping[str, Array],
        there: Bool[Array, "*#batch D"] | None = None,
    ) -> RowLaw:
        """:class:`RowLaw` of what the decoder returned; ``there`` says which entries are scored, by default all."""
        at, slices = groups(self.columns), self.slices()
        first = {i: slices[column.name].start for i, column in enumerate(self.columns)}

        def place(which: np.ndarray) -> np.ndarray:
            return np.asarray([first[int(i)] for i in which], "int32")

        log_scale = parameters.get("log_scale", jnp.zeros(0))
        if self.scales == "decoded" and at.gaussian.size:
            log_scale = jnp.clip(log_scale + decoded[..., -len(at.gaussian) :], -12.0, 12.0)
        kind: type[RowLaw] = RowLaw
        more: dict[str, Any] = {}
        if "whitening" in parameters:
            kind, more = CorrelatedRowLaw, {"whitening": unit_lower(parameters["whitening"], at.gaussian.size)}
        base, slope = self._count_line()
        log_mean = base + slope * decoded[..., place(at.count)]
        return kind(
            self.columns,
            loc=decoded[..., place(at.gaussian)],
            scale=jnp.asarray(self.floors(), "float32") + jnp.exp(log_scale),
            df=2 + jnp.exp(parameters["log_df"]) if self.robust and at.gaussian.size else None,
            mean=jnp.exp(jnp.clip(log_mean, math.log(_SMALLEST), math.log(MOST))),
            concentration=jnp.exp(jnp.clip(parameters.get("log_concentration", jnp.zeros(0)), -7.0, 14.0)),
            logits=decoded[..., place(at.binary)],
            class_logits=tuple(decoded[..., place(which)[:, None] + np.arange(k)] for k, which in at.classes.items()),
            there=there,
            **more,
        )

    def _count_line(self) -> tuple[np.ndarray, np.ndarray]:
        """``a`` and ``b`` (C,) of the log mean ``a + b f`` of the counts."""
        which = groups(self.columns).count
        loc = np.maximum([self.columns[i].loc for i in which], _SLOPE)  # near 0 the line would be vertical
        scale = np.asarray([self.columns[i].scale for i in which])
        return np.log(np.expm1(loc)).astype("float32"), (scale / -np.expm1(-loc)).astype("float32")

    def start(self, x: Mapping[str, Any]) -> Float[np.ndarray, " outputs"]:
        """The decoder's numbers at which every column has its marginal fit to stored rows, whatever z: the means, log
        mean counts, log odds and log shares of the classes (half a row added to each), and log factors of 0."""
        value, there = np.asarray(x["x"], "float64"), np.asarray(x["there"], bool)
        bias, slices = np.zeros(self.outputs, "float32"), self.slices()
        line = iter(zip(*self._count_line(), strict=True))
        for i, column in enumerate(self.columns):
            known = value[there[:, i], i]
            if column.kind in ("real", "positive"):
                bias[slices[column.name]] = known.mean() if known.size else 0.0
            elif column.kind == "count":
                base, slope = next(line)
                bias[slices[column.name]] = (
                    (math.log(max(known.mean(), _SMALLEST)) - base) / slope if known.size else 0.0
                )
            else:
                share = np.log(np.bincount(known.astype(int), minlength=len(column.values)) + 0.5)
                bias[slices[column.name]] = share[1] - share[0] if column.kind == "binary" else share - share.mean()
        return bias

    def check(self, x: Any) -> None:
        """Raise ``ValueError`` for data that are not stored rows of these columns; names the column and the row."""
        if not isinstance(x, Mapping) or set(x) != {"x", "there"}:
            got = f"a dict of {sorted(x)}" if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(
                f"rows of a table are a dict of 'x' and 'there', got {got}; "
                "ppl_models.datasets.table(frame).x makes it of a DataFrame"
            )
        value, there = np.asarray(x["x"]), np.asarray(x["there"])
        D = len(self.columns)
        if value.ndim != 2 or value.shape[1] != D or there.shape != value.shape:
            raise ValueError(f"'x' and 'there' must have shape (N, {D}), got {value.shape} and {there.shape}")
        if value.dtype.kind not in "uifb" or there.dtype.kind not in "bui":
            raise ValueError(f"'x' must be numbers and 'there' bool, got dtypes {value.dtype} and {there.dtype}")
        if not value.shape[0]:
            raise ValueError(f"data are empty, got shape {value.shape}; expected at least one row")
        there = there.astype(bool)
        if not there.any():
            raise ValueError("every entry of every row is missing; 'there' is True where an entry is known")
        for i, column in enumerate(self.columns):
            v = value[:, i]
            bad, expected = ~np.isfinite(v), "finite, the stored number of a cell"
            if column.kind == "count":
                bad, expected = bad | (v < 0) | (v >= MOST) | (v != np.floor(v)), f"a whole number 0..{MOST - 1}"
            elif column.values:
                k = len(column.values)
                bad, expected = bad | (v < 0) | (v >= k) | (v != np.floor(v)), f"a code 0..{k - 1}"
            bad = bad & there[:, i]
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"column {column.name!r} ({column.kind}), row {row}: expected {expected}, got {v[row]}; "
                    "encode the file with datasets.encode_frame(columns, frame)"
                )

    @property
    def bits_offset(self) -> None:
        """None: densities of numbers have no code length."""
        return None

    def observation(self) -> str:
        """What is scored, in one line: the same for every model that scores the same table."""
        listed = ", ".join(
            f"{column.name} {column.kind}" + (f" of {len(column.values)}" if column.kind == "categorical" else "")
            for column in self.columns
        )
        return (
            f"{len(self.columns)} columns of a table: {listed}; log density in the units of the file "
            "(probability mass for whole numbers and classes), missing entries summed out; nats"
        )

    def symbols(self) -> str:
        """The likelihood in the paper's symbols, for the kinds that there are."""
        noise = "t_ν" if self.robust else "N"
        scale = "s_d(z)²" if self.scales == "decoded" else "s_d²"
        law = {
            "real": f"{noise}(x_d; f_d(z), {scale})",
            "positive": f"{noise}(log x_d; f_d(z), {scale})/x_d",
            "count": "NB(x_d; e^f_d(z), r_d)",
            "binary": "Bernoulli(x_d; σ(f_d(z)))",
            "categorical": "Cat(x_d; softmax f_d(z))",
        }
        kinds = [kind for kind in law if any(column.kind == kind for column in self.columns)]
        return "p(x|z) = ∏_d " + " · ".join(law[kind] for kind in kinds)
