"""Solvers against closed forms and finer grids; fields as data sets: seeded, nested, cached, and never torn."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from ppl_models.datasets import DataMissingError, info, load, operators, solve_darcy, solve_navier_stokes, trajectories
from ppl_models.datasets.darcy import permeability, solve_darcy_in_pixels
from ppl_models.datasets.masks import draw_masks

TWO_PI = 2 * np.pi


def grid(N):
    at = np.arange(N) / N
    return at[:, None] * np.ones(N), np.ones((N, 1)) * at


# ---------------------------------------------------------------------------------------------- Navier-Stokes
def test_a_vortex_that_does_not_move_itself_decays_at_the_rate_of_its_wave_number():
    x, y = grid(16)
    w = np.sin(TWO_PI * x) * np.sin(TWO_PI * y)
    nu, frames = 0.02, 3
    found = solve_navier_stokes(w[None].astype("f4"), 0 * w[None].astype("f4"), viscosity=nu, frames=frames)
    exact = w * np.exp(-nu * 2 * TWO_PI**2 * np.arange(frames + 1))[:, None, None]
    np.testing.assert_allclose(found[0], exact, atol=2e-6)


def test_a_forced_flow_stays_where_its_forcing_holds_it():
    """w = sin 2 pi x + sin 4 pi y with f = u . grad w - nu lap w: the size and the sign of the transport."""
    x, y = grid(16)
    w, nu = np.sin(TWO_PI * x) + np.sin(2 * TWO_PI * y), 0.05
    viscous = nu * (TWO_PI**2 * np.sin(TWO_PI * x) + 4 * TWO_PI**2 * np.sin(2 * TWO_PI * y))
    f = -1.5 * np.cos(TWO_PI * x) * np.cos(2 * TWO_PI * y) + viscous
    found = solve_navier_stokes(w[None].astype("f4"), f[None].astype("f4"), viscosity=nu, frames=2)
    np.testing.assert_allclose(found[0], np.stack([w] * 3), atol=4e-5)


def test_half_the_step_and_twice_the_grid_change_nothing_and_an_ideal_fluid_keeps_its_enstrophy():
    found = trajectories("train", n=2)
    w, f = found["w"][:, :3], found["f"]
    start = w[:, 0]

    def finer(a):
        waves = np.zeros((len(a), 64, 64), complex)
        low = np.r_[0:16, -15:0]
        waves[np.ix_(range(len(a)), low, low)] = np.fft.fft2(a)[:, low][:, :, low]
        return (4 * np.fft.ifft2(waves).real).astype("f4")

    def error(a):
        return np.linalg.norm(a - w[:, 1:]) / np.linalg.norm(w[:, 1:])

    half = solve_navier_stokes(start, f, viscosity=1e-3, frames=2, steps=40)
    assert error(np.asarray(half)[:, 1:]) < 1e-5
    twice = solve_navier_stokes(finer(start), finer(f), viscosity=1e-3, frames=2, steps=20)
    assert error(np.asarray(twice)[:, 1:, ::2, ::2]) < 2e-3
    ideal = np.asarray(solve_navier_stokes(start, 0 * f, viscosity=0.0, frames=2, steps=20), float)
    enstrophy = (ideal**2).mean((2, 3))
    np.testing.assert_allclose(enstrophy[:, 1:], enstrophy[:, :1] * [[1, 1]], rtol=1e-4)


def test_rows_are_the_steps_of_trajectories_that_differ():
    (data, factors), found = load("navier_stokes", "test", n=33, seed=2), trajectories("test", n=4, seed=2)
    assert data["x"].shape == (33, 32, 32, 2) and data["y"].shape == (33, 32, 32, 1) and data["x"].dtype == np.float32
    np.testing.assert_array_equal(factors["trajectory"], np.repeat(range(4), 10)[:33])
    np.testing.assert_array_equal(data["y"][factors["step"] == 3][1, ..., 0], found["w"][1, 4])
    np.testing.assert_array_equal(data["x"][12, ..., 0], found["w"][1, 2])
    np.testing.assert_array_equal(data["x"][12, ..., 1], found["f"][1])
    spread = np.std(found["w"][:, 0])
    assert 0.15 < spread < 0.25, "the start has a standard deviation of about .20"
    w = trajectories("train", n=20)["w"]
    share = ((w - w.mean(0)) ** 2).mean((0, 2, 3)) / (w**2).mean((0, 2, 3))
    assert share.min() > 0.9, "trajectories of one forcing would grow alike"


# ------------------------------------------------------------------------------------------------------ Darcy
def manufactured(N):
    """u = sin pi x sin pi y with a = 1 + x + y^2 / 2: f by hand; the largest error at the middles of the cells."""
    at = (np.arange(N) + 0.5) / N
    x, y = at[:, None] * np.ones(N), np.ones((N, 1)) * at
    u, a = np.sin(np.pi * x) * np.sin(np.pi * y), 1 + x + y**2 / 2
    u_x, u_y = np.pi * np.cos(np.pi * x) * np.sin(np.pi * y), np.pi * np.sin(np.pi * x) * np.cos(np.pi * y)
    f = 2 * np.pi**2 * a * u - u_x - y * u_y
    return float(np.abs(solve_darcy(a, f) - u).max())


def test_darcy_converges_at_second_order_to_a_manufactured_solution():
    errors = [manufactured(N) for N in (16, 32, 64)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 1e-3 and (np.abs(orders - 2) < 0.1).all()


def test_darcy_closed_forms():
    assert solve_darcy(np.ones((64, 64))).max() == pytest.approx(0.07367, rel=2e-3)
    np.testing.assert_allclose(solve_darcy(np.full((8, 8), 4.0), 2.0), solve_darcy(np.ones((8, 8)), 0.5), rtol=1e-12)
    a = np.where(permeability(np.random.default_rng(0), 1, 12)[0], 12.0, 3.0)
    u = solve_darcy(a)
    assert (u > 0).all(), "the maximum principle"
    np.testing.assert_allclose(solve_darcy(a.T), u.T, rtol=1e-10)
    # What flows out through the edge is what the source gives: sum of 2 a u over the outer cells = 1.
    out = sum((2 * a * u)[edge].sum() for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]))
    assert out == pytest.approx(1.0, rel=1e-10)
    coarse, fine = solve_darcy_in_pixels(a), solve_darcy_in_pixels(a, refine=6)
    assert np.linalg.norm(coarse - fine) < 0.03 * np.linalg.norm(fine)


def test_darcy_fields():
    data, factors = load("darcy", "test", n=3)
    assert factors == {} and data["x"].dtype == np.uint8 and set(np.unique(data["x"])) == {0, 1}
    again = solve_darcy_in_pixels(np.where(data["x"][1, ..., 0] == 1, 12.0, 3.0))
    np.testing.assert_allclose(data["y"][1, ..., 0], again, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ masks
def test_masks_are_the_shapes_of_their_pictures():
    picture, mask, kind = draw_masks(np.random.default_rng(0), 200, 32)
    assert set(np.unique(mask)) == {0, 1} and 0.4 < kind.mean() < 0.6
    area = mask.mean((1, 2))
    assert np.all((area > 0.005) & (area < 0.5))
    inside = np.array([p[m == 1].mean() - p[m == 0].mean() for p, m in zip(picture, mask, strict=True)])
    assert 0.3 < np.abs(inside).mean() < 0.6 and 0.3 < (inside > 0).mean() < 0.7  # contrast .3 to .6, of either sign
    data, factors = load("shape_masks", n=5)
    assert data["x"].shape == data["y"].shape == (5, 32, 32, 1) and set(factors) == {"kind"}


def test_a_triangle_is_filled_where_it_is():
    from ppl_models.datasets.masks import _in_polygon

    at = (np.arange(100) + 0.5) / 100
    inside = _in_polygon(at[:, None], at[None, :], np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    away = np.abs(at[:, None] + at[None, :] - 1) > 1e-9  # not on the edge itself
    np.testing.assert_array_equal(inside[away], (at[:, None] + at[None, :] < 1)[away])


# ----------------------------------------------------------------------------------------------- sets and cache
def test_generated_sets_are_nested_seeded_and_split():
    few, more = load("shape_masks", n=3)[0], load("shape_masks", n=130)[0]
    np.testing.assert_array_equal(few["x"], more["x"][:3])
    assert few["x"].flags.writeable and few["x"].base is None
    assert not np.array_equal(few["x"], load("shape_masks", n=3, seed=1)[0]["x"])
    assert not np.array_equal(few["x"], load("shape_masks", "test", n=3)[0]["x"])
    with pytest.raises(ValueError, match="has no split 'valid'"):
        load("darcy", "valid")
    with pytest.raises(ValueError, match="at most 1,000,000"):
        load("darcy", n=1_000_001)


def test_blocks_are_kept_in_the_cache_and_torn_ones_made_again(monkeypatch):
    first = load("shape_masks", n=2)[0]["x"]
    folder = Path(os.environ["PPL_MODELS_CACHE"]) / "generated" / "shape_masks-1"
    (kept,) = folder.iterdir()
    with np.load(kept) as archive:
        changed = {**archive, "x": archive["x"] + 1}
    np.savez(kept, **changed)
    np.testing.assert_allclose(load("shape_masks", n=2)[0]["x"], first + 1)
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(load("shape_masks", n=2)[0]["x"], first)
    monkeypatch.setenv("PPL_MODELS_CACHE", "/proc/none")  # cannot be written
    np.testing.assert_array_equal(load("shape_masks", n=2)[0]["x"], first)


def test_long_generation_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr("ppl_models.datasets.generated.DELAY", -1.0)
    load("shape_masks", n=150)
    assert "generating shape_masks-1: 1/2 blocks" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- published
def small_file(folder, monkeypatch):
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 1000), ("test", 50)):
        arrays[f"darcy_{split}_16_x"] = rng.integers(0, 2, (n, 16, 16)).astype("u1")
        arrays[f"darcy_{split}_16_y"] = rng.normal(size=(n, 16, 16)).astype("f4")
    for split, n in (("train", 800), ("test", 400)):
        y = rng.normal(size=(n, 17, 16)).astype("f4")
        arrays |= {f"burgers_{split}_16_x": y[:, 0], f"burgers_{split}_16_y": y}
    np.savez(folder / "pde_small.npz", **arrays)
    total = hashlib.sha256((folder / "pde_small.npz").read_bytes()).hexdigest()
    monkeypatch.setattr(operators, "SUM", total)
    return arrays


def test_published_sets_read_their_file(files, monkeypatch):
    arrays = small_file(files, monkeypatch)
    assert info("neuralop_darcy").available()
    data, _ = load("neuralop_darcy", "test")
    np.testing.assert_array_equal(data["y"][..., 0], arrays["darcy_test_16_y"])
    data, _ = load("neuralop_burgers", n=7, seed=3)
    rows = np.random.default_rng(3).permutation(800)[:7]
    np.testing.assert_array_equal(data["y"][..., 0], arrays["burgers_train_16_y"][rows, 1:])
    np.testing.assert_array_equal(data["x"][:, 5, :, 0], arrays["burgers_train_16_x"][rows])
    monkeypatch.setattr(operators, "SUM", "0" * 64)
    with pytest.raises(ValueError, match="does not hold the data it is named after"):
        load("neuralop_darcy")


def test_published_sets_that_are_not_there():
    assert not info("neuralop_burgers").available()
    with pytest.raises(DataMissingError, match=r"put pde_small\.npz into a directory and set PPL_MODELS_DATA"):
        load("neuralop_burgers")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve_darcy(np.zeros((4, 4))), "positive and finite"),
        (lambda: solve_darcy(np.ones((4, 5))), r"must be \(N, N\)"),
        (lambda: solve_darcy_in_pixels(np.ones((4, 4)), refine=0), "refine must be at least 1"),
        (lambda: solve_navier_stokes(np.ones((2, 8, 9), "f4"), np.ones((2, 8, 9), "f4"), viscosity=1.0, frames=1),
         r"must both be \(n, N, N\)"),
        (lambda: solve_navier_stokes(np.ones((1, 8, 8), "f4"), np.ones((1, 8, 8), "f4"), viscosity=1.0, frames=0),
         "frames and steps must be at least 1"),
    ],
)  # fmt: skip
def test_bad_requests(call, message, refused):
    with refused(message):
        call()
