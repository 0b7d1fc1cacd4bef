"""The U-Net as the paper defines it: six parts and one recursion.

Williams et al., "A Unified Framework for U-Net Design and Analysis", NeurIPS 2023, arXiv 2305.19638, Definition 1:
``U = (V, W, E, D, P, U_0)`` and, for i = 1..L,

    U_i(v) = D_i(U_{i-1}(P_{i-1} E_i v) | E_i v)

| symbol | name                | what it is                                                          |
|--------|---------------------|---------------------------------------------------------------------|
| V_i    | ``encoder_spaces``  | what U_i reads; V_{i-1} is the coarser space                          |
| W_i    | ``decoder_spaces``  | what U_i returns                                                    |
| E_i    | ``encoders[i]``     | ``E(v, c)``: a change of coordinates, or the identity               |
| P_i    | ``projections[i]``  | ``P(e)``: what E_{i+1} returned, truncated to V_i                   |
| D_i    | ``decoders[i - 1]`` | ``D(w, e, c)``: the coarse answer w and what E_i returned, to W_i   |
| U_0    | ``bottleneck``      | ``U_0(e, c)``: what E_0 returned, to W_0                            |

``c`` is what ``embeddings[i]`` makes of the condition (a noise level, say) for level i.  The paper has E_0 = id;
another E_0 is a part of its bottleneck.  U_i holds U_{i-1}: ``unet.at(i)`` is that network, with the same parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

Part = Callable[..., Any]
"""A module, or a function without parameters."""


@dataclass(frozen=True)
class Space:
    """Arrays (batch, *shape); ``None`` in ``shape`` stands for any size.

    >>> Space((None, None, 64)).shape
    (None, None, 64)
    """

    shape: tuple[int | None, ...]

    def check(self, v: Any, what: str) -> None:
        """Raise ``ValueError`` if ``v`` is not a batch of the space's elements."""
        got = v.shape[1:]
        if len(got) != len(self.shape) or any(n not in (None, m) for n, m in zip(self.shape, got, strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in self.shape)
            raise ValueError(f"{what} expects arrays (batch, {wanted}), got {v.shape}; mend the part that made them")


class Fixed(nnx.Module):
    """A function without parameters as a part."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class Identity(nnx.Module):
    """``E(v, c) = v``: the encoder of a Multi-ResNet."""

    def __call__(self, v: Any, c: Any = None) -> Any:
        return v


class UNetOperator(nnx.Module):
    """``U_L`` of six parts, for arrays (batch, ...) of ``encoder_spaces[L]``; see the module's text for the symbols.

    Lists run from coarse (0) to fine (L): ``encoders`` and both lists of spaces have L + 1 entries, ``decoders`` and
    ``projections`` L.  ``embeddings`` has L + 1 entries, each a function of the condition; without any, every part is
    given the condition as it is.  Parts are modules or plain functions.

    A new level leaves the names and values of all parameters below it as they are: see :meth:`grow`.
    """

    def __init__(
        self,
        encoder_spaces: Sequence[Space],
        decoder_spaces: Sequence[Space],
        encoders: Sequence[Part],
        decoders: Sequence[Part],
        projections: Sequence[Part],
        bottleneck: Part,
        embeddings: Sequence[Part] = (),
    ) -> None:
        levels = len(encoders)
        if not levels:
            raise ValueError("a U-Net has at least the encoder E_0, got none; Identity() will do")
        wanted = {
            "encoder_spaces": (encoder_spaces, levels),
            "decoder_spaces": (decoder_spaces, levels),
            "decoders": (decoders, levels - 1),
            "projections": (projections, levels - 1),
            "embeddings": (embeddings, levels if len(embeddings) else 0),
        }
        wrong = [f"{name} has {len(got)} of {n}" for name, (got, n) in wanted.items() if len(got) != n]
        if wrong:
            raise ValueError(
                f"{levels} encoders E_0..E_L make {levels} levels: as many spaces (and embeddings, if any), and one "
                f"decoder and one projection less; {'; '.join(wrong)}"
            )
        self.encoder_spaces, self.decoder_spaces = tuple(encoder_spaces), tuple(decoder_spaces)
        self.encoders, self.decoders = _modules(encoders), _modules(decoders)
        self.projections, self.bottleneck = _modules(projections), _module(bottleneck)
        self.embeddings = _modules(embeddings)

    @property
    def depth(self) -> int:
        """L, the number of projections."""
        return len(self.decoders)

    def context(self, i: int, condition: Any) -> Any:
        """What the parts of level ``i`` are told of the condition."""
        if not len(self.embeddings):
            return condition
        if condition is None:
            raise ValueError("this U-Net is conditioned (it has embeddings): call it as unet(v, condition)")
        return self.embeddings[i](condition)

    def project(self, i: int, e: Any, condition: Any = None) -> tuple[Any, Any]:
        """``(P_{i-1} e, its condition)``: what the level below i reads.

        The condition is the same at every level, unless the projection changes it with what it projects and says so by
        a method ``carry(e, condition)``: :class:`~ppl_models.networks.unet.parts.PoolNoise`.
        """
        projection = self.projections[i - 1]
        carry = getattr(projection, "carry", None)
        return (projection(e), condition) if carry is None else carry(e, condition)

    def answers(self, v: Float[Array, "batch ..."], condition: Any = None) -> list[Any]:
        """``[w_0, .., w_L]``: what each U_i says on the way to U_L(v)."""
        seen: list[Any] = []
        contexts: list[Any] = []  # fine to coarse here
        for i in range(self.depth, -1, -1):
            self.encoder_spaces[i].check(v, f"encoder space V_{i}")
            contexts.append(self.context(i, condition))
            seen.append(self.encoders[i](v, contexts[-1]))
            if i:
                v, condition = self.project(i, seen[-1], condition)
        contexts.reverse()
        found = [self.bottleneck(seen.pop(), contexts[0])]
        for i in range(1, self.depth + 1):
            self.decoder_spaces[i - 1].check(found[-1], f"decoder space W_{i - 1}")
            found.append(self.decoders[i - 1](found[-1], seen.pop(), contexts[i]))
        self.decoder_spaces[-1].check(found[-1], f"decoder space W_{self.depth}")
        return found

    def __call__(self, v: Float[Array, "batch ..."], condition: Any = None) -> Any:
        """``U_L(v)``."""
        return self.answers(v, condition)[-1]

    def at(self, i: int) -> UNetOperator:
        """U_i, the U-Net of resolution ``i`` inside this one: the same modules, not copies."""
        if not 0 <= i <= self.depth:
            raise ValueError(f"this U-Net has the levels 0..{self.depth}, got {i}")
        n = i + 1
        return UNetOperator(
            self.encoder_spaces[:n],
            self.decoder_spaces[:n],
            list(self.encoders)[:n],
            list(self.decoders)[:i],
            list(self.projections)[:i],
            self.bottleneck,
            list(self.embeddings)[:n],
        )

    def replace(self, **parts: Any) -> UNetOperator:
        """A U-Net with other parts, ``unet.replace(projections=[...])``; the rest is shared with this one."""
        own = {name: getattr(self, name) for name in _FIELDS}
        unknown = sorted(set(parts) - set(own))
        if unknown:
            raise ValueError(f"a U-Net has the parts {', '.join(own)}; got {', '.join(unknown)}")
        return UNetOperator(**{**own, **parts})

    def grow(
        self, space: tuple[Space, Space], encoder: Part, decoder: Part, projection: Part, embedding: Part | None = None
    ) -> UNetOperator:
        """U_{L+1} around this U_L: ``space`` is (V_{L+1}, W_{L+1}), the parts are E_{L+1}, D_{L+1} and P_L.

        ``grown.at(L)`` is this network: the same modules under the same names, its answer unchanged bit for bit.
        """
        if (embedding is not None) != bool(len(self.embeddings)):
            raise ValueError("a new level needs an embedding exactly if the others have one")
        return UNetOperator(
            (*self.encoder_spaces, space[0]),
            (*self.decoder_spaces, space[1]),
            [*self.encoders, encoder],
            [*self.decoders, decoder],
            [*self.projections, projection],
            self.bottleneck,
            [*self.embeddings, *([] if embedding is None else [embedding])],
        )

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of each part; a Multi-ResNet has none in its ``encoders`` and ``projections``."""
        return {name: parameter_count(getattr(self, name)) for name in _FIELDS[2:]}


_FIELDS = (
    "encoder_spaces", "decoder_spaces", "encoders", "decoders", "projections", "bottleneck", "embeddings",
)  # fmt: skip


def _module(part: Part) -> nnx.Module:
    if isinstance(part, nnx.Module):
        return part
    if not callable(part):
        raise ValueError(f"a part of a U-Net is a module or a function, got {type(part).__name__}")
    return Fixed(part)


def _modules(parts: Sequence[Part]) -> Any:
    return nnx.List([_module(part) for part in parts])


def parameter_count(module: Any) -> int:
    """Number of parameters below a module; also of one that was built by ``nnx.eval_shape``, which draws none."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
