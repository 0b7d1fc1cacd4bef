"""The compiled parts of :mod:`ppl_models.mfcvae.use`: encode, decode, assign and draw, each in batches of one size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from numpyro import handlers

from ppl_models.mfcvae import guides
from ppl_models.mfcvae.mixture import mixture

CHUNK = 128
"""Data encoded or decoded at once."""


def chunks(kernel: Callable[[int, Any], Any], tree: Any) -> Any:
    """Call ``kernel(chunk number, rows)`` on batches of one size and put the results together as NumPy arrays."""
    n = len(jax.tree.leaves(tree)[0])

    def parts() -> Iterator[Any]:
        for number, start in enumerate(range(0, n, CHUNK)):
            rows = np.minimum(np.arange(start, start + CHUNK), n - 1)  # a full last chunk: one compilation
            found = kernel(number, jax.tree.map(lambda leaf, rows=rows: leaf[rows], tree))
            yield jax.tree.map(lambda leaf, start=start: np.asarray(leaf)[: n - start], found)

    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts())


def _sites(params: Any, mutable: Any) -> dict[str, Any]:
    # Mutable sites are written in place by a program: it gets copies.
    return {**params, **{name: dict(state) for name, state in mutable.items()}}


# Few entries: each keeps the networks of its program alive.
@functools.lru_cache(maxsize=4)
def encoder(posterior: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """``(params, mutable, x) -> means``: E_q[z] of each facet, (batch, dim)."""

    @jax.jit
    def means(params: Any, mutable: Any, x: Any) -> dict[str, Array]:
        with handlers.seed(rng_seed=0), handlers.substitute(data=_sites(params, mutable)):
            return guides.means(posterior(x), names, jax.random.key(0))

    return means


@functools.lru_cache(maxsize=4)
def decoder(model: Callable[..., Any], observed: str) -> Callable[..., Any]:
    """``(params, mutable, latents) -> E[x | z]`` for ``CHUNK`` latents by facet."""

    @jax.jit
    def mean(params: Any, mutable: Any, latents: Any) -> Array:
        given = {f"z_{name}": z for name, z in latents.items()}
        with (
            handlers.trace() as sites,
            handlers.seed(rng_seed=0),
            handlers.substitute(data=_sites(params, mutable)),
            handlers.condition(data=given),
        ):
            model(size=CHUNK)
        return sites[observed]["fn"].mean

    return mean


@functools.lru_cache(maxsize=8)
def assigner(posterior: Callable[..., Any], names: tuple[str, ...], rule: str, draws: int) -> Callable[..., Any]:
    """``(params, mutable, x, key) -> p(c | x)`` of each facet by a rule of :func:`use.assign`, (batch, K)."""

    @jax.jit
    def probabilities(params: Any, mutable: Any, x: Any, key: Key[Array, ""]) -> dict[str, Array]:
        with handlers.seed(rng_seed=0), handlers.substitute(data=_sites(params, mutable)):
            q = posterior(x)
            centre = guides.means(q, names, jax.random.fold_in(key, len(names))) if rule == "at_mean" else {}
        found = {}
        for j, name in enumerate(names):
            prior = mixture(params[f"mixture_{name}"])
            facet_key = jax.random.fold_in(key, j)

            def log_probs(i: Array, key: Any = facet_key, prior: Any = prior, name: str = name) -> Array:
                z = centre[name] if rule == "at_mean" else guides.drawn(q, names, name, jax.random.fold_in(key, i))
                return jax.nn.log_softmax(prior.component_log_probs(z), axis=-1)

            # One draw after the other: all at once would take draws x CHUNK x K x dim numbers.
            log_p = jax.lax.map(log_probs, jnp.arange(draws))
            average = log_p.mean(0) if rule == "optimal" else jax.nn.logsumexp(log_p, axis=0)
            found[name] = jax.nn.softmax(average, axis=-1)
        return found

    return probabilities


def responsibilities(params: Any, z: np.ndarray, rule: str) -> np.ndarray:
    """p(c | x) (n, K) by a rule of :func:`use.assign` from draws z (n, draws, dim) and the parameters of a mixture."""
    z = z.mean(1, keepdims=True) if rule == "at_mean" else z

    @jax.jit
    def probabilities(params: Any, z: Array) -> Array:
        log_p = jax.nn.log_softmax(mixture(params).component_log_probs(z), axis=-1)  # (CHUNK, draws, K)
        average = log_p.mean(1) if rule == "optimal" else jax.nn.logsumexp(log_p, axis=1)
        return jax.nn.softmax(average, axis=-1)

    return np.asarray(chunks(lambda number, rows: probabilities(params, rows), np.asarray(z)))


@functools.partial(jax.jit, static_argnames=("names", "facet", "n"))
def conditional(
    mixtures: Any, key: Any, clusters: Any, temperature: Any, names: tuple[str, ...], facet: str, n: int
) -> dict[str, Array]:
    """Latents (clusters, n, dim): the facet from each cluster, the others from their mixtures, the same in all."""
    found = {}
    for j, name in enumerate(names):
        prior = mixture(mixtures[name])
        label_key, z_key = jax.random.split(jax.random.fold_in(key, j))
        mean = prior.components.mean  # (K, dim)
        z = mean + temperature * (prior.components.sample(z_key, (n,)) - mean)  # (n, K, dim), covariance T^2 S_c
        if name == facet:
            found[name] = z[:, clusters].swapaxes(0, 1)
        else:
            label = jax.random.categorical(label_key, jnp.log(prior.probs), shape=(n,))
            one = jnp.take_along_axis(z, label[:, None, None], axis=1)[:, 0]
            found[name] = jnp.broadcast_to(one, (len(clusters), *one.shape))
    return found
