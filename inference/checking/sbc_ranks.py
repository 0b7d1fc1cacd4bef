"""The ranks of simulation-based calibration: blocks of simulations, their posteriors, and what these say.

See :mod:`inference.checking.calibration` for what is ranked and why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from inference.checking import refinement
from inference.checking.per_datum import check_count, check_key, compiled, pairs_at_once
from inference.checking.semi_amortised import Local
from inference.checking.simulated import DENSITIES, Function, Simulation, Simulator
from inference.fitting.progress import Progress
from inference.fitting.sources import stored
from ppl_models.program import Program, rows, take


def rank_fractions(
    fit: Any,
    *,
    key: Key[Array, ""],
    simulations: int = 1000,
    draws: int = 100,
    chunk: int = 100,
    around: Any = None,
    inputs: Any = None,
    quantities: Mapping[str, Function] | None = None,
    refine: bool | Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[dict[str, Float[np.ndarray, " simulation"]], Float[np.ndarray, " simulation"]]:
    """The ranks of :func:`inference.calibrate`, untested, and the effective number of draws of each simulation."""
    program: Program = fit.program
    if program.posterior is None or not program.latents:
        raise ValueError("calibration needs a program with latents and a posterior; this program has none")
    if min(simulations, draws, chunk) < 1 or simulations < 10:
        raise ValueError(
            f"expected at least 10 simulations, 1 draw and a chunk of 1, got {simulations}, {draws} and {chunk}"
        )
    for name, value in (("simulations", simulations), ("draws", draws), ("chunk", chunk)):
        check_count(name, value, 1)
    check_key(key)
    functions = dict(quantities or {})
    if taken := sorted(set(functions) & {*program.latents, *DENSITIES}) or sorted({*DENSITIES} & {*program.latents}):
        raise ValueError(f"quantity {taken[0]!r} has a name that is taken; taken are {(*program.latents, *DENSITIES)}")
    data = _data(program, around, inputs)
    settings = settings_of(fit, refine)
    chunk = min(chunk, simulations)
    kernels = Simulator(fit, functions, chunk)
    run = _Run(kernels, data, around is not None, simulations, chunk, draws, progress)
    # No fold_in beside these: it makes the keys of split again.
    sim_key, refine_key, rank_key = jax.random.split(key, 3)
    sims = run.simulate(sim_key)
    local = None if settings is None else _refined(fit, sims, settings, simulations, refine_key, progress)
    return run.ranks(rank_key, sims, local)


def _data(program: Program, around: Any, inputs: Any) -> Any:
    """Stored data that simulations are near, or that have their inputs."""
    given = program.observation.given
    if around is not None:
        if inputs is not None:
            raise ValueError("data to calibrate around bring their own inputs; leave inputs out")
        return stored(program, around, "around")
    if not given:
        if inputs is not None:
            raise ValueError("this program has no inputs; leave inputs out")
        return None
    if inputs is None:
        raise ValueError(
            f"calibration draws whole data, this program needs inputs: {given}; pass inputs= with stored data "
            "that have them"
        )
    return stored(program, inputs, "inputs")


def settings_of(fit: Any, refine: bool | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Arguments of ``refine`` for the simulated data; ``None`` for the guide as it is."""
    if isinstance(fit, refinement.Refined) and refine is None:
        return dataclasses.asdict(fit.settings)
    if refine is None or refine is False:
        return None
    if refine is not True and not isinstance(refine, Mapping):
        raise ValueError(f"refine is True, False or a dict of settings of refine, got {refine!r}; try refine=True")
    return {"widen": 1.0, **({} if refine is True else refine)}


def _refined(
    fit: Any, sims: list[Simulation], settings: Mapping[str, Any], simulations: int, key: Key[Array, ""], progress: bool
) -> Local:
    """What belongs to each simulated datum of its refined posterior, simulations of all blocks in a row."""
    # Simulated data are prepared as they are.
    same = dataclasses.replace(
        fit.program.observation, prepare=lambda x, key, training: x, check=lambda x: None, read=lambda x: x
    )
    program = dataclasses.replace(fit.program, observation=same)
    bare = fit.fit if isinstance(fit, refinement.Refined) else fit
    plain = _Plain(program, dict(bare.params), dict(getattr(bare, "mutable", None) or {}))
    x = jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *[sim.x for sim in sims])
    found = refinement.refine(plain, take(x, slice(0, simulations)), key=key, progress=progress, **settings)
    # The last block may hold surplus simulations.
    at = np.minimum(np.arange(rows(x)), simulations - 1)
    return take(found.locals, at)


@dataclass(frozen=True)
class _Plain:
    """The least that a fit is."""

    program: Program
    params: dict[str, Any]
    mutable: dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """Blocks of ``chunk`` simulations one after another."""

    kernels: Simulator
    data: Any
    local: bool
    simulations: int
    chunk: int
    draws: int
    progress: bool

    @property
    def blocks(self) -> int:
        return -(-self.simulations // self.chunk)

    def simulate(self, key: Key[Array, ""]) -> list[Simulation]:
        """All blocks of simulations."""
        k = self.kernels
        start = compiled(partial(_call, k.start, self.local))
        found = []
        for block, own in enumerate(jax.random.split(key, self.blocks)):
            at = np.arange(block * self.chunk, (block + 1) * self.chunk)
            near = None if self.data is None else jax.tree.map(jnp.asarray, take(self.data, at % rows(self.data)))
            try:
                found.append(start(k.params, k.mutable, own, near))
            except NotImplementedError as error:
                raise ValueError(
                    f"calibration draws z and x from the model, which has a site that cannot be sampled ({error}); "
                    "give its distribution a sample method"
                ) from error
        return found

    def ranks(
        self, key: Key[Array, ""], sims: list[Simulation], local: Local | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Rank fractions by quantity, one number each, and the effective number of draws."""
        k = self.kernels
        at, sums = compiled(k.at), compiled(partial(k.draws, count=self.draws))
        # As many draws at once as keep (simulation, draw) pairs within what a pass may take.
        wide = max(1, min(self.draws, pairs_at_once(k.program, None) // self.chunk))
        wide = -(-self.draws // -(-self.draws // wide))
        found, ess = [], []
        total = self.blocks * self.draws
        with Progress(total, "calibration", unit="draws", show=self.progress, delay=2.0) as bar:
            for block, (sim, own) in enumerate(zip(sims, jax.random.split(key, self.blocks), strict=True)):
                at_key, draw_key, tie_key = jax.random.split(own, 3)
                here = None if local is None else take(local, slice(block * self.chunk, (block + 1) * self.chunk))
                truth = at(k.params, k.mutable, at_key, sim, here)
                parts = []
                for first in range(0, self.draws, wide):
                    index = np.arange(first, first + wide, dtype=np.uint32)
                    parts.append(jax.device_get(sums(k.params, k.mutable, draw_key, sim, here, truth, index)))
                    bar.update(block * self.draws + min(first + wide, self.draws))
                below, ties, total_w, square = jax.tree.map(lambda *p: sum(np.asarray(q, float) for q in p), *parts)
                found.append(_fractions(below, ties, total_w, tie_key))
                ess.append((total_w + 1) ** 2 / (square + 1) - 1 if self.local else np.full(self.chunk, self.draws))
        ranks = {
            name: np.concatenate([block[name] for block in found])[: self.simulations] for name in _order(k, found[0])
        }
        return dict(_columns(ranks)), np.concatenate(ess)[: self.simulations].astype(float)


def _call(function: Callable[..., Any], local: bool, *arguments: Any) -> Any:
    return function(*arguments, local)


def _order(kernels: Simulator, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Latents in the order of the model, then the log-likelihood and the other functions."""
    return (*kernels.program.latents, *DENSITIES, *kernels.functions)


def _fractions(
    below: Mapping[str, np.ndarray], ties: Mapping[str, np.ndarray], total: np.ndarray, key: Key[Array, ""]
) -> dict[str, np.ndarray]:
    """(below + u (ties + 1)) / (draws + 1), u uniform: continuous, and uniform if calibrated, ties or not."""
    found = {}
    for name, k in zip(below, jax.random.split(key, len(below)), strict=True):
        low = below[name]
        u = np.asarray(jax.random.uniform(k, low.shape), float)
        found[name] = (low + u * (ties[name] + 1)) / (total.reshape(-1, *[1] * (low.ndim - 1)) + 1)
    return found


def _columns(ranks: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    found = []
    for name, values in ranks.items():
        if values.ndim == 1:
            found.append((name, values))
        else:
            found += [
                (f"{name}[{','.join(map(str, at))}]", values[(slice(None), *at)]) for at in np.ndindex(values.shape[1:])
            ]
    return found
