"""NumPyro models of the eight posteriors, from the densities of their Stan programs.

A flat prior of Stan is ``ImproperUniform``; an increment of ``target`` is ``numpyro.factor``.  ``Case.columns`` turns
draws of the model's sites into the columns of the reference draws, ``Case.sites`` back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

Values = Mapping[str, Any]


def flat(name: str, support: Any, *shape: int) -> jax.Array:
    """A site with density 1 on its support."""
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def normal(name: str, loc: Any, scale: Any, y: Any) -> None:
    """Independent Normals over all of ``y``, one site."""
    numpyro.sample(name, dist.Normal(loc, scale).to_event(1), obs=y)


def eight_schools(y: Any, sigma: Any) -> None:
    mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
    t = numpyro.sample("t", dist.Normal(0, 1).expand([8]).to_event(1))
    normal("y", mu + tau * t, sigma, y)


def eight_schools_centred(y: Any, sigma: Any) -> None:
    mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
    normal("y", theta, sigma, y)


def kidscore(kid_score: Any, mom_iq: Any) -> None:
    beta, sigma = flat("beta", constraints.real_vector, 2), numpyro.sample("sigma", dist.HalfCauchy(2.5))
    normal("kid_score", beta[0] + beta[1] * mom_iq, sigma, kid_score)


def autoregression(y: Any, K: int) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([K]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    before = jnp.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], -1)
    normal("y", alpha + before @ beta, sigma, y[K:])


def gaussian_process(x: Any, y: Any) -> None:
    rho, alpha = numpyro.sample("rho", dist.Gamma(25, 4)), numpyro.sample("alpha", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    apart = (x[:, None] - x[None]) / rho
    covariance = alpha**2 * jnp.exp(-0.5 * apart**2) + sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def garch(y: Any, sigma1: Any) -> None:
    mu, alpha0 = flat("mu", constraints.real), flat("alpha0", constraints.positive)
    # Flat on alpha1, beta1 > 0, alpha1 + beta1 < 1: the first two shares of three; the density 2 is a constant.
    alpha1, beta1, _ = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))

    def step(variance: Any, y: Any) -> Any:
        later = alpha0 + alpha1 * (y - mu) ** 2 + beta1 * variance
        return later, later

    _, later = jax.lax.scan(step, jnp.asarray(sigma1, y.dtype) ** 2, y[:-1])
    scale = jnp.sqrt(jnp.concatenate([jnp.asarray(sigma1, y.dtype)[None] ** 2, later]))
    normal("y", mu, scale, y)


def hidden_markov(y: Any) -> None:
    rows = [numpyro.sample(f"theta{k}", dist.Dirichlet(jnp.ones(2))) for k in (1, 2)]
    mu = flat("mu", constraints.positive_ordered_vector, 2)
    numpyro.factor("prior_mu", dist.Normal(jnp.array([3.0, 10.0]), 1).log_prob(mu).sum())
    log_theta, emit = jnp.log(jnp.stack(rows)), dist.Normal(mu, 1).log_prob(y[:, None])

    def step(forward: Any, emitted: Any) -> Any:
        return logsumexp(forward[:, None] + log_theta, axis=0) + emitted, None

    last, _ = jax.lax.scan(step, emit[0], emit[1:])  # the state at the start has weight 1, whichever it is
    numpyro.factor("y", logsumexp(last))


def gaussian_mixture(y: Any) -> None:
    mu = flat("mu", constraints.ordered_vector, 2)
    numpyro.factor("prior_mu", dist.Normal(0, 2).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    share = jnp.log(jnp.stack([theta, 1 - theta]))
    numpyro.factor("y", logsumexp(share + dist.Normal(mu, sigma).log_prob(y[:, None]), axis=-1).sum())


def election_survey(partyid7: Any, inputs: Any) -> None:
    beta, sigma = flat("beta", constraints.real_vector, 9), flat("sigma", constraints.positive)
    normal("partyid7", beta[0] + inputs @ beta[1:], sigma, partyid7)


class Case(NamedTuple):
    """``model`` of the posterior ``of``, its arguments from the stored fields, and the two maps of draws."""

    of: str
    model: Callable[..., None]
    arguments: Callable[[Values], dict[str, Any]]
    columns: Callable[[Values], list[Any]]
    sites: Callable[[np.ndarray], dict[str, Any]]


def _pick(*names: str) -> Callable[[Values], dict[str, Any]]:
    return lambda data: {name: np.asarray(data[name], "float32") for name in names}


def _survey(data: Values) -> dict[str, Any]:
    columns = [data["real_ideo"], data["race_adj"], *(data["age_discrete"] == k for k in (2, 3, 4))]
    columns += [data[name] for name in ("educ1", "gender", "income")]
    return {"partyid7": np.asarray(data["partyid7"], "float32"), "inputs": np.stack(columns, -1).astype("float32")}


CASES = {
    "eight_schools_noncentered": Case(
        "eight_schools_noncentered", eight_schools, _pick("y", "sigma"),
        lambda v: [v["mu"][..., None] + v["tau"][..., None] * v["t"], v["mu"], v["tau"]],
        lambda d: {"t": (d[:, :8] - d[:, 8:9]) / d[:, 9:], "mu": d[:, 8], "tau": d[:, 9]},
    ),
    "eight_schools_centred": Case(
        "eight_schools_noncentered", eight_schools_centred, _pick("y", "sigma"),
        lambda v: [v["theta"], v["mu"], v["tau"]],
        lambda d: {"theta": d[:, :8], "mu": d[:, 8], "tau": d[:, 9]},
    ),
    "kidscore_momiq": Case(
        "kidscore_momiq", kidscore, _pick("kid_score", "mom_iq"), lambda v: [v["beta"], v["sigma"]],
        lambda d: {"beta": d[:, :2], "sigma": d[:, 2]},
    ),
    "arK": Case(
        "arK", autoregression, lambda data: {**_pick("y")(data), "K": int(data["K"])},
        lambda v: [v["alpha"], v["beta"], v["sigma"]],
        lambda d: {"alpha": d[:, 0], "beta": d[:, 1:6], "sigma": d[:, 6]},
    ),
    "gp_regr": Case(
        "gp_regr", gaussian_process, _pick("x", "y"), lambda v: [v["rho"], v["alpha"], v["sigma"]],
        lambda d: {"rho": d[:, 0], "alpha": d[:, 1], "sigma": d[:, 2]},
    ),
    "garch11": Case(
        "garch11", garch, lambda data: {**_pick("y")(data), "sigma1": float(data["sigma1"])},
        lambda v: [v["mu"], v["alpha0"], v["shares"][..., :2]],
        lambda d: {"mu": d[:, 0], "alpha0": d[:, 1], "shares": np.c_[d[:, 2:], 1 - d[:, 2:].sum(1)]},
    ),
    "hmm_example": Case(
        "hmm_example", hidden_markov, _pick("y"), lambda v: [v["theta1"], v["theta2"], v["mu"]],
        lambda d: {"theta1": d[:, :2], "theta2": d[:, 2:4], "mu": d[:, 4:]},
    ),
    "low_dim_gauss_mix": Case(
        "low_dim_gauss_mix", gaussian_mixture, _pick("y"), lambda v: [v["mu"], v["sigma"], v["theta"]],
        lambda d: {"mu": d[:, :2], "sigma": d[:, 2:4], "theta": d[:, 4]},
    ),
    "nes": Case(
        "nes", election_survey, _survey, lambda v: [v["beta"], v["sigma"]],
        lambda d: {"beta": d[:, :9], "sigma": d[:, 9]},
    ),
}  # fmt: skip
"""The eight posteriors, and the centred form of the first: the same posterior, a funnel in its own coordinates."""


def columns(case: Case, values: Values) -> np.ndarray:
    """Draws (n, p) in the order of the reference from the values (n, ...) of the model's sites."""
    parts = [np.asarray(part) for part in case.columns(values)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).astype(float)
