"""One multi-facet clustering VAE as a table row: its facets, its likelihood, its networks.

Falck, Zhang, Willetts, Nicholson, Yau, Holmes, "Multi-Facet Clustering Variational Autoencoders", NeurIPS 2021
(arXiv 2106.05241).
"""

from __future__ import annotations

import dataclasses
import keyword
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from jaxtyping import Array, Key
from pydantic import Field

from ppl_models.distributions import Bernoulli, Categorical, Columns, Counts, GreyBernoulli, LogisticMixture, Normal
from ppl_models.distributions.logistic_mixture import is_colour
from ppl_models.mfcvae.mixture import Covariance
from ppl_models.mfcvae.networks import MLP, Additive, ConvLadder, Layers, LayoutSpec, MLPLadder
from ppl_models.mfcvae.progressive import Progressive
from ppl_models.mfcvae.views import VIEWS
from ppl_models.program import Column, Program, build, did_you_mean

Likelihood = Annotated[
    Bernoulli | GreyBernoulli | Normal | Categorical | LogisticMixture | Columns | Counts, Field(discriminator="kind")
]

POSTERIORS = ("normal", "full", "flow")


@dataclass(frozen=True)
class Facet:
    """One partition of the data: ``c ~ Cat(pi)``, ``z | c ~ N(mu_c, S_c)`` with ``z`` of length ``dim``.

    ``name``        names its sites ``z_<name>`` and ``resp_<name>``; lower-case letters, digits, underscores.
    ``dim``         length of ``z``.
    ``clusters``    number K of mixture components; 1 makes the facet an ordinary latent block.
    ``covariance``  of a component: ``"diag"``, ``"full"``, ``"spherical"`` or ``"low_rank"`` (with ``rank`` columns).
    ``view``        what its encoder sees: ``"whole"``, ``"contrast"`` (each pixel's distance to the mean colour) or
                    ``"coarse"`` (mean colours of 4 x 4 blocks); these need images (H, W, C) and separate encoders.
    ``refit``       updates after which the mixture is fitted by EM to posterior draws of training data.  Until the
                    first of them the prior is one Gaussian, so the networks form before any cluster does.
    ``labelled``    the cluster of some data is known (semi-supervised): stored data then carry a label, see ``pack``.
    """

    name: str
    dim: int
    clusters: int
    covariance: Covariance = "diag"
    rank: int = 1
    view: Literal["whole", "contrast", "coarse"] = "whole"
    refit: tuple[int, ...] = ()
    labelled: bool = False
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower() or keyword.iskeyword(self.name):
            raise ValueError(
                f"a facet's name becomes part of a site name, expected lower-case letters, digits and underscores, "
                f"starting with a letter, got {self.name!r}; try 'shape' or 'facet_0'"
            )
        object.__setattr__(self, "refit", tuple(self.refit))
        for field, value in (("dim", self.dim), ("clusters", self.clusters), ("rank", self.rank)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"facet {self.name!r}: {field} must be an integer >= 1, got {value!r}")
        for field, choice, known in (
            ("covariance", self.covariance, get_args(Covariance)),
            ("view", self.view, tuple(VIEWS)),
        ):
            if choice not in known:
                raise ValueError(f"facet {self.name!r}: {field} must be one of {', '.join(known)}, got {choice!r}")
        if self.covariance == "low_rank" and self.rank >= self.dim:
            raise ValueError(
                f"facet {self.name!r}: low_rank needs rank < dim, got rank {self.rank}, dim {self.dim}; use 'full'"
            )
        if any(not isinstance(step, int) or step < 1 for step in self.refit):
            raise ValueError(f"facet {self.name!r}: refit lists numbers of updates >= 1, got {self.refit}")


@dataclass(frozen=True)
class Dirichlet:
    """A prior ``Dir(a, ..., a)`` on the weights pi of every facet: the fit finds their posterior mode.

    ``concentration``  a; below 1 (0.5, say) clusters without data lose their weight: they are pruned.
    ``train_size``     number of training data N: a datum is scored with 1/N of ``(a - 1) sum_c log pi_c``.

    It acts in training (``inference.fit``); stock ``SVI`` and every evaluation leave it out.
    """

    concentration: float
    train_size: int
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not (0 < self.concentration < math.inf):
            raise ValueError(f"concentration must be positive and finite, got {self.concentration}; try 0.5")
        if not isinstance(self.train_size, int) or self.train_size < 1:
            raise ValueError(f"train_size is the number of training data, expected >= 1, got {self.train_size!r}")


@dataclass(frozen=True)
class MFCVAE:
    """A variational autoencoder that clusters data in several ways at once, one Gaussian-mixture latent a facet.

    ``p(x, z) = p(x | z_0, ..., z_{J-1}) prod_j sum_c pi_jc N(z_j; mu_jc, S_jc)``;
    ``q(z | x) = prod_j N(z_j; m_j(x), diag s_j(x)^2)``.

    ``facets``         shallow (near the data) to deep.
    ``shape``          of one datum, e.g. (28, 28) or (32, 32, 3).
    ``levels``         number of grey levels of the stored data: 256 for usual images, 17 for scikit-learn's digits.
    ``likelihood``     :class:`Normal`, :class:`Bernoulli`, :class:`GreyBernoulli`, :class:`Categorical` or
                       :class:`LogisticMixture`.
    ``network``        :class:`MLPLadder` (one width a facet) or :class:`MLP`.
    ``learn_weights``  train the mixture weights ``pi``, or keep them uniform.
    ``prior_scale``    starting standard deviation of every mixture component.
    ``prior_spread``   standard deviation of the random starting means.
    ``warmup``         steps over which the weight of the KL rises from 0 to 1; without it a facet may fall silent
                       before the decoder has learnt to use it.  Stock ``SVI`` trains at weight 1 throughout.
    ``progressive``    :class:`Progressive`: facets enter one after another, deepest first; ``None``, all at once.
    ``dirichlet``      :class:`Dirichlet`: a prior on the weights that prunes clusters; ``None``, none.
    ``bound``          of the training objective.  Per facet, with r_c(z) = log pi_c + log N(z; mu_c, S_c):
                       ``"marginal"``   E_q[ LSE_c r_c(z) - log q(z|x) ];
                       ``"sampled"``    with L = ``bound_draws`` draws, adds log sum_c exp(mean_l log p(c | z_l)): one
                                        q(c|x) serves them all;
                       ``"meanfield"``  LSE_c[ log pi_c - KL(q(z|x) || N(mu_c, S_c)) ], in closed form.
                       In expectation log p(x) >= marginal = sampled (1) >= sampled (L) >= sampled (L+1) >= meanfield.
                       Objectives that use densities alone (``Trace_ELBO``, importance weights) are marginal always.
    ``square``         store a full covariance as d x d entries, as the paper's code, not as its lower triangle.
    ``published_start``  before the first update the means of every mixture become those of a diagonal mixture fitted to
                       the untrained encoder's posterior means, as in the paper's code (``refit`` works better).
    ``missing``        pixels may be missing: a datum is a dict with a mask, see ``pack``.

    ``posterior``      all start at the first (:mod:`ppl_models.mfcvae.guides`):
                       ``"normal"``  q as above (``"diag"`` is an older name of it);
                       ``"full"``    one Gaussian of all facets with a Cholesky factor from the encoder; with
                                     ``Additive`` N(m_j(x), (diag s_j(x) T_j)(diag s_j(x) T_j)^T), one learnt unit lower
                                     triangular T_j a facet, which holds the exact posterior of a linear decoder;
                       ``"flow"``    its noise bent by spline couplings that read x and the facets before; not with
                                     the bound ``"meanfield"``.

    A table: ``likelihood=Columns(...)`` as ``datasets.table`` makes it, ``shape`` (columns,), ``levels`` unused.
    Documents or genes: ``likelihood=Counts(...)`` on what ``datasets.counts`` makes, ``shape`` (columns,); x is scored
    given the library size of its row.

    >>> spec = MFCVAE(facets=(Facet("style", 2, 5), Facet("digit", 5, 10)), shape=(8, 8), levels=17)
    >>> [facet.name for facet in spec.facets]
    ['style', 'digit']
    """

    facets: tuple[Facet, ...]
    shape: tuple[int, ...]
    levels: int = 256
    likelihood: Likelihood = Normal()
    network: LayoutSpec = MLP()
    learn_weights: bool = True
    prior_scale: float = 0.5
    prior_spread: float = 1.0
    warmup: int = 0
    progressive: Progressive | None = None
    dirichlet: Dirichlet | None = None
    bound: Literal["marginal", "sampled", "meanfield"] = "marginal"
    bound_draws: int = 1
    missing: bool = False
    square: bool = False
    published_start: bool = False
    posterior: Literal["normal", "full", "flow", "diag"] = "normal"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "facets", tuple(self.facets))
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "posterior", "normal" if self.posterior == "diag" else self.posterior)
        if not self.facets:
            raise ValueError("facets is empty, expected at least one, e.g. (Facet('digit', dim=5, clusters=10),)")
        wrong = [f for f in self.facets if not isinstance(f, Facet)]
        if wrong:
            raise ValueError(f"facets must be Facet(name, dim, clusters), got {wrong[0]!r}")
        names = [f.name for f in self.facets]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"facet names must differ, got {names}; rename one {twice[0]!r}")
        if not self.shape or any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise ValueError(f"shape must be positive integers, the shape of one datum, got {self.shape}; try (28, 28)")
        if not isinstance(self.levels, int) or self.levels < 2:
            raise ValueError(f"levels counts the grey levels of the stored data, expected >= 2, got {self.levels}")
        for field, value in (("prior_scale", self.prior_scale), ("prior_spread", self.prior_spread)):
            if not (0 < value < math.inf):
                raise ValueError(f"{field} must be positive and finite, got {value}")
        if not isinstance(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"warmup is a number of steps, expected >= 0, got {self.warmup}; 0 turns it off")
        if self.bound not in ("marginal", "sampled", "meanfield"):
            raise ValueError(f"bound must be 'marginal', 'sampled' or 'meanfield', got {self.bound!r}")
        if not isinstance(self.bound_draws, int) or self.bound_draws < 1:
            raise ValueError(f"bound_draws is the number L of draws of the sampled bound, got {self.bound_draws!r}")
        if self.dirichlet and not self.learn_weights:
            raise ValueError("a Dirichlet prior is on learnt weights; set learn_weights=True or drop it")
        if self.progressive and len(self.progressive.epochs) != len(self.facets):
            raise ValueError(
                f"progressive has {len(self.progressive.epochs)} stages for {len(self.facets)} facets; give one a facet"
            )
        flat = not isinstance(self.network, MLP | MLPLadder)
        if flat and (self.missing or isinstance(self.likelihood, Categorical | LogisticMixture)):
            raise ValueError(
                "missing pixels, and likelihoods with several outputs a pixel (Categorical, LogisticMixture), need MLP "
                f"or MLPLadder, got {type(self.network).__name__}"
            )
        if self.missing and isinstance(self.likelihood, LogisticMixture) and is_colour(self.shape):
            raise ValueError(
                f"LogisticMixture ties the channels of a colour, shape {self.shape}, so none can be missing by itself; "
                "use Categorical or Normal, or a shape without the colour axis"
            )
        if isinstance(self.network, Layers) and len(self.shape) not in (2, 3):
            raise ValueError(
                f"Layers composes images, shape (H, W) or (H, W, C), got {self.shape}; use MLP or MLPLadder"
            )
        if isinstance(self.network, ConvLadder):
            self.network.check(len(self.facets), self.shape)
        else:
            self.network.check(len(self.facets))
        viewed = [f.name for f in self.facets if f.view != "whole"]
        if viewed and not getattr(self.network, "separate", False):
            raise ValueError(
                f"facet {viewed[0]!r} has a view of its own, which needs an encoder of its own; use MLP(separate=True)"
            )
        self._check_table()
        if viewed and (len(self.shape) != 3 or self.shape[0] % 4 or self.shape[1] % 4):
            raise ValueError(f"views need images (H, W, C) with H and W multiples of 4, got shape {self.shape}")

    def _check_table(self) -> None:
        likelihood, additive = self.likelihood, isinstance(self.network, Additive)
        if self.posterior not in POSTERIORS:
            near = did_you_mean(str(self.posterior), POSTERIORS)
            raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}, got {self.posterior!r}{near}")
        if self.posterior == "flow" and self.bound == "meanfield":
            raise ValueError(
                "bound='meanfield' is closed for Gaussians; with a flow use 'marginal', or 'sampled', which tends to it"
            )
        if not isinstance(likelihood, Columns | Counts):
            if additive:
                raise ValueError(
                    f"Additive is for tables and counts, got {type(likelihood).__name__}; use MLP or MLPLadder"
                )
            return
        if isinstance(likelihood, Counts):
            likelihood.check_shape(self.shape)
        elif self.shape != (D := len(likelihood.columns),):
            raise ValueError(f"a table of {D} columns has shape ({D},), got {self.shape}")
        if not isinstance(self.network, Additive | MLP | MLPLadder):
            raise ValueError(
                f"a table needs network=Additive(), MLP() or MLPLadder(), got {type(self.network).__name__}"
            )
        if self.missing:
            raise ValueError("missing entries of a table need no missing=True: a row says which of its entries it has")

    def build(self, key: Key[Array, ""] | None = None) -> Program:
        """Draw the starting weights from ``key`` (default: ``jax.random.key(0)``) and return the program."""
        return build(self, key)


TINY = MFCVAE(
    facets=(Facet("style", dim=2, clusters=3), Facet("digit", dim=3, clusters=4, covariance="full")),
    shape=(8, 8),
    levels=17,
    network=MLPLadder((16, 24)),
    prior_scale=1.0,
)
DIGITS = MFCVAE(
    facets=(
        Facet("style", dim=1, clusters=25, refit=(500, 1000)),
        Facet("digit", dim=10, clusters=25, covariance="full", refit=(500, 1000)),
    ),
    shape=(8, 8),
    levels=17,
    likelihood=Normal(sigma=0.2),
    network=MLP((128, 128)),
    warmup=500,
)
DIGITS_LADDER = dataclasses.replace(
    DIGITS,
    facets=(dataclasses.replace(DIGITS.facets[0], refit=(2200,)), DIGITS.facets[1]),
    network=MLPLadder((128, 256)),
    warmup=0,
    progressive=Progressive((150, 214), batches=11, fade_in=800),
)
DIGITS_ONE = MFCVAE(
    facets=(Facet("digit", dim=10, clusters=10, covariance="full", refit=(1000, 2000)),),
    shape=(8, 8),
    levels=17,
    likelihood=Normal(sigma=0.2),
    network=MLP((128, 128)),
    warmup=500,
    bound="meanfield",
)
DIGITS_GREY = dataclasses.replace(DIGITS, likelihood=LogisticMixture(components=3))
_REFIT = (800, 1600, 2400)
FACETS = MFCVAE(
    facets=(Facet("floor", dim=3, clusters=16, refit=_REFIT), Facet("shape", dim=5, clusters=25, refit=_REFIT)),
    shape=(32, 32, 3),
    likelihood=Normal(sigma=0.15),
    network=Layers((128, 128)),
    warmup=300,
)
FACETS_THREE = dataclasses.replace(
    FACETS, facets=(FACETS.facets[0], Facet("colour", dim=3, clusters=16, refit=_REFIT), FACETS.facets[1])
)
FACETS_VIEWS = dataclasses.replace(
    FACETS,
    facets=(
        Facet("floor", dim=3, clusters=8, view="coarse", refit=_REFIT),
        Facet("shape", dim=5, clusters=25, view="contrast", refit=_REFIT),
    ),
    network=MLP((128, 128), separate=True),
)

# The recipes of the paper's code, for whom it may concern: published networks, priors, schedules and starts.  Its
# optimiser is Adam at 5e-4 (mnist, svhn) or 3e-4 (3dshapes), in batches of 512, 150 and 150.
PAPER_MNIST = MFCVAE(
    facets=(Facet("style", dim=5, clusters=25), Facet("digit", dim=5, clusters=25)),
    shape=(28, 28),
    likelihood=GreyBernoulli(),
    network=MLPLadder((500, 2000)),
    prior_scale=0.1,
    progressive=Progressive((201, 201), batches=118, fade_in=15_000),
    published_start=True,
)
_PAPER_CONV = ConvLadder((64, 128), norm="batch", weight_norm=True, data_init=True)
PAPER_SVHN = MFCVAE(
    facets=(Facet("style", 22, 200, "full"), Facet("digit", 7, 50, "full")),
    shape=(32, 32, 3),
    likelihood=Normal(sigma=0.3),
    network=_PAPER_CONV,
    learn_weights=False,
    prior_scale=0.1,
    published_start=True,
    progressive=Progressive((101, 301), batches=489, fade_in=15_000),
    square=True,
)
PAPER_3DSHAPES = dataclasses.replace(
    PAPER_SVHN,
    facets=(Facet("colour", 20, 60, "full"), Facet("shape", 2, 20, "full")),
    likelihood=Normal(sigma=0.6, link="identity"),
    progressive=Progressive((101, 301), batches=26, fade_in=2_000),
)
# Stands for a table of any columns: `fit --data FILE.csv` puts those of the file in its place.
_EXAMPLE = (
    Column("length", "real", loc=170.0, scale=10.0),
    Column("dose", "positive", loc=0.5, scale=1.0),
    Column("visits", "count", loc=1.2, scale=0.6),
    Column("smoker", "binary", values=("no", "yes")),
    Column("site", "categorical", values=("east", "north", "west")),
)
TABLE = MFCVAE(
    facets=(Facet("cluster", dim=15, clusters=10, covariance="tied"),),
    shape=(len(_EXAMPLE),),
    likelihood=Columns(columns=_EXAMPLE, correlated=True, scales="decoded"),
    network=Additive((64,)),
    posterior="full",
)
TABLE_TWO = dataclasses.replace(
    TABLE, facets=tuple(Facet(name, dim=5, clusters=5, covariance="tied") for name in ("first", "second"))
)
# Stands for counts of any columns: `fit --data FILE.h5ad|.npz` puts those of the file in its place.
COUNTS = dataclasses.replace(
    TABLE,
    facets=(Facet("cluster", dim=10, clusters=10, covariance="tied"),),
    shape=(3,),
    likelihood=Counts(names=("ball", "goal", "vote")),
)
_EPOCH = 234  # updates of 256 images
MNIST = dataclasses.replace(
    PAPER_MNIST,
    facets=(
        Facet("style", dim=5, clusters=25, covariance="full", refit=(44 * _EPOCH,)),
        Facet("digit", dim=5, clusters=25, covariance="full", refit=(3 * _EPOCH, 6 * _EPOCH, 12 * _EPOCH)),
    ),
    likelihood=Normal(sigma=0.3),
    published_start=False,
    warmup=500,
    bound="meanfield",
    progressive=Progressive((40, 20), batches=_EPOCH, fade_in=3 * _EPOCH),
)
PRESETS = {
    "tiny": TINY,
    "counts": COUNTS,
    "digits": DIGITS,
    "digits_grey": DIGITS_GREY,
    "digits_ladder": DIGITS_LADDER,
    "digits_one": DIGITS_ONE,
    "facets": FACETS,
    "facets_three": FACETS_THREE,
    "facets_views": FACETS_VIEWS,
    "mnist": MNIST,
    "table": TABLE,
    "table_two": TABLE_TWO,
    "paper_mnist": PAPER_MNIST,
    "paper_svhn": PAPER_SVHN,
    "paper_3dshapes": PAPER_3DSHAPES,
}
