"""Facets: geometry with known answers, colours, streams, and no test image in train."""

from __future__ import annotations

import colorsys
import hashlib

import numpy as np
import pytest

from ppl_models.datasets import facet_factors, info, load, render_facets
from ppl_models.datasets.facets import CONFIGURATIONS, SHAPES, VALUES

NAMES = [configuration.name for configuration in CONFIGURATIONS]


def coverage(**factors: object) -> np.ndarray:
    """Recover alpha from the red channel of a red object on a dark floor."""
    image = render_facets(**factors)[..., 0].astype(float)  # type: ignore[arg-type]
    floor, red = 115, 242  # 255 x .45 and 255 x .95, as stored
    return (image - floor) / (red - floor)


# Areas in units of half squared; the heart (x^2 + y^2 - 1)^3 = x^2 y^3 has area 3.66197 in its own coordinates.
AREAS = {
    "disc": np.pi,
    "square": 1.7**2,
    "triangle": 3 * np.sqrt(3) / 4,
    "cross": 2 * 0.66 * 2 - 0.66**2,
    "heart": 3.66197 / 1.15**2,
    "ring": np.pi * (1 - 0.25),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 0.17])
def test_area_of_each_shape(name: str, angle: float) -> None:
    alpha = coverage(shape=SHAPES.index(name), size=3, angle=angle, side=128)
    area = alpha.mean() * 4 / 0.54**2
    assert area == pytest.approx(AREAS[name], rel=0.01)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_disc_grows_with_size(size: int) -> None:
    area = coverage(shape=0, size=size, side=128).mean() * 4
    assert area == pytest.approx(np.pi * (0.30 + 0.08 * size) ** 2, rel=0.01)


def test_centre_moves_right_with_x_and_down_with_y() -> None:
    x, y = np.array([0, 7, 2, 3.5]), np.array([0, 0, 7, 3.5])
    alpha = coverage(shape=0, size=0, x=x, y=y, side=64)
    grid = -1 + (np.arange(64) + 0.5) / 32
    total = alpha.sum((1, 2))
    np.testing.assert_allclose((alpha.sum(1) @ grid) / total, -0.45 + 0.9 * x / 7, atol=0.01)
    np.testing.assert_allclose((alpha.sum(2) @ grid) / total, -0.45 + 0.9 * y / 7, atol=0.01)


def test_triangle_points_up_and_heart_points_down() -> None:
    width = (coverage(shape=np.array([2, 4]), side=64) > 0.5).sum(2)  # (shape, row)
    triangle, heart = ([rows[rows > 0][0], rows[rows > 0][-1]] for rows in width)
    assert triangle[0] < 5 < 25 < triangle[1]
    assert heart[1] < 5 < heart[0] < 25


def test_positive_angle_turns_clockwise() -> None:
    upright, turned = coverage(shape=2, angle=np.array([0.0, 0.3]), side=64)
    apex = [np.flatnonzero(image[(image > 0.5).any(1).argmax()] > 0.5).mean() for image in (upright, turned)]
    assert apex[1] > apex[0] + 3  # the tip moved to the right


def test_quarter_turn_leaves_square_and_cross_unchanged() -> None:
    images = render_facets(np.array([1, 3, 1, 3]), angle=np.array([0, 0, np.pi / 2, np.pi / 2]))
    assert np.abs(images[:2].astype(int) - images[2:]).max() <= 1


def test_colours_are_those_of_the_standard_library() -> None:
    images = render_facets(1, colour=np.arange(8), floor=np.arange(8), side=16)
    for k, image in enumerate(images):
        inside = np.array(colorsys.hsv_to_rgb(k / 8, 0.85, 0.95)) * 255
        outside = np.array(colorsys.hsv_to_rgb((0.03 + k / 8) % 1, 0.35, 0.45)) * 255
        assert np.abs(image[8, 8] - inside).max() <= 0.5
        assert np.abs(image[0, 0] - outside).max() <= 0.5


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    factors = facet_factors("facets_c", n=300, seed=4)
    together = render_facets(**factors)
    alone = [render_facets(**{key: value[i] for key, value in factors.items()})[0] for i in (0, 17, 299)]
    np.testing.assert_array_equal(together[[0, 17, 299]], alone)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"shape": 6}, "shape must be one of the integers 0..5"),
        ({"shape": 0.5}, "shape must be one of the integers 0..5"),
        ({"shape": 0, "colour": 8}, "colour must be between 0 and 8, got 8"),
        ({"shape": 0, "x": 20}, "x must be between -4 and 11, got 20"),
        ({"shape": 0, "size": [np.nan]}, "size must be a finite number"),
        ({"shape": [0, 1, 2], "x": [1, 2]}, r"vectors of one length, got shape \(3,\), .* x \(2,\)"),
        ({"shape": 0, "side": 2}, "side must be a whole number of at least 4, got 2"),
    ],
)
def test_bad_factors(factors: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_facets(**factors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"shape": [[0, 1]]}, "shape must be a finite number or a vector"),
        ({"shape": "disc"}, "shape must be a finite number or a vector"),
        ({"shape": 0, "side": 32.0}, "side must be a whole number"),
    ],
)
def test_factors_of_a_wrong_type(factors, message, refused):
    with refused(message):
        render_facets(**factors)


# ------------------------------------------------------------------------------------------------- the sets
GOLDEN = {
    "facets_a": "32a81ec4eaff05ba8559bcb0c0f8800e0e63e7b49be59ce51326c638c8fa9bc4",
    "facets_b": "f823531c89b5cd1280bc48b8c47ca1badb376dd17e7037552329f69992bb6fee",
    "facets_c": "5077d460fea8a3790d64f91eaea0649139014983c19e9f2a270aea544732cd23",
}


@pytest.mark.parametrize("name", NAMES)
def test_golden_batch(name: str) -> None:
    x, factors = load(name, n=64, seed=7)
    digest = hashlib.sha256(x.tobytes())
    for key in sorted(factors):
        digest.update(factors[key].astype("<i8").tobytes())
    assert digest.hexdigest() == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_images_are_distinct_and_no_test_image_is_in_train(name: str) -> None:
    train, test = ({image.tobytes() for image in load(name, split)[0]} for split in ("train", "test"))
    assert (len(train), len(test)) == (10_000, 2_000)
    assert not train & test


def test_2000_draws_of_a_are_2000_images_under_any_seed() -> None:
    draws = [load("facets_a", split, n=2000, seed=seed)[0] for seed in (1, 2) for split in ("train", "test")]
    assert len({image.tobytes() for images in draws for image in images}) == 8000


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_nested_and_deterministic(name: str) -> None:
    x, factors = load(name, "test", n=1500, seed=3)
    few, few_factors = load(name, "test", n=100, seed=3)
    np.testing.assert_array_equal(x[:100], few)
    for key, value in few_factors.items():
        np.testing.assert_array_equal(factors[key][:100], value)
    assert not np.array_equal(few, load(name, "test", n=100, seed=4)[0])


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_uniform_independent_and_what_is_rendered(name: str) -> None:
    x, factors = load(name, n=10_000)
    drawn = facet_factors(name, n=10_000)
    assert tuple(factors) == tuple(info(name).factors)
    assert x.shape == (10_000, 32, 32, 3) and x.dtype == np.uint8
    np.testing.assert_array_equal(x[:50], render_facets(**{key: value[:50] for key, value in drawn.items()}))
    for key, value in factors.items():
        counts = np.bincount(value)
        cells = len(VALUES[key])
        assert value.dtype == np.int64 and len(counts) == cells
        expected = 10_000 / cells
        assert ((counts - expected) ** 2 / expected).sum() < cells + 5 * np.sqrt(2 * cells)
        assert np.abs(np.round(drawn[key]) - value).max() == 0
    together = np.corrcoef(np.stack([*factors.values(), drawn["angle"], drawn["x"] % 1, drawn["y"] % 1]))
    off = together[~np.eye(len(together), dtype=bool)]
    # x and y of A and B are nuisances; in C their fractional part is, which wraps but stays independent.
    assert np.abs(off).max() < 4.5 / np.sqrt(10_000)
    assert np.abs(drawn["angle"]).max() <= 0.2


def test_nuisances_are_continuous_and_of_the_stated_width() -> None:
    a, c = facet_factors("facets_a", n=4000), facet_factors("facets_c", n=4000)
    for key, middle in {"size": 3.0, "x": 3.5, "y": 3.5}.items():
        assert len(np.unique(a[key])) == 4000
        assert 0.49 < np.abs(a[key] - middle).max() <= 0.5
        assert 0.245 < np.abs(c[key] - np.round(c[key])).max() <= 0.25


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"n": True}, "n must be a whole number"),
        ({"n": 1_000_001}, "n must be at most 1,000,000"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"split": "valid"}, "has no split 'valid'"),
    ],
)
def test_bad_requests(request_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("facets_a", **request_)  # type: ignore[arg-type]


def test_facet_factors_of_another_set() -> None:
    with pytest.raises(ValueError, match="takes one of .*facets_a.*, got 'digits'"):
        facet_factors("digits")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["facets_a", "facets_b"])
def test_a_linear_map_sees_every_factor(name: str) -> None:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    (x, factors), (x_test, factors_test) = load(name, n=2500), load(name, "test", n=500)
    pca = PCA(64, random_state=0).fit(x.reshape(2500, -1) / 255)
    z, z_test = pca.transform(x.reshape(2500, -1) / 255), pca.transform(x_test.reshape(500, -1) / 255)
    for key, value in factors.items():
        probe = LogisticRegression(max_iter=200).fit(z / z[:, 0].std(), value)
        assert probe.score(z_test / z[:, 0].std(), factors_test[key]) > 0.97
