"""A family small enough to train in a test: probabilistic PCA with its exact posterior.

x | z ~ N(W z + b, s^2 I), z ~ N(0, I).  The guide is the exact posterior at every W, b and s, so one draw gives
log p(x) without noise and maximum likelihood is known in closed form (Tipping and Bishop 1999, eq. 7-8).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ppl_models.program import Observation, Posterior, Program, Training, Views, knob, register


@dataclass(frozen=True)
class PPCA:
    shape: tuple[int, ...] = (4,)
    latent: int = 2
    __pydantic_config__ = {"extra": "forbid"}

    def build(self, key: jax.Array) -> Program:
        (d,), k = self.shape, self.latent
        start = 0.3 * jax.random.normal(key, (d, k))

        def parameters() -> tuple[jax.Array, jax.Array, jax.Array]:
            return (
                numpyro.param("W", start),
                numpyro.param("b", jnp.zeros(d)),
                numpyro.param("s", jnp.ones(()), constraint=dist.constraints.positive),
            )

        def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
            W, b, s = parameters()
            with numpyro.plate("data", (size or 1) if x is None else x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0, 1).expand([k]).to_event(1), infer={"ctx": None})
                numpyro.sample("x", dist.Normal(knob("fade") * z @ W.T + b, s).to_event(1), obs=x)

        def posterior(x: jax.Array) -> Posterior:
            W, b, s = parameters()
            precision = jnp.eye(k) + W.T @ W / s**2
            mean = jnp.linalg.solve(precision, W.T @ (x - b).T / s**2).T
            return lambda site, ctx: dist.MultivariateNormal(mean, precision_matrix=precision)

        return Program(
            spec=self, model=model, posterior=posterior, latents=("z",), shape=self.shape,
            observation=Observation("x in R^d"), training=Training({"fade": 1.0}),
            views=Views(("p(x, z) = N(z; 0, I) N(x; W z + b, s^2 I)",)),
        )  # fmt: skip


def maximum_log_likelihood(x: np.ndarray, latent: int) -> float:
    """Mean log-likelihood of PPCA at its maximum, nats per datum."""
    n, d = x.shape
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = values[latent:].mean()
    log_det = np.log(values[:latent]).sum() + (d - latent) * np.log(noise)
    return -0.5 * (d * np.log(2 * np.pi) + log_det + d)


def toy_data(n: int = 256) -> np.ndarray:
    rng = np.random.default_rng(0)
    W = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, -1.5], [0.5, 0.5]])
    return (rng.normal(size=(n, 2)) @ W.T + 0.5 * rng.normal(size=(n, 4)) + 1.0).astype("float32")


def register_toy() -> None:
    """Register the family for tests that need a run folder."""
    register("test_ppca", PPCA, presets={"tiny": PPCA()}, paper="Tipping and Bishop 1999")
