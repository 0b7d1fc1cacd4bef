"""Bayes by particles: the predictive rule of any NumPyro program over one theta and one sequence (IBIS).

    theta_i ~ prior (stratified), w_i = 1;   for each symbol z: w_i <- w_i p(z | theta_i);
    if (sum w)^2 / sum w^2 < S/2:  resample, and move each particle by Metropolis steps that leave p(theta | z_{1:n})

    p(z_{n+1} | z_{1:n}) = sum_i w_i p(z_{n+1} | theta_i) / sum_i w_i

(iterated batch importance sampling, Chopin, Biometrika 89, 2002).  Moves are made in unconstrained space, in turn an
independent proposal from a Normal fitted to the particles and a random walk with their covariance.  All randomness is
a function of the seed and of n, so that the rule is one function of the sequence, as every predictor is.

Between two moves this is exact Bayes under the discrete prior on the particles, hence a martingale; a move changes the
prediction by what S particles cannot know, which :meth:`Particles.error` tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, Num, Shaped
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import seed, substitute, trace

from ppl_models.in_context._rule import rule

STRATA = 16
"""Draws of the prior for each particle: they start evenly spread over the prior of the first number of theta."""


def _first(values: Array) -> Array:
    """The entry of the first symbol of a site that may hold many."""
    return values.reshape(-1)[0]


class Law:
    """Prior and likelihood of one symbol of a program, as functions of theta in unconstrained space, a flat vector.

    ``model(*args, **kwargs)`` draws theta at any number of continuous sites, then the symbols, i.i.d. given theta, at
    its last site.  Raises ``ValueError`` where it does not.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._model = lambda: model(*args, **kwargs)
        with trace() as sites, seed(rng_seed=0):
            self._model()
        drawn = [name for name, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
        if len(drawn) < 2:
            raise ValueError(
                f"the program must draw theta and then symbols, got the sample sites {drawn}; without a latent site "
                "there is nothing to learn, and observed symbols must be left out of the call"
            )
        *self.latents, self.symbol = drawn
        discrete = [name for name in self.latents if sites[name]["fn"].is_discrete]
        if discrete:
            raise ValueError(f"the latent sites {discrete} are discrete, expected continuous ones; sum them out")
        fn = sites[self.symbol]["fn"]
        bare = self._bare(fn)
        if bare.event_shape:
            raise ValueError(f"a symbol of {self.symbol!r} has shape {bare.event_shape}, expected one number")
        said = np.asarray(bare.log_prob(jnp.asarray(sites[self.symbol]["value"]).reshape(-1)[0])).reshape(-1)
        if not np.allclose(said, said[0], rtol=1e-5, atol=1e-6):
            raise ValueError(
                f"the symbols of {self.symbol!r} have different laws given {self.latents}, expected independent and "
                "identically distributed ones; a program of one sequence is traced with size=1"
            )
        self.is_discrete = bool(bare.is_discrete)
        finite = isinstance(bare, dist.BernoulliProbs | dist.BernoulliLogits)
        categorical = isinstance(bare, dist.CategoricalProbs | dist.CategoricalLogits)
        self.outcomes = 2 if finite else int(bare.probs.shape[-1]) if categorical else None
        start = {name: biject_to(sites[name]["fn"].support).inv(sites[name]["value"]) for name in self.latents}
        flat, self._unravel = ravel_pytree(jax.tree.map(jnp.asarray, start))
        self.dimension = int(flat.shape[0])

    @staticmethod
    def _bare(fn: Any) -> Any:
        while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
            fn = fn.base_dist
        return fn

    def draw(self, key: Key[Array, ""]) -> Float[Array, " d"]:
        """theta from the prior, unconstrained."""
        with trace() as sites, seed(rng_seed=key):
            self._model()
        found = {name: biject_to(sites[name]["fn"].support).inv(sites[name]["value"]) for name in self.latents}
        return ravel_pytree(found)[0]

    def at(self, u: Float[Array, " d"]) -> tuple[Float[Array, ""], Any]:
        """Log prior density of u, and the distribution of the symbols given it."""
        free, moved = self._unravel(u), []

        def fill(site: dict[str, Any]) -> Array | None:
            if site["type"] != "sample" or site["name"] not in free:
                return None
            to = biject_to(site["fn"].support)
            raw = free[site["name"]]
            value = to(raw)
            moved.append(jnp.sum(to.log_abs_det_jacobian(raw, value)))
            return value

        with trace() as sites, seed(rng_seed=0), substitute(substitute_fn=fill):
            self._model()
        log_prior = sum(moved)
        for name, site in sites.items():
            if site["type"] == "sample" and name != self.symbol:
                log_prior = log_prior + jnp.sum(site["fn"].log_prob(site["value"]))
        return jnp.asarray(log_prior), self._bare(sites[self.symbol]["fn"])

    def log_prob(self, u: Float[Array, " d"], z: Num[Array, " n"]) -> Float[Array, " n"]:
        """``log p(z | theta)`` of each symbol."""
        fn = self.at(u)[1]
        return jax.vmap(lambda z: _first(fn.log_prob(z)))(z)

    def probabilities(self, u: Float[Array, " d"]) -> Float[Array, " K"]:
        """``p(z | theta)`` of all symbols of a finite set."""
        fn = self.at(u)[1]
        if self.outcomes == 2 and not isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits):
            p = _first(fn.probs)
            return jnp.stack([1 - p, p])
        return fn.probs.reshape(-1, self.outcomes)[0]

    def read(self, u: Float[Array, " d"], name: str, *values: Any) -> Array:
        """The mean, the variance, the cdf at a value, or a sample of a symbol given theta."""
        found = getattr(self.at(u)[1], name)
        return _first(found(*values) if values else found)


class ParticleMixture(dist.Distribution):
    """``sum_i w_i p(z | theta_i)``, of any likelihood."""

    support = constraints.real
    arg_constraints: dict[str, Any] = {}
    reparametrized_params: list[str] = []
    pytree_data_fields = ("theta", "log_w")
    pytree_aux_fields = ("law",)

    def __init__(self, law: Law, theta: Float[Array, "S d"], log_w: Float[Array, " S"]) -> None:
        self.law, self.theta, self.log_w = law, theta, log_w
        super().__init__(batch_shape=(), event_shape=(), validate_args=False)

    @property
    def is_discrete(self) -> bool:
        return self.law.is_discrete

    def sample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        """One of the particles, then a symbol of it."""

        def one(key: Key[Array, ""]) -> Array:
            which, draw = jax.random.split(key)
            return self.law.read(self.theta[jax.random.categorical(which, self.log_w)], "sample", draw)

        n = math.prod(sample_shape)
        return jax.vmap(one)(jax.random.split(key, n)).reshape(sample_shape) if sample_shape else one(key)

    def log_prob(self, value: Num[Array, "*n"], intermediates: Any = None) -> Float[Array, "*n"]:
        """Nats."""
        del intermediates
        flat = jnp.asarray(value).reshape(-1)
        each = jax.vmap(self.law.log_prob, (0, None))(self.theta, flat)
        return jax.nn.logsumexp(self.log_w[:, None] + each, 0).reshape(jnp.shape(value))

    def _average(self, values: Array) -> Array:
        return jnp.tensordot(jnp.exp(self.log_w), values, 1)

    def cdf(self, value: Num[Array, "*n"]) -> Float[Array, "*n"]:
        """P(Z <= value)."""
        flat = jnp.asarray(value).reshape(-1)
        each = jax.vmap(lambda u: jax.vmap(lambda z: self.law.read(u, "cdf", z))(flat))(self.theta)
        return self._average(each).reshape(jnp.shape(value))

    @property
    def mean(self) -> Float[Array, ""]:
        return self._average(jax.vmap(lambda u: self.law.read(u, "mean"))(self.theta))

    @property
    def variance(self) -> Float[Array, ""]:
        mean, variance = jax.vmap(lambda u: (self.law.read(u, "mean"), self.law.read(u, "variance")))(self.theta)
        return self._average(variance + (mean - self._average(mean)) ** 2)


class ParticleState(NamedTuple):
    """Particles and their log-weights, which sum to one; the symbols read, and log p(z_{1:n}) as estimated so far."""

    theta: Float[Array, "S d"]
    log_w: Float[Array, " S"]
    seen: Num[Array, " capacity"]
    n: Int[Array, ""]
    log_evidence: Float[Array, ""]


@rule()
class Particles:
    """The rule of a :class:`Law` by ``size`` particles; see :func:`particles`.

    A context and the symbols after it are at most ``capacity``: moves read all of them again.  Under ``vmap`` (paths,
    trees) both sides of "is a move due?" are computed at each step, so that a step costs
    ``2 moves size capacity`` likelihoods; give short paths.
    """

    law: Law
    size: int
    capacity: int
    moves: int
    seed: int

    def init(self, context: Shaped[Array, " n"]) -> ParticleState:
        context = jnp.asarray(context)
        if context.shape[0] > self.capacity:
            raise ValueError(
                f"a context of {context.shape[0]} symbols exceeds the capacity of {self.capacity}; give a larger one"
            )
        keys = jax.random.split(jax.random.split(jax.random.key(self.seed))[0], STRATA * self.size)
        many = jax.vmap(self.law.draw)(keys)
        theta = many[jnp.argsort(many[:, 0])][STRATA // 2 :: STRATA]  # one of each of S strata of the first number
        dtype = jnp.int32 if self.law.outcomes else theta.dtype
        zero = jnp.zeros((), theta.dtype)
        log_w = jnp.full(self.size, -math.log(self.size), theta.dtype)
        state = ParticleState(theta, log_w, jnp.zeros(self.capacity, dtype), jnp.zeros((), jnp.int32), zero)
        if context.shape[0] == 0:
            return state
        return jax.lax.scan(lambda state, z: (self.update(state, z), None), state, context)[0]

    def predict(self, state: ParticleState) -> dist.Distribution:
        if self.law.outcomes is None:
            return ParticleMixture(self.law, state.theta, state.log_w)
        p = jnp.exp(state.log_w) @ jax.vmap(self.law.probabilities)(state.theta)
        return dist.Bernoulli(probs=p[1]) if self.law.outcomes == 2 else dist.Categorical(probs=p)

    def update(self, state: ParticleState, z: Shaped[Array, ""]) -> ParticleState:
        z = jnp.asarray(z).astype(state.seen.dtype)
        log_w = state.log_w + jax.vmap(lambda u: self.law.log_prob(u, z[None])[0])(state.theta)
        gained = jax.nn.logsumexp(log_w)
        log_w = log_w - gained
        seen, n = state.seen.at[state.n].set(z), state.n + 1
        poor = jax.nn.logsumexp(2 * log_w) > -math.log(self.size / 2)  # 1 / sum w^2 < S / 2
        key = jax.random.fold_in(jax.random.split(jax.random.key(self.seed))[1], n)
        theta, log_w = jax.lax.cond(
            poor, lambda: self._moved(key, state.theta, log_w, seen, n), lambda: (state.theta, log_w)
        )
        return ParticleState(theta, log_w, seen, n, state.log_evidence + gained)

    def error(self, state: ParticleState) -> Float[Array, ""]:
        """Monte Carlo standard error of the predictive probabilities (the largest), or of the predictive mean:
        ``sqrt(sum_i w_i^2 (m_i - m)^2)``, m_i that of particle i; that of a fresh sample of as many particles.
        """
        w = jnp.exp(state.log_w)
        if self.law.outcomes is not None:
            each = jax.vmap(self.law.probabilities)(state.theta)
        else:
            each = jax.vmap(lambda u: self.law.read(u, "mean"))(state.theta)[:, None]
        return jnp.sqrt((w**2) @ (each - w @ each) ** 2).max()

    def effective(self, state: ParticleState) -> Float[Array, ""]:
        """Effective number of particles, ``(sum w)^2 / sum w^2``."""
        return jnp.exp(-jax.nn.logsumexp(2 * state.log_w))

    def _target(self, u: Float[Array, " d"], seen: Array, n: Array) -> Float[Array, ""]:
        log_prior, _ = self.law.at(u)
        said = jnp.where(jnp.arange(self.capacity) < n, self.law.log_prob(u, seen), 0.0).sum()
        return jnp.where(jnp.isfinite(log_prior + said), log_prior + said, -jnp.inf)

    def _moved(self, key: Array, theta: Array, log_w: Array, seen: Array, n: Array) -> tuple[Array, Array]:
        """Systematic resampling, then Metropolis steps for each particle."""
        S, d = theta.shape
        start, key = jax.random.split(key)
        w = jnp.exp(log_w)
        mean = w @ theta
        centred = theta - mean
        covariance = jnp.einsum("s,si,sj->ij", w, centred, centred)
        root = jnp.linalg.cholesky(covariance + 1e-9 * (1 + jnp.trace(covariance)) * jnp.eye(d, dtype=theta.dtype))
        uniform = (jnp.arange(S) + jax.random.uniform(start, dtype=theta.dtype)) / S
        theta = theta[jnp.clip(jnp.searchsorted(jnp.cumsum(w), uniform), 0, S - 1)]
        value = jax.vmap(lambda u: self._target(u, seen, n))(theta)

        def log_q(u: Array) -> Array:  # of the independent proposal, up to a constant
            return -0.5 * jnp.sum(jax.scipy.linalg.solve_triangular(root, (u - mean).T, lower=True) ** 2, 0)

        def move(i: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            theta, value = now
            noise_key, accept_key = jax.random.split(jax.random.fold_in(key, i))
            noise, alone = jax.random.normal(noise_key, theta.shape, theta.dtype) @ root.T, i % 2 == 0
            proposed = jnp.where(alone, mean + noise, theta + 2.38 / math.sqrt(d) * noise)
            new = jax.vmap(lambda u: self._target(u, seen, n))(proposed)
            ratio = new - value + jnp.where(alone, log_q(theta) - log_q(proposed), 0.0)
            taken = jnp.log(jax.random.uniform(accept_key, (S,), theta.dtype)) < ratio
            return jnp.where(taken[:, None], proposed, theta), jnp.where(taken, new, value)

        theta, _ = jax.lax.fori_loop(0, 2 * self.moves, move, (theta, value))
        return theta, jnp.full(S, -math.log(S), theta.dtype)


def particles(
    model: Callable[..., Any], *args: Any, size: int = 1000, capacity: int = 64, moves: int = 2, seed: int = 0,
    **kwargs: Any,
) -> Particles:  # fmt: skip
    """The predictive rule of a NumPyro program, conjugate or not, by ``size`` particles.

    The program is traced as ``model(*args, **kwargs)``; it draws theta at continuous sites, and i.i.d. symbols given
    theta at its last site (a plate, or one).  ``capacity`` symbols are held, context included; ``moves`` pairs of
    Metropolis steps follow each resampling; ``seed`` fixes all random numbers.  :meth:`Particles.error` and
    ``effective`` of a state say how far it may be trusted; ``state.log_evidence`` estimates log p(z_{1:n}), nats.

    Raises ``ValueError`` for discrete latent sites, symbols that are vectors, or symbols whose laws differ.

    >>> def coin():
    ...     u = numpyro.sample("u", dist.Normal(0.0, 1.5))
    ...     numpyro.sample("z", dist.Bernoulli(logits=u))
    >>> rule = particles(coin)
    >>> float(rule.predict(rule.init(jnp.array([1, 1, 1, 0]))).probs)
    0.66...
    """
    for name, value in (("size", size), ("capacity", capacity), ("moves", moves)):
        if not isinstance(value, int | np.integer) or value < (10 if name == "size" else 1):
            raise ValueError(f"{name} must be a whole number, size of 10 and others of 1 or more, got {value!r}")
    return Particles(Law(model, args, kwargs), int(size), int(capacity), int(moves), seed)
