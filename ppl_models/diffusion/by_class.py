"""A diffusion given a class, and guided towards it without a classifier.

    D_w(x, c) = D(x, none) + (1 + w) (D(x, c) - D(x, none))

J. Ho, T. Salimans, *Classifier-Free Diffusion Guidance*, 2022, arXiv 2207.12598, eq. 6, in terms of the denoiser: the
score of ``p_t(x | c) (p_t(x | c) / p_t(x))^w``.  ``w = 0`` is the model given the class.  One network answers for both,
for in training a share of the data hides its class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ppl_models.distributions.denoising_bound import DenoisingBound

UNKNOWN = -1
"""Label of a datum whose class is not known."""
LABEL = "label"
"""Leaf of a datum that holds its class."""


@dataclass(frozen=True)
class OfClass:
    """``D_w`` of one datum: ``inner(weights, x, t, label)`` at the parameters ``(weights, label)``."""

    inner: Any
    guidance: float = 0.0

    def __call__(self, params: Any, x: Array, t: Array) -> Array:
        """Two calls of the network, one where there is no guidance."""
        weights, label = params
        if self.guidance == 0:
            return self.inner(weights, x, t, jnp.asarray(label))
        both = jnp.stack([jnp.asarray(label), jnp.asarray(UNKNOWN, jnp.asarray(label).dtype)])
        given, free = jax.vmap(lambda c: self.inner(weights, x, t, c))(both)
        return free + (1 + self.guidance) * (given - free)


@dataclass(frozen=True)
class OfBatch:
    """A batched network at the parameters ``(weights, labels)``; batches of whole sets of those data are taken too."""

    apply: Any

    def __call__(self, params: Any, x: Array, phi: Array) -> Array:
        """``E[x_0 | x]`` of data (n, *shape)."""
        weights, labels = params
        return self.apply(weights, x, phi, jnp.broadcast_to(labels, (len(x) // len(labels), len(labels))).reshape(-1))


class BoundByClass(DenoisingBound):
    """The denoising bound of data (n, *shape), each given its own class: ``params`` are ``(weights, labels)``."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw each datum given its class, by the ODE."""
        weights, labels = self.params
        z = jax.random.normal(key, (*sample_shape, *self.batch_shape, *self.event_shape))
        each = jnp.broadcast_to(labels, (*sample_shape, *self.batch_shape)).reshape(-1)
        made = jax.vmap(lambda z, label: self.prior((weights, label)).from_noise(z))
        return made(z.reshape(-1, *self.event_shape), each).reshape(z.shape)


# ------------------------------------------------------------------------------------------------- data
def parts(x: Any) -> tuple[Any, Any]:
    """Data and labels of prepared data; ``None`` for what they lack."""
    return (x.get("x"), x.get(LABEL)) if isinstance(x, Mapping) else (x, None)


def check_labels(labels: Any, classes: int) -> None:
    """Raise ``ValueError`` unless labels are whole numbers from -1 (unknown) to ``classes - 1``."""
    labels = np.asarray(labels)
    if labels.size and (np.any(labels != np.round(labels)) or labels.min() < UNKNOWN or labels.max() >= classes):
        raise ValueError(
            f"labels must be whole numbers 0..{classes - 1}, or -1 for unknown, got values from {labels.min()} to "
            f"{labels.max()}; number the classes from 0, or set classes in the spec"
        )


def hide(labels: Array, key: Key[Array, ""], share: float) -> Array:
    """Labels of which a ``share`` is unknown."""
    return jnp.where(jax.random.bernoulli(key, share, labels.shape), UNKNOWN, labels)


def check_guidance(classes: int | None, label: Any, guidance: float) -> None:
    """Raise ``ValueError`` for a class that the model does not know, or a guidance that cannot be meant."""
    if label is not None and classes is None:
        raise ValueError(f"this model was not trained on classes, got label {label!r}; set classes=N in its spec")
    if label is not None:
        if np.ndim(label) != 0:
            raise ValueError(f"label is the class of one law, got shape {np.shape(label)}; make one law a class")
        check_labels(label, classes or 0)
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance is a weight, at least 0 and finite, got {guidance!r}; 0 is the class alone, try 1")
    if guidance and label is None:
        raise ValueError(f"guidance {guidance:g} leads to a class; say which, label=0")
