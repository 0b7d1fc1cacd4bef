"""Hat functions: the basis, its boundary values, and Poisson's equation, which it diagonalises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_models.function_spaces import coons, hat_analysis, hat_synthesis as eager, hats, line

hat_synthesis = jax.jit(eager, static_argnums=1)  # one compilation instead of one an operation


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("f4")


def test_synthesis_is_the_sum_of_hats():
    c = drawn(2, 15)
    nodes = np.linspace(0, 1, 17)
    np.testing.assert_allclose(hat_synthesis(jnp.asarray(c)), c @ hats(4, nodes), atol=1e-6)
    assert hats(3, np.array([0.0, 1.0])).max() == 0.0


def test_hats_are_orthonormal_in_their_slopes():
    n = 64
    slopes = np.diff(hats(4, np.linspace(0, 1, n + 1))) * n  # constant between nodes
    np.testing.assert_allclose(slopes @ slopes.T / n, np.eye(15), atol=1e-12)


@pytest.mark.parametrize("axis", [-1, 1])
def test_analysis_inverts_synthesis(axis):
    c = drawn(3, 7, 7)
    u = hat_synthesis(jnp.asarray(c), axis)
    np.testing.assert_allclose(hat_analysis(u, axis), c, atol=2e-6)


def test_boundary_values_are_exactly_zero_whatever_the_coefficients():
    u = np.asarray(hat_synthesis(jnp.asarray(1e6 * drawn(5, 63))))
    assert (u[:, 0] == 0).all() and (u[:, -1] == 0).all()
    square = np.asarray(hat_synthesis(hat_synthesis(jnp.asarray(1e6 * drawn(2, 15, 7)), -1), -2))
    assert square.shape == (2, 17, 9)
    assert not (square[:, [0, -1]].any() or square[:, :, [0, -1]].any())
    assert np.abs(square[:, 1:-1, 1:-1]).min() > 0


def test_other_boundary_values_are_a_lift():
    left, right = jnp.asarray([1.1, -3.3]), jnp.asarray([0.7, 5.9])
    u = np.asarray(hat_synthesis(jnp.asarray(drawn(2, 7))) + line(left, right, 9))
    np.testing.assert_array_equal(u[:, 0], left)
    np.testing.assert_array_equal(u[:, -1], right)
    back = hat_analysis(jnp.asarray(u) - line(left, right, 9))
    np.testing.assert_allclose(back, hat_analysis(jnp.asarray(u)), atol=2e-6)  # surpluses do not see lines


def test_coons_keeps_edges_exactly_and_bilinear_functions_whole():
    edges = drawn(2, 9, 5)
    patch = np.asarray(coons(jnp.asarray(edges)))
    for at in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        np.testing.assert_array_equal(patch[at], edges[at])
    x, y = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 5), indexing="ij")
    bilinear = (1 + 2 * x - y + 3 * x * y).astype("f4")
    hidden = bilinear.copy()
    hidden[1:-1, 1:-1] = np.nan  # the inside is never read
    np.testing.assert_allclose(coons(jnp.asarray(hidden)), bilinear, atol=1e-6)


def test_poisson_is_solved_by_inner_products():
    """-u'' = pi^2 sin(pi x): c = int f L, u = sin(pi x) at the nodes, zero at the ends."""
    depth, fine = 6, np.linspace(0, 1, 2**14 + 1)
    f = np.pi**2 * np.sin(np.pi * fine)
    weights = np.full(len(fine), 1 / 2**14)
    weights[[0, -1]] /= 2
    c = hats(depth, fine) @ (f * weights)
    u = hat_synthesis(jnp.asarray(c, "float32"))
    np.testing.assert_allclose(u, np.sin(np.pi * np.linspace(0, 1, 65)) * (np.arange(65) % 64 > 0), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "got"),
    [(lambda: hat_synthesis(jnp.zeros(6)), "7"), (lambda: hat_analysis(jnp.zeros(2)), "1")],
)
def test_sizes_are_powers_of_two(call, got):
    with pytest.raises(ValueError, match=f"got {got} intervals"):
        call()
