"""A mixture of Gaussians with exact, stable responsibilities.

``p(z) = sum_c pi_c N(z; mu_c, S_c)``, with ``S_c`` diagonal or full, and ``p(c | z) ∝ pi_c N(z; mu_c, S_c)``.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import Distribution, Independent, MultivariateNormal, Normal, constraints
from numpyro.distributions.distribution import ExpandedDistribution
from numpyro.distributions.kl import kl_divergence

from ppl_models.distributions.conditional_flow import ConditionalFlow


class MixtureOfGaussians(Distribution):
    """``p(z) = sum_c softmax(logits)_c N(z; means_c, S_c)`` over vectors ``z`` of length ``d``.

    Give the spread in one of two forms: ``scales`` (..., K, d), standard deviations of a diagonal ``S_c``; or
    ``scale_tril`` (..., K, d, d), lower Cholesky factors ``L_c`` with ``S_c = L_c L_c^T`` and a positive diagonal.
    ``logits`` (..., K) need not be normalised; an entry of ``-inf`` switches a component off.

    Unlike :class:`numpyro.distributions.MixtureSameFamily` this is its own type, so that a closed-form bound on
    its divergence can be registered without touching that class.  Samples carry no pathwise gradient: the choice
    of the component is discrete.  Raises ``ValueError`` when the shapes disagree, or when a concrete scale is not
    positive (with NumPyro's validation on, as it is by default).

    >>> import jax, jax.numpy as jnp
    >>> mixture = MixtureOfGaussians(jnp.zeros(2), jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1)))
    >>> mixture.responsibilities(jnp.array([0.0])).tolist()
    [0.5, 0.5]
    >>> mixture.sample(jax.random.key(0), (3,)).shape
    (3, 1)
    """

    arg_constraints = {"logits": constraints.dependent, "means": constraints.dependent}
    support = constraints.real_vector
    reparametrized_params: list[str] = []
    pytree_data_fields: tuple[str, ...] = ("logits", "means", "scales", "scale_tril")

    def __init__(
        self,
        logits: Num[ArrayLike, "*#batch K"],
        means: Num[ArrayLike, "*#batch K d"],
        scales: Num[ArrayLike, "*#batch K d"] | None = None,
        scale_tril: Num[ArrayLike, "*#batch K d d"] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if (scales is None) == (scale_tril is None):
            given = "neither" if scales is None else "both"
            raise ValueError(f"give exactly one of scales (diagonal) and scale_tril (full), got {given}")
        self.logits, self.means = jnp.asarray(logits), jnp.asarray(means)
        self.scales = None if scales is None else jnp.asarray(scales)
        self.scale_tril = None if scale_tril is None else jnp.asarray(scale_tril)
        batch_shape, event_shape = self._shapes()
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        got = f"logits {self.logits.shape}, means {self.means.shape}"
        if self.logits.ndim < 1 or self.means.ndim < 2 or self.logits.shape[-1] != self.means.shape[-2]:
            raise ValueError(f"expected logits (..., K) and means (..., K, d), got {got}")
        K, d = self.means.shape[-2:]
        want: tuple[int, ...] = (K, d)
        name, spread = "scales", self.scales
        if spread is None:
            name, spread, want = "scale_tril", self._tril, (K, d, d)
        event = len(want)
        if spread.shape[-event:] != want:
            raise ValueError(f"expected {name} (..., {', '.join(map(str, want))}), got {spread.shape} with {got}")
        try:
            batch = jnp.broadcast_shapes(self.logits.shape[:-1], self.means.shape[:-2], spread.shape[:-event])
        except ValueError as error:
            raise ValueError(f"batch shapes do not broadcast: {got}, {name} {spread.shape}") from error
        return batch, (d,)

    @property
    def _tril(self) -> Array:
        assert self.scale_tril is not None
        return self.scale_tril

    @property
    def _inverse(self) -> Array:
        # One inverse a component serves every datum: cheaper than a triangular solve for each of them.
        eye = jnp.broadcast_to(jnp.eye(self.means.shape[-1]), self._tril.shape)
        return jax.scipy.linalg.solve_triangular(self._tril, eye, lower=True)

    def validate_args(self, strict: bool = True) -> None:
        """Raise ``ValueError`` if a concrete scale is not positive; traced values are not looked at."""
        del strict
        diagonal = self.scales if self.scales is not None else jnp.diagonal(self._tril, axis1=-2, axis2=-1)
        if not isinstance(diagonal, jax.core.Tracer) and not np.all(np.asarray(diagonal) > 0):
            name = "scales" if self.scales is not None else "the diagonal of scale_tril"
            raise ValueError(f"{name} must be positive, got a smallest value of {np.min(np.asarray(diagonal))}")

    @property
    def components(self) -> Distribution:
        """The components ``N(mu_c, S_c)`` as one distribution with batch shape (..., K)."""
        if self.scales is not None:
            return Normal(self.means, self.scales).to_event(1)
        return MultivariateNormal(self.means, scale_tril=self.scale_tril)

    @property
    def probs(self) -> Float[Array, "*batch K"]:
        """Weights ``pi`` of the components."""
        return jax.nn.softmax(self.logits, axis=-1)

    def component_log_probs(self, value: Num[ArrayLike, "*samples d"]) -> Float[Array, "*samples_batch K"]:
        """``log pi_c + log N(value; mu_c, S_c)`` in nats, one column a component."""
        residual = jnp.expand_dims(jnp.asarray(value), -2) - self.means  # (..., K, d)
        if self.scales is not None:
            white = residual / self.scales
            log_det = jnp.log(self.scales).sum(-1)
        else:
            white = jnp.einsum("...ij,...j->...i", self._inverse, residual)
            log_det = jnp.log(jnp.diagonal(self._tril, axis1=-2, axis2=-1)).sum(-1)
        constant = 0.5 * self.means.shape[-1] * math.log(2 * math.pi)
        return jax.nn.log_softmax(self.logits, axis=-1) - 0.5 * (white**2).sum(-1) - log_det - constant

    def log_prob(
        self, value: Num[ArrayLike, "*samples d"], intermediates: Any = None
    ) -> Float[Array, "*samples_batch"]:
        """``log p(value)`` in nats, by logsumexp over the components."""
        del intermediates
        return jax.nn.logsumexp(self.component_log_probs(value), axis=-1)

    def responsibilities(self, value: Num[ArrayLike, "*samples d"]) -> Float[Array, "*samples_batch K"]:
        """``p(c | value)``: Bayes' rule in log space, so a row sums to one however far ``value`` is from all means."""
        return jax.nn.softmax(self.component_log_probs(value), axis=-1)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample_and_batch d"]:
        """Draw ``c ~ Cat(pi)``, then ``z ~ N(mu_c, S_c)``."""
        shape = (*sample_shape, *self.batch_shape)
        if key is None:
            raise ValueError("sample needs a key, got None; pass jax.random.key(0)")
        key_c, key_z = jax.random.split(key)
        c = jax.random.categorical(key_c, self.logits, shape=shape)[..., None, None]
        d = self.event_shape[0]

        def pick(parameter: Array, width: tuple[int, ...]) -> Array:
            flat = parameter.reshape(*parameter.shape[: parameter.ndim - len(width)], -1)
            flat = jnp.broadcast_to(flat, (*shape, *flat.shape[-2:]))
            return jnp.take_along_axis(flat, c, axis=-2).reshape(*shape, *width)

        mean, noise = pick(self.means, (d,)), jax.random.normal(key_z, (*shape, d), self.means.dtype)
        if self.scales is not None:
            return mean + pick(self.scales, (d,)) * noise
        return mean + jnp.einsum("...ij,...j->...i", pick(self._tril, (d, d)), noise)

    @property
    def mean(self) -> Float[Array, "*batch d"]:
        """``sum_c pi_c mu_c``."""
        mean = (self.probs[..., None] * self.means).sum(-2)
        return jnp.broadcast_to(mean, (*self.batch_shape, *self.event_shape))

    @property
    def variance(self) -> Float[Array, "*batch d"]:
        """Marginal variances ``sum_c pi_c (diag S_c + (mu_c - mean)^2)``."""
        within = self.scales**2 if self.scales is not None else (self._tril**2).sum(-1)
        between = (self.means - jnp.expand_dims(self.mean, -2)) ** 2
        return (self.probs[..., None] * (within + between)).sum(-2)


class MeanFieldMixture(MixtureOfGaussians):
    """A mixture prior whose divergence from a Gaussian q is replaced by its closed-form mean-field bound.

    ``kl_divergence(q, self) = -log sum_c pi_c exp(-KL(q || N(mu_c, S_c)))``, which is the divergence plus the least
    ``KL(q(c) || p(c | z))`` that a ``q(c)`` blind to z pays, hence an upper bound on ``KL(q || self)``.  The
    log density is that of the mixture.  The
    best ``q(c)`` is proportional to ``pi_c exp(-KL_c)``: :meth:`mean_field_responsibilities`.
    """

    def mean_field_responsibilities(self, q: Independent | MultivariateNormal) -> Float[Array, "*batch K"]:
        """``softmax_c(log pi_c - KL_c)``."""
        return jax.nn.softmax(jax.nn.log_softmax(self.logits) - component_divergences(q, self), axis=-1)


class SampledMixture(MixtureOfGaussians):
    """A mixture prior whose divergence from q, Gaussian or a flow, is estimated with L draws and one q(c) for all.

    With ``z_l = m + s noise_l`` (or as q maps noise to draws) and ``r_c(z) = log pi_c + log N(z; mu_c, S_c)``,

        kl_divergence(q, self) = -mean_l[ logsumexp_c r_c(z_l) - log q(z_l) ] - log sum_c exp( mean_l log p(c | z_l) ).

    L = 1 is the one-draw estimate of the divergence itself; the mean rises with L to the mean-field bound.
    ``noise`` (L, *batch, d) standard normal.  ``log_prob`` is that of the mixture.
    """

    pytree_data_fields = ("noise",)

    def __init__(self, *args: Any, noise: Array, **kwargs: Any) -> None:
        self.noise = noise
        super().__init__(*args, **kwargs)


def component_divergences(q: Independent | MultivariateNormal, mixture: MixtureOfGaussians) -> Float[Array, "*batch K"]:
    """``KL(q || N(mu_c, S_c))`` of every component, in nats, q = N(m, R R^T) with ``R = diag s`` or lower triangular.

    With ``A = L_c^-1``: ``.5 (|A R|^2 + |A (mu_c - m)|^2 - d) + log det L_c - log det R``.
    """
    if isinstance(q, MultivariateNormal):
        return _full_divergences(q, mixture)
    normal = _gaussian(q)
    m, s = jnp.broadcast_arrays(normal.loc, normal.scale)
    m, s, d = m[..., None, :], s[..., None, :], m.shape[-1]
    if mixture.scales is not None:
        ratio, white = s / mixture.scales, (m - mixture.means) / mixture.scales
        squares, log_det = (ratio**2 + white**2).sum(-1), jnp.log(mixture.scales).sum(-1)
    else:
        inverse = mixture._inverse
        white = jnp.einsum("...ij,...j->...i", inverse, m - mixture.means)
        squares = jnp.einsum("...ij,...j->...", inverse**2, s**2) + (white**2).sum(-1)
        log_det = jnp.log(jnp.diagonal(mixture._tril, axis1=-2, axis2=-1)).sum(-1)
    return 0.5 * (squares - d) + log_det - jnp.log(s).sum(-1)


def _full_divergences(q: MultivariateNormal, mixture: MixtureOfGaussians) -> Float[Array, "*batch K"]:
    m, root, d = q.loc[..., None, :], q.scale_tril, q.loc.shape[-1]
    log_det_q = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)[..., None]
    if mixture.scales is not None:
        white, rows = (m - mixture.means) / mixture.scales, (root**2).sum(-1)[..., None, :]
        squares, log_det = (rows / mixture.scales**2 + white**2).sum(-1), jnp.log(mixture.scales).sum(-1)
    else:
        inverse = mixture._inverse
        white = jnp.einsum("...ij,...j->...i", inverse, m - mixture.means)
        both = jnp.einsum("...kij,...jl->...kil", inverse, root)
        squares = (both**2).sum((-1, -2)) + (white**2).sum(-1)
        log_det = jnp.log(jnp.diagonal(mixture._tril, axis1=-2, axis2=-1)).sum(-1)
    return 0.5 * (squares - d) + log_det - log_det_q


def _gaussian(q: Independent) -> Normal:
    base = q.base_dist
    while isinstance(base, ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"the bound is for Normal(m, s).to_event(1), got {type(base).__name__}")
    return base


@kl_divergence.register((Independent, MultivariateNormal), MeanFieldMixture)
def _mean_field_bound(q: Independent | MultivariateNormal, p: MeanFieldMixture) -> Float[Array, "*batch"]:
    divergences = component_divergences(q, p)
    return -jax.nn.logsumexp(jax.nn.log_softmax(p.logits) - divergences, axis=-1)


@kl_divergence.register(Independent, SampledMixture)
def _sampled_bound(q: Independent, p: SampledMixture) -> Float[Array, "*batch"]:
    normal = _gaussian(q)
    return _sampled(q, p, normal.loc + normal.scale * p.noise)


@kl_divergence.register(MultivariateNormal, SampledMixture)
def _sampled_bound_full(q: MultivariateNormal, p: SampledMixture) -> Float[Array, "*batch"]:
    return _sampled(q, p, q.loc + jnp.einsum("...ij,...j->...i", q.scale_tril, p.noise))


@kl_divergence.register(ConditionalFlow, SampledMixture)
def _sampled_bound_flow(q: ConditionalFlow, p: SampledMixture) -> Float[Array, "*batch"]:
    return _sampled(q, p, q.at(p.noise))


def _sampled(q: Distribution, p: SampledMixture, z: Float[Array, "L *batch d"]) -> Float[Array, "*batch"]:
    joint = p.component_log_probs(z)  # (L, *batch, K)
    log_z = jax.nn.logsumexp(joint, axis=-1)
    common = jax.nn.logsumexp((joint - log_z[..., None]).mean(0), axis=-1)
    return -(log_z - q.log_prob(z)).mean(0) - common
