"""One in-context predictor as a table row: the task it is trained on and the network that learns it.

Falck, Wang, Holmes, "Is In-Context Learning in Large Language Models Bayesian? A Martingale Perspective", ICML 2024
(arXiv 2406.00793); Mueller et al., "Transformers Can Do Bayesian Inference", ICLR 2022 (arXiv 2112.10510).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from flax import nnx
from jaxtyping import Array, Key
from pydantic import Field

from ppl_models.in_context import sequences
from ppl_models.in_context.guides import CONTEXT, POSTERIORS, at_identity, width as guide_width
from ppl_models.in_context.heads import Spoken
from ppl_models.in_context.networks import PrefixNet, SequenceNet, SetNet
from ppl_models.in_context.predictors import conjugate
from ppl_models.in_context.tasks import (
    Coin as Coin,
    Dice as Dice,
    Gaussian as Gaussian,
    Regression as Regression,
    Task,
)
from ppl_models.program import Program, build, did_you_mean


def _whole(self: Any, *names: str) -> None:
    for name in names:
        value = getattr(self, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(self).__name__}: {name} must be an integer >= 1, got {value!r}")


@dataclass(frozen=True)
class SetEncoder:
    """Learn the posterior: ``q(theta | z_{1:n})`` from a set encoder; training hides a random tail of each sequence.

    ``posterior``  ``"conjugate"``: the family that holds the exact posterior; on the line, mapped to theta's range,
                   ``"normal"``, ``"full"`` (a covariance; for :class:`Dice`) or ``"flow"``, see
                   :mod:`ppl_models.in_context.guides`.
    """

    width: int = 64
    posterior: Literal["conjugate", "normal", "full", "flow"] = "conjugate"
    kind: Literal["set_encoder"] = "set_encoder"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _whole(self, "width")
        if self.posterior not in POSTERIORS:
            raise ValueError(
                f"SetEncoder: posterior must be one of {', '.join(POSTERIORS)}, got {self.posterior!r}"
                f"{did_you_mean(str(self.posterior), POSTERIORS)}"
            )

    def make(self, task: Any, length: int, rngs: nnx.Rngs) -> nnx.Module:
        """The encoder for a task."""
        del length
        net = SetNet(
            symbols=task.symbols,
            out=guide_width(task, self.posterior),
            width=self.width,
            posterior=self.posterior,
            flow=(task.dimension, CONTEXT) if self.posterior == "flow" else None,
            rngs=rngs,
        )
        return at_identity(task, net)


@dataclass(frozen=True)
class PriorFitted:
    """Learn the predictive: a causal transformer trained on draws of the task, no latent variable.

    ``positions``  learned position embeddings, or none; without them any length can be read, trained for or not.
    ``head``       of real symbols: the task's own law, ``"bar"`` (``parts`` bars) or ``"mixture"`` (``parts`` Normals).
    ``invariant``  instead of a transformer a network of running sums over the set read so far: the order of symbols
                   (of whole rows, in a regression) cannot matter; ``layers`` - 1 of its hidden layers follow the sums.
    """

    width: int = 32
    layers: int = 2
    heads: int = 4
    hidden: int = 64
    positions: bool = False
    head: Literal["task", "bar", "mixture"] = "task"
    parts: int = 128
    invariant: bool = False
    kind: Literal["prior_fitted"] = "prior_fitted"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _whole(self, "width", "layers", "heads", "hidden", "parts")
        if self.head not in HEADS:
            raise ValueError(
                f"PriorFitted: head must be one of {', '.join(HEADS)}, got {self.head!r}"
                f"{did_you_mean(str(self.head), HEADS)}"
            )
        if self.head == "bar" and self.parts < 4:
            raise ValueError(f"PriorFitted: a bar head needs 4 bars or more, got parts={self.parts}; 128 is usual")
        if self.invariant and self.positions:
            raise ValueError("PriorFitted: positions tell orders apart, which invariant=True rules out; leave one out")
        if self.width % self.heads:
            raise ValueError(f"PriorFitted: width must be a multiple of heads, got {self.width} and {self.heads}")

    def spoken(self, task: Any) -> Spoken:
        """The task as the network speaks of it."""
        return Spoken(task, self.head, self.parts if self.head != "task" else 0)

    def make(self, task: Any, length: int, rngs: nnx.Rngs) -> nnx.Module:
        """The network for a task; a transformer has length + 1 positions, one for the start symbol."""
        spoken = self.spoken(task)
        if self.invariant:
            return PrefixNet(
                symbols=task.symbols,
                out=spoken.predictive_width,
                width=self.width,
                hidden=self.layers - 1,
                period=spoken.period,
                rngs=rngs,
            )
        return SequenceNet(
            symbols=task.symbols,
            out=spoken.predictive_width,
            period=spoken.period,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            hidden=self.hidden,
            positions=length + 1 if self.positions else None,
            rngs=rngs,
        )


HEADS = ("task", "bar", "mixture")
Network = Annotated[SetEncoder | PriorFitted, Field(discriminator="kind")]


@dataclass(frozen=True)
class InContext:
    """A predictor of sequences ``z_1..z_T`` that are i.i.d. given an unknown theta.

    ``task``     prior and likelihood: :class:`Coin`, :class:`Dice`, :class:`Gaussian` or :class:`Regression`.
    ``network``  :class:`SetEncoder` (a posterior of theta) or :class:`PriorFitted` (a predictive without theta).
    ``shape``    ``(T,)``, the length of a stored sequence.

    Discrete sequences are stored as uint8, real ones as float32; :meth:`sampler` draws them from the task.

    >>> spec = InContext(Coin(), PriorFitted(), shape=(64,))
    >>> program = spec.build(jax.random.key(0))
    >>> program.parameter_count
    16672
    """

    task: Task = Coin()
    network: Network = SetEncoder()
    shape: tuple[int, ...] = (32,)
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if len(self.shape) != 1 or not isinstance(self.shape[0], int) or self.shape[0] < 1:
            raise ValueError(
                f"shape must be (T,), the length of one sequence, got {self.shape}; images need another family"
            )
        if isinstance(self.network, SetEncoder) and self.network.posterior == "full" and self.task.dimension == 1:
            raise ValueError(
                f"theta of {type(self.task).__name__} is one number, of which a full posterior is the normal one; use "
                "posterior='normal' or 'flow'"
            )

        self._check_fit()

    def _check_fit(self) -> None:
        """Raise ``ValueError`` for a network that this task cannot have."""
        if isinstance(self.task, Regression):
            if isinstance(self.network, SetEncoder):
                raise ValueError("a Regression is learnt by a PriorFitted network, got a SetEncoder")
            if self.shape[0] % self.task.period:
                raise ValueError(
                    f"a sequence of this Regression holds rows of {self.task.period} numbers, got a length of "
                    f"{self.shape[0]}; give a multiple"
                )
        if isinstance(self.network, PriorFitted) and self.network.head != "task" and self.task.symbols is not None:
            raise ValueError(
                f"a {self.network.head} head is of real symbols, {type(self.task).__name__} has {self.task.symbols} "
                "symbols; leave head out"
            )

    @property
    def levels(self) -> int | None:
        """Number of symbols, or ``None`` for real sequences."""
        return self.task.symbols

    @cached_property
    def exact(self) -> Any:
        """The exact Bayes predictor of the task, found by tracing its program; it also has ``posterior(state)``."""
        if isinstance(self.task, Regression):
            return self.task.exact()
        return conjugate(sequences.generative(self.task, self.shape[0]), size=1)

    @property
    def sampler(self) -> Callable[[Key[Array, ""], int], Array]:
        """``(key, n) -> (n, T)``: fresh stored sequences drawn from the task; a data source for ``inference.fit``."""
        return sequences.sampler(self.task, self.shape[0])

    def build(self, key: Key[Array, ""]) -> Program:
        """Build the program; ``key`` seeds the network's weights."""
        return build(self, key)


PRESETS = MappingProxyType(
    {
        "tiny": InContext(Coin(), SetEncoder(width=16), shape=(8,)),
        "tiny_transformer": InContext(Coin(), PriorFitted(width=8, layers=1, heads=2, hidden=8), shape=(8,)),
        "coin_guide": InContext(Coin(), SetEncoder(), shape=(64,)),
        "dice_guide": InContext(Dice(), SetEncoder(), shape=(64,)),
        "gaussian_guide": InContext(Gaussian(), SetEncoder(), shape=(64,)),
        "coin": InContext(Coin(), PriorFitted(), shape=(64,)),
        "coin_positions": InContext(Coin(), PriorFitted(positions=True), shape=(64,)),
        "dice": InContext(Dice(), PriorFitted(), shape=(64,)),
        "gaussian": InContext(Gaussian(), PriorFitted(), shape=(64,)),
        "coin_invariant": InContext(Coin(), PriorFitted(invariant=True, width=64), shape=(64,)),
        "gaussian_bars": InContext(Gaussian(), PriorFitted(head="bar", invariant=True, width=64), shape=(64,)),
        "regression": InContext(Regression(), PriorFitted(invariant=True, width=64, layers=3), shape=(64,)),
    }
)
