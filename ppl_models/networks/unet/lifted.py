"""A U-Net between a lift of the data into its spaces and a head that reads the answer out, at each resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.function_spaces.hats import hat_synthesis
from ppl_models.networks.separable import SeparableConv
from ppl_models.networks.unet.operator import Space, UNetOperator, parameter_count


class HatHead(nnx.Module):
    """A head whose answers vanish on the boundary of the square, exactly, for any weights.

    A 1 x 1 convolution gives, from the pixels of an n x n grid (n a power of two) save the first row and column, the
    coefficients of the (n - 1)^2 products of hat functions; the answer is their sum at the (n + 1) x (n + 1) nodes.
    Other boundary values: add a fixed lift, such as ``coons``.
    """

    def __init__(self, channels: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.conv = SeparableConv(channels, outputs, 1, scale=0.0, rngs=rngs)

    def __call__(self, w: Float[Array, "batch n n channel"]) -> Float[Array, "batch nodes nodes outputs"]:
        return hat_synthesis(hat_synthesis(self.conv(w)[:, 1:, 1:], 1), 2)


class LiftedUNet(nnx.Module):
    """``net(x, condition) = head_L(U_L(lift_L(x), condition))`` for data (batch, ...).

    ``lifts`` and ``heads`` have an entry for each level, coarse to fine; ``None`` where a level has none.  A level with
    both is a network of its own, :meth:`at`: what reads data of that resolution and answers at that resolution.
    """

    def __init__(
        self, lifts: Sequence[nnx.Module | None], unet: UNetOperator, heads: Sequence[nnx.Module | None]
    ) -> None:
        if len(lifts) != unet.depth + 1 or len(heads) != unet.depth + 1:
            raise ValueError(
                f"a U-Net of {unet.depth + 1} levels takes as many lifts and heads (None for a level without), got "
                f"{len(lifts)} and {len(heads)}"
            )
        if lifts[-1] is None or heads[-1] is None:
            raise ValueError("the finest level needs a lift and a head")
        self.unet = unet
        self.lifts: Any = nnx.List(lifts)
        self.heads: Any = nnx.List(heads)

    def __call__(self, x: Float[Array, "batch ..."], condition: Any = None) -> Any:
        """The answer at the resolution of ``x``."""
        return self.heads[-1](self.unet(self.lifts[-1](x), condition))

    def answers(self, x: Float[Array, "batch ..."], condition: Any = None) -> list[Any]:
        """The answers of all levels, coarse to fine; ``None`` for a level without a head."""
        found = self.unet.answers(self.lifts[-1](x), condition)
        return [None if head is None else head(w) for head, w in zip(self.heads, found, strict=True)]

    def at(self, i: int) -> LiftedUNet:
        """The network of resolution ``i``, with the modules of this one."""
        unet = self.unet.at(i)
        missing = [name for name in ("lifts", "heads") if getattr(self, name)[i] is None]
        if missing:
            raise ValueError(
                f"level {i} has no {' and no '.join(name[:-1] for name in missing)}: give it one, or take the operator "
                f"by itself, net.unet.at({i})"
            )
        return LiftedUNet(list(self.lifts)[: i + 1], unet, list(self.heads)[: i + 1])

    def hold(self, levels: int) -> LiftedUNet:
        """The same function without gradient for the parameters of the ``levels`` coarsest levels; a copy."""
        split: Any = nnx.split(self, nnx.Param, ...)
        graph, params, rest = split
        values = map_levels(
            lambda i, leaf: jax.lax.stop_gradient(leaf) if i < levels else leaf, nnx.to_pure_dict(params)
        )
        nnx.replace_by_pure_dict(params, values)
        return nnx.merge(graph, params, rest)

    def grow(self, lift: nnx.Module, head: nnx.Module, space: tuple[Space, Space], **parts: Any) -> LiftedUNet:
        """One level more around this network; ``parts`` as in :meth:`UNetOperator.grow`."""
        return LiftedUNet([*self.lifts, lift], self.unet.grow(space, **parts), [*self.heads, head])

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of each part, and of all."""
        parts = {
            "lifts": parameter_count(self.lifts),
            **self.unet.parameter_counts(),
            "heads": parameter_count(self.heads),
        }
        return {**parts, "total": parameter_count(self)}


def map_levels(function: Callable[[int, Any], Any], values: Mapping[Any, Any]) -> dict[Any, Any]:
    """``function(level, leaf)`` for every parameter of a :class:`LiftedUNet`, given as its nested dict.

    Decoder and projection of U_i belong to level i, the bottleneck to level 0.
    """

    def walk(path: tuple[Any, ...], tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {k: walk((*path, k), v) for k, v in tree.items()}
        if path[0] != "unet":  # lifts and heads
            return function(int(path[1]), tree)
        if path[1] == "bottleneck":
            return function(0, tree)
        return function(int(path[2]) + (path[1] in ("decoders", "projections")), tree)

    return dict(walk((), values))
