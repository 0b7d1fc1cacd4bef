"""Haar pyramids against dense matrices, on fields and on images."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppl_models.function_spaces import (
    SQUARE,
    Pyramid,
    analyse,
    analyse_image,
    details,
    embed,
    haar_matrix,
    project,
    project_image,
    synthesise,
    synthesise_image,
)  # fmt: skip


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("f4")


def dense_haar(n):
    """The orthonormal Haar matrix of 2^J points, by sampling each wavelet: row 0 the constant, then level by level."""
    x = (np.arange(n) + 0.5) / n
    rows = [np.full(n, n**-0.5)]
    for j in range(n.bit_length() - 1):
        for k in range(2**j):
            inside = 2.0**j * x - k
            rows.append(
                2 ** (j / 2) * n**-0.5 * (((0 <= inside) & (inside < 0.5)) * 1.0 - ((0.5 <= inside) & (inside < 1)))
            )
    return np.stack(rows)


def flat(pyramid):
    return np.concatenate(
        [np.asarray(pyramid.coarse), *(np.asarray(d).reshape(len(d), -1) for d in pyramid.details)], 1
    )


# ------------------------------------------------------------------------------------------- one dimension
def test_known_answer():
    """The example of every textbook: 4 6 10 12 has mean 8, half-differences -3; -1, -1."""
    pyramid = analyse(jnp.asarray([4.0, 6.0, 10.0, 12.0]), 2)
    np.testing.assert_allclose(pyramid.coarse, [16.0], rtol=1e-6)
    np.testing.assert_allclose(pyramid.details[0], [[-6.0]], rtol=1e-6)
    np.testing.assert_allclose(pyramid.details[1], [[-(2**0.5)], [-(2**0.5)]], rtol=1e-6)


def test_one_dimension_is_the_dense_matrix():
    x = drawn(3, 64)
    np.testing.assert_allclose(flat(analyse(jnp.asarray(x), 2)), x @ dense_haar(64).T, atol=1e-5)


@pytest.mark.parametrize(("b", "depth"), [(2, 8), (4, 8), (3, 4)])
def test_round_trip_and_parseval(b, depth):
    """To 2^8 points a side: |x|^2 is the sum of all squares, and synthesis gives x back."""
    x = drawn(2, b**depth)
    pyramid = analyse(jnp.asarray(x), b)
    energy = (flat(pyramid).astype("f8") ** 2).sum(1)
    np.testing.assert_allclose(energy, (x.astype("f8") ** 2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(synthesise(pyramid, b), x, atol=4e-6)
    part = analyse(jnp.asarray(x), b, levels=2)
    assert part.coarse.shape == (2, b ** (depth - 2)) and len(part.details) == 2
    np.testing.assert_allclose(synthesise(part, b), x, atol=4e-6)


def test_square_fields_are_the_tensor_product():
    """In address order the 4 x 4 step is two steps of one dimension, rows and columns."""
    image = drawn(16, 16)
    step = dense_haar(2)
    both = np.einsum("iajb,pa,qb->ijpq", image.reshape(8, 2, 8, 2), step, step)
    pyramid = analyse(SQUARE.to_field(jnp.asarray(image)), 4, levels=1)
    np.testing.assert_allclose(SQUARE.to_image(pyramid.coarse), both[..., 0, 0], atol=1e-6)
    bands = np.moveaxis(np.asarray(SQUARE.to_image(pyramid.details[0], channels=True)), -1, 0)
    np.testing.assert_allclose(bands, [both[..., 0, 1], both[..., 1, 0], both[..., 1, 1]], atol=1e-6)


@pytest.mark.parametrize("b", [2, 3, 4, 5, 8])
def test_step_matrices_are_orthogonal_with_a_constant_first_row(b):
    matrix = haar_matrix(b)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(b), atol=1e-12)
    np.testing.assert_allclose(matrix[0], b**-0.5, atol=1e-12)


def test_pooling_is_the_projection():
    x = jnp.asarray(drawn(2, 4**3))
    seen = embed(project(x, 4, 2), 4, 2)
    np.testing.assert_allclose(embed(project(seen, 4, 2), 4, 2), seen, atol=1e-6)
    residual, other = np.asarray(x - seen, "f8"), np.asarray(embed(jnp.asarray(drawn(2, 4)), 4, 2), "f8")
    np.testing.assert_allclose((residual * other).sum(1), 0.0, atol=1e-5)  # orthogonal to the coarse space
    pyramid = analyse(x, 4, levels=2)
    silent = Pyramid(pyramid.coarse, tuple(0 * d for d in pyramid.details))
    np.testing.assert_allclose(synthesise(silent, 4), seen, atol=1e-6)
    np.testing.assert_allclose(pyramid.coarse, 4 * project(x, 4, 2), atol=1e-5)  # sqrt(b) for each level


def test_pooling_children_is_the_mean_over_the_parent_exactly():
    """Whole numbers are summed without rounding: two poolings are one, bit for bit."""
    x = jnp.asarray(np.random.default_rng(1).integers(-1000, 1000, (3, 4**4)).astype("f4"))
    np.testing.assert_array_equal(project(project(x, 4), 4), project(x, 4, 2))
    parents = np.asarray(x).reshape(3, -1, 4)
    np.testing.assert_array_equal(
        project(x, 4), (parents[..., 0] + parents[..., 1] + parents[..., 2] + parents[..., 3]) / 4
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analyse(jnp.zeros(12), 2), "got 12"),
        (lambda: analyse(jnp.zeros(8), 2, levels=4), "has 3 levels"),
        (lambda: project(jnp.zeros(8), 2, 4), "has 3 levels"),
        (lambda: embed(jnp.zeros(8), 2, -1), "at least 0"),
        (lambda: haar_matrix(1), "at least 2 children"),
        (lambda: details(jnp.zeros((1, 3, 4, 1))), "got 3 x 4"),
        (lambda: project_image(jnp.zeros((1, 6, 4, 1)), 2), "multiples of 4"),
    ],
)
def test_what_cannot_be_cut_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -------------------------------------------------------------------------------------------------- images
def test_images_agree_with_fields():
    x = drawn(2, 16, 16, 3)
    coarse, bands = analyse_image(jnp.asarray(x), 3)
    pyramid = analyse(SQUARE.to_field(jnp.asarray(x), channels=True).swapaxes(1, 2), 4, levels=3)
    np.testing.assert_allclose(SQUARE.to_field(coarse, channels=True).swapaxes(1, 2), pyramid.coarse, atol=1e-5)
    for band, detail in zip(bands, pyramid.details, strict=True):
        field = SQUARE.to_field(band, channels=True).reshape(2, -1, 3, 3)  # (batch, cell, band, channel)
        np.testing.assert_allclose(field.transpose(0, 3, 1, 2), detail, atol=1e-5)
    np.testing.assert_array_equal(bands[-1], details(jnp.asarray(x)))


def test_images_round_trip_and_parseval_to_256():
    x = drawn(1, 256, 256, 1)
    coarse, bands = analyse_image(jnp.asarray(x), 8)
    energy = sum((np.asarray(band, "f8") ** 2).sum() for band in (coarse, *bands))
    np.testing.assert_allclose(energy, (x.astype("f8") ** 2).sum(), rtol=1e-6)
    np.testing.assert_allclose(synthesise_image(coarse, bands), x, atol=4e-6)
    np.testing.assert_allclose(coarse / 2**8, x.mean((1, 2), keepdims=True), atol=1e-6)


def test_images_of_any_even_shape():
    x = drawn(2, 4, 12, 1)
    coarse, bands = analyse_image(jnp.asarray(x), 2)
    assert coarse.shape == (2, 1, 3, 1) and [b.shape for b in bands] == [(2, 1, 3, 3), (2, 2, 6, 3)]
    np.testing.assert_allclose(synthesise_image(coarse, bands), x, atol=1e-6)
    np.testing.assert_allclose(coarse / 4, project_image(jnp.asarray(x), 2), atol=1e-6)
