"""What a fitted hierarchy can draw: from its leading levels, from levels held fixed, from between two data.

A ``fit`` is anything with ``model`` (the program's model with the trained weights).  ``z`` holds latents by site, as
the ``posterior`` group of ``inference.posterior`` does.  Images are expected values E[x | z], (..., *shape), on [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from numpyro.handlers import seed, substitute, trace

from ppl_models.program import knobs

if TYPE_CHECKING:
    from ppl_models.hvae.spec import HVAE


def _traced(spec: HVAE, fit: Any, choose: Callable[[int, Any], Any], batch: int) -> dict[str, dict[str, Any]]:
    """A run of the model with each level's z from ``choose(level, its prior given those above)``."""
    order = {name: level for level, name in enumerate(spec.latents)}

    def values(site: dict[str, Any]) -> Any:
        return choose(order[site["name"]], site["fn"]) if site["name"] in order else None

    model = seed(substitute(fit.model, substitute_fn=values), jax.random.key(0))  # the noise of x, unused
    return trace(model).get_trace(size=batch)


def _held(spec: HVAE, z: Mapping[str, Any]) -> list[Array]:
    """The levels of ``z``, top-down; ``ValueError`` for one that lacks or has not (n, side, side, zdim)."""
    found = []
    for name, cell in zip(spec.latents, spec.decoder_cells, strict=True):
        if name not in z:
            raise ValueError(f"z lacks the level {name!r}; expected {', '.join(spec.latents)}")
        value, side = jnp.asarray(z[name]), (cell.res, cell.res, spec.zdim)
        if value.shape[1:] != side or (found and len(value) != len(found[0])):
            raise ValueError(
                f"{name!r} of z must have shape (n, {cell.res}, {cell.res}, {spec.zdim}), the same n for all levels, "
                f"got {value.shape}; of a posterior tree take one draw: tree['posterior'][{name!r}].values[0, 0]"
            )
        found.append(value)
    return found


def _check_cut(spec: HVAE, cut: int) -> None:
    if not 0 <= cut <= len(spec.latents):
        raise ValueError(f"cut counts leading levels, expected 0 to {len(spec.latents)}, got {cut}")


def truncated(spec: HVAE, fit: Any, z: Mapping[str, Any], cuts: list[int]) -> Float[np.ndarray, "cuts n ..."]:
    """``E[x | z]`` with the first ``cut`` levels of ``z`` as given and the others at their mean, for each cut."""
    held = _held(spec, z)

    @jax.jit
    @jax.vmap
    def images(cut: Array) -> Array:
        found = _traced(spec, fit, lambda level, p: jnp.where(level < cut, held[level], p.mean), len(held[0]))
        return found["x"]["fn"].mean

    return np.asarray(images(jnp.asarray(cuts)))


def shared(
    spec: HVAE,
    fit: Any,
    cuts: list[int],
    n: int,
    *,
    key: Key[Array, ""],
    z: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
) -> Float[np.ndarray, "cuts n ..."]:
    """``E[x | z]`` of prior draws of which, in row ``cut``, all ``n`` share the first ``cut`` levels.

    The shared levels are those of ``z``, one datum (1, side, side, zdim) by level - then a row is n draws from
    p(x | first levels of that datum) - or else a draw of their own.  ``temperature`` multiplies the standard
    deviations of the levels that are drawn.
    """
    for cut in cuts:
        _check_cut(spec, cut)
    if not temperature >= 0:
        raise ValueError(f"temperature multiplies standard deviations, expected >= 0, got {temperature}")
    held = None if z is None else _held(spec, z)
    if held is not None and len(held[0]) != 1:
        raise ValueError(f"z must hold one datum, whose levels all draws share, got {len(held[0])}; take one of them")

    @jax.jit
    @jax.vmap
    def images(cut: Array) -> Array:
        def choose(level: int, prior: Any) -> Array:
            noise = jax.random.normal(jax.random.fold_in(key, level), prior.shape())
            noise = noise if held is not None else jnp.where(level < cut, noise[:1], noise)
            drawn = prior.mean + jnp.sqrt(prior.variance) * noise
            return drawn if held is None else jnp.where(level < cut, held[level], drawn)

        with knobs({"temperature": temperature}):
            return _traced(spec, fit, choose, n)["x"]["fn"].mean

    return np.asarray(images(jnp.asarray(cuts)))


def interpolated(
    spec: HVAE, fit: Any, a: Mapping[str, Any], b: Mapping[str, Any], steps: int
) -> Float[np.ndarray, "steps n ..."]:
    """``E[x | z]`` on the way from the latents ``a`` to ``b``, n pairs, ends included.

    In the noise of each level, e = (z - pm) / exp(pv) with its prior read on the way:

        e(t) = ((1 - t) e_a + t e_b) / sqrt((1 - t)^2 + t^2),    z(t) = pm(Z(t)) + exp(pv(Z(t))) e(t)

    so that between two independent draws of the prior every z(t) is a draw of the prior, too; on a straight line in z
    the middle would be too close to the mean.
    """
    if steps < 2:
        raise ValueError(f"steps counts images with both ends, at least 2, got {steps}")
    ends = [_held(spec, z) for z in (a, b)]
    if len(ends[0][0]) != len(ends[1][0]):
        raise ValueError(f"a and b must hold as many data, got {len(ends[0][0])} and {len(ends[1][0])}")
    n = len(ends[0][0])

    def noise(held: list[Array]) -> list[Array]:
        sites = _traced(spec, fit, lambda level, p: held[level], n)
        laws = [sites[name]["fn"] for name in spec.latents]
        return [(z - p.mean) / jnp.sqrt(p.variance) for z, p in zip(held, laws, strict=True)]

    @jax.jit
    def images(times: Array) -> Array:
        first, last = noise(ends[0]), noise(ends[1])

        def at(t: Array) -> Array:
            def choose(level: int, prior: Any) -> Array:
                e = ((1 - t) * first[level] + t * last[level]) / jnp.sqrt((1 - t) ** 2 + t**2)
                return prior.mean + jnp.sqrt(prior.variance) * e

            return _traced(spec, fit, choose, n)["x"]["fn"].mean

        return jax.vmap(at)(times)

    return np.asarray(images(jnp.linspace(0, 1, steps)))
