"""Cell trees: the tables against the maps that define the domains, and there and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppl_models.function_spaces import INTERVAL, SQUARE, TRIANGLE, CellTree, project


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("f4")


def middle(x, y):
    return 0.5 - 0.5 * x, 0.5 - 0.5 * y


MAPS = {
    "interval": [lambda x: (x / 2,), lambda x: (x / 2 + 0.5,)],
    "square": [lambda x, y, a=a, b=b: (x / 2 + a / 2, y / 2 + b / 2) for a in (0, 1) for b in (0, 1)],
    "triangle": [
        lambda x, y: (x / 2, y / 2),
        lambda x, y: (x / 2, y / 2 + 0.5),
        lambda x, y: (x / 2 + 0.5, y / 2),
        middle,
    ],
}
"""The domain is the union of its images; letter l is the l-th map, the coarsest applied last."""


def centres(tree, depth):
    """Where the cells lie, from their integer coordinates."""
    cells, n = tree.cells(depth).astype(float), 2**depth
    if tree is TRIANGLE:
        return (cells[:, :2] + (1 + cells[:, 2:]) / 3) / n
    return (cells + 0.5) / n


@pytest.mark.parametrize("tree", [INTERVAL, SQUARE, TRIANGLE], ids=lambda tree: tree.name)
@pytest.mark.parametrize("depth", [0, 1, 2, 6])
def test_integer_coordinates_are_the_maps(tree, depth):
    points = [np.array([1 / 3, 1 / 3]) if tree is TRIANGLE else np.full(tree.axes, 0.5)]
    for _ in range(depth):  # the map of the coarsest letter is applied last, so it goes in front
        points = [np.array(f(*p)) for f in MAPS[tree.name] for p in points]
    assert len(tree.cells(depth)) == tree.b**depth == len(points)
    np.testing.assert_allclose(centres(tree, depth), points, atol=1e-12)


@pytest.mark.parametrize("tree", [INTERVAL, SQUARE], ids=lambda tree: tree.name)
def test_tables_of_interval_and_square_are_permutations(tree):
    table, inverse = tree.table(5), tree.inverse(5)
    np.testing.assert_array_equal(table[inverse], np.arange(len(table)))
    np.testing.assert_array_equal(inverse[table], np.arange(len(table)))
    image = drawn(3, *tree.grid(5), 2)
    field = tree.to_field(jnp.asarray(image), channels=True)
    np.testing.assert_array_equal(tree.to_image(field, channels=True), image)


def test_square_pooling_is_the_block_mean():
    image = drawn(2, 8, 8)
    pooled = SQUARE.to_image(project(SQUARE.to_field(jnp.asarray(image)), 4))
    np.testing.assert_allclose(pooled, image.reshape(2, 4, 2, 4, 2).mean((2, 4)), atol=1e-6)
    assert SQUARE.table(1).tolist() == [0, 1, 2, 3] and SQUARE.table(2)[:8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_triangle_there_and_back_is_exact_on_its_half():
    image = drawn(2, 16, 16)
    field = TRIANGLE.to_field(jnp.asarray(image))
    assert field.shape == (2, 256)
    row, column = np.indices((16, 16))
    half = row + column < 16
    np.testing.assert_array_equal(TRIANGLE.to_image(field, fill=-1.0), np.where(half, image, -1))
    assert (TRIANGLE.inverse(4) >= 0).sum() == half.sum() == 16 * 17 // 2
    hit = np.bincount(TRIANGLE.table(4), minlength=256).reshape(16, 16)
    np.testing.assert_array_equal(hit, np.where(row + column < 15, 2, half))  # two cells, one on the diagonal


def test_square_and_triangle_exchange_addresses():
    """A triangle's field laid on the square pixels of equal address, for convolutions, comes back unchanged."""
    field = drawn(2, 256, 3)
    laid = SQUARE.to_image(jnp.asarray(field), channels=True)
    assert laid.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(SQUARE.to_field(laid, channels=True), field)
    # The children of a triangle are the four pixels of a block: pooling agrees.
    blocks = np.asarray(laid).reshape(2, 8, 2, 8, 2, 3).mean((2, 4))
    np.testing.assert_allclose(
        SQUARE.to_image(project(jnp.asarray(field).swapaxes(1, 2), 4)), blocks.transpose(0, 3, 1, 2), atol=1e-6
    )


def test_pooling_four_children_is_the_mean_over_the_parent_triangle():
    """A linear function's mean over a triangle is its value at the centroid, at every level."""
    slope = np.array([2.0, -3.0])
    values = jnp.asarray(centres(TRIANGLE, 6) @ slope, "float32")
    for levels in (1, 3, 6):
        expected = centres(TRIANGLE, 6 - levels) @ slope
        np.testing.assert_allclose(project(values, 4, levels), expected, atol=1e-5)


def test_a_tree_of_ones_own():
    """The 3-way interval: a rule for children and a rule for pixels are all that is needed."""

    def thirds(cells):
        return np.stack([3 * cells + k for k in range(3)], axis=1)

    tree = CellTree("thirds", (0,), thirds, axes=1, pixel=lambda cells: cells * 2**2 // 3**2)
    assert tree.b == 3 and tree.cells(2)[:, 0].tolist() == list(range(9))
    assert tree.to_field(jnp.arange(4.0)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="would show two cells"):
        tree.to_image(jnp.zeros(9))
    np.testing.assert_allclose(project(jnp.arange(9.0), tree.b), [1.0, 4.0, 7.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SQUARE.to_field(jnp.zeros((3, 4))), "images of 2.J x 2.J pixels"),
        (lambda: SQUARE.to_image(jnp.zeros(8)), "got 8"),
        (lambda: SQUARE.cells(-1), "at least 0"),
        (lambda: CellTree("same", (0,), lambda c: np.stack([c, c], 1), 1).cells(1), "same coordinates"),
        (lambda: CellTree("flat", (0,), lambda c: c, 1).cells(1), r"must map cells \(n, k\) to \(n, b, k\)"),
        (lambda: CellTree("far", (0,), lambda c: np.stack([c + 8, c + 9], 1), 1).table(1), "in 0..1"),
    ],
)
def test_a_wrong_tree_or_field_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
