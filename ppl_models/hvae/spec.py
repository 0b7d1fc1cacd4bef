"""One hierarchical VAE as a table row: its pyramid of cells, its widths, its likelihood.

Child, "Very Deep VAEs", arXiv 2011.10650 (the cell); Falck et al., "A Multi-Resolution Framework for U-Nets with
Applications to Hierarchical VAEs", NeurIPS 2022, arXiv 2301.08187 (the pyramid, weight sharing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Array, Key
from pydantic import Field

from ppl_models.distributions import Bernoulli, Categorical, Columns, LogisticMixture, Normal
from ppl_models.hvae.blocks import DecoderCell, EncoderCell, groups, parse_decoder, parse_encoder, refine
from ppl_models.program import Column, Program, build, did_you_mean

Likelihood = Annotated[Bernoulli | Normal | Categorical | LogisticMixture | Columns, Field(discriminator="kind")]

POSTERIORS = ("normal", "full", "flow")
CHOICES = {
    "encoder": ("learned", "pool", "haar"),
    "step": ("vdvae", "euler"),
    "clock": ("none", "step", "normalise"),
    "execution": ("auto", "unroll", "scan"),
}


@dataclass(frozen=True)
class HVAE:
    """A hierarchy of latent images, coarse to fine: one level a decoder cell, each read off the state above it.

    ``p(x, z) = p(x | Z_L) prod_i N(z_i; pm_i(Z_i), exp(pv_i(Z_i))^2)``, where the state ``Z_{i+1}`` is computed from
    ``Z_i`` and ``z_i``; ``q(z | x) = prod_i N(z_i; qm_i(Z_i, a), exp(qv_i(Z_i, a))^2)`` with the encoder's activation
    ``a(x)`` at the level's resolution.

    ``enc, dec``    block strings, see :mod:`ppl_models.hvae.blocks`.  ``enc`` starts at the side of the image, or at 1:
                    then the datum, of any shape, is one position with all its values as channels (a dense hierarchy).
    ``shape``       of one datum, e.g. (28, 28) or (32, 32, 3).
    ``levels``      number of grey levels of the stored data: 256 for usual images, 17 for scikit-learn's digits.
    ``width``       channels of the state and of the encoder.
    ``zdim``        channels of each z: level i has R_i * R_i * zdim latent dimensions.
    ``mid_ratio``   width inside a block as a share of ``width``.
    ``likelihood``  :class:`Bernoulli`, :class:`Normal`, :class:`Categorical`, :class:`LogisticMixture` or
                    :class:`Columns`.
    ``share``       ``"resolution"``: all plain cells of a resolution use the same weights, in encoder and decoder
                    separately; ``None``: each cell has its own, but for those that a token ties (``"8x6r3"``).
    ``encoder``     ``"learned"``; ``"pool"``: no blocks, activations are averages of the first layer's; or ``"haar"``:
                    no parameters, the activation at resolution r is the datum's projection on images that are
                    constant on r x r cells, its Haar pyramid cut there.  The levels' posterior blocks stay learned.
    ``step``        ``"vdvae"``: the original's cell.  ``"euler"``: an explicit step h = 1 / (cells at the resolution),
                    ``Z+ = Z + h drift + sqrt(h) W z + h b``, ``Z' = Z+ + h resnet(Z+)``, z ~ N(sqrt(h) pm, exp(pv)^2),
                    and q of the prior's scale, its mean moved by ``exp(pv) sqrt(h) u(Z, a)``: KL_i = h |u|^2 / 2, a sum
                    with a limit as h -> 0.  :func:`finer_steps` doubles the cells of such a spec.
    ``clock``       what tells a cell the time: ``"none"`` but the state itself, whose norm may grow; ``"step"``, a
                    learned vector times i / N added to what its blocks read; ``"normalise"``: they read Z / RMS(Z).
    ``posterior``   of the levels at resolution 1, all start at ``"normal"``: ``"normal"`` q as above; ``"full"`` with
                    a Cholesky factor, ``N(qm_i, (diag exp(qv_i) T_i) (diag exp(qv_i) T_i)^T)``, T_i(Z_i, a) unit lower
                    triangular; ``"flow"``: the noise of that Gaussian bent by spline couplings that read (Z_i, a).
                    Finer levels stay normal.
    ``posterior_residual``  ``True``: the encoder says how q differs from the prior it meets, ``qm = pm + dm``,
                    ``qv = pv + dv`` with (dm, dv) the output of the level's block (Vahdat & Kautz 2020, NVAE, arXiv
                    2007.03898, sec. 3.2): a block that says 0 costs 0 nats, whatever the prior has learned.
    ``execution``   how cells run, whatever weights they share: ``"unroll"``, each written out; ``"scan"``, plain cells
                    of a resolution as loops, whose compilation does not grow with their number; ``"auto"``: scan on an
                    accelerator, and on a CPU from 16 decoder cells on.  Equal in value and gradient, with the same
                    parameters.  Of tables, and at resolution 1 under a richer posterior, cells are always written out.
    ``remat``       compute the inner values of cells again in the backward pass instead of keeping them: less memory,
                    more time.
    ``dropout``     share of hidden units dropped in each block while training; none in evaluation or stock ``SVI``.

    A table: ``likelihood=Columns(...)`` as ``datasets.table`` makes it, ``shape`` (columns,), ``enc`` and ``dec`` at 1,
    ``levels`` unused.  Each level then has a linear path to the decoder's numbers and from the row, and before the
    first update the program is a factor analysis of training data (:mod:`ppl_models.hvae.table_start`).

    >>> spec = HVAE(enc="8x1,8d8,1x1", dec="1x2,8m1", shape=(8, 8), levels=17, width=32)
    >>> [cell.res for cell in spec.decoder_cells]
    [1, 1, 8]
    """

    enc: str
    dec: str
    shape: tuple[int, ...]
    levels: int = 256
    width: int = 64
    zdim: int = 16
    mid_ratio: float = 0.25
    likelihood: Likelihood = Bernoulli()
    share: Literal["resolution"] | None = None
    encoder: Literal["learned", "pool", "haar"] = "learned"
    dropout: float = 0.0
    posterior: Literal["normal", "full", "flow"] = "normal"
    posterior_residual: bool = False
    step: Literal["vdvae", "euler"] = "vdvae"
    clock: Literal["none", "step", "normalise"] = "none"
    execution: Literal["auto", "unroll", "scan"] = "auto"
    remat: bool = False
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        for field in ("width", "zdim"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} must be a whole number of channels, at least 1, got {value!r}")
        if not (0 < self.mid_ratio < math.inf) or self.mid < 1:
            raise ValueError(
                f"mid_ratio {self.mid_ratio} of width {self.width} leaves no channel inside a block; try 0.25"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share of units, expected 0 <= dropout < 1, got {self.dropout}")
        if self.share not in (None, "resolution"):
            raise ValueError(f"share must be None or 'resolution', got {self.share!r}")
        for field, known in CHOICES.items():
            value = getattr(self, field)
            if value not in known:
                raise ValueError(
                    f"{field} must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}"
                )
        if not isinstance(self.remat, bool):
            raise ValueError(f"remat must be True or False, got {self.remat!r}")
        if not isinstance(self.levels, int) or self.levels < 2:
            raise ValueError(f"levels counts the grey levels of the stored data, expected >= 2, got {self.levels}")
        self._check_table()
        self._check_pyramid()
        self._check_posterior()

    def _check_table(self) -> None:
        if not isinstance(self.likelihood, Columns):
            return
        D = len(self.likelihood.columns)
        if self.shape != (D,):
            raise ValueError(f"a table of {D} columns has shape ({D},), got {self.shape}")
        cells: tuple[EncoderCell | DecoderCell, ...] = (*self.encoder_cells, *self.decoder_cells)
        sides = sorted({cell.res for cell in cells} - {1})
        if sides:
            raise ValueError(
                f"columns of a table have no grid, got cells at resolution {sides[-1]} in enc {self.enc!r} or dec "
                f"{self.dec!r}; write both at 1, for example enc='1x1', dec='1x2'"
            )

    def _check_pyramid(self) -> None:
        if not self.shape or any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise ValueError(f"shape must be positive integers, the shape of one datum, got {self.shape}; try (28, 28)")
        encoder, decoder = self.encoder_cells, self.decoder_cells
        side = self.grid
        image = len(self.shape) in (2, 3) and self.shape[0] == self.shape[1]
        if side != 1 and not (image and self.shape[0] == side):
            raise ValueError(
                f"enc {self.enc!r} starts at resolution {side}, data have shape {self.shape}; expected enc to start at "
                + (f"{self.shape[0]}, or at 1" if image else "1: only square images (S, S) or (S, S, C) have a grid")
                + " (the whole datum as channels of one position)"
            )
        if decoder[-1].res != side:
            raise ValueError(
                f"dec {self.dec!r} ends at resolution {decoder[-1].res}, expected {side}, where enc starts; "
                f"add '{side}m{decoder[-1].res}'"
            )
        offered = {side} | {cell.res // cell.down for cell in encoder}
        lacking = sorted({cell.res for cell in decoder} - offered)
        if lacking:
            raise ValueError(
                f"dec {self.dec!r} has cells at resolution {lacking[0]}, for which enc {self.enc!r} has no activation "
                f"(it reaches {sorted(offered)}); add a block there to enc"
            )

    def _check_posterior(self) -> None:
        if self.posterior not in POSTERIORS:
            raise ValueError(
                f"posterior must be one of {', '.join(POSTERIORS)}, got {self.posterior!r}"
                f"{did_you_mean(str(self.posterior), POSTERIORS)}"
            )
        if self.posterior != "normal" and self.step == "euler":
            raise ValueError(
                f"step 'euler' gives q the scale of the prior, so posterior must be 'normal', got {self.posterior!r}"
            )
        if self.posterior_residual and (self.step == "euler" or isinstance(self.likelihood, Columns)):
            raise ValueError(
                "posterior_residual=True moves the prior's mean and scale, but "
                + ("step 'euler' moves its mean already" if self.step == "euler" else "a table starts at linear maps")
                + "; leave it out"
            )
        if self.posterior != "normal" and not self.dense:
            raise ValueError(
                f"a {self.posterior} posterior is for levels at resolution 1, dec {self.dec!r} has none; add '1x1' to "
                "its front and reach 1 in enc, or use posterior='normal'"
            )

    @property
    def dense(self) -> tuple[int, ...]:
        """The levels at resolution 1: vectors, whose posterior may be richer than a diagonal Gaussian."""
        return tuple(level for level, cell in enumerate(self.decoder_cells) if cell.res == 1)

    @property
    def encoder_cells(self) -> tuple[EncoderCell, ...]:
        """Cells of the encoder, bottom-up."""
        return parse_encoder(self.enc)

    @property
    def decoder_cells(self) -> tuple[DecoderCell, ...]:
        """Cells of the decoder, top-down: cell i holds latent level i."""
        return parse_decoder(self.dec)

    @property
    def encoder_groups(self) -> tuple[int, ...]:
        """Which weights each encoder cell uses."""
        return groups(self.encoder_cells, self.share is not None)

    @property
    def decoder_groups(self) -> tuple[int, ...]:
        """Which weights each decoder cell uses."""
        return groups(self.decoder_cells, self.share is not None)

    @property
    def steps(self) -> tuple[float, ...]:
        """h of each level: one over the cells at its resolution."""
        sides = [cell.res for cell in self.decoder_cells]
        return tuple(1 / sides.count(side) for side in sides)

    @property
    def times(self) -> tuple[float, ...]:
        """Time within the resolution at which each level begins, from 0 by its h."""
        sides = [cell.res for cell in self.decoder_cells]
        return tuple(sides[:level].count(side) / sides.count(side) for level, side in enumerate(sides))

    @property
    def grid(self) -> int:
        """Side of the finest resolution."""
        return self.encoder_cells[0].res

    @property
    def channels(self) -> int:
        """Numbers that the encoder sees at each position of the finest resolution: values of a datum, or features of
        a row."""
        if isinstance(self.likelihood, Columns):
            return self.likelihood.features
        return math.prod(self.shape) // self.grid**2

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Shape of what the read-out gives the likelihood of one datum."""
        if isinstance(self.likelihood, Columns):
            return (self.likelihood.outputs,)
        return self.likelihood.decoded_shape(self.shape, self.levels)

    @property
    def mid(self) -> int:
        """Channels inside a block."""
        return int(self.mid_ratio * self.width)

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latent sites, ``z_00`` on top; padded with zeros, so that sorted is top-down."""
        count = len(self.decoder_cells)
        digits = max(2, len(str(count - 1)))
        return tuple(f"z_{i:0{digits}d}" for i in range(count))

    def build(self, key: Key[Array, ""] | None = None) -> Program:
        """Draw the starting weights from ``key`` (default: ``jax.random.key(0)``) and return the program."""
        return build(self, key)


def finer_steps(spec: HVAE, times: int = 1) -> HVAE:
    """``spec`` with 2^times as many cells at every resolution, each of a step as much shorter: the same parameters fit.

    >>> program = finer_steps(fitted.program.spec).build()      # evidence(dataclasses.replace(fitted, program=program))

    Raises ``ValueError`` unless ``step="euler"``, ``share="resolution"`` and every resolution has a plain cell.
    """
    if spec.step != "euler" or spec.share != "resolution":
        raise ValueError(
            f"finer steps with the same weights need step='euler' and share='resolution', got step={spec.step!r} and "
            f"share={spec.share!r}: without them a new cell is another model"
        )
    if times < 0:
        raise ValueError(f"times counts doublings, at least 0, got {times}")
    return replace(spec, dec=refine(spec.dec, times))


_DIGITS = Bernoulli(threshold=7.5 / 16, noise=1.0)
TINY = HVAE(
    enc="1x1", dec="1x2", shape=(8, 8), levels=17, width=16, zdim=2, mid_ratio=0.5,
    likelihood=Bernoulli(threshold=7.5 / 16),
)  # fmt: skip
DIGITS = HVAE(
    enc="1x2", dec="1x3", shape=(8, 8), levels=17, width=96, zdim=8, mid_ratio=0.5, likelihood=_DIGITS, dropout=0.1
)
DIGITS_GREY = replace(DIGITS, likelihood=LogisticMixture(components=5), dropout=0.2)
DIGITS8 = HVAE(
    enc="8x2,8d2,4x2,4d4,1x1", dec="1x1,4m1,4x2,8m4,8x2", shape=(8, 8), levels=17, width=64, zdim=8, likelihood=_DIGITS
)
MNIST = HVAE(
    enc="1x1", dec="1x4", shape=(28, 28), width=384, zdim=16, mid_ratio=0.5, likelihood=Bernoulli(stochastic=True)
)
SMALL28 = HVAE(
    enc="28x2,28d2,14x2,14d2,7x2,7d7,1x1", dec="1x1,7m1,7x2,14m7,14x2,28m14,28x2", shape=(28, 28), width=64, zdim=16
)
SMALL32 = HVAE(
    enc="32x2,32d2,16x2,16d2,8x2,8d8,1x1", dec="1x1,8m1,8x2,16m8,16x2,32m16,32x2", shape=(32, 32, 3), width=64, zdim=16,
    likelihood=LogisticMixture(),
)  # fmt: skip
DEEP28 = replace(SMALL28, enc="28x4,28d2,14x4,14d2,7x4,7d7,1x2", dec="1x2,7m1,7x6,14m7,14x8,28m14,28x8")
CIFAR10 = replace(
    SMALL32, width=384, enc="32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3", dec="1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21"
)
# Stands for a table of any columns: those of the data take their place.
_EXAMPLE = (
    Column("length", "real", loc=170.0, scale=10.0),
    Column("dose", "positive", loc=0.5, scale=1.0),
    Column("visits", "count", loc=1.2, scale=0.6),
    Column("smoker", "binary", values=("no", "yes")),
    Column("site", "categorical", values=("east", "north", "west")),
)
TABLE = HVAE(
    enc="1x1", dec="1x2", shape=(len(_EXAMPLE),), width=32, zdim=6, mid_ratio=1.0, dropout=0.2,
    likelihood=Columns(columns=_EXAMPLE, correlated=True, scales="decoded"),
)  # fmt: skip
PRESETS = {
    "tiny": TINY,
    "digits": DIGITS,
    "digits_grey": DIGITS_GREY,
    "digits8": DIGITS8,
    "digits8_haar": replace(DIGITS8, encoder="haar"),
    "mnist": MNIST,
    "small28": SMALL28,
    "small28_tied": replace(SMALL28, share="resolution"),
    "deep28": DEEP28,
    "deep28_tied": replace(DEEP28, share="resolution"),
    "small32": SMALL32,
    "cifar10": CIFAR10,
    "table": TABLE,
}
