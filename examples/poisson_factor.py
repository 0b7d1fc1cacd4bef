"""A family of one's own in one file: Poisson factor analysis of counts.

    z_k ~ Gamma(shape, 1), k = 1..K              activity of factor k in a datum, a positive number
    x_i | z ~ Poisson(sum_k W_ik z_k + b_i)      counts; W, b > 0
    q(z | x) = prod_k LogNormal(m_k(x), s_k(x))  one hidden layer

`register` at the end is all it takes: the command line and the functions of `inference` do the rest.

    ppl-models fit poisson_factor:digits --plugin examples/poisson_factor.py --data digits --out runs/counts
    ppl-models compare runs/counts --baselines
"""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx

from ppl_models.program import Observation, Program, Views, bind, register


class Encoder(nnx.Module):
    """Counts (batch, d) -> locations and log scales of log z, (batch, K) each."""

    def __init__(self, d: int, factors: int, hidden: int, key: jax.Array) -> None:
        rngs = nnx.Rngs(key)
        self.first, self.last = nnx.Linear(d, hidden, rngs=rngs), nnx.Linear(hidden, 2 * factors, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        loc, log_scale = jnp.split(self.last(jax.nn.silu(self.first(jnp.log1p(x)))), 2, axis=-1)
        return loc, jnp.clip(log_scale - 1, -6, 2)


@dataclass(frozen=True)
class PoissonFactor:
    """``factors`` K, ``sparsity`` the shape of the Gamma prior (small: few factors are active at once)."""

    shape: tuple[int, ...] = (8, 8)
    factors: int = 10
    sparsity: float = 1.0
    hidden: int = 64
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def build(self, key: jax.Array) -> Program:
        d, k = prod(self.shape), self.factors
        encoder_key, start_key = jax.random.split(key)
        encoder, start = Encoder(d, k, self.hidden, encoder_key), jax.random.gamma(start_key, 1.0, (k, d))

        def model(x: jax.Array | None = None, *, size: int | None = None) -> jax.Array:
            W = numpyro.param("W", start, constraint=dist.constraints.positive)
            b = numpyro.param("b", jnp.full(d, 0.1), constraint=dist.constraints.positive)
            with numpyro.plate("data", size if x is None else len(x)):
                prior = dist.Gamma(self.sparsity, 1.0).expand([k]).to_event(1)
                z = numpyro.sample("z", prior, infer={"ctx": None})
                rate = (z @ W + b).reshape(-1, *self.shape)
                return numpyro.sample("x", dist.Poisson(rate).to_event(len(self.shape)), obs=x)

        def posterior(x: jax.Array) -> Any:
            loc, log_scale = bind("encoder", encoder)(x.reshape(-1, d))
            return lambda site, ctx: dist.LogNormal(loc, jnp.exp(log_scale)).to_event(1)

        def check(x: Any) -> None:
            if np.min(x) < 0 or np.any(np.asarray(x) != np.floor(x)):
                raise ValueError(f"counts must be whole and >= 0, got values from {np.min(x)}; round or shift them")

        density = (f"p(z) = ∏ₖ Gamma(zₖ; {self.sparsity:g}, 1), k = 1…{k}", "p(x|z) = ∏ᵢ Poisson(xᵢ; Wᵢz + bᵢ)")
        return Program(
            self, model, posterior, latents=("z",), shape=self.shape, views=Views(density, {"encoder": encoder}),
            observation=Observation(f"{d} counts as stored; probability mass, nats", check=check, bits_offset=0.0),
        )  # fmt: skip


PRESETS = {"tiny": PoissonFactor(factors=3, hidden=8), "digits": PoissonFactor(factors=16)}
register("poisson_factor", PoissonFactor, presets=PRESETS, paper="Gopalan, Hofman & Blei 2015, arXiv 1311.1704")
