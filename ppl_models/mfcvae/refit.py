"""A facet's mixture fitted by EM to draws of its aggregate posterior, between two updates of a fit.

A mixture trained together with random networks settles on whatever the networks happened to do first.  Here the
networks form under one Gaussian; then K components are fitted to ``z ~ q(z | x)``, x training data, by maximum
likelihood, which is the maximum of ``E_q log p(z)`` over the mixture, and training goes on from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from numpyro.handlers import seed, substitute

from ppl_models.distributions import Columns, Counts
from ppl_models.mfcvae import guides
from ppl_models.mfcvae.mixture import from_moments
from ppl_models.mfcvae.networks import Additive, ConvLadder, Layers
from ppl_models.mfcvae.observed import unpack
from ppl_models.networks.conv_ladder import data_init
from ppl_models.program import Event, bind

if TYPE_CHECKING:
    from ppl_models.mfcvae.spec import MFCVAE, Facet

START_SIZE, START_NUMBERS = 5_000, 2**24
"""Rows that a classical start is fitted to at most, and numbers of a matrix of counts."""

RESTARTS = 4
"""Starts of EM by k-means++; the likeliest is kept."""

REGULAR = 1e-3
"""Added to the diagonal of every covariance in EM: a few per cent of the posterior's own variance."""


def events(spec: MFCVAE, posterior: Any, modules: Mapping[str, nnx.Module], start: Any = None) -> tuple[Event, ...]:
    """One event for each entry of each facet's ``refit``, after the layout's own start from the data, if it has one:
    of an additive layout, and of counts, ``start``.
    """
    begin: tuple[Event, ...] = ()
    if isinstance(spec.network, ConvLadder) and spec.network.data_init:
        begin = (Event(0, "scaling the layers to the data", _scaled(modules), 150),)
    if isinstance(spec.network, Layers):
        network, likelihood = spec.network, spec.likelihood
        assert not isinstance(likelihood, Columns | Counts)  # layers compose images

        def colours(params: Mapping[str, Any], x: Any, key: Array) -> dict[str, Any]:
            del key
            return {"decoder$params": network.begin(params["decoder$params"], unpack(x)[0], likelihood.decoded)}

        begin = (Event(0, "setting the colours of the layers", colours, 500),)
    if isinstance(spec.likelihood, Counts):
        most = min(START_SIZE, max(1000, START_NUMBERS // spec.shape[0]))
        begin = (Event(0, "fitting the shares of the columns", start, most),)
    elif isinstance(spec.network, Additive) and spec.network.start == "classical":
        begin = (Event(0, "fitting a mixture of factor analysers", start, START_SIZE),)
    if spec.published_start:
        begin += tuple(
            Event(0, f"setting the means of {facet.name}", _means(spec, facet, posterior)) for facet in spec.facets
        )
    return begin + tuple(
        Event(step, f"fitting the mixture of {facet.name}", _refit(spec, facet, posterior))
        for facet in spec.facets
        for step in sorted(facet.refit)
    )


def _scaled(modules: Mapping[str, nnx.Module]) -> Any:
    def apply(params: Mapping[str, Any], x: Any, key: Array) -> dict[str, Any]:
        with seed(rng_seed=0), substitute(data=params):
            live = {name: bind(name, module) for name, module in modules.items()}
        data_init(live["encoder"], live["decoder"], unpack(x)[0], key)
        return {f"{name}$params": nnx.to_pure_dict(nnx.state(module, nnx.Param)) for name, module in live.items()}

    return apply


def _means(spec: MFCVAE, facet: Facet, posterior: Any) -> Any:
    """The published start: means alone, of a diagonal mixture on the posterior means of the untrained encoder."""
    name, names = f"mixture_{facet.name}", [f.name for f in spec.facets]

    def apply(params: Mapping[str, Any], x: Any, key: Array) -> dict[str, Any]:
        def encoded(params: Mapping[str, Any]) -> Array:
            return guides.means(substitute(posterior, data=params)(x), names, key)[facet.name]

        mean = jax.jit(encoded)(params)
        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        return {name: {**params[name], "means": em(np.asarray(mean, float), facet.clusters, "diag", seed)[1]}}

    return apply


def _refit(spec: MFCVAE, facet: Facet, posterior: Any) -> Any:
    names = [f.name for f in spec.facets]

    def apply(params: Mapping[str, Any], x: Any, key: Array) -> dict[str, Any]:
        draw_key, seed_key = jax.random.split(key)

        def draw(params: Mapping[str, Any]) -> Array:
            return guides.drawn(substitute(posterior, data=params)(x), names, facet.name, draw_key)

        z = np.asarray(jax.jit(draw)(params), float)
        seed = int(jax.random.randint(seed_key, (), 0, 2**31 - 1))
        weights, means, covariances = em(z, facet.clusters, facet.covariance, seed)
        if facet.labelled:
            order = _named(z, np.asarray(unpack(x)[2][facet.name]), weights, means, covariances)
            weights, means, covariances = weights[order], means[order], covariances[order]
        name = f"mixture_{facet.name}"
        return {name: from_moments(params[name], weights, means, covariances)}

    return apply


def _named(z: Any, labels: Any, weights: Any, means: Any, covariances: Any) -> Any:
    """The order of the components in which component c holds the most data with the known label c."""
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import multivariate_normal

    known = labels >= 0
    parts = zip(weights, means, covariances, strict=True)
    rows = [np.log(w) + multivariate_normal(m, s).logpdf(z[known]).reshape(-1) for w, m, s in parts]
    log_joint = np.stack(rows, 1)
    share = np.exp(log_joint - log_joint.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    K = len(weights)
    held = np.zeros((K, K))
    np.add.at(held, labels[known].astype(int), share)
    return linear_sum_assignment(-held)[1]


def em(
    z: Float[np.ndarray, "n d"], clusters: int, covariance: str, seed: int
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "K d"], Float[np.ndarray, "K d d"]]:
    """Weights, means and covariances of a Gaussian mixture fitted to ``z`` by scikit-learn's EM.

    Fewer data than clusters raise ``ValueError``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    if len(z) < clusters:
        raise ValueError(f"a mixture of {clusters} clusters needs as many data, got {len(z)}; use fewer clusters")
    form = covariance if covariance in ("diag", "spherical", "tied") else "full"
    found = GaussianMixture(
        clusters, covariance_type=form, reg_covar=REGULAR, n_init=RESTARTS, max_iter=200, tol=1e-3, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # training goes on from here: near is enough
        found.fit(z)
    d, eye = z.shape[1], np.eye(z.shape[1])
    spread = found.covariances_
    if form == "diag":
        spread = spread[:, :, None] * eye
    elif form == "spherical":
        spread = spread[:, None, None] * eye
    return found.weights_, found.means_, np.broadcast_to(spread, (clusters, d, d))
