"""Staged training, coarse to fine: each resolution is a diffusion model, and the next one grows around it.

Stage j trains U_j, the U-Net of the j + 1 coarsest levels, on data averaged to its resolution:

    for spec in stages(whole):                      coarse to fine; the last is the whole model
        program = spec.build(key)                   stage 0, then  grow(fitted.program, fitted.params, spec, key)
        fitted = fit(program, coarsen(whole, data, spec.shape, key), ...)

:func:`fit_stages` is that loop.  Pooling ``cos(phi) x_0 + sin(phi) eps`` k times leaves, scaled back, a noisy image of
the pooled datum at ``l - k log 2``, l = log tan(phi): so a level reads inside the finer network exactly what it was
trained on alone.  With frozen coarse levels their answers stay as they were, bit for bit, and one set of parameters
samples at every resolution (:func:`inside`).  Williams et al., NeurIPS 2023, arXiv 2305.19638, staged training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from ppl_models.diffusion.guided import GuidedUNet
from ppl_models.diffusion.program import SITE, prepare, prior
from ppl_models.diffusion.spec import Diffusion
from ppl_models.function_spaces.images import project_image
from ppl_models.networks.unet import map_levels
from ppl_models.program import Program


def _network(spec: Diffusion) -> GuidedUNet:
    network = spec.network
    if not isinstance(network, GuidedUNet) or network.down != "none":
        got = f"{type(network).__name__}(down={network.down!r})" if isinstance(network, GuidedUNet) else network.kind
        raise ValueError(
            f"stages need the network GuidedUNet(down='none'), whose levels read noisy coarse images, got {got}; a "
            "learned encoder hands its own features down"
        )
    return network


def stages(spec: Diffusion, *, freeze: bool = True) -> tuple[Diffusion, ...]:
    """The specs of all stages, coarse to fine; the last is ``spec`` with a head for each level.

    All but the last score real data: means of blocks of pixels, in the units of the whole (same centre and scale).
    ``freeze``  levels of earlier stages no longer learn; needed for samples at every resolution from one network.
    Raises ``ValueError`` for another network than ``GuidedUNet(down="none")``.
    """
    network = _network(spec)
    last = len(network.multipliers) - 1
    found = []
    for j in range(last + 1):
        layout = dataclasses.replace(
            network, multipliers=network.multipliers[last - j :], coarse_heads=True, frozen=j if freeze else 0
        )
        factor = 2 ** (last - j)
        shape = (spec.shape[0] // factor, spec.shape[1] // factor, *spec.shape[2:])
        levels = spec.levels if j == last else None
        found.append(dataclasses.replace(spec, shape=shape, levels=levels, network=layout))
    return tuple(found)


def coarsen(spec: Diffusion, x: Any, shape: Sequence[int], key: Key[Array, ""]) -> Any:
    """Stored data (n, *spec.shape) as data of the stage of ``shape``: means over blocks of pixels.

    Grey levels are dequantised once, by ``key``, before they are averaged.  At the finest resolution ``x`` itself.
    Raises ``ValueError`` where ``shape`` is no halving of ``spec.shape``.
    """
    shape = tuple(shape)
    if shape == spec.shape:
        return x
    factor = spec.shape[0] // shape[0] if shape and shape[0] else 0
    halved = (spec.shape[0] // max(factor, 1), spec.shape[1] // max(factor, 1), *spec.shape[2:])
    if factor < 2 or factor & (factor - 1) or shape != halved or any(n % factor for n in spec.shape[:2]):
        raise ValueError(f"shape must be {spec.shape} with height and width halved some times, got {shape}")
    if x.shape[1:] != spec.shape:
        raise ValueError(f"data must have the shape (n, {', '.join(map(str, spec.shape))}), got {x.shape}")
    fine = prepare(spec, jnp.asarray(x), key, True)
    images = fine.reshape(*fine.shape[:3], -1)
    return np.asarray(project_image(images, factor.bit_length() - 1).reshape(len(x), *shape))


# ------------------------------------------------------------------------------------------------- growth
def _levels(values: Mapping[str, Any]) -> Any:
    """Parameters of the ``LiftedUNet`` inside those of a program."""
    return values["net"]["net"]


def _overlay(new: Any, old: Any) -> Any:
    """``new`` with the leaves of ``old`` where ``old`` has them."""
    if not isinstance(old, Mapping):
        if np.shape(new) != np.shape(old):
            raise ValueError(f"a parameter has shape {np.shape(new)} in the finer network, {np.shape(old)} before")
        return old
    return {k: _overlay(v, old[k]) if k in old else v for k, v in new.items()}


def _select(like: Any, values: Any) -> Any:
    """The leaves of ``values`` that ``like`` has."""
    return {k: _select(v, values[k]) for k, v in like.items()} if isinstance(like, Mapping) else values


def grow(program: Program, params: Mapping[str, Any], spec: Diffusion, key: Key[Array, ""]) -> Program:
    """The program of the next stage, which starts with the levels of a fitted one; ``key`` draws the new level.

    ``program`` and ``params`` are those of the coarse fit, ``spec`` the next of :func:`stages`.  The parameters of the
    coarse levels are copied bit for bit.  Raises ``ValueError`` where ``spec`` is not one level more.
    """
    fine, coarse = _network(spec), _network(program.spec)
    same = ("base", "blocks", "heads", "groups", "preconditioned", "coarse_heads")
    wrong = [name for name in same if getattr(fine, name) != getattr(coarse, name)]
    if fine.multipliers[1:] != coarse.multipliers:
        wrong.append("multipliers")
    if tuple(2 * n for n in program.spec.shape[:2]) != spec.shape[:2]:
        wrong.append("shape")
    wrong += [name for name in ("centre", "scale") if getattr(spec, name) != getattr(program.spec, name)]
    if wrong:
        raise ValueError(
            f"the finer spec must be one level more around the coarse one; {', '.join(wrong)} do not fit: "
            f"{spec.shape}, {fine.multipliers} around {program.spec.shape}, {coarse.multipliers}; take the next of "
            "stages(spec)"
        )
    grown = spec.build(key)
    module = grown.views.modules["denoiser"]
    state = nnx.state(module, nnx.Param)
    values: Any = nnx.to_pure_dict(state)
    values["net"]["net"] = _overlay(_levels(values), jax.tree.map(jnp.copy, _levels(params[SITE])))
    nnx.replace_by_pure_dict(state, values)
    nnx.update(module, state)
    return grown


def inside(program: Program, params: Mapping[str, Any], stage: int) -> tuple[Program, dict[str, Any]]:
    """The model of resolution ``stage`` (0 the coarsest) inside a staged fit: its program and its parameters.

    Raises ``ValueError`` for a stage that there is not, and where coarse levels have no heads.
    """
    network = _network(program.spec)
    if not network.coarse_heads:
        raise ValueError(
            "coarse levels of this model have no heads; train it by stages(spec), or set coarse_heads=True"
        )
    listed = stages(program.spec)
    if not 0 <= stage < len(listed):
        raise ValueError(f"this model has the stages 0..{len(listed) - 1}, got {stage}")
    if stage == len(listed) - 1:
        return program, dict(params)
    coarse = listed[stage].build(jax.random.key(0))
    like: Any = nnx.to_pure_dict(nnx.state(coarse.views.modules["denoiser"], nnx.Param))
    return coarse, {SITE: _select(like, params[SITE])}


def sample_stages(
    program: Program, params: Mapping[str, Any], key: Key[Array, ""], n: int
) -> list[Float[Array, "n ..."]]:
    """``n`` draws at every resolution, coarse to fine, in the units of the data, from one set of parameters."""
    found = []
    for j in range(len(_network(program.spec).multipliers)):
        part = inside(program, params, j)
        found.append(prior(*part).sample(jax.random.fold_in(key, j), (n,)))
    return found


# ------------------------------------------------------------------------------------------------- training
def learning(optimizer: Any, spec: Diffusion) -> Any:
    """An optax ``optimizer`` that leaves the frozen levels of ``spec`` as they are, weight decay included."""
    frozen = _network(spec).frozen

    def labels(params: Mapping[str, Any]) -> Any:
        marks: Any = jax.tree.map(lambda _: "learns", dict(params))
        inner = _levels(params[SITE])
        marks[SITE]["net"]["net"] = map_levels(lambda level, _: "frozen" if level < frozen else "learns", inner)
        return marks

    return optax.multi_transform({"learns": optimizer, "frozen": optax.set_to_zero()}, labels)


def fit_stages(
    fit: Callable[..., Any],
    spec: Diffusion,
    data: Any,
    *,
    steps: Sequence[int],
    key: Key[Array, ""],
    freeze: bool = True,
    optimizer: Callable[[int], Any] | None = None,
    **arguments: Any,
) -> list[Any]:
    """Train ``spec`` coarse to fine by ``fit`` (``inference.fit``); the fits of all stages, the last the whole model.

    ``data``       stored data of the whole model.
    ``steps``      updates of each stage, coarse to fine, one a level.
    ``freeze``     levels of earlier stages stay as they are, bit for bit.
    ``optimizer``  ``(steps) -> `` an optax optimizer for a stage of so many steps; default: Adam at 1e-3.
    ``arguments``  go to every ``fit`` (batch_size, average, clip, progress, ..), but ``out``, ``validation`` and
                   ``learning_rate``: for those write the loop of this module's text.

    Raises ``ValueError`` for a network without stages, or not one number of steps a stage.
    """
    listed = stages(spec, freeze=freeze)
    if len(steps) != len(listed):
        raise ValueError(f"steps says the updates of each of {len(listed)} stages, coarse to fine, got {list(steps)}")
    own = sorted({"out", "resume", "validation", "learning_rate"} & set(arguments))
    if own:
        raise ValueError(f"fit_stages takes no {', '.join(own)}: every stage needs its own; call grow and fit by stage")
    make = optimizer or (lambda count: optax.adam(1e-3))
    fits: list[Any] = []
    for j, (stage, count) in enumerate(zip(listed, steps, strict=True)):
        start_key, data_key, fit_key = jax.random.split(jax.random.fold_in(key, j), 3)
        program = stage.build(start_key) if not fits else grow(fits[-1].program, fits[-1].params, stage, start_key)
        fitted = fit(
            program,
            coarsen(spec, data, stage.shape, data_key),
            steps=count,
            key=fit_key,
            optimizer=learning(make(count), stage),
            **arguments,
        )
        if freeze and fits:
            # A running average of what does not move is it up to rounding only: put back what was there.
            site = fitted.params[SITE]
            levels = _overlay(_levels(site), _levels(fits[-1].params[SITE]))
            params = {**fitted.params, SITE: {**site, "net": {**site["net"], "net": levels}}}
            fitted = dataclasses.replace(fitted, params=params)
        fits.append(fitted)
    return fits
