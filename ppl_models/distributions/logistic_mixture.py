"""Mixtures of discretised logistics: laws of ordered grey levels and of colours, exact at both ends.

Salimans, Karpathy, Chen and Kingma, "PixelCNN++", ICLR 2017, arXiv 1701.05517, eq. 2-3; the head's layout is that of
Child, "Very Deep VAEs", arXiv 2011.10650.  With L levels, on the scale v = 2 k / (L - 1) - 1 in [-1, 1], half width
h = 1 / (L - 1) and F(t) = sigmoid((t - m) / s):

    P(k) = F(v + h) - F(v - h)   (0 < k < L - 1),    P(0) = F(-1 + h),    P(L - 1) = 1 - F(1 - h)

so the masses of the L levels sum to one.  A colour has one component for all three channels, and within a component

    m_G' = m_G + c_0 R,    m_B' = m_B + c_1 R + c_2 G      (R, G on the scale of v; c = tanh of the head's output)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.nn import log_sigmoid
from jaxtyping import Array, Float, Key, Shaped

from ppl_models.distributions.pixels import Parameters, Pixels, check_grey, pixel_count

SUMMED = 32
"""Most levels over which a mean is summed."""
LOG_SCALE_BOUND = 7.0
"""log s is cut at +-7: below, a component is a spike within one level of 256 (the floor of PixelCNN++); above, flat."""


def log_mass(
    v: Float[Array, "..."], mean: Float[Array, "..."], log_scale: Float[Array, "..."], levels: int
) -> Float[Array, "..."]:
    """``log P(k)`` in nats of the level at ``v`` in [-1, 1], k = 0 and k = levels - 1 with open intervals.

    For a > b, ``sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))``: no difference of nearly equal
    numbers, so value and gradient keep their precision where the mass underflows, and the published code's fallback on
    ``density * width`` for masses below 1e-5, under which they no longer sum to one, is not needed.
    """
    h, rate = 1.0 / (levels - 1), jnp.exp(-log_scale)
    upper, lower = (v - mean + h) * rate, (v - mean - h) * rate
    below, above = log_sigmoid(upper), log_sigmoid(-lower)  # log of all mass up to k, and of all from k on
    inner = below + above + jnp.log(-jnp.expm1(-2.0 * h * rate))
    k = jnp.round((v + 1.0) * (0.5 * (levels - 1)))
    return jnp.where(k <= 0, below, jnp.where(k >= levels - 1, above, inner))


class DiscretisedLogistics(dist.Distribution):
    """Mixture of K logistics over the levels ``k / (levels - 1)``, or of K products of three over colours.

    ``logits``        (*batch, K) of the components.
    ``means``         (*batch, K), or (*batch, 3, K) for colours; on the scale [-1, 1].
    ``log_scales``    of the same shape, cut at +-7.
    ``coefficients``  (*batch, 3, K) in (-1, 1) for colours: c_0, c_1, c_2 of the module's text; ``None`` for grey.

    A value has event shape () or (3,) and lies on the [0, 1] scale of the other pixel laws; a value between two levels
    is scored as the nearest.  Draws are levels: a logistic draw rounded to the lattice has just this law.
    """

    arg_constraints = {"logits": dist.constraints.real_vector}
    pytree_data_fields = ("logits", "means", "log_scales", "coefficients")
    pytree_aux_fields = ("levels",)

    def __init__(
        self,
        logits: Float[Array, "*batch K"],
        means: Float[Array, "..."],
        log_scales: Float[Array, "..."],
        coefficients: Float[Array, "..."] | None = None,
        *,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.means, self.coefficients, self.levels = logits, means, coefficients, levels
        self.log_scales = jnp.clip(log_scales, -LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        colour = coefficients is not None
        if means.shape != (*logits.shape[:-1], *([3] if colour else []), logits.shape[-1]):
            raise ValueError(
                f"means must have shape (*batch, {'3, ' if colour else ''}K) with logits (*batch, K), got means "
                f"{means.shape} and logits {logits.shape}; coefficients are for colours alone"
            )
        super().__init__(logits.shape[:-1], (3,) if colour else (), validate_args=validate_args)

    @dist.constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Values on [0, 1]: one, or three together."""
        unit = dist.constraints.unit_interval
        return dist.constraints.independent(unit, 1) if self.event_shape else unit

    def _lattice(self, unit: Float[Array, "..."]) -> Float[Array, "..."]:
        """The nearest level of values on [0, 1], on the scale [-1, 1]."""
        return jnp.round(unit * (self.levels - 1)) * (2.0 / (self.levels - 1)) - 1.0

    def _shifted(self, v: Float[Array, "*rest 3"]) -> Float[Array, "..."]:
        """Means (*batch, 3, K) of each channel given the channels of ``v`` before it."""
        assert self.coefficients is not None
        m, c = self.means, self.coefficients
        red, green = v[..., 0, None], v[..., 1, None]
        parts = (
            m[..., 0, :],
            m[..., 1, :] + c[..., 0, :] * red,
            m[..., 2, :] + c[..., 1, :] * red + c[..., 2, :] * green,
        )
        return jnp.stack(jnp.broadcast_arrays(*parts), -2)

    def log_prob(self, value: Float[Array, "..."], intermediates: Any = None) -> Float[Array, "..."]:
        """``log sum_k pi_k prod_c P_kc(value_c)`` in nats, a probability mass."""
        del intermediates
        v = self._lattice(value)
        means = self.means if self.coefficients is None else self._shifted(v)
        log_p = log_mass(v[..., None], means, self.log_scales, self.levels)
        log_p = log_p if self.coefficients is None else log_p.sum(-2)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + log_p, axis=-1)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draw a component, then the channels in order, each rounded to a level before the next one reads it."""
        assert key is not None
        pick, noise = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        chosen = jax.random.categorical(pick, self.logits, shape=shape)[..., None]

        def of_chosen(parameter: Float[Array, "*batch K"]) -> Float[Array, "..."]:
            wide = jnp.broadcast_to(parameter, (*shape, parameter.shape[-1]))
            return jnp.take_along_axis(wide, chosen, axis=-1)[..., 0]

        spread = jax.random.logistic(noise, shape + self.event_shape)

        def levelled(v: Float[Array, "..."]) -> Float[Array, "..."]:
            return self._lattice(jnp.clip(0.5 * (v + 1.0), 0.0, 1.0))

        if self.coefficients is None:
            v = levelled(of_chosen(self.means) + jnp.exp(of_chosen(self.log_scales)) * spread)
        else:
            found: list[Array] = []
            c = [of_chosen(self.coefficients[..., i, :]) for i in range(3)]
            for i in range(3):
                mean = of_chosen(self.means[..., i, :])
                mean = mean + sum(a * b for a, b in zip(([], c[:1], c[1:])[i], found, strict=True))
                found.append(levelled(mean + jnp.exp(of_chosen(self.log_scales[..., i, :])) * spread[..., i]))
            v = jnp.stack(found, -1)
        return jnp.round(0.5 * (v + 1.0) * (self.levels - 1)) / (self.levels - 1)

    @property
    def mean(self) -> Float[Array, "..."]:
        """``E[value]``: of grey values in closed form; of colours each channel at the mean of those before it.

        ``sum_k P(value >= k) / (L - 1)`` up to SUMMED levels; above, the integral that it is the midpoint rule of, the
        mean of the logistic clipped to [-1, 1], ``s (softplus((m + 1) / s) - softplus((m - 1) / s)) / 2`` on [0, 1]:
        rounding to a level moves it by half a level at most.
        """
        scales = jnp.exp(self.log_scales)

        def of(m: Float[Array, "*batch K"], s: Float[Array, "*batch K"]) -> Float[Array, "*batch K"]:
            if self.levels > SUMMED:
                return 0.5 * s * (jax.nn.softplus((m + 1.0) / s) - jax.nn.softplus((m - 1.0) / s))
            edges = (2.0 * np.arange(1, self.levels, dtype="float32") - 1.0) / (self.levels - 1) - 1.0
            return jax.nn.sigmoid((m[..., None] - edges) / s[..., None]).sum(-1) / (self.levels - 1)

        weights = jax.nn.softmax(self.logits)
        if self.coefficients is None:
            return (weights * of(self.means, scales)).sum(-1)
        m, c = self.means, self.coefficients
        found: list[Array] = []
        for i in range(3):
            before = sum(c[..., j, :] * (2.0 * e - 1.0) for j, e in zip(((), (0,), (1, 2))[i], found, strict=True))
            found.append(of(m[..., i, :] + before, scales[..., i, :]))
        return (weights[..., None, :] * jnp.stack(found, -2)).sum(-1)


@dataclass(frozen=True)
class LogisticMixture(Pixels):
    """Ordered grey levels or colours: ``p(x | z) = prod_i sum_k pi_ik P_ik(x_i)``, see :class:`DiscretisedLogistics`.

    ``components``  K: a grey value takes 3 K outputs of the decoder, a colour 10 K.

    Data (H, W, 3) are colours, whose channels depend on one another; of any other shape, every number is a grey value.
    Neighbouring levels share parameters, so it is fit for many levels (256) where :class:`Categorical` is not.  Scores
    are probability masses (nats), and draws are levels.
    """

    kind: Literal["logistic_mixture"] = field(default="logistic_mixture", kw_only=True)
    components: int = 10
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not isinstance(self.components, int) or self.components < 1:
            raise ValueError(f"components must be a whole number of logistics, at least 1, got {self.components!r}")

    def decoded_shape(self, shape: tuple[int, ...], levels: int) -> tuple[int, ...]:
        """(H, W, 10 K) for colours: K logits, then for each channel K means, log scales and coefficients; else
        (*shape, 3 K): K logits, means and log scales."""
        del levels
        if is_colour(shape):
            return (*shape[:2], 10 * self.components)
        return (*shape, 3 * self.components)

    def check(self, x: Any, shape: tuple[int, ...], levels: int) -> None:
        """Raise ``ValueError`` for data that are not whole grey levels of the declared shape."""
        check_grey(x, shape, levels, whole=True)

    def prepare(
        self, x: Shaped[Array, "batch ..."], key: Key[Array, ""], training: bool, levels: int
    ) -> Float[Array, "batch ..."]:
        """Scale grey levels to [0, 1]."""
        del key, training
        return x.astype("float32") / (levels - 1)

    def distribution(
        self, decoded: Float[Array, "batch ..."], parameters: Parameters, levels: int
    ) -> dist.Distribution:
        """:class:`DiscretisedLogistics` over a datum; ``decoded`` (batch, *decoded_shape)."""
        del parameters
        K, outputs = self.components, decoded.shape[-1]
        logits, rest = decoded[..., :K], decoded[..., K:]
        if outputs == 3 * K:
            law = DiscretisedLogistics(logits, rest[..., :K], rest[..., K:], levels=levels)
        else:
            rest = rest.reshape(*decoded.shape[:-1], 3, 3 * K)
            means, log_scales, coefficients = jnp.split(rest, 3, axis=-1)
            law = DiscretisedLogistics(logits, means, log_scales, jnp.tanh(coefficients), levels=levels)
        return law.to_event(decoded.ndim - 2)

    def decoded(self, mean: Array) -> Array:
        """Not defined: a mean does not determine the law."""
        raise ValueError("a mixture of logistics has no colour to start from; use Normal or Bernoulli with Layers")

    def bits_offset(self, levels: int) -> float | None:
        """A probability mass of the stored level: see ``Program.observation.bits_offset``."""
        del levels
        return 0.0

    def observation(self, shape: tuple[int, ...], levels: int) -> str:
        """What is scored, in one line: that of :class:`Categorical`, with which it may be compared."""
        return f"grey {pixel_count(shape)}, {levels} levels; probability mass, nats"

    def symbols(self) -> str:
        """The likelihood in the paper's symbols."""
        return f"p(x|z) = ∏ᵢ ∑ₖ πᵢₖ(z) [F((xᵢ+h−mᵢₖ(z))/sᵢₖ(z)) − F((xᵢ−h−mᵢₖ(z))/sᵢₖ(z))], k = 1…{self.components}"


def is_colour(shape: tuple[int, ...]) -> bool:
    """Whether a datum is an image of three channels, (H, W, 3)."""
    return len(shape) == 3 and shape[2] == 3
