"""VDVAE with the layers that Flax and JAX offer: the straightforward program that ``hvae_speed`` measures.

Same structure and parameters as :class:`ppl_models.hvae.HVAE` of its plain kind (untied, learned encoder, Bernoulli):
every cell written out, convolutions ``nnx.Conv``, ``jax.nn.gelu``, inputs of a block concatenated, ``nnx.avg_pool``,
``jax.image.resize``; the negative ELBO added up by hand.  No probabilistic program, nothing shared between levels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ppl_models.hvae import HVAE


def conv(c_in: int, c_out: int, k: int) -> nnx.Conv:
    """A 'same' convolution."""
    return nnx.Conv(c_in, c_out, (k, k), padding="SAME", rngs=nnx.Rngs(0))


def gelu(x: Array) -> Array:
    """The exact one."""
    return jax.nn.gelu(x, approximate=False)


class Block(nnx.Module):
    """Activation and convolution, four times."""

    def __init__(self, c_in: int, mid: int, c_out: int, res: int) -> None:
        k = 3 if res > 2 else 1
        self.c1, self.c2, self.c3, self.c4 = (
            conv(c_in, mid, 1),
            conv(mid, mid, k),
            conv(mid, mid, k),
            conv(mid, c_out, 1),
        )

    def __call__(self, x: Array) -> Array:
        for layer in (self.c1, self.c2, self.c3, self.c4):
            x = layer(gelu(x))
        return x


class Net(nnx.Module):
    """Encoder, top-down cells, read-out."""

    def __init__(self, spec: HVAE) -> None:
        self.spec = spec
        w, m, z = spec.width, spec.mid, spec.zdim
        self.in_conv = conv(spec.channels, w, 3)
        self.encoder = nnx.List([Block(w, m, w, cell.res) for cell in spec.encoder_cells])
        sides = [cell.res for cell in spec.decoder_cells]
        self.posterior = nnx.List([Block(2 * w, m, 2 * z, r) for r in sides])
        self.prior = nnx.List([Block(w, m, 2 * z + w, r) for r in sides])
        self.z_proj = nnx.List([conv(z, w, 1) for _ in sides])
        self.resnet = nnx.List([Block(w, m, w, r) for r in sides])
        self.start = nnx.Dict({f"at_{r}": nnx.Param(jnp.zeros((r, r, w))) for r in sorted(set(sides))})
        self.gain, self.shift = nnx.Param(jnp.ones(w)), nnx.Param(jnp.zeros(w))
        self.head = conv(w, spec.channels, 1)

    def __call__(self, x: Array, noise: list[Array]) -> Array:
        """Negative ELBO in nats per datum of binary images (batch, side, side); ``noise`` is z's of each level."""
        h = self.in_conv(2 * x[..., None] - 1)
        found = {x.shape[1]: h}
        for cell, block in zip(self.spec.encoder_cells, self.encoder, strict=True):
            h = h + block(h)
            if cell.down > 1:
                h = nnx.avg_pool(h, (cell.down, cell.down), (cell.down, cell.down))
            found[cell.res // cell.down] = h
        states: dict[int, Array] = {}
        rate = jnp.zeros(len(x))
        for i, cell in enumerate(self.spec.decoder_cells):
            shape = (len(x), cell.res, cell.res, self.spec.width)
            Z = states.get(cell.res, jnp.broadcast_to(self.start[f"at_{cell.res}"][...], shape))
            if cell.mixin:
                Z = Z + jax.image.resize(states[cell.mixin], shape, "nearest")
            qm, qv = jnp.split(self.posterior[i](jnp.concatenate([Z, found[cell.res]], -1)), 2, -1)
            pm, pv, drift = jnp.split(self.prior[i](Z), [self.spec.zdim, 2 * self.spec.zdim], -1)
            z = qm + jnp.exp(qv) * noise[i]
            kl = -0.5 + pv - qv + (jnp.exp(2 * qv) + (qm - pm) ** 2) / (2 * jnp.exp(2 * pv))
            rate += kl.sum((1, 2, 3))
            Z = Z + drift + self.z_proj[i](z)
            states[cell.res] = Z + self.resnet[i](Z)
        logits = self.head(states[x.shape[1]] * self.gain[...] + self.shift[...])[..., 0]
        log_lik = (x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits)).sum((1, 2))
        return (rate - log_lik).mean()


def plain_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """The parameters of :class:`Net` from those of a program, ``{"encoder$params": ..., "decoder$params": ...}``."""
    encoder, decoder = given["encoder$params"], given["decoder$params"]
    cells = decoder["cells"].items()
    return {
        "in_conv": encoder["in_conv"],
        "encoder": encoder["blocks"],
        "posterior": encoder["posteriors"],
        **{part: {i: cell[part] for i, cell in cells} for part in ("prior", "z_proj", "resnet")},
        **{name: decoder[name] for name in ("start", "gain", "shift", "head")},
    }
