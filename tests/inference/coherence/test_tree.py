"""The exact tree against published regression values and an enumeration in plain Python."""

import itertools
import math

import numpy as np
import pytest

from inference.coherence import Tree, exact_tree, tree_table
from ppl_models.in_context import rules
from ppl_models.in_context.predictors import BetaBernoulli, DirichletCategorical, NormalNormal

A = np.array([int(c) for c in "10001000011111110010"])
B = np.array([int(c) for c in "00001100000100110100"])


# ------------------------------------------------------------- an independent derivation: (context, own draws) -> p(1)
def _laplace(seq):
    return (1 + sum(seq)) / (2 + len(seq))


def _ewma(rate):
    def p(context, own):
        m = _laplace(context)
        for z in own:
            m = (1 - rate) * m + rate * z
        return m

    return p


def _discounted(keep, discount_prior):
    def p(context, own):
        a, b = (1.0, 1.0) if discount_prior else (0.0, 0.0)
        for z in [*context, *own]:
            a, b = keep * a + z, keep * b + 1 - z
        return a / (a + b) if discount_prior else (1 + a) / (2 + a + b)

    return p


def _window(width):
    return lambda context, own: (1 + sum((context + own)[-width:])) / (width + 2)


def _tempered(t):
    def p(context, own):
        q = _laplace(context + own)
        return q**t / (q**t + (1 - q) ** t)

    return p


def _sticky(e, other=False):
    def p(context, own):
        seq = context + own
        return (1 - e) * _laplace(seq) + e * (1 - seq[-1] if other else seq[-1])

    return p


def _drift(rate):
    def p(context, own):
        v = math.exp(-rate * len(own))
        return v * _laplace(context + own) + (1 - v) / 2

    return p


RULES = [
    # rule, plain p(1), root gap at A, at k (None: any), B, node RMS A, B, KL A, B: the printed figures
    (rules.EWMA(0.02), _ewma(0.02), (0, None, 0, None), ("0", "0"), ("6.1e-06", "6.0e-06")),
    (rules.EWMA(0.1), _ewma(0.1), (0, None, 0, None), ("0", "0"), ("2.7e-03", "2.6e-03")),
    (rules.Discounted(0.95), _discounted(0.95, True), (0, None, 0, None), ("0", "0"), ("3.5e-04", "3.4e-04")),
    (
        rules.Discounted(0.95, discount_prior=False),
        _discounted(0.95, False),
        (-9.4e-4, 9, 7.5e-3, 9),
        ("3.7e-04", "1.0e-03"),
        ("2.6e-04", "3.3e-04"),
    ),
    (rules.Window(20), _window(20), (0.0995, 9, 0.0619, 5), ("2.34e-02", "1.97e-02"), ("1.49e-02", "7.5e-03")),
    (rules.Window(10), _window(10), (-0.205, 7, 0.0594, 5), ("3.68e-02", "4.15e-02"), ("8.87e-02", "1.67e-02")),
    (rules.Tempered(1.2), _tempered(1.2), (0, None, -0.0101, 9), ("3.0e-04", "1.3e-03"), ("5.2e-06", "1.8e-04")),
    (rules.Tempered(0.8), _tempered(0.8), (0, None, 0.0078, 9), ("2.0e-04", "1.0e-03"), ("2.3e-06", "9.7e-05")),
    (rules.Sticky(0.1), _sticky(0.1), (0.0476, None, 0.0303, None), ("4.16e-02", "3.72e-02"), ("2.77e-02", "2.43e-02")),
    (rules.Sticky(0.02), _sticky(0.02), (0.0096, None, 0.0061, None), ("9.1e-03", "8.2e-03"), ("1.1e-03", "1.0e-03")),
    (
        rules.Alternate(0.1),
        _sticky(0.1, other=True),
        (-0.0530, 2, -0.0360, 2),
        ("5.18e-02", "4.81e-02"),
        ("2.94e-02", "2.72e-02"),
    ),
    (rules.Drift(0.01), _drift(0.01), (0, None, 0.0156, 9), ("4.2e-04", "2.0e-03"), ("9.1e-06", "3.9e-04")),
]


def _prints(value, text):
    """Whether a value rounds to the printed figure, directly or through three digits (8.148 -> 8.15 -> 8.2)."""
    digits, _, exponent = text.partition("e")
    unit = 10.0 ** (int(exponent) - len(digits.partition(".")[2]))
    return abs(value - float(text)) <= 0.55 * unit


def _plain(p1, context, L):
    """Root gaps, node RMS and KL by nested loops over sequences, from the definitions."""
    context = [int(z) for z in context]

    def p(z, own):
        one = p1(context, list(own))
        return one if z else 1 - one

    def path(u):
        return math.prod(p(z, u[:i]) for i, z in enumerate(u))

    def level(d):
        return list(itertools.product((0, 1), repeat=d))

    gaps = [sum(path(u) * p(1, u) for u in level(k - 1)) - p(1, ()) for k in range(2, L + 2)]
    square = sum(
        path(u) * (sum(p(z, u) * p(1, (*u, z)) for z in (0, 1)) - p(1, u)) ** 2 for d in range(L) for u in level(d)
    )
    by_count = {}
    for u in level(L):
        by_count.setdefault(sum(u), []).append(path(u))
    kl = sum(q * math.log(q / np.mean(group)) for group in by_count.values() for q in group)
    return gaps, math.sqrt(square / L), kl, max(max(g) / min(g) for g in by_count.values())


@pytest.mark.parametrize("rule, plain, gaps, rms, kl", RULES, ids=lambda v: repr(v)[:34] if hasattr(v, "init") else "")
def test_tree_agrees_with_printed_values_and_with_a_plain_enumeration(rule, plain, gaps, rms, kl):
    table = tree_table(rule, np.stack([A, B]), depth=8)
    for i, context in enumerate((A, B)):
        row = table.loc[i]
        gap, at = gaps[2 * i], gaps[2 * i + 1]
        digits = 4 if abs(gap) > 5e-3 else 5
        assert row.root_gap == pytest.approx(gap, abs=0.6 * 10 ** -(3 if abs(gap) > 0.2 else digits))
        assert at is None or row.root_gap_at == at
        assert row.node_rms < 1e-15 if rms[i] == "0" else _prints(row.node_rms, rms[i])
        assert _prints(row.kl, kl[i])
        all_gaps, plain_rms, plain_kl, ratio = _plain(plain, context, 5)
        tree = exact_tree(rule, context, depth=5)
        np.testing.assert_allclose(tree.root_gap[:, 1], all_gaps, atol=1e-12)
        assert tree.row()["node_rms"] == pytest.approx(plain_rms, abs=1e-12)
        assert tree.row()["kl"] == pytest.approx(plain_kl, abs=1e-12)
        assert tree.row()["order_ratio"] == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize(
    "rule",
    [BetaBernoulli(1.0, 1.0), BetaBernoulli(20.0, 0.5), rules.Urn(), rules.Fractional(0.5), rules.PlugIn()],
    ids=repr,
)
def test_exchangeable_rules_have_no_gap_at_all(rule):
    row = exact_tree(rule, A, depth=8).row()
    assert abs(row["root_gap"]) < 1e-12 and row["node_max"] < 1e-12 and row["kl"] < 1e-12
    assert row["order_ratio"] == pytest.approx(1, abs=1e-12)


def test_three_symbols():
    exact = exact_tree(DirichletCategorical((1.0, 2.0, 0.5)), np.array([0, 2, 2, 1]), depth=4).row()
    assert exact["node_max"] < 1e-12 and exact["kl"] < 1e-12
    off = exact_tree(rules.Sticky(0.1, DirichletCategorical((1.0, 2.0, 0.5))), np.array([0, 2, 2, 1]), depth=4).row()
    assert off["node_rms"] > 0.01 and off["kl"] > 1e-3 and off["root_gap_symbol"] == 1


def test_the_root_gap_vanishes_by_symmetry_where_the_node_defect_does_not():
    row = exact_tree(rules.Tempered(1.2), A, depth=8).row()
    assert abs(row["root_gap"]) < 1e-14 and row["node_rms"] > 2e-4


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="finite set of symbols.*predictive_paths"):
        exact_tree(NormalNormal(), np.zeros(3), depth=2)
    with pytest.raises(ValueError, match="between 1 and 17 for 2 outcomes, got 18"):
        exact_tree(BetaBernoulli(), A, depth=18)
    with pytest.raises(ValueError, match=r"symbols 0..1, the context has values from 0 to 2"):
        exact_tree(BetaBernoulli(), np.array([0, 2]), depth=2)
    with pytest.raises(ValueError, match=r"depth 1 of a tree over 2 outcomes has shape \(2, 2\)"):
        Tree((np.full((1, 2), 0.5), np.full((3, 2), 0.5)))
