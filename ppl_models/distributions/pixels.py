"""How stored grey levels become what is scored: prepare, likelihood, and the line that says so.

Stored data are grey levels 0..levels-1 (256 for usual images, 17 for scikit-learn's digits).  Each dataclass
turns them into an observation ``x`` and a decoder's output into ``p(x | z)``; two families that use the same
dataclass score the same thing, say so in the same ``observation`` line, and may be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key, Shaped

Parameters = Mapping[str, Array]


def pixel_count(shape: tuple[int, ...]) -> str:
    """The shape of a datum in an observation line, ``8x8 pixels``."""
    return "x".join(map(str, shape)) + " pixels"


def _logit(mean: Array) -> Array:
    mean = jnp.clip(mean, 0.01, 0.99)
    return jnp.log(mean) - jnp.log1p(-mean)


def _own_uniform(grey: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Uniform numbers in [0, 1) of the shape of one datum, from a key made of its own grey levels."""
    levels = grey.astype("uint32").ravel()
    odd = 2 * jax.random.bits(jax.random.key(0), levels.shape, "uint32") + 1  # multiply-shift hash, modulo 2^32
    return jax.random.uniform(jax.random.fold_in(jax.random.key(1), (levels * odd).sum()), grey.shape)


class Pixels:
    """What most laws of pixels share."""

    def decoded_shape(self, shape: tuple[int, ...], levels: int) -> tuple[int, ...]:
        """Shape of what the decoder returns for one datum: that of the datum."""
        del levels
        return shape

    def parameters(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Trainable numbers of the likelihood beside the decoder: none."""
        del shape
        return {}

    def decoded(self, mean: Array) -> Array:
        """What the decoder must return for this mean: ``logit(mean)``, the mean kept within .01 of 0 and 1."""
        return _logit(mean)

    def check(self, x: Any, shape: tuple[int, ...], levels: int) -> None:
        """Raise ``ValueError`` for data that are not grey levels of the declared shape."""
        check_grey(x, shape, levels)


@dataclass(frozen=True)
class Bernoulli(Pixels):
    """Black or white pixels: ``x = [grey > threshold * (levels - 1)]``, ``p(x | z) = prod_i Bernoulli(x_i; logits_i)``.

    ``threshold``  fraction of the brightest grey level, in (0, 1).
    ``noise``      standard deviation, in grey levels, of Gaussian noise added before the threshold and drawn anew at
                   every training step; evaluation has none, so its observation is fixed.
    ``stochastic`` in place of both: a pixel is 1 with probability ``grey / (levels - 1)``, drawn anew at every training
                   step (Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519, sec. 5.1, who score new draws, too).
                   Evaluation draws each datum once, from a key that is a hash of its grey levels: the same image gives
                   the same bits in any batch.

    Scikit-learn's digits: ``Bernoulli(threshold=7.5 / 16, noise=1.0)``.  Scores are probability masses (nats).
    """

    kind: Literal["bernoulli"] = field(default="bernoulli", kw_only=True)
    threshold: float = 0.5
    noise: float = 0.0
    stochastic: bool = False
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.stochastic and (self.threshold, self.noise) != (0.5, 0.0):
            raise ValueError(
                f"stochastic=True draws each pixel by its grey level, got threshold={self.threshold} and "
                f"noise={self.noise} beside it; leave them out"
            )
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold is a fraction of the brightest level, expected 0 < threshold < 1, got {self.threshold}; "
                "divide a grey level by (levels - 1)"
            )
        if not (0 <= self.noise < math.inf):
            raise ValueError(f"noise is a standard deviation in grey levels, expected >= 0, got {self.noise}")

    def prepare(
        self, x: Shaped[Array, "batch ..."], key: Key[Array, ""], training: bool, levels: int
    ) -> Float[Array, "batch ..."]:
        """Threshold grey levels to 0. and 1., or draw them."""
        grey = x.astype("float32")
        if self.stochastic:
            u = jax.random.uniform(key, grey.shape) if training else jax.vmap(_own_uniform)(x)
            return (u * (levels - 1) < grey).astype("float32")
        if training and self.noise > 0:
            grey = grey + self.noise * jax.random.normal(key, grey.shape)
        return (grey > self.threshold * (levels - 1)).astype("float32")

    def distribution(
        self, decoded: Float[Array, "batch ..."], parameters: Parameters, levels: int
    ) -> dist.Distribution:
        """``Bernoulli(logits = decoded)`` over all pixels of a datum."""
        del parameters, levels
        return dist.Bernoulli(logits=decoded).to_event(decoded.ndim - 1)

    def bits_offset(self, levels: int) -> float | None:
        """A probability mass of the stored pixel's bit: see ``Program.observation.bits_offset``."""
        del levels
        return 0.0

    def observation(self, shape: tuple[int, ...], levels: int) -> str:
        """What is scored, in one line."""
        if self.stochastic:
            return f"binary {pixel_count(shape)}, 1 with probability grey / {levels - 1}; probability mass, nats"
        cut = f"{self.threshold * (levels - 1):g} of {levels - 1}"
        return f"binary {pixel_count(shape)}, grey > {cut}; probability mass, nats"

    def symbols(self) -> str:
        """The likelihood in the paper's symbols."""
        return "p(x|z) = ∏ᵢ Bernoulli(xᵢ; σ(fᵢ(z)))"


@dataclass(frozen=True)
class GreyBernoulli(Pixels):
    """``x^f (1 - x)^(1 - f)`` with grey ``x`` in [0, 1]: the cross-entropy many VAE codes train on. NOT a density.

    It does not integrate to one over grey levels, so its "ELBO" is no bound on any log p(x), and its tables
    compare only with tables of the same observation line.  Provided to repeat published recipes; prefer
    :class:`Bernoulli` (thresholded) or :class:`Normal` (dequantised) for anything that is compared.
    """

    kind: Literal["grey_bernoulli"] = field(default="grey_bernoulli", kw_only=True)
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def prepare(
        self, x: Shaped[Array, "batch ..."], key: Key[Array, ""], training: bool, levels: int
    ) -> Float[Array, "batch ..."]:
        """Scale grey levels to [0, 1]."""
        del key, training
        return x.astype("float32") / (levels - 1)

    def distribution(
        self, decoded: Float[Array, "batch ..."], parameters: Parameters, levels: int
    ) -> dist.Distribution:
        """``Bernoulli(logits = decoded)``, unvalidated: validation would score a grey pixel as -inf."""
        del parameters, levels
        return dist.Bernoulli(logits=decoded, validate_args=False).to_event(decoded.ndim - 1)

    def bits_offset(self, levels: int) -> float | None:
        """None: not a density, so no code length."""
        del levels
        return None

    def observation(self, shape: tuple[int, ...], levels: int) -> str:
        """What is scored, in one line."""
        return (
            f"grey {pixel_count(shape)}, x/{levels - 1}, under an UNNORMALISED Bernoulli: not a density of the data; "
            "compare only with tables of this same line"
        )

    def symbols(self) -> str:
        """The likelihood in the paper's symbols."""
        return "p̃(x|z) = ∏ᵢ σ(fᵢ(z))^xᵢ (1 − σ(fᵢ(z)))^(1 − xᵢ), xᵢ ∈ [0, 1] (unnormalised)"


_SIGMA_FLOOR = 1e-3


@dataclass(frozen=True)
class Normal(Pixels):
    """Grey pixels in [0, 1] with Gaussian noise: ``p(x | z) = prod_i N(x_i; link(f_i(z)), sigma^2)``.

    ``sigma``       standard deviation on the [0, 1] scale; a factor whose effect is below it is not worth coding.
    ``learned``     train one shared sigma (start: ``sigma``, floor .001) instead of keeping it.
    ``per_pixel``   with ``learned``, train a sigma for each pixel: margins are sharper than strokes.
    ``dequantise``  score ``(grey + u) / levels``, u ~ U[0, 1) anew at each use, in place of ``grey / (levels - 1)``.
    ``link``        ``"sigmoid"`` keeps means within [0, 1]; ``"identity"`` leaves the decoder's output as it is.

    Without ``dequantise`` the score is a density at points of a lattice: fine within one observation line, but it can
    be raised at will by shrinking sigma.  With it the score bounds a probability: with D values a datum,
    ``(D log(levels) - log p) / (D log 2)`` bits/dim is an upper bound on the code length of the stored levels.
    """

    kind: Literal["normal"] = field(default="normal", kw_only=True)
    sigma: float = 0.25
    learned: bool = False
    per_pixel: bool = False
    dequantise: bool = False
    link: Literal["sigmoid", "identity"] = "sigmoid"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not (0 < self.sigma < math.inf):
            raise ValueError(f"sigma is a standard deviation on the [0, 1] scale, expected > 0, got {self.sigma}")
        if self.learned and self.sigma <= _SIGMA_FLOOR:
            raise ValueError(f"a learnt sigma starts above its floor {_SIGMA_FLOOR}, got {self.sigma}; try 0.25")
        if self.per_pixel and not self.learned:
            raise ValueError("per_pixel gives each pixel a learnt sigma, got learned=False; set learned=True")

    def check(self, x: Any, shape: tuple[int, ...], levels: int) -> None:
        """Raise ``ValueError`` for data that are not grey levels of the declared shape."""
        check_grey(x, shape, levels, whole=self.dequantise)

    def prepare(
        self, x: Shaped[Array, "batch ..."], key: Key[Array, ""], training: bool, levels: int
    ) -> Float[Array, "batch ..."]:
        """Scale grey levels to [0, 1], with dequantisation noise where asked for (evaluation included)."""
        del training
        grey = x.astype("float32")
        if self.dequantise:
            return (grey + jax.random.uniform(key, grey.shape)) / levels
        return grey / (levels - 1)

    def parameters(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """``{"log_sigma": ...}`` when sigma is learnt: a scalar, or (*shape,) for a sigma a pixel."""
        start = math.log(self.sigma - _SIGMA_FLOOR)
        return {"log_sigma": jnp.full(shape if self.per_pixel else (), start, "float32")} if self.learned else {}

    def distribution(
        self, decoded: Float[Array, "batch ..."], parameters: Parameters, levels: int
    ) -> dist.Distribution:
        """``Normal(link(decoded), sigma)`` over all pixels of a datum."""
        del levels
        loc = jax.nn.sigmoid(decoded) if self.link == "sigmoid" else decoded
        sigma = _SIGMA_FLOOR + jnp.exp(parameters["log_sigma"]) if self.learned else self.sigma
        return dist.Normal(loc, sigma).to_event(decoded.ndim - 1)

    def decoded(self, mean: Array) -> Array:
        """What the decoder must return for this mean: the inverse link, as in :class:`Bernoulli` for a sigmoid."""
        return _logit(mean) if self.link == "sigmoid" else mean

    def bits_offset(self, levels: int) -> float | None:
        """log2(levels) with dequantisation, where a level has volume 1/levels; None without, on a lattice."""
        return math.log2(levels) if self.dequantise else None

    def observation(self, shape: tuple[int, ...], levels: int) -> str:
        """What is scored, in one line."""
        if self.dequantise:
            return f"grey {pixel_count(shape)}, (x + u)/{levels} with u ~ U[0, 1); density, nats"
        return f"grey {pixel_count(shape)}, x/{levels - 1}, not dequantised; density at lattice points, nats"

    def symbols(self) -> str:
        """The likelihood in the paper's symbols."""
        mean, s = "σ(fᵢ(z))" if self.link == "sigmoid" else "fᵢ(z)", "sᵢ" if self.per_pixel else "s"
        return f"p(x|z) = ∏ᵢ N(xᵢ; {mean}, {s}²), {s} = {self.sigma:g}" + (
            " at the start, learnt" if self.learned else ""
        )


class GreyLevels(dist.Distribution):
    """A categorical law over the grey levels ``k / (levels - 1)``, k = 0..levels-1, with ``p(k) = softmax(logits)_k``.

    Values lie on the [0, 1] scale of the other pixel laws; a value between two levels is scored as the nearest.
    """

    arg_constraints = {"logits": dist.constraints.real_vector}
    support = dist.constraints.unit_interval
    pytree_data_fields = ("logits",)

    def __init__(self, logits: Float[Array, "*batch levels"], *, validate_args: bool | None = None) -> None:
        self.logits = jnp.asarray(logits)
        super().__init__(self.logits.shape[:-1], (), validate_args=validate_args)

    def log_prob(self, value: Float[Array, "*batch"], intermediates: Any = None) -> Float[Array, "*batch"]:
        """``log p(k)`` in nats, a probability mass."""
        del intermediates
        k = jnp.round(value * (self.logits.shape[-1] - 1)).astype("int32")
        shape = jnp.broadcast_shapes(k.shape, self.batch_shape)
        log_p = jnp.broadcast_to(jax.nn.log_softmax(self.logits), (*shape, self.logits.shape[-1]))
        return jnp.take_along_axis(log_p, jnp.broadcast_to(k, shape)[..., None], axis=-1)[..., 0]

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample_and_batch"]:
        """Draw levels, on the [0, 1] scale."""
        assert key is not None
        k = jax.random.categorical(key, self.logits, shape=sample_shape + self.batch_shape)
        return k / (self.logits.shape[-1] - 1)

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """``sum_k p(k) k / (levels - 1)``."""
        return jax.nn.softmax(self.logits) @ jnp.linspace(0, 1, self.logits.shape[-1])


@dataclass(frozen=True)
class Categorical(Pixels):
    """Every grey level a class of its own: ``p(x | z) = prod_i Cat(x_i; softmax(f_i(z)))``, f_i of length ``levels``.

    No order among levels is assumed and none is learnt for free: many parameters, for few levels.  Scores are
    probability masses (nats).
    """

    kind: Literal["categorical"] = field(default="categorical", kw_only=True)
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def decoded_shape(self, shape: tuple[int, ...], levels: int) -> tuple[int, ...]:
        """(*shape, levels): the logits of every level of a pixel."""
        return (*shape, levels)

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
        """:class:`GreyLevels` over all pixels of a datum; ``decoded`` (batch, *shape, levels)."""
        del parameters, levels
        return GreyLevels(decoded).to_event(decoded.ndim - 2)

    def decoded(self, mean: Array) -> Array:
        """Not defined: a mean does not determine the law."""
        raise ValueError("a categorical likelihood has no colour to start from; use Normal or Bernoulli with Layers")

    def bits_offset(self, levels: int) -> float | None:
        """A probability mass of the stored level: see ``Program.observation.bits_offset``."""
        del levels
        return 0.0

    def observation(self, shape: tuple[int, ...], levels: int) -> str:
        """What is scored, in one line."""
        return f"grey {pixel_count(shape)}, {levels} levels; probability mass, nats"

    def symbols(self) -> str:
        """The likelihood in the paper's symbols."""
        return "p(x|z) = ∏ᵢ Cat(xᵢ; softmax fᵢ(z))"


def check_grey(x: Any, shape: tuple[int, ...], levels: int, *, whole: bool = False) -> None:
    """Raise ``ValueError`` unless ``x`` is (N, *shape), N >= 1, of finite grey levels 0..levels-1.

    ``whole`` also refuses fractions.  Floats that fit in [0, 1] are refused when there are more than two levels:
    they have been scaled already, and scaling them again would turn every image black.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "uifb":
        raise ValueError(f"data must be numbers, got dtype {x.dtype}; convert to uint8 grey levels 0..{levels - 1}")
    if x.ndim != len(shape) + 1 or x.shape[1:] != tuple(shape):
        hint = ""
        if x.shape == tuple(shape):
            hint = "; this is one datum: add a leading axis, x[None]"
        elif math.prod(x.shape[1:]) == math.prod(shape):
            hint = f"; the number of values agrees: try x.reshape(-1, {', '.join(map(str, shape))})"
        else:
            hint = "; or change the spec's shape"
        expected = ", ".join(["N", *map(str, shape)])
        raise ValueError(f"data must have shape ({expected}), got {x.shape}{hint}")
    if x.shape[0] == 0:
        raise ValueError(f"data are empty, got shape {x.shape}; expected at least one datum")
    if x.dtype.kind == "f":
        bad = int((~np.isfinite(x)).sum())
        if bad:
            raise ValueError(f"data must be finite, got {bad} NaN or infinite values; drop or fill them first")
    low, high = x.min(), x.max()
    if low < 0 or high > levels - 1:
        raise ValueError(
            f"data must be grey levels 0..{levels - 1}, got values from {low} to {high}; "
            f"rescale them, or set the spec's levels (256 for usual images)"
        )
    if x.dtype.kind == "f" and levels > 2 and 0 < high <= 1:
        raise ValueError(
            f"data look scaled to [0, 1] already (largest value {high}), expected grey levels 0..{levels - 1}; "
            f"multiply by {levels - 1}: the program scales them itself"
        )
    if whole and x.dtype.kind == "f" and not np.all(x == np.floor(x)):
        raise ValueError("dequantisation needs whole grey levels, got fractions; round them, or use dequantise=False")
