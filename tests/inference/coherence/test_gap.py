"""The one-step gap: zero for exact rules, its closed form for wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from inference.coherence import coherence, one_step_gap
from inference.coherence.calibrated import check_moments
from ppl_models.in_context import rules
from ppl_models.in_context.exact import GammaPoisson, Mixture, NormalInverseGamma
from ppl_models.in_context.predictors import BetaBernoulli, DirichletCategorical, NormalNormal

CONTEXT = np.array([0, 1, 1, 0, 1, 0, 0])
Z = np.random.default_rng(0).integers(0, 2, (1, 5, 8))
REAL, REAL_Z = np.array([[0.3, -1.0, 2.0, 0.1, 0.4]]), np.random.default_rng(1).normal(0, 1.5, (1, 3, 6))


@pytest.mark.parametrize(
    "rule, context, z",
    [
        (BetaBernoulli(0.5, 2.0), CONTEXT[None], Z),
        (DirichletCategorical((1.0, 0.5, 2.0)), CONTEXT[None], Z),
        (Mixture((BetaBernoulli(9.0, 2.0), BetaBernoulli(2.0, 9.0)), (0.3, 0.7)), CONTEXT[None], Z),
        (rules.EWMA(0.1), CONTEXT[None], Z),
        (rules.Discounted(0.9), CONTEXT[None], Z),
        (rules.PlugIn(), CONTEXT[None], Z),
        (rules.Urn(), CONTEXT[None], Z),
        (rules.Fractional(0.5), CONTEXT[None], Z),
        (NormalNormal(1.0, 2.0, 0.5), REAL, REAL_Z),
        (NormalInverseGamma(0.0, 0.5, 1.5, 1.0), REAL, REAL_Z),
        (GammaPoisson(2.0, 0.5), np.array([[3.0, 0.0, 5.0]]), np.array([[[2.0, 7.0, 1.0]]])),
        (Mixture((NormalNormal(-1.0, 0.5), NormalNormal(1.0, 0.5)), (0.5, 0.5)), REAL, REAL_Z),
    ],
    ids=[
        "beta",
        "dirichlet",
        "mixture",
        "ewma",
        "discounted",
        "plugin",
        "urn",
        "fractional",
        "normal",
        "unknown_variance",
        "counts",
        "normal_mixture",
    ],
)
def test_exact_rules_have_none(rule, context, z):
    gap = one_step_gap(rule, context, z)
    assert gap.shape == z.shape and gap.max() < 1e-6


def _states():
    """Path, step and the symbols before the draw, those of the context first."""
    for j in range(Z.shape[1]):
        for k in range(Z.shape[2]):
            yield j, k, np.concatenate([CONTEXT, Z[0, j, :k]])


def _tempered(seq, k):
    f = lambda q: q**1.2 / (q**1.2 + (1 - q) ** 1.2)  # noqa: E731
    s, M = seq.sum(), 2 + len(seq)
    p = f((1 + s) / M)
    return p * f((2 + s) / (M + 1)) + (1 - p) * f((1 + s) / (M + 1)) - p


def _laplace_after(seq, p):
    """E q' of the Laplace rule q when the symbol is drawn with probability p."""
    return (1 + seq.sum() + p) / (3 + len(seq))


def _sticky(seq, k):
    p = 0.9 * (1 + seq.sum()) / (2 + len(seq)) + 0.1 * seq[-1]
    return 0.9 * _laplace_after(seq, p) + 0.1 * p - p


def _alternate(seq, k):
    p = 0.9 * (1 + seq.sum()) / (2 + len(seq)) + 0.1 * (1 - seq[-1])
    return 0.9 * _laplace_after(seq, p) + 0.1 * (1 - p) - p


def _drift(seq, k):
    v, following = np.exp(-0.01 * k), np.exp(-0.01 * (k + 1))
    p = v * (1 + seq.sum()) / (2 + len(seq)) + (1 - v) / 2
    return following * _laplace_after(seq, p) + (1 - following) / 2 - p


def _window(seq, k):
    kept = seq[-4:]
    p = (1 + kept.sum()) / 6
    return (p - kept[0]) / 6


def _discounted(seq, k):
    a, total = 0.0, 0.0
    for z in seq:
        a, total = 0.9 * a + z, 0.9 * total + 1
    p = (1 + a) / (2 + total)
    return (1 + 0.9 * a + p) / (3 + 0.9 * total) - p


@pytest.mark.parametrize(
    "rule, closed_form",
    [
        (rules.Tempered(1.2), _tempered),
        (rules.Sticky(0.1), _sticky),
        (rules.Alternate(0.1), _alternate),
        (rules.Drift(0.01), _drift),
        (rules.Window(4), _window),
        (rules.Discounted(0.9, discount_prior=False), _discounted),
    ],
    ids=["tempered", "sticky", "alternate", "drift", "window", "discounted"],
)
def test_wrong_rules_have_their_closed_form(rule, closed_form):
    gap = one_step_gap(rule, CONTEXT[None], Z)[0]
    for j, k, seq in _states():
        assert gap[j, k] == pytest.approx(abs(closed_form(seq, k)), abs=1e-7)
    assert gap.max() > 1e-4


@pytest.mark.parametrize("power", [0.8, 1.2])
def test_tempering_of_a_die_has_its_closed_form(power):
    z = np.random.default_rng(2).integers(0, 3, (1, 2, 5))
    gap = one_step_gap(rules.Tempered(power, DirichletCategorical((1.0, 0.5, 2.0))), np.array([[0, 2, 1, 2]]), z)[0]

    def heated(counts):
        raised = (counts / counts.sum(-1, keepdims=True)) ** power
        return raised / raised.sum(-1, keepdims=True)

    for j, k in np.ndindex(2, 5):
        counts = np.array([1.0, 0.5, 2.0]) + np.bincount(np.append([0, 2, 1, 2], z[0, j, :k]), minlength=3)
        p = heated(counts)
        assert gap[j, k] == pytest.approx(np.abs(p @ heated(counts + np.eye(3)) - p).sum() / 2, abs=1e-9)


class Shrinking:
    """N(m, 1) whose mean halves at every step: E m(uz) - m = -m / 2, and the variance adds nothing."""

    def init(self, context):
        return jnp.asarray(context, jnp.result_type(float))[-1]

    def predict(self, state):
        return dist.Normal(state, 1.0)

    def update(self, state, z):
        return state / 2


class Peaks(Shrinking):
    """Two peaks far narrower than the distance between the nodes."""

    def predict(self, state):
        parts = [dist.Normal(state - 1, 1e-4), dist.Normal(state + 1, 1e-4)]
        return dist.MixtureGeneral(dist.Categorical(probs=jnp.array([0.5, 0.5])), parts)


def test_real_symbols_in_standard_deviations():
    gap = one_step_gap(Shrinking(), np.array([[0.0, 3.0]]), np.zeros((1, 1, 3)))[0, 0]
    m = 3.0 * 0.5 ** np.arange(3)
    np.testing.assert_allclose(gap, np.maximum(m / 2, (m / 2) ** 2), rtol=1e-6)
    assert np.isnan(one_step_gap(Peaks(), np.array([[0.0, 3.0]]), np.zeros((1, 1, 2)))).all()  # said, not guessed


def test_it_stands_in_the_report_of_real_and_finite_symbols():
    found = coherence(NormalNormal(), REAL[[0, 0]], key=jax.random.key(0), steps=6, paths=10)
    row = found.summary.loc["one_step_gap_max"]
    assert row["largest"] < 1e-6 and row["unit"] == "predictive sd" and "predictive sd, worst" in found.verdict
    wrong = coherence(rules.Window(4), CONTEXT[None], key=jax.random.key(0), steps=8, paths=10, depth=0)
    assert wrong.summary.loc["one_step_gap", "mean"] > 0.05 and "tree was left out" in wrong.verdict


def test_errors():
    with pytest.raises(ValueError, match=r"z must have shape \(1, path, step\)"):
        one_step_gap(BetaBernoulli(), CONTEXT[None], Z[0])
    with pytest.raises(ValueError, match="second moment is not finite; .* Student's t"):
        check_moments(np.array([[0.0, np.inf]]), ("z", "z^2"))
    with pytest.raises(ValueError, match="subtract a constant"):
        coherence(NormalNormal(1e4, 1.0, 1.0), np.full((2, 5), 1e4), key=jax.random.key(0), steps=6, paths=10)
