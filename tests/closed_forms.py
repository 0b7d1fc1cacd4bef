"""Small programs whose log p(x) is known in closed form, with amortised posteriors as exact as one asks for.

    x | z ~ N(W z + b, noise^2 I),   W = Q diag(scale), Q with orthonormal columns

Because the columns of W are orthogonal, the posterior given a Gaussian prior of diagonal covariance is diagonal too:
precision 1/tau^2 + scale^2/noise^2.  ``spoil`` makes the posterior wrong on purpose: 0 is exact, otherwise standard
deviations are (1 + spoil) times too wide and means are off by ``spoil`` standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp

from inference.fitting import Fit
from ppl_models.program import Observation, Posterior, Program, Views


class ClosedForm(NamedTuple):
    """A program, the values of its parameter sites, its exact log p(x) in nats (data,), and a sampler of p(x)."""

    program: Program
    params: dict[str, jax.Array]
    log_px: Callable[[Any], np.ndarray]
    sample: Callable[[jax.Array, int], Any]

    @property
    def fit(self) -> Fit:
        """A ``Fit`` that holds ``params``, as though trained."""
        return Fit(self.program, dict(self.params), {}, None, {})


class _Loading(NamedTuple):
    W: np.ndarray
    b: np.ndarray
    scale: np.ndarray


def _loading(dim: int, latent: int, seed: int) -> _Loading:
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(dim, latent)))[0]
    scale = np.linspace(1.5, 0.7, latent)
    return _Loading((q * scale).astype("float32"), rng.normal(size=dim).astype("float32"), scale.astype("float32"))


def _gaussian_log_px(x: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    root = np.linalg.cholesky(cov)
    e = np.linalg.solve(root, (np.asarray(x, np.float64) - mean).T)
    return -0.5 * (e**2).sum(0) - np.log(np.diag(root)).sum() - 0.5 * len(cov) * np.log(2 * np.pi)


def _sampler(program: Program, params: dict[str, jax.Array]) -> Callable[[jax.Array, int], np.ndarray]:
    def sample(key: jax.Array, n: int) -> np.ndarray:
        model = numpyro.handlers.substitute(program.model, data=params)
        return np.asarray(numpyro.handlers.trace(numpyro.handlers.seed(model, key)).get_trace(size=n)["x"]["value"])

    return sample


def linear_gaussian_program(
    dim: int = 5, latent: int = 3, *, noise: float = 0.6, spoil: float = 0.1, seed: int = 0
) -> ClosedForm:
    """Factor analysis: z ~ N(0, I), so p(x) = N(b, W W' + noise^2 I).  ``W`` is a parameter site."""
    W, b, scale = _loading(dim, latent, seed)

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        weight = numpyro.param("W", jnp.zeros((dim, latent)))
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([latent]).to_event(1), infer={"ctx": None})
            numpyro.deterministic("norm", (z**2).sum(-1))
            numpyro.sample("x", dist.Normal(z @ weight.T + b, noise).to_event(1), obs=x)

    def posterior(x: jax.Array) -> Posterior:
        sd = 1 / np.sqrt(1 + scale**2 / noise**2)
        mean = (x - b) @ numpyro.param("W", jnp.zeros((dim, latent))) * sd**2 / noise**2
        return lambda site, ctx: dist.Normal(mean + spoil * sd, (1 + spoil) * sd).to_event(1)

    program = Program(
        spec=None, model=model, posterior=posterior, latents=("z",), shape=(dim,),
        observation=Observation(f"x in R^{dim}"),
        views=Views(("p(x, z) = N(z; 0, I) N(x; W z + b, noise^2 I)",)),
    )  # fmt: skip
    params = {"W": jnp.asarray(W)}
    cov = W.astype(float) @ W.T.astype(float) + noise**2 * np.eye(dim)
    return ClosedForm(program, params, lambda x: _gaussian_log_px(x, b, cov), _sampler(program, params))


def _diagonal(mean: Any, sd: Any) -> dist.Distribution:
    """N(mean, diag sd^2) as a multivariate normal, the one form that mixtures of every supported NumPyro accept."""
    return dist.MultivariateNormal(mean, scale_tril=jnp.asarray(sd)[..., None] * jnp.eye(mean.shape[-1]))


def mixture_program(
    dim: int = 5, clusters: int = 3, *, noise: float = 0.6, spoil: float = 0.1, seed: int = 1
) -> ClosedForm:
    """Mixture prior: z in R^2 ~ sum_k pi_k N(mu_k, tau_k^2 I), so p(x) is a mixture of Gaussians.

    The posterior is the exact mixture over components, spoilt within each; its responsibilities, p(c = k | x), are
    raised to the power 1 - ``spoil``.  ``resp_c`` records p(c | z); ``mu`` is a parameter site.
    """
    latent = 2
    W, b, scale = _loading(dim, latent, seed)
    rng = np.random.default_rng(seed)
    mu = 3.0 * rng.normal(size=(clusters, latent)).astype("float32")
    tau = np.linspace(0.4, 1.0, clusters, dtype="float32")[:, None] * np.ones(latent, "float32")
    log_pi = np.log(np.arange(1, clusters + 1) / (clusters * (clusters + 1) / 2)).astype("float32")

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        means = numpyro.param("mu", jnp.zeros((clusters, latent)))
        prior = dist.MixtureSameFamily(dist.Categorical(logits=log_pi), _diagonal(means, tau))
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", prior, infer={"ctx": None})
            numpyro.deterministic("resp_c", jax.nn.softmax(prior.component_log_probs(z)))
            numpyro.sample("x", dist.Normal(z @ W.T + b, noise).to_event(1), obs=x)

    def posterior(x: jax.Array) -> Posterior:
        means = numpyro.param("mu", jnp.zeros((clusters, latent)))
        # Coordinates of x in the span of W, (batch, 1, latent): N(scale mu_k, scale^2 tau_k^2 + noise^2) under k.
        y = ((x - b) @ (W / scale))[:, None]
        log_r = log_pi + dist.Normal(scale * means, np.sqrt((scale * tau) ** 2 + noise**2)).to_event(1).log_prob(y)
        sd = 1 / np.sqrt(1 / tau**2 + scale**2 / noise**2)
        mean = (means / tau**2 + y * scale / noise**2) * sd**2
        parts = _diagonal(mean + spoil * sd, (1 + spoil) * jnp.broadcast_to(sd, mean.shape))
        return lambda site, ctx: dist.MixtureSameFamily(dist.Categorical(logits=(1 - spoil) * log_r), parts)

    program = Program(
        spec=None, model=model, posterior=posterior, latents=("z",), shape=(dim,),
        observation=Observation(f"x in R^{dim}"),
        views=Views(("p(x, z) = sum_k pi_k N(z; mu_k, tau_k^2 I) N(x; W z + b, noise^2 I)",)),
    )  # fmt: skip
    params = {"mu": jnp.asarray(mu)}

    def log_px(x: np.ndarray) -> np.ndarray:
        wide = W.astype(float)
        parts = [
            log_pi[k] + _gaussian_log_px(x, wide @ mu[k] + b, (wide * tau[k] ** 2) @ wide.T + noise**2 * np.eye(dim))
            for k in range(clusters)
        ]
        return logsumexp(np.stack(parts), axis=0)

    return ClosedForm(program, params, log_px, _sampler(program, params))


def linear_gaussian_hierarchy(
    dim: int = 6, latent: int = 3, levels: int = 4, *, noise: float = 0.6, spoil: float = 0.1, seed: int = 0
) -> ClosedForm:
    """A hierarchy of levels z_0 ~ N(0, I), z_l | z_{l-1} ~ N(a_l z_{l-1}, s_l^2 I), observed by x | z_L as above.

    The posterior is a product down the hierarchy, q(z_l | z_{l-1}, x), that reads the level above from the model's
    own pass; all its covariances are diagonal.  ``W`` is a parameter site.
    """
    W, b, scale = _loading(dim, latent, seed)
    rng = np.random.default_rng(seed)
    a = rng.uniform(0.5, 1.2, (levels, latent)).astype("float32") * np.array([0.0, *[1.0] * (levels - 1)])[:, None]
    s = np.concatenate([[1.0], rng.uniform(0.3, 0.9, levels - 1)]).astype("float32")
    names = tuple(f"z_{level:02d}" for level in range(levels))
    # z_L given z_l is N(gain_l z_l, spread_l): from the last level backwards.
    gain, spread = [np.ones(latent)], [np.zeros(latent)]
    for level in range(levels - 1, 0, -1):
        gain.insert(0, gain[0] * a[level])
        spread.insert(0, spread[0] + (gain[1] * s[level]) ** 2)

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        weight = numpyro.param("W", jnp.zeros((dim, latent)))
        batch = size if x is None else x.shape[0]
        z = jnp.zeros((batch, latent))
        with numpyro.plate("data", batch):
            for level, name in enumerate(names):
                above = jnp.asarray(a[level], "float32") * z
                z = numpyro.sample(name, dist.Normal(above, float(s[level])).to_event(1), infer={"ctx": above})
            numpyro.sample("x", dist.Normal(z @ weight.T + b, noise).to_event(1), obs=x)

    def posterior(x: jax.Array) -> Posterior:
        y = (x - b) @ (numpyro.param("W", jnp.zeros((dim, latent))) / scale**2)  # z_L plus noise, (batch, latent)

        def q(site: str, above: jax.Array) -> dist.Distribution:
            level = names.index(site)
            own, seen = 1 / s[level] ** 2, 1 / (spread[level] + (noise / scale) ** 2)
            sd = (1 / np.sqrt(own + seen * gain[level] ** 2)).astype("float32")
            mean = sd**2 * (own * above + (seen * gain[level]).astype("float32") * y)
            return dist.Normal(mean + spoil * sd, (1 + spoil) * sd).to_event(1)

        return q

    program = Program(
        spec=None, model=model, posterior=posterior, latents=names, shape=(dim,),
        observation=Observation(f"x in R^{dim}"),
        views=Views(("p(x, z) = N(z_0; 0, I) prod_l N(z_l; a_l z_{l-1}, s_l^2 I) N(x; W z_L + b, noise^2 I)",)),
    )  # fmt: skip
    params = {"W": jnp.asarray(W)}
    variance = spread[0] + gain[0] ** 2
    cov = (W.astype(float) * variance) @ W.T.astype(float) + noise**2 * np.eye(dim)
    return ClosedForm(program, params, lambda x: _gaussian_log_px(x, b, cov), _sampler(program, params))


def random_coefficients(n: int = 6, p: int = 2, *, noise: float = 0.7, spoil: float = 0.1, seed: int = 0) -> ClosedForm:
    """A conditional program: Bayesian linear regression with coefficients of its own for every datum.

    w ~ N(m, I_p), y | t, w ~ N(t w, noise^2 I_n); a datum is the inputs ``t`` (n, p), which are given, and ``y`` (n,).
    p(y | t) = N(t m, t t' + noise^2 I).  The posterior of w, exact but for ``spoil``, is correlated.  ``m`` is a
    parameter site.
    """
    prior_mean = np.random.default_rng(seed).normal(size=p).astype("float32")

    def model(x: dict[str, jax.Array]) -> None:
        m = numpyro.param("m", jnp.zeros(p))
        with numpyro.plate("data", len(x["t"])):
            w = numpyro.sample("w", dist.Normal(m, 1).to_event(1), infer={"ctx": None})
            numpyro.sample("y", dist.Normal((x["t"] @ w[..., None])[..., 0], noise).to_event(1), obs=x.get("y"))

    def posterior(x: dict[str, jax.Array]) -> Posterior:
        t, m = x["t"], numpyro.param("m", jnp.zeros(p))
        covariance = jnp.linalg.inv(jnp.eye(p) + t.mT @ t / noise**2)
        mean = (covariance @ (m + (t.mT @ x["y"][..., None])[..., 0] / noise**2)[..., None])[..., 0]
        root = jnp.linalg.cholesky(covariance)
        return lambda site, ctx: dist.MultivariateNormal(mean + spoil * root.sum(-1), scale_tril=(1 + spoil) * root)

    program = Program(
        spec=None, model=model, posterior=posterior, latents=("w",), shape={"t": (n, p), "y": (n,)}, observed=("y",),
        observation=Observation(f"y in R^{n} given t", given=("t",)),
        views=Views(("p(y, w | t) = N(w; m, I) N(y; t w, noise^2 I)",)),
    )  # fmt: skip
    params = {"m": jnp.asarray(prior_mean)}

    def log_px(x: dict[str, np.ndarray]) -> np.ndarray:
        rows = zip(np.asarray(x["t"], float), np.asarray(x["y"], float), strict=True)
        parts = [_gaussian_log_px(y[None], t @ prior_mean, t @ t.T + noise**2 * np.eye(n)) for t, y in rows]
        return np.concatenate(parts)

    def sample(key: jax.Array, size: int) -> dict[str, np.ndarray]:
        input_key, y_key = jax.random.split(key)
        t = jax.random.normal(input_key, (size, n, p))
        held = numpyro.handlers.substitute(program.model, data=params)
        y = numpyro.handlers.trace(numpyro.handlers.seed(held, y_key)).get_trace({"t": t})["y"]["value"]
        return {"t": np.asarray(t), "y": np.asarray(y)}

    return ClosedForm(program, params, log_px, sample)


def banana_program(bend: float = 0.5, *, noise: float = 0.3, seed: int = 0) -> ClosedForm:
    """A curved posterior: z ~ N(0, I_2), x | z ~ N(z_2 + bend z_1^2, noise^2), ``bend`` from 80 to 120 % by ``seed``.

    p(x) is the integral over z_1 of N(z_1; 0, 1) N(x; bend z_1^2, 1 + noise^2), a sum on a fine grid.  The guide is the
    Gaussian of the exact posterior's means and variances (the two numbers are uncorrelated).
    """
    bend = bend * float(np.random.default_rng(seed).uniform(0.8, 1.2))

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        a = numpyro.param("bend", jnp.zeros(()))
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1), infer={"ctx": None})
            ridge = z[:, 1:] + a * z[:, :1] ** 2
            numpyro.sample("x", dist.Normal(ridge, noise).to_event(1), obs=x)

    def posterior(x: jax.Array) -> Posterior:
        z = jnp.linspace(-6, 6, 401)
        weight = jax.nn.softmax(-0.5 * z**2 - 0.5 * (x - bend * z**2) ** 2 / (1 + noise**2), axis=-1)
        second = (x - bend * z**2) / (1 + noise**2)  # mean of z_2 given z_1
        mean = (weight * second).sum(-1)
        variance = (weight * (second - mean[:, None]) ** 2).sum(-1) + noise**2 / (1 + noise**2)
        loc, sd = jnp.stack([jnp.zeros(len(x)), mean], -1), jnp.sqrt(jnp.stack([(weight * z**2).sum(-1), variance], -1))
        return lambda site, ctx: dist.Normal(loc, sd).to_event(1)

    program = Program(
        spec=None, model=model, posterior=posterior, latents=("z",), shape=(1,),
        observation=Observation("x in R"),
        views=Views(("p(x, z) = N(z; 0, I) N(x; z_2 + bend z_1^2, noise^2)",)),
    )  # fmt: skip
    params = {"bend": jnp.asarray(bend, "float32")}

    def log_px(x: np.ndarray) -> np.ndarray:
        z, variance = np.linspace(-9, 9, 4001), 1 + noise**2
        e = np.asarray(x, np.float64) - bend * z**2
        log_joint = -0.5 * z**2 - 0.5 * e**2 / variance - 0.5 * np.log(variance) - np.log(2 * np.pi)
        return logsumexp(log_joint, axis=1) + np.log(z[1] - z[0])

    return ClosedForm(program, params, log_px, _sampler(program, params))
