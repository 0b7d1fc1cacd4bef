"""What a fitted model is used for: to assign data to clusters, to generate, to exchange and to traverse facets.

    assign(fit, x, key=key)["digit"].labels        which cluster of facet digit, and how sure
    sample(fit, "digit", 3, 16, key=key).x         images of cluster 3, everything else drawn
    swap(fit, a, b, "digit")                       a with the digit of b, b with the digit of a
    traverse(fit, x, "digit")                      each datum with the digit of every cluster

A ``fit`` is what ``inference.fit`` returns: anything with ``program``, ``params``, ``mutable`` and ``prepare(x, key)``.
If it has ``latents(x, draws=, key=)`` too, as what ``inference.refine`` returns, latents of data are its draws.
Data are stored data (n, *shape); decoded images are means E[x | z] on the scale that the model scores.  Latents and
means are dictionaries by facet, shallow to deep, of arrays (n, dim).

Everything runs in batches of one size, so that one compilation of the encoder and one of the decoder serve all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from ppl_models.mfcvae._compiled import assigner, chunks, conditional, decoder, encoder, responsibilities
from ppl_models.mfcvae.mixture import mixture
from ppl_models.program import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

MEAN_DRAWS = 64
"""Draws that stand for the mean of a posterior that has none in closed form."""
RULES, ORDERS = ("average", "at_mean", "optimal"), ("share", "distance")
Latents = dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------ results
@dataclass(frozen=True)
class Assignment:
    """The clusters of one facet: ``probabilities`` (n, K), each row sums to one, by ``rule`` (see :func:`assign`)."""

    facet: str
    probabilities: Float[np.ndarray, "n K"]
    rule: str

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The most probable cluster of each datum."""
        return self.probabilities.argmax(1)

    @property
    def probability(self) -> Float[np.ndarray, " n"]:
        """The probability of that cluster: how sure the assignment is."""
        return self.probabilities.max(1)

    @property
    def entropy(self) -> Float[np.ndarray, " n"]:
        """``-sum_c p_c log p_c`` of each datum in nats: 0 where it is certain, log K where nothing is known."""
        from scipy import stats

        return stats.entropy(self.probabilities, axis=1)


@dataclass(frozen=True)
class Decoded:
    """Means ``x = E[x | z]`` (n, *shape) and the latents ``z`` by facet that they were decoded from."""

    x: np.ndarray
    z: Latents


@dataclass(frozen=True)
class Swap:
    """Two sets of data decoded from their own latents (``a``, ``b``), and with one facet exchanged.

    ``a_swapped`` is ``a`` with the facet of ``b``, all else its own; ``b_swapped`` the other way round.
    """

    facet: str
    a: Decoded
    b: Decoded
    a_swapped: Decoded
    b_swapped: Decoded


@dataclass(frozen=True)
class Traversal:
    """Data with one facet put at each of several stops.

    ``x``      (n, stops, *shape): datum by stop.
    ``plain``  (n, *shape): the data decoded from their own latents.
    ``z``      (stops, dim): the stops, the same for every datum.
    ``stops``  what each of them is, in words.
    """

    facet: str
    x: np.ndarray
    plain: np.ndarray
    z: Float[np.ndarray, "stops dim"]
    stops: tuple[str, ...]


# ------------------------------------------------------------------------------------- facets and clusters
def facets(fit: Any) -> tuple[str, ...]:
    """Names of the facets, shallow to deep: the latents ``z_<facet>`` that have a mixture.

    Raises ``ValueError`` for a fit of another family.
    """
    names = tuple(site.removeprefix("z_") for site in fit.program.latents)
    found = tuple(name for name in names if f"mixture_{name}" in fit.params)
    if not found:
        raise ValueError(
            f"this program has no facets: no latent of {list(fit.program.latents)} has a mixture of its own"
        )
    return found


def _facet(fit: Any, facet: Any) -> str:
    known = facets(fit)
    if facet not in known:
        raise ValueError(f"unknown facet {facet!r}{did_you_mean(str(facet), known)}; this model has {', '.join(known)}")
    return str(facet)


def _clusters(fit: Any, facet: str, clusters: Sequence[Any]) -> list[int]:
    K = _shape(fit, facet)[0]
    for c in clusters:
        if isinstance(c, bool) or not isinstance(c, int | np.integer) or not 0 <= c < K:
            raise ValueError(f"facet {facet!r} has the clusters 0 to {K - 1}, got {c!r}")
    return [int(c) for c in clusters]


def _shape(fit: Any, facet: str) -> tuple[int, int]:
    K, dim = np.shape(fit.params[f"mixture_{facet}"]["means"])
    return K, dim


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _key(key: Any) -> Array:
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"key must be one new-style random key, got {key!r:.60}; use key=jax.random.key(0)")
    return key


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}")


# --------------------------------------------------------------------------------------------- what is offered
def encode(fit: Any, x: Any, *, key: Array | None = None) -> Latents:
    """Posterior means ``m_j(x)`` (n, dim) of every facet.

    ``key`` matters only to a likelihood whose preparation of the data draws noise (default: ``jax.random.key(0)``),
    and to refined posteriors, whose means are those of 64 draws.
    """
    names = facets(fit)
    if hasattr(fit, "latents"):
        drawn = _drawn(fit, x, names, MEAN_DRAWS, jax.random.key(0) if key is None else _key(key))
        return {name: z.mean(1) for name, z in drawn.items()}
    prepared = fit.prepare(x, jax.random.key(0) if key is None else _key(key))
    means = encoder(fit.program.posterior, names)
    found = chunks(lambda number, rows: means(fit.params, fit.mutable or {}, rows), prepared)
    return {name: found[name] for name in names}  # jit sorts the names


def _drawn(fit: Any, x: Any, names: Sequence[str], draws: int, key: Array) -> Latents:
    """Draws (n, draws, dim) of facets from the posteriors that a fit holds for data ``x``."""
    drawn = fit.latents(x, draws=draws, key=key)
    return {name: drawn[f"z_{name}"] for name in names}


def decode(fit: Any, latents: Mapping[str, Any]) -> np.ndarray:
    """Means ``E[x | z]`` (n, *shape) for latents (n, dim) of every facet.

    Raises ``ValueError`` for a facet that is unknown or missing, and for a wrong shape.
    """
    names = facets(fit)
    for name in latents:
        _facet(fit, name)
    missing = [name for name in names if name not in latents]
    if missing:
        raise ValueError(f"decode needs the latents of every facet, got {list(latents)}; {missing[0]!r} is missing")
    given = {name: np.asarray(latents[name], np.float32) for name in names}
    n = len(given[names[0]]) if given[names[0]].ndim else 0
    for name, z in given.items():
        if z.shape != (n, _shape(fit, name)[1]) or n == 0:
            raise ValueError(
                f"latents of facet {name!r} must have shape (n, {_shape(fit, name)[1]}), n at least 1 and the same for "
                f"every facet, got { {other: np.shape(latents[other]) for other in names} }"
            )
    mean = decoder(fit.program.model, fit.program.observed[0])
    return chunks(lambda number, rows: mean(fit.params, fit.mutable or {}, rows), given)


def assign(
    fit: Any, x: Any, *, facet: str | None = None, draws: int = 16, key: Array, rule: str = "average"
) -> dict[str, Assignment]:
    """Cluster probabilities of stored data ``x`` (n, *shape), an :class:`Assignment` for each facet (or for ``facet``).

    ``average``  ``E_{q(z|x)} p(c | z)``: the probability of each cluster, the uncertainty of z included.
    ``optimal``  ``softmax_c E_{q(z|x)} log p(c | z)``: the q(c | x) that a bound with a label of its own would take.
    ``at_mean``  ``p(c | z = m(x))``: the published code's rule; ignores the uncertainty of z and so is too sure.

    The expectations are over ``draws`` draws of z.  They depend on the key and the row of the datum only: the first n
    rows of a larger call are a call with n data.  With ``inference.refine(fit, x, key=...)`` in place of the fit they
    are from the posteriors that were optimised for these data.

    >>> found = assign(fit, x, key=jax.random.key(0))
    >>> found["digit"].labels, found["digit"].entropy.mean()
    """
    _one_of("rule", rule, RULES)
    draws = 1 if rule == "at_mean" else _count("draws", draws, 1)
    names = facets(fit)
    wanted = names if facet is None else (_facet(fit, facet),)
    if hasattr(fit, "latents"):
        drawn = _drawn(fit, x, wanted, MEAN_DRAWS if rule == "at_mean" else draws, _key(key))
        mixtures = {name: fit.params[f"mixture_{name}"] for name in wanted}
        return {name: Assignment(name, responsibilities(mixtures[name], drawn[name], rule), rule) for name in wanted}
    prepare_key, draw_key = jax.random.split(_key(key))
    kernel = assigner(fit.program.posterior, names, rule, draws)

    def one(number: int, rows: Any) -> Any:
        return kernel(fit.params, fit.mutable or {}, rows, jax.random.fold_in(draw_key, number))

    found = chunks(one, fit.prepare(x, prepare_key))
    return {name: Assignment(name, found[name], rule) for name in wanted}


def assignment_table(assignments: Mapping[str, Assignment]) -> pd.DataFrame:
    """One row a datum and facet: ``datum, facet, label, probability, entropy`` (nats)."""
    import pandas as pd

    frames = [
        pd.DataFrame(
            {
                "datum": np.arange(len(found.labels)),
                "facet": name,
                "label": found.labels,
                "probability": found.probability,
                "entropy": found.entropy,
            }
        )
        for name, found in assignments.items()
    ]
    return pd.concat(frames, ignore_index=True).sort_values("datum", kind="stable", ignore_index=True)


def sample(
    fit: Any,
    facet: str,
    cluster: int | Sequence[int],
    n: int,
    *,
    temperature: float = 1.0,
    key: Array,
) -> Decoded:
    """``n`` data of one cluster: ``z_facet ~ N(mu_c, T^2 S_c)``; in the others ``c ~ Cat(pi)``, then z the same way.

    ``temperature`` T scales the standard deviation: 1 is the model, 0 the means of the clusters.  ``x`` are means
    (n, *shape).  Several clusters give (clusters, n, *shape), where the n-th datum of every cluster shares its draw of
    the other facets.

    >>> sample(fit, "digit", 3, 16, temperature=0.7, key=jax.random.key(0)).x.shape
    (16, 8, 8)
    """
    name, one = _facet(fit, facet), not isinstance(cluster, Sequence | np.ndarray)
    clusters = _clusters(fit, name, [cluster] if one else list(cluster))  # type: ignore[arg-type]
    n = _count("n", n, 1)
    if not clusters:
        raise ValueError("sample needs at least one cluster, got none")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature multiplies standard deviations, expected >= 0 and finite, got {temperature!r}")
    names = facets(fit)
    mixtures = {other: fit.params[f"mixture_{other}"] for other in names}
    drawn = conditional(mixtures, _key(key), np.asarray(clusters), float(temperature), names, name, n)
    z = {other: np.asarray(drawn[other]) for other in names}
    x = decode(fit, {other: value.reshape(-1, value.shape[-1]) for other, value in z.items()})
    x = x.reshape(len(clusters), n, *x.shape[1:])
    return Decoded(x[0], {other: value[0] for other, value in z.items()}) if one else Decoded(x, z)


def swap(fit: Any, a: Any, b: Any, facet: str, *, key: Array | None = None) -> Swap:
    """Exchange one facet between ``a`` and ``b`` (n, *shape), row by row: means m(x), z_facet exchanged, decoded.

    ``key`` as in :func:`encode`.  Raises ``ValueError`` unless a and b have equally many data.
    """
    name = _facet(fit, facet)
    z_a, z_b = encode(fit, a, key=key), encode(fit, b, key=key)
    if len(z_a[name]) != len(z_b[name]):
        raise ValueError(f"swap pairs the rows of a and b, got {len(z_a[name])} and {len(z_b[name])} data")
    four = [z_a, z_b, {**z_a, name: z_b[name]}, {**z_b, name: z_a[name]}]
    x = decode(fit, {other: np.concatenate([z[other] for z in four]) for other in z_a})
    return Swap(name, *(Decoded(part, z) for part, z in zip(np.split(x, 4), four, strict=True)))


def traverse(
    fit: Any,
    x: Any,
    facet: str,
    *,
    steps: int = 8,
    order: str = "share",
    clusters: Sequence[int] | None = None,
    between: tuple[int, int] | None = None,
    key: Array | None = None,
) -> Traversal:
    """Data ``x`` (n, *shape) with one facet moved through its clusters, the other facets kept at their means m(x).

    The stops are the means of at most ``steps`` clusters in ``order`` of their weight pi, largest first (``share``),
    or of their distance from the average m(x) of these data, nearest first (``distance``); or those of ``clusters``;
    or, with ``between=(c, d)``, ``steps`` points on the line from mu_c to mu_d, both ends included.
    ``key`` as in :func:`encode`.
    """
    name = _facet(fit, facet)
    _one_of("order", order, ORDERS)
    steps = _count("steps", steps, 1 if between is None else 2)
    if between is not None and (clusters is not None or len(between) != 2):
        raise ValueError(f"give either clusters or between=(c, d), got clusters={clusters!r} and between={between!r}")
    z = encode(fit, x, key=key)
    prior = mixture(fit.params[f"mixture_{name}"])
    mu = np.asarray(prior.means)
    if between is not None:
        c, d = _clusters(fit, name, between)
        t = np.linspace(0.0, 1.0, steps, dtype=np.float32)[:, None]
        at, words = (1 - t) * mu[c] + t * mu[d], tuple(f"{c} to {d}: {s:.0%}" for s in t[:, 0])
    else:
        if clusters is None:
            away = -np.asarray(prior.probs) if order == "share" else np.linalg.norm(mu - z[name].mean(0), axis=1)
            clusters = np.argsort(away, kind="stable")[:steps].tolist()
        chosen = _clusters(fit, name, clusters)
        if not chosen:
            raise ValueError("traverse needs at least one cluster, got none")
        at, words = mu[chosen], tuple(f"cluster {c}" for c in chosen)
    n, stops = len(z[name]), len(at)
    moved = {other: np.repeat(value, stops, axis=0) for other, value in z.items()}
    moved[name] = np.tile(at, (n, 1))
    decoded = decode(fit, {other: np.concatenate([z[other], moved[other]]) for other in z})
    return Traversal(name, decoded[n:].reshape(n, stops, *decoded.shape[1:]), decoded[:n], at, words)


def top_examples(probabilities: Num[np.ndarray, "n K"], n: int = 10) -> dict[int, Int[np.ndarray, " found"]]:
    """For each used cluster the indices of at most ``n`` members, the most certain first.

    Clusters come by the mean probability of their members, the surest first; clusters without a member are left out.
    """
    n, label = _count("n", n, 1), probabilities.argmax(1)
    members = {c: np.flatnonzero(label == c) for c in np.unique(label).tolist()}
    order = sorted(members, key=lambda c: -probabilities[members[c], c].mean())
    return {c: members[c][np.argsort(-probabilities[members[c], c], kind="stable")][:n] for c in order}
