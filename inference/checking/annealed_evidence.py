"""What :func:`inference.evidence` does for ``method="ais"`` and ``"smc"``: starts, ladders, weights, columns."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from inference.checking.annealing import Annealer, Annealing, Data
from inference.checking.gaussians import Gaussian
from inference.checking.log_weights import Weigher, summarise
from inference.checking.noise_space import cannot
from inference.checking.optimise import Settings
from inference.checking.per_datum import PILOT, locals_of, prepare_key
from inference.checking.psis import KHAT_BAD
from inference.checking.refinement import MISSED, mended, plan
from inference.checking.semi_amortised import Layout, Local
from inference.checking.sequential import sequential
from ppl_models.program import rows, take

METHODS = ("importance", "ais", "smc")
"""What ``evidence(..., method=...)`` takes."""
PARTICLES = {"importance": 512, "ais": 64, "smc": 64}
"""Draws of a datum where the caller does not say."""
STUCK = 0.3
"""Mean acceptance of a datum's transitions below which they hardly move it."""
WIDENING = 0.5
"""What widening the start may cost, nats: heavier tails reach what q misses, and the path pays for most of it."""
_TRIALS = 256


def settings_of(method: str, temperatures: int, transitions: int, leapfrog: int, start: str) -> Annealing:
    """The options of annealing, checked; those of another method than asked for are refused."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    found = Annealing(temperatures=temperatures, transitions=transitions, leapfrog=leapfrog, start=start)
    if method == "importance" and found.changed():
        raise ValueError(
            f"{', '.join(found.changed())} belongs to annealing, and method is {method!r}; add method='ais' or 'smc'"
        )
    return found


def annealable(fit: Any, x: Any, settings: Annealing) -> Layout:
    """The layout of the latents' noise; ``ValueError`` at once where a latent cannot be annealed."""
    parts = plan(fit, x)
    if parts is None or not parts.sizes:
        raise ValueError("this program has no latents, so there is nothing to anneal; evidence(fit, x) scores it")
    if parts.kept:
        raise ValueError(cannot(parts.kept))
    if settings.start == "prior" and not parts.samples_prior:
        raise ValueError("start='prior' needs a prior that can be sampled; use start='posterior'")
    return parts


def annealed(
    fit: Any, x: Any, settings: Annealing, method: str, *, refine: str, particles: int, key: Key[Array, ""], pairs: int,
    progress: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Columns ``log_px, se, elbo, ess, khat, estimator`` of stored data ``x``, checked by :func:`annealable`."""
    parts = annealable(fit, x, settings)
    data = starts(
        fit, x, parts, refine if settings.start == "posterior" else "none", key=key, pairs=pairs, progress=progress
    )
    annealer = Annealer(fit, settings, pairs, progress=progress)
    ladder = annealer.pilot(data, key)
    if method == "smc":
        values, accepted = sequential(annealer, data, ladder, key, particles)
    else:
        log_weight, accepted = annealer.forward(data, ladder, key, particles)
        values = summarise(log_weight.astype(np.float32))
    warn_stuck(accepted)
    return {**values, "estimator": np.full(rows(x), method, object)}


def starts(fit: Any, x: Any, parts: Layout, refine: str, *, key: Key[Array, ""], pairs: int, progress: bool) -> Data:
    """Where the path of each datum starts: a Gaussian over the noise of its latents, refined or the guide's N(0, I).

    A posterior that was refined is taken where it was found better, without its defensive share: a path needs none.
    Standard deviations are widened by 1 + sqrt(:data:`WIDENING` / D) for D latent numbers.
    """
    index = np.arange(rows(x))
    local = locals_of(fit, x)
    wider = 1 + math.sqrt(WIDENING / max(1, parts.size))
    if local is not None:
        return Data(x, local.noise, _trusted(local).widened(wider), index)
    noise = jax.vmap(lambda i: prepare_key(key, i))(jnp.asarray(index, jnp.uint32))
    zero = jnp.zeros((rows(x), parts.size))
    guide = Data(x, noise, Gaussian(zero, zero).widened(wider), index)
    if refine == "none":
        return guide
    weigh = Weigher(fit, pairs, progress=progress, what="pilot draws")
    before = summarise(weigh(x, _TRIALS, key, purpose=PILOT))
    chosen = np.flatnonzero(~(before["khat"] <= KHAT_BAD)) if refine == "flagged" else index
    if not chosen.size:
        return guide
    found = mended(
        weigh, take(x, chosen), chosen, parts, Settings(), before={name: v[chosen] for name, v in before.items()},
        particles=_TRIALS, key=key, pairs=pairs, progress=progress,
    )  # fmt: skip

    far = ~found.better & (found.missed > MISSED)
    if far.any():
        warnings.warn(
            f"a wider proposal finds more of p(x) than the posterior of {int(far.sum())} of {rows(x)} data (first: row "
            f"{chosen[np.flatnonzero(far)[0]]}), perhaps in another mode, which chains from the posterior may never "
            "reach; anneal these with start='prior' too, and believe the larger log p(x)",
            RuntimeWarning,
            stacklevel=4,
        )

    def whole(leaf: Array) -> Array:
        return jnp.zeros((rows(x), *leaf.shape[1:]), leaf.dtype).at[chosen].set(leaf)

    return Data(x, noise, jax.tree.map(whole, _trusted(found.local)).widened(wider), index)


def _trusted(local: Local) -> Gaussian:
    """The refined Gaussian of each datum, N(0, I) - all its parameters 0 - where the guide was better."""
    own = local.shares[:, 0] > 0
    return jax.tree.map(lambda leaf: jnp.where(own.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0.0), local.q)


def warn_stuck(accepted: np.ndarray) -> None:
    """Say how many data's transitions were mostly refused."""
    stuck = np.flatnonzero(accepted < STUCK)
    if stuck.size:
        warnings.warn(
            f"Hamiltonian transitions of {stuck.size} of {len(accepted)} data (first: row {stuck[0]}, acceptance "
            f"{accepted[stuck[0]]:.2f}) are mostly refused: their estimates stay unbiased, and gain little from "
            "annealing; more temperatures or leapfrog steps help, and see khat",
            RuntimeWarning,
            stacklevel=4,
        )
