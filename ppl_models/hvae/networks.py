"""The cells of a very deep VAE: residual blocks, the encoder's pyramid, the decoder's two-step cell.

Layout (batch, height, width, channel).  ``Z`` is the decoder's state at one resolution, ``a`` the encoder's activation
there.  Child, "Very Deep VAEs", arXiv 2011.10650: initial weights U(-b, b) with b = 1/sqrt(fan in), biases zero, and
the branches that add up along the depth scaled by 1/sqrt(number of cells).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ppl_models.distributions import Columns
from ppl_models.hvae.execution import loop, looped, rematerialised, runs
from ppl_models.hvae.parts import Block, Conv, Source, Traced, constant, normalised, pool, upsample
from ppl_models.networks.dropout import Drop, drop_at, no_drop
from ppl_models.networks.flow import CONTEXT, CouplingFlow

if TYPE_CHECKING:
    from ppl_models.hvae.spec import HVAE

Image = Float[Array, "batch height width channel"]
Part = Float[Array, "batch height width _"]
Mapped = Float[Array, "batch height width c_out"]
LOG_SD_BOUND = 20.0
"""Log standard deviations are cut here, far outside anything useful: beyond, exp() of their differences overflows."""
NO_BIAS_ABOVE = 64
"""The top-down state starts at a learned constant up to this resolution, at zero above it."""


class Direct(nnx.Module):
    """The linear path ``x A + b`` of a hierarchy of tables, at one position: it can hold a classical fit."""

    def __init__(self, c_in: int, c_out: int, *, rng: Source) -> None:
        bound = 1 / math.sqrt(c_in)
        self.kernel = nnx.Param(jnp.asarray(rng.uniform(-bound, bound, (c_in, c_out)), "float32"))
        self.bias = constant(0.0, c_out)

    def __call__(self, x: Float[Array, "batch c_in"]) -> Float[Array, "batch c_out"]:
        return x @ self.kernel[...] + self.bias[...]


def is_table(spec: HVAE) -> bool:
    """Whether the data are rows of a table, whose hierarchy has linear paths beside its blocks."""
    return isinstance(spec.likelihood, Columns)


def _bounded(log_sd: Image) -> Image:
    return jnp.clip(log_sd, -LOG_SD_BOUND, LOG_SD_BOUND)


# ------------------------------------------------------------------------------------------------- encoder
class Encoder(nnx.Module):
    """What only the posterior needs: the bottom-up pyramid, and one block ``[Z, a] -> (qm, qv)`` a level.

    Of a richer posterior each level at resolution 1 has another block ``[Z, a] -> (mixing, context)``, the mixing at
    first zero, and of a flow couplings.

    Without learned blocks (``encoder="pool"``, ``"haar"``) the pyramid averages, ``"haar"`` the datum itself.

    Of a table, each level has a linear map ``A`` of the features ``h`` of a row beside its block, whose last layer
    starts at zero: ``qm = block + A h + b``, ``qv = block + l``.
    """

    def __init__(self, spec: HVAE, *, rng: Source) -> None:
        self.spec = spec
        w, mid, cells = spec.width, spec.mid, spec.encoder_cells
        learned, bare = spec.encoder == "learned", spec.encoder == "haar"
        self.in_conv = None if bare else Conv(spec.channels, w, 3 if spec.grid > 2 else 1, rng=rng)
        a, outputs = spec.channels if bare else w, spec.zdim if spec.step == "euler" else 2 * spec.zdim
        self.blocks = nnx.List(
            [
                Block(w, mid, w, cells[i].res, scale=1 / math.sqrt(len(cells)), rng=rng)
                for i in (_first(spec.encoder_groups) if learned else ())
            ]
        )
        self.posteriors = nnx.List(
            [
                Block(w + a, mid, outputs, spec.decoder_cells[i].res, scale=float(not is_table(spec)), rng=rng)
                for i in _first(spec.decoder_groups)
            ]
        )
        if is_table(spec):
            self.direct = nnx.List([Direct(spec.channels, spec.zdim, rng=rng) for _ in spec.latents])
            self.log_sd = nnx.List([constant(0.0, spec.zdim) for _ in spec.latents])
        self.entries = spec.zdim * (spec.zdim - 1) // 2
        if spec.posterior != "normal":
            flow = spec.posterior == "flow"
            blocks = {}
            for group in sorted({spec.decoder_groups[level] for level in spec.dense}):
                blocks[f"group_{group}"] = block = Block(w + a, mid, self.entries + CONTEXT * flow, 1, rng=rng)
                block.c4.kernel[...] = block.c4.kernel[...].at[..., : self.entries].set(0.0)
            self.richer = nnx.Dict(blocks)
            if flow:
                rngs = nnx.Rngs(rng.integers(2**31) if isinstance(rng, Traced) else int(rng.integers(2**31)))
                self.flows = nnx.Dict({name: CouplingFlow(spec.zdim, CONTEXT, rngs=rngs) for name in blocks})

    def __call__(self, x: Float[Array, "batch ..."], drop: Drop = no_drop) -> dict[int, Array]:
        """The last activation at every resolution, of data in [0, 1] or features of rows."""
        side = self.spec.grid
        x = x.reshape(x.shape[0], side, side, self.spec.channels)
        h = x if is_table(self.spec) else 2.0 * x - 1.0
        h = h if self.in_conv is None else self.in_conv(h)
        found, cells, groups = {side: h}, self.spec.encoder_cells, self.spec.encoder_groups

        def residual(h: Array, block: Block, cell: Any) -> tuple[Array, None]:
            return h + block(h, drop=drop_at(drop, cell)), None

        for run in runs(cells, groups, looped(self.spec)):
            i = run.start
            blocks = [self.blocks[groups[j]] for j in run.first_cells] if self.blocks else []
            if blocks and len(run.cells) > 1:
                h, _ = loop(residual, h, run, blocks, np.asarray(run.cells), self.spec)
            elif blocks:
                h = rematerialised(lambda h, i=i, block=blocks[0]: residual(h, block, i)[0], self.spec)(h)
            h = pool(h, cells[i].down)
            found[cells[i].res // cells[i].down] = h
        return found

    def posterior_block(self, level: int) -> Block:
        """The block that reads ``[Z, a]`` at a level; tied levels share it."""
        return self.posteriors[self.spec.decoder_groups[level]]

    def posterior(
        self,
        level: int,
        Z: Image,
        a: Part,
        drop: Drop = no_drop,
        prior: tuple[Array, Array] | None = None,
        *,
        block: Block | None = None,
    ) -> tuple[Mapped, Mapped]:
        """``(qm, qv)``: mean and log standard deviation of q(z_level | Z, x).

        With explicit steps ``(pm + exp(pv) sqrt(h) u, pv)`` of the prior's, u the output of the block; residual,
        ``(pm + dm, pv + dv)``.  ``block`` stands for the level's own in a loop over levels of its resolution.
        """
        out = (block or self.posterior_block(level))(Z, a, drop=drop)
        if self.spec.step == "euler":
            assert prior is not None
            pm, pv = prior
            return pm + jnp.exp(pv) * math.sqrt(self.spec.steps[level]) * out, pv
        qm, qv = out[..., : self.spec.zdim], out[..., self.spec.zdim :]
        if self.spec.posterior_residual:
            assert prior is not None
            qm, qv = prior[0] + qm, prior[1] + qv
        return qm, _bounded(qv)

    def rich(
        self, level: int, Z: Image, a: Part, drop: Drop = no_drop
    ) -> tuple[Float[Array, "batch entries"], Float[Array, "batch context"], CouplingFlow | None]:
        """Entries below the diagonal of T, context and couplings of a level at resolution 1."""
        name = f"group_{self.spec.decoder_groups[level]}"
        both = self.richer[name](Z, a, drop=drop)[:, 0, 0]
        flow = self.flows[name] if self.spec.posterior == "flow" else None
        return both[:, : self.entries], both[:, self.entries :], flow

    def linear(self, level: int, h: Float[Array, "batch features"]) -> tuple[Mapped, Mapped]:
        """What the linear path of a level of a table adds to ``(qm, qv)``."""
        qm = self.direct[level](h)[:, None, None]
        return qm, jnp.broadcast_to(self.log_sd[level][...], qm.shape)


def _first(groups: Sequence[int]) -> list[int]:
    """The first cell of each group of weights."""
    return [groups.index(g) for g in range(max(groups) + 1)]


# ------------------------------------------------------------------------------------------------- decoder
class Cell(nnx.Module):
    """One level: ``prior`` reads the state, ``step`` moves it.  Two half steps of a forward Euler scheme,

    ``Z+ = Z + drift(Z) + W z + b``, then ``Z' = Z+ + resnet(Z+)``.
    """

    def __init__(self, spec: HVAE, res: int, *, rng: Source) -> None:
        w, mid, z = spec.width, spec.mid, spec.zdim
        # An explicit step is a factor of its own; the original's is in the initial weights.
        scale = 1.0 if spec.step == "euler" else 1 / math.sqrt(len(spec.decoder_cells))
        self.prior = Block(w, mid, 2 * z + w, res, scale=0.0, rng=rng)
        self.z_proj = Conv(z, w, 1, scale=scale, rng=rng)
        self.resnet = Block(w, mid, w, res, scale=scale, rng=rng)


class Decoder(nnx.Module):
    """The generative side: a learned constant at each resolution, the cells, and the read-out of the finest state.

    Of a table, the read-out is ``b + sum_i W_i z_i + head(Z_L)``, the head at first zero.
    """

    def __init__(self, spec: HVAE, *, rng: Source) -> None:
        self.spec = spec
        w, cells = spec.width, spec.decoder_cells
        self.start = nnx.Dict(
            {f"at_{r}": constant(0.0, r, r, w) for r in sorted({c.res for c in cells}) if r <= NO_BIAS_ABOVE}
        )
        self.cells = nnx.List([Cell(spec, cells[i].res, rng=rng) for i in _first(spec.decoder_groups)])
        if spec.clock == "step":
            self.clock = nnx.Dict({f"at_{r}": constant(0.0, w) for r in sorted({c.res for c in cells})})
        self.gain = constant(1.0, w)
        self.shift = constant(0.0, w)
        outputs = math.prod(spec.decoded_shape) // spec.grid**2
        self.head = Conv(w, outputs, 1, scale=float(not is_table(spec)), rng=rng)
        if is_table(spec):
            self.direct = Direct(len(cells) * spec.zdim, outputs, rng=rng)

    def cell(self, level: int) -> Cell:
        """The weights of a level; tied levels share them."""
        return self.cells[self.spec.decoder_groups[level]]

    def enter(self, level: int, states: dict[int, Array], batch: int) -> Image:
        """``Z_level``: the state at its resolution - at first the learned constant - plus the mixed-in coarser one."""
        res, mixin, _ = self.spec.decoder_cells[level]
        Z = states.get(res)
        if Z is None:
            shape = (batch, res, res, self.spec.width)
            Z = (
                jnp.broadcast_to(self.start[f"at_{res}"][...][None], shape)
                if res <= NO_BIAS_ABOVE
                else jnp.zeros(shape)
            )
        return Z + upsample(states[mixin], res // mixin) if mixin else Z

    def seen(self, level: int, Z: Image, part: float = 0.0, time: Any = None) -> Image:
        """What the blocks of a level read of the state, ``part`` of its step on: the clock is here.

        ``time`` stands for the level's own in a loop over levels of its resolution.
        """
        spec = self.spec
        if spec.clock == "step":
            time = (spec.times[level] if time is None else time) + part * spec.steps[level]
            return Z + time * self.clock[f"at_{spec.decoder_cells[level].res}"][...][None, None, None]
        return normalised(Z) if spec.clock == "normalise" else Z

    def prior(
        self, level: int, seen: Image, drop: Drop = no_drop, *, cell: Cell | None = None
    ) -> tuple[Mapped, Mapped, Image]:
        """``(pm, pv, drift)``: mean and log standard deviation of p(z_level | Z), and the state's own movement.

        ``seen`` is what :meth:`seen` makes of Z; ``cell`` stands for the level's own in a loop.
        """
        z = self.spec.zdim
        out = (cell or self.cell(level)).prior(seen, drop=drop)
        pm = out[..., :z]
        if self.spec.step == "euler":
            pm = math.sqrt(self.spec.steps[level]) * pm
        return pm, _bounded(out[..., z : 2 * z]), out[..., 2 * z :]

    def step(
        self,
        level: int,
        Z: Image,
        drift: Image,
        z: Mapped,
        drop: Drop = no_drop,
        *,
        cell: Cell | None = None,
        time: Any = None,
    ) -> Image:
        """The state after the level: both half steps; ``cell`` and ``time`` stand for its own in a loop."""
        cell = cell or self.cell(level)
        if self.spec.step == "vdvae":
            Z = Z + drift + cell.z_proj(z)
            return Z + cell.resnet(self.seen(level, Z, 0.5, time), drop=drop)
        h = self.spec.steps[level]
        b = cell.z_proj.bias[...][None, None, None]
        Z = Z + h * (drift + b) + math.sqrt(h) * (cell.z_proj(z) - b)
        return Z + h * cell.resnet(self.seen(level, Z, 0.5, time), drop=drop)

    def read_out(self, Z: Image, zs: Sequence[Array] = ()) -> Float[Array, "batch ..."]:
        """The likelihood's input (batch, *decoded_shape) from the finest state; of a table, also from all levels."""
        gain, shift = self.gain[...][None, None, None], self.shift[...][None, None, None]
        decoded = self.head(Z * gain + shift).reshape(Z.shape[0], *self.spec.decoded_shape)
        return decoded + self.direct(jnp.concatenate(zs, -1)[:, 0, 0]) if is_table(self.spec) else decoded
