"""Data of conditional models of fields: a datum is ``{"x": inputs (H, W, C), "y": output (H, W, C)}``.

| name | x | y | from |
|---|---|---|---|
| ``navier_stokes`` | vorticity at t, forcing | vorticity at t + 1 | generated |
| ``darcy`` | 1 where the permeability is 12, 0 where it is 3 | pressure | generated |
| ``shape_masks`` | a noisy picture of one shape | 1 inside the shape | generated |
| ``neuralop_darcy`` | coefficient, stored 0 or 1 | solution, in units of its source | ``pde_small.npz`` |
| ``neuralop_burgers`` | u at t = 0, the same in 16 rows | u at t = k/16, k = 1..16, by row | ``pde_small.npz`` |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ppl_models.datasets import npz
from ppl_models.datasets.describe import Info, check_split, subset, whole
from ppl_models.datasets.generated import blocks
from ppl_models.datasets.locate import DATA_VARIABLE, find_npz, missing, places, verify_once

Fields = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
FRAMES, TRAJECTORIES = 10, 20
"""Steps of a trajectory of ``navier_stokes``, and trajectories in a block."""
VISCOSITY, SIDE = 1e-3, 32
WAVES = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2))
"""Wave vectors of the forcing of ``navier_stokes``."""
HIGH, LOW = 12.0, 3.0
"""Permeabilities of ``darcy``; 12 and 3 as in Li et al. 2021."""


# ------------------------------------------------------------------------------------------------ the blocks
def navier_stokes_block(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """20 trajectories: ``w`` (20, 11, 32, 32) and ``f`` (20, 32, 32), float32.

    w_0 = sum_k c_k exp(2 pi i k.x), E |c_k|^2 = (7^1.5 (4 pi^2 |k|^2 + 49)^-1.25)^2, c_0 = 0;
    f = .1 sqrt(2) sin(2 pi k.x + phi), k of :data:`WAVES` and phi drawn for each trajectory.  With one forcing for all,
    trajectories grow alike within a few units of time, and their mean looks a good model.
    """
    from ppl_models.datasets.navier_stokes import solve_navier_stokes

    k = np.fft.fftfreq(SIDE, 1 / SIDE)
    square = k[:, None] ** 2 + k[None, :] ** 2
    spread = np.where(square > 0, 7**1.5 * (4 * np.pi**2 * square + 49) ** -1.25, 0)
    noise = np.fft.fft2(rng.normal(size=(TRAJECTORIES, SIDE, SIDE)))
    w_0 = np.fft.ifft2(spread * noise * SIDE).real
    waves = np.array(WAVES)[rng.integers(len(WAVES), size=TRAJECTORIES)]
    phase, at = rng.uniform(0, 2 * np.pi, TRAJECTORIES), np.arange(SIDE) / SIDE
    turns = waves[:, 0, None, None] * at[:, None] + waves[:, 1, None, None] * at[None, :]
    f = (0.1 * math.sqrt(2) * np.sin(2 * np.pi * turns + phase[:, None, None])).astype("f4")
    w = solve_navier_stokes(w_0.astype("f4"), f, viscosity=VISCOSITY, frames=FRAMES)
    return {"w": np.asarray(w), "f": f}


def darcy_block(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """20 fields: ``a`` (20, 32, 32) uint8, and ``u`` (20, 32, 32) float32 for f = 1, solved on 64 x 64 cells."""
    from ppl_models.datasets.darcy import permeability, solve_darcy_in_pixels

    high = permeability(rng, 20, SIDE)
    u = [solve_darcy_in_pixels(np.where(field, HIGH, LOW)) for field in high]
    return {"a": high.astype(np.uint8), "u": np.stack(u).astype("f4")}


def masks_block(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """100 pictures and masks."""
    from ppl_models.datasets.masks import draw_masks

    picture, mask, kind = draw_masks(rng, 100, SIDE)
    return {"x": picture, "y": mask, "kind": kind}


# ------------------------------------------------------------------------------------------------- generated
@dataclass(frozen=True)
class Generated:
    """A set that is made block by block: ``rows(block)`` are the data of one, ``per_block`` of them."""

    name: str
    stream: int
    make: Callable[[np.random.Generator], dict[str, np.ndarray]]
    rows: Callable[[dict[str, np.ndarray]], Fields]
    per_block: int
    about: Info

    def info(self, root: object = None) -> Info:
        """What the catalogue says of the set."""
        return self.about

    def blocks(self, split: str, count: int, seed: int) -> dict[str, np.ndarray]:
        """The arrays of the first ``count`` blocks."""
        check_split(self.about, split)
        number = list(self.about.sizes).index(split)
        return blocks(
            f"{self.name}-1", self.make, stream=self.stream, split=number, seed=whole(seed, "seed", 0), count=count
        )

    def read(self, split: str, n: int | None, seed: int, root: object = None) -> Fields:
        """The first n data of a seed: any n up to a million, the same for everybody, nested."""
        check_split(self.about, split)
        n = self.about.sizes[split] if n is None else whole(n, "n", 1)
        if n > 1_000_000:
            raise ValueError(f"n must be at most 1,000,000 data of {self.name!r}, got {n:,}; draw several seeds")
        data, factors = self.rows(self.blocks(split, -(-n // self.per_block), seed))
        return {k: np.array(v[:n], order="C") for k, v in data.items()}, {k: v[:n].copy() for k, v in factors.items()}


def _pairs(found: dict[str, np.ndarray]) -> Fields:
    w, n = found["w"], len(found["w"])
    f = np.broadcast_to(found["f"][:, None], w[:, 1:].shape)
    x = np.stack([w[:, :-1], f], -1).reshape(-1, SIDE, SIDE, 2)
    y = w[:, 1:].reshape(-1, SIDE, SIDE, 1)
    step = np.tile(np.arange(FRAMES), n)
    return {"x": x, "y": y}, {"step": step, "trajectory": np.repeat(np.arange(n), FRAMES)}


def _darcy(found: dict[str, np.ndarray]) -> Fields:
    return {"x": found["a"][..., None], "y": found["u"][..., None]}, {}


def _masks(found: dict[str, np.ndarray]) -> Fields:
    return {"x": found["x"][..., None], "y": found["y"][..., None]}, {"kind": found["kind"].astype(np.int64)}


def _generated(name: str, shape: dict[str, Any], sizes: dict[str, int], factors: dict[str, Any], text: str) -> Info:
    return Info(
        name=name,
        shape=MappingProxyType(shape),
        levels=None,
        sizes=sizes,
        factors=factors,
        description=text,
        licence="generated by this package (Apache-2.0)",
        provenance="ppl_models.datasets, from a seed; the same to rounding on every machine",
        how_to_get=("nothing to get: it is generated, and kept in the user cache",),
        where=lambda: "generated",
    )


NAVIER_STOKES = Generated(
    "navier_stokes", 10, navier_stokes_block, _pairs, TRAJECTORIES * FRAMES,
    _generated(
        "navier_stokes", {"x": (SIDE, SIDE, 2), "y": (SIDE, SIDE, 1)}, {"train": 2000, "test": 1000},
        {"step": tuple(map(str, range(FRAMES))), "trajectory": ()},
        "2-D Navier-Stokes, vorticity, viscosity 1e-3: (w at t, forcing) -> w at t + 1, ten steps a trajectory",
    ),
)  # fmt: skip
DARCY = Generated(
    "darcy", 11, darcy_block, _darcy, 20,
    _generated(
        "darcy", {"x": (SIDE, SIDE, 1), "y": (SIDE, SIDE, 1)}, {"train": 1000, "test": 200}, {},
        "Darcy flow: where the permeability is 12, elsewhere 3 -> pressure under a uniform source",
    ),
)  # fmt: skip
MASKS = Generated(
    "shape_masks", 12, masks_block, _masks, 100,
    _generated(
        "shape_masks", {"x": (SIDE, SIDE, 1), "y": (SIDE, SIDE, 1)}, {"train": 2000, "test": 500},
        {"kind": ("ellipse", "polygon")},
        "noisy pictures of an ellipse or a polygon -> its mask",
    ),
)  # fmt: skip


def trajectories(split: str = "train", *, n: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Whole trajectories of ``navier_stokes``: ``w`` (n, 11, 32, 32) at t = 0..10, and ``f`` (n, 32, 32).

    Their steps, in this order, are the rows of ``load("navier_stokes", split, seed=seed)``.
    """
    check_split(NAVIER_STOKES.about, split)
    n = NAVIER_STOKES.about.sizes[split] // FRAMES if n is None else whole(n, "n", 1)
    found = NAVIER_STOKES.blocks(split, -(-n // TRAJECTORIES), seed)
    return {name: np.array(value[:n]) for name, value in found.items()}


# ---------------------------------------------------------------------------------------------- pde_small.npz
FILE, SUM = "pde_small", "e03f80d8004bb87c3699671aff75991a28d422422eb769e8d3a7a2188df0f549"


@dataclass(frozen=True)
class Published:
    """A set of ``pde_small.npz``: small fields published with the package neuraloperator."""

    name: str
    about: Info

    def info(self, root: object = None) -> Info:
        """What the catalogue says of the set."""
        import dataclasses

        path = find_npz(FILE, root)  # type: ignore[arg-type]
        return dataclasses.replace(self.about, where=lambda: None if path is None else str(path))

    def read(self, split: str, n: int | None, seed: int, root: object = None) -> Fields:
        """One split, whole or a seeded subset, after the checksum of the file has been compared once."""
        check_split(self.about, split)
        rows = subset(self.about.sizes[split], n, seed, f"split {split!r} of {self.name!r}")
        path = find_npz(FILE, root)  # type: ignore[arg-type]
        if path is None:
            raise missing(self.name, self.about.how_to_get, places(FILE, root))  # type: ignore[arg-type]
        verify_once(path, {"the file": SUM}, lambda: _sum(path), "give another file another name")
        stem = f"{self.name.removeprefix('neuralop_')}_{split}_16"
        held = npz.read_arrays(path, (f"{stem}_x", f"{stem}_y"))
        x, y = held[f"{stem}_x"][rows], held[f"{stem}_y"][rows]
        if self.name == "neuralop_burgers":
            x, y = np.repeat(x[:, None], 16, 1), y[:, 1:]  # y[:, 0] is x
        return {"x": np.array(x[..., None], order="C"), "y": np.array(y[..., None], order="C")}, {}


def _sum(path: Path) -> dict[str, str]:
    import hashlib

    with path.open("rb") as stream:
        return {"the file": hashlib.file_digest(stream, "sha256").hexdigest()}


def _published() -> tuple[Published, ...]:
    """The sets of ``pde_small.npz``."""
    texts = {
        "neuralop_darcy": (
            {"train": 1000, "test": 50},
            "Darcy flow 16x16 as published: coefficient -> solution; units not stated, a few solutions dip below zero",
        ),
        "neuralop_burgers": (
            {"train": 800, "test": 400},
            "Burgers' equation on 16 points, viscosity .01, as published: u at t = 0 -> u at 16 later times",
        ),
    }
    shape = MappingProxyType({"x": (16, 16, 1), "y": (16, 16, 1)})
    return tuple(
        Published(
            name,
            Info(
                name=name, shape=shape, levels=None, sizes=sizes, factors={}, description=text, licence="MIT",
                provenance="neuraloperator/neuraloperator, commit 93d3f063, neuralop/data/datasets (sha256 pinned)",
                how_to_get=(f"put {FILE}.npz into a directory and set {DATA_VARIABLE} to that directory",),
            ),
        )
        for name, (sizes, text) in texts.items()
    )  # fmt: skip


OPERATORS: tuple[Generated | Published, ...] = (NAVIER_STOKES, DARCY, MASKS, *_published())
