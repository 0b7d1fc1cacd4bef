"""A small residual U-Net of a noisy image and its noise level.

    U_i(v) = D_i(U_{i-1}(P E_i v) | E_i v),   P: mean over 2 x 2 blocks

with residual blocks as encoders E_i and decoders D_i (Williams et al., "A Unified Framework for U-Net Design and
Analysis", NeurIPS 2023, arXiv 2305.19638), built on the matrix-product layers of ``separable.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ppl_models.networks.dropout import Drop, no_drop
from ppl_models.networks.separable import Image, SeparableConv, rms_norm
from ppl_models.networks.time_embedding import ClassEmbedding, TimeEmbedding, embed
from ppl_models.networks.unet.operator import Identity, Space, UNetOperator
from ppl_models.networks.unet.parts import Blocks, Join, Pool


class ResidualBlock(nnx.Module):
    """``skip(h) + conv_2 silu((1 + a(l)) * rms_norm(conv_1 silu(rms_norm h)) + b(l))``, 3 x 3 convolutions.

    ``skip`` is the identity, or a 1 x 1 convolution where the number of channels changes.  The second convolution
    starts at zero: a new block is its skip.  The condition is the embedding e of the level and the dropout before the
    second convolution.
    """

    def __init__(self, c_in: int, c_out: int, embedding: int, *, rngs: nnx.Rngs) -> None:
        self.first_gain, self.second_gain = nnx.Param(jnp.ones(c_in)), nnx.Param(jnp.ones(c_out))
        self.first = SeparableConv(c_in, c_out, rngs=rngs)
        self.modulate = nnx.Linear(embedding, 2 * c_out, rngs=rngs)
        self.second = SeparableConv(c_out, c_out, scale=0.0, rngs=rngs)
        self.skip = None if c_in == c_out else SeparableConv(c_in, c_out, 1, rngs=rngs)

    def __call__(
        self, h: Image, condition: tuple[Float[Array, "batch embedding"], Drop]
    ) -> Float[Array, "batch height width c_out"]:
        e, drop = condition
        a, b = jnp.split(self.modulate(e)[:, None, None, :], 2, axis=-1)
        r = self.first(jax.nn.silu(rms_norm(h, self.first_gain[...])))
        r = self.second(drop(jax.nn.silu((1 + a) * rms_norm(r, self.second_gain[...]) + b)))
        return (h if self.skip is None else self.skip(h)) + r


class UNet(nnx.Module):
    """(x, l) -> (batch, height, width, outputs), for images (batch, height, width, c_in).

    ``widths``   channels at each resolution, finest first; each level halves height and width.
    ``blocks``   residual blocks on each side of a level (the coarsest level has that many in all).
    A learnt map over positions is added after the first convolution: pixels of centred images are not alike.
    The last layer starts at zero, so the output does.
    ``classes``  number of classes, if it is to read a label of each image, (batch,); -1 or none for no class.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 1,
        *,
        widths: Sequence[int] = (24, 72),
        blocks: int = 1,
        embedding: int = 64,
        classes: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, c_in = shape
        factor = 2 ** (len(widths) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"{len(widths)} levels halve the image {len(widths) - 1} times, so height and width must be multiples "
                f"of {factor}, got {height}x{width}; use fewer widths, or pad the images"
            )
        self.widths = tuple(widths)
        self.time = TimeEmbedding(embedding, rngs=rngs)
        self.classes = None if classes is None else ClassEmbedding(classes, embedding, rngs=rngs)
        self.lift = SeparableConv(c_in, widths[0], rngs=rngs)
        self.position = nnx.Param(jnp.zeros((height, width, widths[0])))

        def block(a: int, b: int) -> ResidualBlock:
            return ResidualBlock(a, b, embedding, rngs=rngs)

        fine, coarse = tuple(widths[:-1]), widths[-1]
        below = tuple(widths[1:])
        self.down = nnx.List([nnx.List([block(w, w) for _ in range(blocks)]) for w in fine])
        self.widen = nnx.List([SeparableConv(w, v, 1, rngs=rngs) for w, v in zip(fine, below, strict=True)])
        self.middle = nnx.List([block(coarse, coarse) for _ in range(blocks)])
        self.narrow = nnx.List([SeparableConv(v, w, 1, rngs=rngs) for w, v in zip(fine, below, strict=True)])
        self.up = nnx.List([nnx.List([block(2 * w, w), *(block(w, w) for _ in range(blocks - 1))]) for w in fine])
        self.gain = nnx.Param(jnp.ones(widths[0]))
        self.head = SeparableConv(widths[0], outputs, 1, scale=0.0, rngs=rngs)

    @property
    def operator(self) -> UNetOperator:
        """This network's U-Net, between lift and head: the same modules, in the six parts."""
        widths = tuple(reversed(self.widths))  # coarse to fine, as the parts are
        spaces = [Space((None, None, w)) for w in widths]
        return UNetOperator(
            spaces,
            spaces,
            [Identity(), *(Blocks(blocks) for blocks in reversed(self.down))],
            [Join(narrow, blocks) for narrow, blocks in reversed(list(zip(self.narrow, self.up, strict=True)))],
            [Pool(widen) for widen in reversed(self.widen)],
            Blocks(self.middle),
        )

    def __call__(
        self,
        x: Image,
        level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        drop: Drop = no_drop,
    ) -> Float[Array, "batch height width outputs"]:
        return self.head(self.features(x, level, label, drop))

    def features(
        self,
        x: Image,
        level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        drop: Drop = no_drop,
    ) -> Float[Array, "batch height width width_0"]:
        """What the last layer, a matrix at each pixel, reads."""
        h = self.lift(x) + self.position[...][None]
        h = self.operator(h, (embed(self.time, self.classes, level, label), drop))
        return jax.nn.silu(rms_norm(h, self.gain[...]))
