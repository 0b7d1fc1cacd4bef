"""Layouts: how facets attach to the networks.  Each dataclass is a table row that makes an encoder and a decoder.

An encoder maps ``x`` (batch, *shape) to one ``(loc, log_scale)`` a facet, and what its entry of ``extras`` asks for; a
decoder maps the facets' ``z`` and their fades to (batch, *shape).  Facets come shallow to deep, as in the spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import jax
from flax import nnx
from jaxtyping import Array
from pydantic import Field

from ppl_models.networks import conv_ladder, mlp
from ppl_models.networks.additive import AdditiveDecoder, AdditiveEncoder
from ppl_models.networks.layers import LayersDecoder, start_colours
from ppl_models.networks.pure import at_once

ActivationName = Literal["relu", "elu", "silu"]
_ACTIVATIONS: dict[str, mlp.Activation] = {"relu": jax.nn.relu, "elu": jax.nn.elu, "silu": jax.nn.silu}


# --------------------------------------------------------------------------------------------------- merges
@dataclass(frozen=True)
class GatedAdd:
    """``backbone + gate * rung``; the paper's code fixes the gate at 0.1."""

    kind: Literal["gated_add"] = field(default="gated_add", kw_only=True)
    gate: float = 0.1
    learned: bool = False
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not self.gate > 0:
            raise ValueError(f"gate must be positive, got {self.gate}; at 0 the shallow facets would have no effect")

    def make(self, width: int, rngs: nnx.Rngs) -> mlp.Merge:
        """The merge for a backbone of this width."""
        del rngs
        return mlp.GatedAdd(width, self.gate, learned=self.learned)


@dataclass(frozen=True)
class Concat:
    """``[backbone, rung]``: the next block finds the weights of both sides."""

    kind: Literal["concat"] = field(default="concat", kw_only=True)
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def make(self, width: int, rngs: nnx.Rngs) -> mlp.Merge:
        """The merge for a backbone of this width."""
        del rngs
        return mlp.Concat(width)


@dataclass(frozen=True)
class NormAdd:
    """``LayerNorm(backbone) + LayerNorm(rung)``: neither side can drown the other."""

    kind: Literal["norm_add"] = field(default="norm_add", kw_only=True)
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def make(self, width: int, rngs: nnx.Rngs) -> mlp.Merge:
        """The merge for a backbone of this width."""
        return mlp.NormAdd(width, rngs=rngs)


MergeSpec = Annotated[GatedAdd | Concat | NormAdd, Field(discriminator="kind")]


# -------------------------------------------------------------------------------------------------- layouts
@dataclass(frozen=True)
class MLPLadder:
    """One block of width ``widths[j]`` for facet j: the encoder's chain goes 0, 1, ..., the decoder's comes back.

    The paper's MNIST network is ``MLPLadder((500, 2000))``.
    """

    widths: tuple[int, ...] = (128, 256)
    kind: Literal["mlp_ladder"] = field(default="mlp_ladder", kw_only=True)
    activation: ActivationName = "relu"
    merge: MergeSpec = GatedAdd()
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _widths(self.widths))

    def check(self, facets: int) -> None:
        """Raise ``ValueError`` unless there is one width a facet."""
        if len(self.widths) != facets:
            raise ValueError(
                f"MLPLadder needs one width a facet, got {len(self.widths)} widths {self.widths} for {facets} facets; "
                f"give {facets}, shallow to deep"
            )

    def encoder(
        self, shape: tuple[int, ...], dims: tuple[int, ...], rngs: nnx.Rngs, extras: Sequence[mlp.Extra] = ()
    ) -> nnx.Module:
        """``q(z_j | x)``: facet j reads block j."""
        return mlp.LadderEncoder(shape, self.widths, dims, _ACTIVATIONS[self.activation], extras, rngs=rngs)

    def decoder(self, shape: tuple[int, ...], dims: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        """``f(z)``: deepest facet first, a merge at each shallower one."""
        act = _ACTIVATIONS[self.activation]
        return mlp.LadderDecoder(shape, self.widths, dims, act, self.merge.make, rngs=rngs)


@dataclass(frozen=True)
class MLP:
    """All facets at one depth: hidden ``widths`` in the encoder, the same reversed over concatenated ``z`` to decode.

    ``separate`` gives each facet an encoder of its own.
    """

    widths: tuple[int, ...] = (256, 128)
    kind: Literal["mlp"] = field(default="mlp", kw_only=True)
    activation: ActivationName = "relu"
    separate: bool = False
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _widths(self.widths))

    def check(self, facets: int) -> None:
        """Any number of facets fits."""

    def encoder(
        self,
        shape: tuple[int, ...],
        dims: tuple[int, ...],
        rngs: nnx.Rngs,
        extras: Sequence[mlp.Extra] = (),
        views: Sequence[mlp.View] | None = None,
    ) -> nnx.Module:
        """``q(z_j | x)``: all heads on one stack, or a stack a facet, which may see a view of the data."""
        act = _ACTIVATIONS[self.activation]
        if self.separate:
            return mlp.SeparateEncoders(shape, self.widths, dims, act, views, extras, rngs=rngs)
        return mlp.SharedEncoder(shape, self.widths, dims, act, extras, rngs=rngs)

    def decoder(self, shape: tuple[int, ...], dims: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        """``f(z)`` on the concatenation of all facets."""
        return mlp.ConcatDecoder(shape, self.widths[::-1], dims, _ACTIVATIONS[self.activation], rngs=rngs)


@dataclass(frozen=True)
class Layers:
    """An object over a background: ``f = a(z_2) o(z_1) + (1 - a(z_2)) b(z_0)``, a the coverage, o and b colours.

    Three facets are (background, colour, coverage).  Two are (background, coverage): every object has the same colour.
    ``widths`` are those of every encoder, one a facet, and reversed those of the coverage; a colour has one hidden
    layer.  Images (H, W) or (H, W, C); a colour is one value a channel, the same at all pixels.
    """

    widths: tuple[int, ...] = (128, 128)
    kind: Literal["layers"] = field(default="layers", kw_only=True)
    activation: ActivationName = "relu"
    separate: ClassVar[bool] = True
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _widths(self.widths))

    def check(self, facets: int) -> None:
        """Raise ``ValueError`` unless there are two or three facets."""
        if facets not in (2, 3):
            raise ValueError(
                "Layers needs two facets (background, coverage) or three (background, colour, coverage), "
                f"got {facets}; use MLP or MLPLadder for other numbers"
            )

    def encoder(
        self,
        shape: tuple[int, ...],
        dims: tuple[int, ...],
        rngs: nnx.Rngs,
        extras: Sequence[mlp.Extra] = (),
        views: Sequence[mlp.View] | None = None,
    ) -> nnx.Module:
        """``q(z_j | x)``: a stack a facet."""
        return mlp.SeparateEncoders(shape, self.widths, dims, _ACTIVATIONS[self.activation], views, extras, rngs=rngs)

    def decoder(self, shape: tuple[int, ...], dims: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        """``f(z)``, layer over layer."""
        return LayersDecoder(shape, self.widths[::-1], dims, _ACTIVATIONS[self.activation], rngs=rngs)

    def begin(self, decoder: Mapping[str, Any], x: Array, decoded: Callable[[Array], Array]) -> dict[str, Any]:
        """Parameters of the decoder that begins in the colours of ``x`` (batch, H, W[, C])."""
        return start_colours(decoder, x if x.ndim == 4 else x[..., None], decoded)


@dataclass(frozen=True)
class Additive:
    """For tables: the effects of the facets add up, ``f(z) = b + sum_j (W_j z_j + g_j(z_j))``, hidden ``widths`` in g.

    ``start``  ``"classical"``: before the first update the program is a mixture of common factor analysers fitted to
               training data (:mod:`ppl_models.mfcvae.classical_start`), its hidden layers silent; ``"random"``: as any
               other network.
    """

    widths: tuple[int, ...] = (64,)
    kind: Literal["additive"] = field(default="additive", kw_only=True)
    activation: ActivationName = "silu"
    start: Literal["classical", "random"] = "classical"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _widths(self.widths))
        if self.start not in ("classical", "random"):
            raise ValueError(f"start must be 'classical' or 'random', got {self.start!r}")

    def check(self, facets: int) -> None:
        """Any number of facets fits."""

    def encoder(
        self, shape: tuple[int, ...], dims: tuple[int, ...], rngs: nnx.Rngs, extras: Sequence[mlp.Extra] = ()
    ) -> nnx.Module:
        """``q(z_j | x)``: a linear map and a head for each facet."""
        return AdditiveEncoder(shape[0], self.widths, dims, _ACTIVATIONS[self.activation], extras, rngs=rngs)

    def decoder(self, shape: tuple[int, ...], dims: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        """``f(z)``."""
        return AdditiveDecoder(shape[0], self.widths, dims, _ACTIVATIONS[self.activation], rngs=rngs)


@dataclass(frozen=True)
class ConvLadder:
    """For images: facet j branches off, and enters again, at 1 / 2^(j+1) of their size, in ``widths[j]`` channels.

    The paper's network of SVHN and 3DShapes is ``ConvLadder((64, 128), norm="batch", weight_norm=True)``, for three
    facets ``(64, 128, 256)``.  J facets need height and width that are multiples of 2^J and at least 4 * 2^J.

    ``norm``         after each activation: ``"layer"`` (each datum over its whole map), ``"batch"`` or ``"none"``.
                     Batch statistics tie the data of a batch together while training; evaluation uses running averages.
    ``weight_norm``  of the encoder's convolutions, as published.
    ``data_init``    before the first update rescale every linear map to outputs of mean 0 and deviation .1 on training
                     data, as published (``inference.fit`` does it; stock ``SVI`` does not).
    """

    widths: tuple[int, ...] = (64, 128)
    kind: Literal["conv_ladder"] = field(default="conv_ladder", kw_only=True)
    activation: ActivationName = "elu"
    norm: Literal["layer", "batch", "none"] = "layer"
    weight_norm: bool = False
    data_init: bool = False
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _widths(self.widths))
        if self.norm not in ("layer", "batch", "none"):
            raise ValueError(f"norm must be 'layer', 'batch' or 'none', got {self.norm!r}")

    def check(self, facets: int, shape: tuple[int, ...] | None = None) -> None:
        """Raise ``ValueError`` unless there is one width a facet, and the ladder fits images of ``shape``."""
        if len(self.widths) != facets:
            raise ValueError(
                f"ConvLadder needs one width a facet, got {len(self.widths)} widths {self.widths} for {facets} facets; "
                f"give {facets}, shallow to deep"
            )
        if shape is not None:
            conv_ladder.image_size(shape, facets)

    def encoder(
        self, shape: tuple[int, ...], dims: tuple[int, ...], rngs: nnx.Rngs, extras: Sequence[mlp.Extra] = ()
    ) -> nnx.Module:
        """``q(z_j | x)``: facet j reads the rung on block j."""
        make = partial(conv_ladder.ConvLadderEncoder, shape, self.widths, dims, _ACTIVATIONS[self.activation], extras)
        return at_once(lambda rngs: make(norm=self.norm, weight_norm=self.weight_norm, rngs=rngs), rngs())

    def decoder(self, shape: tuple[int, ...], dims: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        """``f(z)``: deepest facet first, each shallower one joined to the channels at its size."""
        make = partial(conv_ladder.ConvLadderDecoder, shape, self.widths, dims, _ACTIVATIONS[self.activation])
        return at_once(lambda rngs: make(norm=self.norm, rngs=rngs), rngs())


LayoutSpec = Annotated[MLPLadder | MLP | Layers | ConvLadder | Additive, Field(discriminator="kind")]


def _widths(widths: Any) -> tuple[int, ...]:
    widths = tuple(widths)
    if not widths or any(not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError(f"widths must be one or more positive integers, got {widths}")
    return widths
