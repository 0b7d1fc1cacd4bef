"""One diffusion model as a table row: the data it knows, the network that denoises, the ODE that scores."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

from jaxtyping import Array, Key
from pydantic import BeforeValidator, Field

from ppl_models.diffusion.guided import GuidedUNet
from ppl_models.diffusion.networks import MLP, PREDICTIONS, UNet
from ppl_models.distributions.ode import RK4, Adaptive
from ppl_models.distributions.other_schedules import SCHEDULES, Cosine, FlowMatching, VarianceExploding
from ppl_models.distributions.schedules import EDM, Schedule, Trigonometric, VariancePreserving
from ppl_models.program import Program, build, did_you_mean

Network = Annotated[MLP | UNet | GuidedUNet, Field(discriminator="kind")]
OdeSolver = Annotated[RK4 | Adaptive, Field(discriminator="kind")]


def named_schedule(schedule: Any) -> Any:
    """The schedule of that name with its defaults; anything but a string as it is.

    Raises ``ValueError`` with the known names for another one.
    """
    if not isinstance(schedule, str):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(
            f"unknown schedule {schedule!r}{did_you_mean(schedule, SCHEDULES)}; known: {', '.join(SCHEDULES)}"
        )
    # The usual one starts at noise zero, where the drift by a denoiser is 0 / 0.
    return VariancePreserving(start=1e-3) if schedule == "vp" else SCHEDULES[schedule]()


_Schedule = Annotated[
    VariancePreserving | EDM | Trigonometric | VarianceExploding | Cosine | FlowMatching, Field(discriminator="kind")
]
OdeSchedule = Annotated[_Schedule | str, BeforeValidator(named_schedule)]


@dataclass(frozen=True)
class Diffusion:
    """A diffusion model ``x = cos(phi) x_0 + sin(phi) eps``, trained on its denoising bound.

    ``shape``    of one datum.
    ``levels``   number of grey levels of stored images (17 for scikit-learn's digits), scored as
                 ``(grey + u) / levels``; ``None`` for real-valued data, scored as given.
    ``network``  :class:`UNet`, :class:`MLP` or :class:`GuidedUNet` (Multi-ResNets, staged training).
    ``centre``, ``scale``  the diffusion runs on ``(x - centre) / scale``; a rough mean and standard deviation of the
                 scored data (grey levels are scored on [0, 1]).
    ``level_mean``, ``level_spread``  training draws ``log tan(phi) ~ N(mean, spread^2)``.
    ``weight_cap``  largest importance weight in the gradient of the bound; its value is never capped.
    ``solver``   of the ODE, for samples and densities.
    ``probes``   random probes of the density's divergence, per datum; ``None`` for the exact trace.  Evidence draws at
                 least two, since one cannot tell its own error, and none for data of up to 8 numbers.
    ``within``   nats: evidence takes as many steps and probes as it needs to state this standard error (see
                 ``ppl_models.distributions.log_prob_within``), instead of those of ``solver`` and ``probes``.
                 ``None``: the fixed ones, whose step error is not stated.
    ``schedule`` the path that the ODE takes from noise to data: an object of ``ppl_models.distributions``, or its name
                 (``"trigonometric"``, ``"cosine"``, ``"flow"``, ``"vp"``, ``"ve"``, ``"edm"``).  The network and its
                 training know noise levels only, so the same parameters serve all of them.  The first three end at
                 N(0, I) exactly; :meth:`build` warns where another one biases the density.  Choose the solver's warp
                 with it: 1.75 suits the first four, 1 suits ``"ve"``, 7 suits ``"edm"``.
    ``prediction``  of the network, for real-valued data: ``"v"``, ``"x"`` (the datum) or ``"eps"`` (the noise; needs a
                 schedule that keeps a share of the data at its end).  Grey levels have a denoiser of their own.

    ``classes``  number of classes of the data, if they are given: a datum is then a dict of ``x`` and ``label``
                 (0, 1, .., or -1 for unknown), and what is scored is p(x | label).
    ``label_dropout``  share of the labels that training hides, so that the same network knows p(x): it is what guidance
                 (``prior(..., label=3, guidance=1)``) needs.

    >>> Diffusion(shape=(2,), network=MLP(width=64)).probes is None
    True
    """

    shape: tuple[int, ...]
    levels: int | None = None
    network: Network = MLP()
    centre: float = 0.0
    scale: float = 1.0
    level_mean: float = -0.8
    level_spread: float = 1.2
    weight_cap: float = 8.0
    solver: OdeSolver = RK4(80, 1.75)
    probes: int | None = None
    schedule: OdeSchedule = Trigonometric()
    prediction: str = "v"
    within: float | None = None
    classes: int | None = None
    label_dropout: float = 0.1
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise ValueError(f"shape must be positive integers, the shape of one datum, got {self.shape}; try (8, 8)")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels counts the grey levels of stored data, expected >= 2 or None, got {self.levels}")
        for field in ("scale", "level_spread", "weight_cap"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field} must be positive and finite, got {getattr(self, field)}")
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be at least 1, or None for the exact trace, got {self.probes}")
        object.__setattr__(self, "schedule", named_schedule(self.schedule))
        self._check_within()
        self._check_prediction()
        self._check_classes()
        self.network.check(self.shape)

    @property
    def path(self) -> Schedule:
        """``schedule``, which is an object once the spec is made."""
        return cast(Schedule, self.schedule)

    def _check_within(self) -> None:
        if self.within is None:
            return
        if not 0 < self.within < math.inf:
            raise ValueError(f"within is an error in nats, positive and finite, or None, got {self.within!r}; try 1.0")
        if self.path.kind != "trigonometric":
            raise ValueError(
                f"within states the error of the density along the trigonometric schedule, got {self.path.kind!r}; "
                "leave it None, or the schedule as it is (evidence is that of the same network)"
            )

    def _check_classes(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is a share of the labels, 0 to 1, got {self.label_dropout!r}; usual: 0.1")
        if self.classes is None:
            return
        if self.classes < 1:
            raise ValueError(f"classes counts the classes of the data, at least 1, or None, got {self.classes!r}")
        if isinstance(self.network, GuidedUNet):
            raise ValueError("a GuidedUNet takes no classes; choose MLP or UNet for the network, or classes=None")

    def _check_prediction(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"unknown prediction {self.prediction!r}{did_you_mean(self.prediction, PREDICTIONS)}; "
                f"known: {', '.join(PREDICTIONS)}"
            )
        if self.levels is not None and self.prediction != "v":
            raise ValueError(
                f"grey levels have a denoiser of their own, which predicts each pixel's level; prediction "
                f"{self.prediction!r} is for real-valued data (levels=None)"
            )
        if self.prediction == "eps" and self.path.kind in ("trigonometric", "cosine", "flow"):
            raise ValueError(
                f"the noise does not determine the datum at the end of schedule {self.path.kind!r}, where nothing "
                'of it is left; let the network predict "v" or "x", or choose "vp", "ve" or "edm"'
            )

    def build(self, key: Key[Array, ""] | None = None) -> Program:
        """Draw the starting weights from ``key`` (default: ``jax.random.key(0)``) and return the program."""
        return build(self, key)


# Grey levels: the density starts where the noise is small against their width, or the edges of the boxes are smoothed.
DIGITS = Diffusion(
    (8, 8), levels=17, centre=0.32, scale=0.36, network=UNet(widths=(24, 72), dropout=0.1), probes=1,
    schedule=Trigonometric(start=1e-4),
)  # fmt: skip
TINY = dataclasses.replace(DIGITS, network=MLP(width=16, depth=1, embedding=8), solver=RK4(4, 1.75))
PLANE = Diffusion((2,), network=MLP(width=64), solver=RK4(40, 1.75))
FASHION = Diffusion(
    (28, 28), levels=256, centre=0.29, scale=0.35, network=UNet(widths=(16, 32, 64)), solver=RK4(40, 1.75), probes=1,
    schedule=Trigonometric(start=3e-4), within=1.0,
)  # fmt: skip
DIGITS_MULTI_RESNET = dataclasses.replace(DIGITS, network=GuidedUNet(24, (2, 2), preconditioned=True))
FASHION_MULTI_RESNET = dataclasses.replace(FASHION, network=GuidedUNet(16, (1, 2, 4)))
TRIANGLE_DIGITS = Diffusion(
    (16, 16), levels=17, centre=0.17, scale=0.29, network=GuidedUNet(16, (1, 2, 4), down="pool", heads=4),
    solver=RK4(40, 1.75), probes=1,
)  # fmt: skip
PRESETS = {
    "tiny": TINY,
    "digits": DIGITS,
    "plane": PLANE,
    "fashion": FASHION,
    "digits_by_class": dataclasses.replace(DIGITS, classes=10),
    "digits_multi_resnet": DIGITS_MULTI_RESNET,
    "fashion_multi_resnet": FASHION_MULTI_RESNET,
    "triangle_digits": TRIANGLE_DIGITS,
}
