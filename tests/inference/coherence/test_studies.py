"""The published studies on rules whose answer is known."""

import jax
import numpy as np
import pytest

from inference.coherence import InProcess, predictive_paths, run_study
from inference.coherence.studies import CELLS, check_study, symptoms
from inference.reporting.study_figures import study_figure
from ppl_models.in_context import BetaBernoulli, DirichletCategorical, NormalNormal, parse_rule
from ppl_models.in_context.language import Records

KEY = jax.random.key(1)
SMALL = {"contexts": 2, "paths": 60, "sizes": (12,), "replicates": 60}


def test_settings_are_those_of_the_publication():
    coins = [(c.label, c.n, c.N) for c in CELLS["bernoulli"]()]
    assert len(coins) == 12 and ("theta=0.3", 20, 10) in coins and ("theta=0.7", 50, 100) in coins
    assert [(c.n, c.N) for c in CELLS["gaussian"]()][:4] == [(20, 10), (20, 10), (20, 40), (20, 40)]
    (cell,) = CELLS["language"]()
    z = cell.draw(np.random.default_rng(0), 500)
    assert z.shape == (500, 80) and z.max() == 3
    for x, share in ((0, 0.3), (1, 0.7)):
        assert (z % 2)[z // 2 == x].mean() == pytest.approx(share, abs=0.02)


def test_coins():
    told = []
    kept = run_study("bernoulli", BetaBernoulli(), key=KEY, told=lambda *at: told.append(at), **SMALL)
    assert set(kept.table["verdict"]) == {"kept"} and len(kept.table) == 6 and told[-1] == (12, 12)
    assert kept.table["node_rms"].max() < 1e-12 and "keeps the martingale property in 6 settings" in kept.verdict
    lost = run_study("bernoulli", parse_rule("sticky:0.5"), key=KEY, **SMALL | {"contexts": 1})
    assert set(lost.table["verdict"]) == {"rejected"} and lost.table["node_rms"].min() > 0.05
    assert lost.contexts.shape[0] == 6 and {"T1_lower", "T2_inside", "T3_inside"} <= set(lost.contexts)
    branch = lost.tree["theta=0.5,n=12,N=24"]
    assert branch["posterior_predictive"]["z"].shape == (1, 60, 24)
    assert len(study_figure(lost).axes) == 3


def test_draws_alone_have_the_drift_test_only():
    class Silent(InProcess):
        def paths(self, *args):
            found = super().paths(*args)
            return found._replace(p=np.full_like(found.p, np.nan))

    found = run_study("gaussian", Silent(NormalNormal(0.0, 10.0, 1.0)), key=KEY, **SMALL)
    assert found.table["lag_p"].isna().all() and found.table["drift_p"].notna().all()
    assert "published_T1_square_inside" in found.table and len(study_figure(found).axes) == 3


def test_symptoms_of_an_attribute():
    rule, context = Records(BetaBernoulli(1.0, 2.0)), np.array([3, 0, 1, 2, 3])
    paths = predictive_paths(rule, context, steps=30, paths=40, key=KEY)
    part = symptoms(paths, 1)
    assert part.context.tolist() == [1, 0, 1] and part.names == ("z=1",)
    J, L = part.z.shape
    assert J >= 3 and 6 <= L <= 20
    # Given its attribute the symptom follows the Beta rule of that attribute's symptoms alone.
    ones = 2 + np.concatenate([np.zeros((J, 1)), part.z.cumsum(1)], 1)
    np.testing.assert_allclose(part.p[..., 0], (1 + ones) / (3 + 3 + np.arange(L + 1)), rtol=1e-5)
    short = predictive_paths(rule, context, steps=8, paths=40, key=KEY)
    assert symptoms(short, 1) is None


def test_records_of_a_language_model():
    found = run_study("language", Records(), key=KEY, contexts=1, paths=60, sizes=(20,), replicates=60)
    assert [index[0] for index in found.table.index] == ["x=0", "x=1"] and set(found.table["verdict"]) == {"kept"}


def test_scaling():
    found = run_study("scaling", parse_rule("ewma:0.2"), key=KEY, contexts=6, paths=60, sizes=(12, 40, 120))
    assert found.scaling.kind == "finite memory" and set(found.table["verdict"]) == {"finite memory"}
    assert found.contexts.shape[0] == 9 and "published_T3_inside" in found.table
    assert len(study_figure(found).axes) == 2


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="bernoulli is of two symbols, this predictor speaks of real symbols"):
        check_study("bernoulli", NormalNormal())
    with pytest.raises(ValueError, match="four records 2 x . y, this predictor speaks of 3 symbols"):
        check_study("language", DirichletCategorical((1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="three or more different lengths"):
        check_study("scaling", BetaBernoulli(), sizes=(20, 50))
    with pytest.raises(ValueError, match="lengths of at least 12"):
        check_study("bernoulli", BetaBernoulli(), sizes=(10,))
    with pytest.raises(ValueError, match="needs 3 contexts"):
        check_study("scaling", BetaBernoulli(), contexts=2)
