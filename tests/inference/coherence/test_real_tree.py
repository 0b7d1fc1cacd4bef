"""The tree of real symbols: nothing for exact rules, the closed form and a plain grid for wrong ones."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from inference.coherence import one_step_gap, quadrature_tree
from ppl_models.in_context import BetaBernoulli, GammaPoisson, NormalInverseGamma, NormalNormal

CONTEXT = np.array([0.3, -1.0, 2.0, 0.1, 0.4])


class Follows:
    """``N(keep z_last, 1)``: an autoregression."""

    def __init__(self, keep):
        self.keep = keep

    def init(self, context):
        return jnp.asarray(context, jnp.result_type(float))[-1]

    def predict(self, state):
        return dist.Normal(self.keep * state, 1.0)

    def update(self, state, z):
        return jnp.asarray(z, state.dtype)


@pytest.mark.parametrize(
    "rule, context",
    [
        (NormalNormal(1.0, 2.0, 0.5), CONTEXT),
        (NormalInverseGamma(0.0, 0.5, 2.5, 1.0), CONTEXT),
        (GammaPoisson(2.0, 0.5), np.array([3.0, 0.0, 5.0])),
    ],
    ids=["normal", "unknown_variance", "counts"],
)
def test_exact_rules_have_nothing(rule, context):
    depth = 1 if isinstance(rule, GammaPoisson) else 2
    row = quadrature_tree(rule, context, depth=depth).row()
    assert abs(row["root_gap"]) < 1e-6 and row["node_rms"] < 1e-6 and row["node_max"] < 1e-6 and row["kl"] < 1e-6


def test_an_autoregression_has_its_closed_form():
    a, z = 0.5, 2.0
    tree = quadrature_tree(Follows(a), np.array([0.0, z]), depth=2)
    # z_{n+k} is Normal with mean a^k z and variance 1 + a^2 + ... + a^(2k - 2); the root has mean a z, variance 1.
    mean = np.array([a**2 * z, a**3 * z]) - a * z
    np.testing.assert_allclose(tree.root_gap[:, 0], mean, atol=1e-6)
    np.testing.assert_allclose(tree.root_gap[:, 1], [a**2 + mean[0] ** 2, a**2 + a**4 + mean[1] ** 2], atol=1e-6)
    gap = one_step_gap(Follows(a), np.array([[0.0, z]]), np.zeros((1, 1, 1)))[0, 0, 0]
    assert tree.defects[0][0] == pytest.approx(gap, rel=1e-9)
    grid = np.linspace(-9, 10, 600)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    p = lambda x, y: stats.norm.logpdf(x, a * z) + stats.norm.logpdf(y, a * x)  # noqa: E731
    forward, backward = p(x, y), p(y, x)
    kl = (np.exp(forward) * (forward - np.logaddexp(forward, backward) + np.log(2))).sum() * (grid[1] - grid[0]) ** 2
    assert tree.row()["kl"] == pytest.approx(kl, rel=1e-5) and kl > 0.01


def test_errors():
    with pytest.raises(ValueError, match="use exact_tree"):
        quadrature_tree(BetaBernoulli(), np.array([0, 1]))
    with pytest.raises(ValueError, match="65 nodes reach depth 2"):
        quadrature_tree(NormalNormal(), CONTEXT, depth=3)
    with pytest.raises(ValueError, match="too few nodes"):
        quadrature_tree(NormalNormal(), CONTEXT, nodes=9)
