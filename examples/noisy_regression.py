"""A conditional program in one file: regression with noise that depends on x, and a latent for every datum.

    z ~ N(0, I_k)                                        what x does not tell of y: which of two branches, say
    y | x, z ~ N(mu(x, z), exp(s(x))^2)                  one hidden layer each
    q(z | x, y) = N(m(x, y), diag t(x, y)^2)

A datum is a dict: ``x`` (inputs,), which is given, and ``y`` (), which is scored: evidence is of y given x.

    ppl-models fit noisy_regression:fork --plugin examples/noisy_regression.py --data own --out runs/fork --steps 8000
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx

from ppl_models.program import Observation, Program, Training, Views, bind, register


class Net(nnx.Module):
    def __init__(self, fan_in: int, hidden: int, out: int, key: jax.Array) -> None:
        rngs = nnx.Rngs(key)
        self.first, self.last = nnx.Linear(fan_in, hidden, rngs=rngs), nnx.Linear(hidden, out, rngs=rngs)

    def __call__(self, *parts: jax.Array) -> jax.Array:
        return self.last(jax.nn.silu(self.first(jnp.concatenate(parts, -1))))


def fork(inputs: int, key: jax.Array, n: int) -> dict[str, jax.Array]:
    """x ~ U(-2, 2), y = x_0 or -x_0 by the toss of a coin, plus Gaussian noise of scale .05 + .1 |x_0|."""
    keys = jax.random.split(key, 3)
    x = jax.random.uniform(keys[0], (n, inputs), minval=-2.0, maxval=2.0)
    noise = (0.05 + 0.1 * jnp.abs(x[:, 0])) * jax.random.normal(keys[1], (n,))
    return {"x": x, "y": jax.random.rademacher(keys[2], (n,)) * x[:, 0] + noise}


@dataclass(frozen=True)
class NoisyRegression:
    """``inputs`` numbers in x, ``latent`` numbers k in z, ``hidden`` units a network, ``warmup`` updates of the KL."""

    inputs: int = 1
    latent: int = 1
    hidden: int = 32
    warmup: int = 1000
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def build(self, key: jax.Array) -> Program:
        keys, h = jax.random.split(key, 3), self.hidden
        mean, noise = Net(self.inputs + self.latent, h, 1, keys[0]), Net(self.inputs, h, 1, keys[1])
        guide = Net(self.inputs + 1, h, 2 * self.latent, keys[2])

        def model(data: dict[str, jax.Array]) -> jax.Array:
            x, mu, log_sd = data["x"], bind("mean", mean), bind("noise", noise)
            with numpyro.plate("data", len(x)):
                prior = dist.Normal(0, 1).expand([self.latent]).to_event(1)
                z = numpyro.sample("z", prior, infer={"ctx": None})
                law = dist.Normal(mu(x, z)[:, 0], jnp.exp(jnp.clip(log_sd(x)[:, 0] - 1, -6, 3)))
                return numpyro.sample("y", law, obs=data.get("y"))

        def posterior(data: dict[str, jax.Array]) -> Any:
            loc, log_sd = jnp.split(bind("guide", guide)(data["x"], data["y"][:, None]), 2, -1)
            return lambda site, ctx: dist.Normal(loc, jnp.exp(jnp.clip(log_sd, -6, 3))).to_event(1)

        return Program(
            self, model, posterior, ("z",), {"x": (self.inputs,), "y": ()}, observed=("y",),
            observation=Observation("y given x; density, nats", given=("x",), sampler=partial(fork, self.inputs)),
            training=Training(weights={"kl": lambda step: jnp.minimum((step + 1) / self.warmup, 1.0)}),  # z first
            views=Views(("p(y, z | x) = N(y; μ(x, z), exp(s(x))²) N(z; 0, I)",),
                        {"mean": mean, "noise": noise, "guide": guide}))  # fmt: skip


PRESETS = {"tiny": NoisyRegression(hidden=8, warmup=1), "fork": NoisyRegression()}
register("noisy_regression", NoisyRegression, presets=PRESETS,
         paper="Bishop 1994, Mixture Density Networks; Kingma & Welling 2014, arXiv 1312.6114")  # fmt: skip
