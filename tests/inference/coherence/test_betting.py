"""Bets: fair on average over every sequence, at every stopping time; right about known faults."""

import itertools

import jax
import numpy as np
import pytest

from inference.coherence import bet, bets_on
from inference.coherence.betting import FRACTIONS, draw_payoffs, log_order, log_wealth, martingale_payoffs
from ppl_models.in_context import rules
from ppl_models.in_context.exact import NormalInverseGamma
from ppl_models.in_context.predictors import BetaBernoulli

T = 8
ALL = np.array(list(itertools.product((0, 1), repeat=T)))


def _beta(a, b):
    """Predictive probabilities along every binary sequence, and the chance of each sequence, of the Beta(a, b) rule."""
    ones = np.concatenate([np.zeros((len(ALL), 1)), ALL.cumsum(1)], 1)
    p = (a + ones) / (a + b + np.arange(T + 1))
    return p, np.where(ALL == 1, p[:, :-1], 1 - p[:, :-1]).prod(1)


def test_a_fair_game_keeps_its_mean():
    signs = 2.0 * ALL[..., None] - 1
    np.testing.assert_allclose(np.exp(log_wealth(signs)).mean(0), 1.0, rtol=1e-12)
    p = np.full((2, 3, 1), 0.5)
    p[:, 1:] = np.array([[1.0, 1.0], [1.0, 0.5]])[..., None]  # side by side: wealth multiplies bet by bet
    bets = bets_on(np.zeros((2, 2, 1)), p)
    payoffs = martingale_payoffs(np.zeros((2, 2)), p[..., 0])
    f = np.array(FRACTIONS)[:, None, None, None]
    wealth = (1 + f * payoffs).prod((1, 2)).mean()
    assert bets.together["martingale"][-1] == pytest.approx(np.log(wealth))
    assert log_wealth(np.zeros((3, 2)))[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (0.5, 3.0)])
def test_mean_wealth_is_one_under_exact_bayes(a, b):
    p, chance = _beta(a, b)
    wealth = np.exp(log_wealth(martingale_payoffs(ALL, p)))
    np.testing.assert_allclose(chance @ wealth, 1.0, rtol=1e-12)  # at each of the steps
    paid, worst = draw_payoffs(ALL)
    told = np.exp(log_wealth(paid, pending=worst))
    assert chance @ told[:, -1] == pytest.approx(1.0, rel=1e-12)  # all bets are settled
    stop = np.where(ALL.any(1), ALL.argmax(1), T - 1)  # stopping between the two draws of a bet, on what was seen
    for test in (wealth, told, np.exp(log_order(ALL, 2))):
        assert chance @ test[np.arange(len(ALL)), stop] <= 1 + 1e-12
        assert (chance @ test <= 1 + 1e-12).all()


def test_order_compares_with_the_best_iid_law():
    z = np.array([[0, 0, 1, 1, 1, 0, 1]])
    keep, log_q = np.exp([-np.inf, -1 / 10.0, -1 / 50.0]), np.zeros(3)
    for t in range(z.shape[1]):
        past, now = z[0, :t], z[0, t]
        after = past[1:][past[:-1] == past[-1]] if t else past
        seen = [np.bincount(after, minlength=2) + 0.5]
        for k in keep[1:]:
            seen.append(np.bincount(past, k ** np.arange(t)[::-1], 2) + 0.5)
        log_q += [np.log(s[now] / s.sum()) for s in seen]
    iid = 3 * np.log(3 / 7) + 4 * np.log(4 / 7)
    assert log_order(z, 2)[0, -1] == pytest.approx(np.log(np.exp(log_q).mean()) - iid)


def test_what_each_test_sees():
    context = np.array([0, 1, 1, 0, 1, 0, 0, 1])
    sticky = bet(rules.Sticky(0.1), context, key=jax.random.key(0), steps=300, streams=20)
    assert sticky.table.loc["martingale", "alarms"] == 1.0 and sticky.table.loc["martingale", "median_step"] < 200
    at = sticky.alarm("martingale").astype(int)
    log_e = sticky.log_e["martingale"]
    assert (log_e[np.arange(20), at - 1] >= np.log(20)).all() and (log_e[np.arange(20), at - 2] < np.log(20)).all()
    p = sticky.p_values("martingale")
    assert (np.diff(p) <= 0).all() and (p[np.arange(20), at - 1] <= 0.05).all()
    average = bet(rules.EWMA(0.1), context, key=jax.random.key(0), steps=300, streams=20).table
    assert average.loc["order", "alarms"] > 0.5 and average.loc["martingale", "alarms"] == 0
    right = bet(BetaBernoulli(), context, key=jax.random.key(0), steps=300, streams=20).table
    assert (right["alarms"] <= 0.1).all() and (right["log10_e_together"].dropna() < np.log10(20)).all()


def test_real_symbols():
    found = bet(NormalInverseGamma(), np.array([0.3, -1.0, 2.0]), key=jax.random.key(0), steps=40, streams=4)
    assert (found.table["alarms"] == 0).all() and found.log_e["order"].shape == (4, 40)


def test_errors():
    with pytest.raises(ValueError, match="at least -1, got values from -2"):
        log_wealth(np.full((3, 1), -2.0))
    with pytest.raises(ValueError, match=r"g must lie in \[0, 1\]"):
        bets_on(np.full((1, 3, 1), 2.0))
    with pytest.raises(ValueError, match="one entry before each draw"):
        bets_on(np.zeros((1, 3, 1)), np.zeros((1, 3, 1)))
    with pytest.raises(ValueError, match=r"symbols 0..1, got .* 0 to 2"):
        bets_on(np.zeros((1, 3, 1)), labels=np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="steps of 2"):
        bet(BetaBernoulli(), np.array([0, 1]), key=jax.random.key(0), steps=1)
